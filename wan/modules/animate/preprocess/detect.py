"""Person detector: its input, and the choice of a person among the boxes it finds."""

from __future__ import annotations

import numpy as np

from wan.geometry import Size
from wan.letterbox import resize_linear

SIDE = 640  # pixels of the detector's input
PERSON = 0  # its class
FAR = 1 << 20  # pixels; boxes farther away are taken for noise

FAINTEST = np.float32(0.05)  # boxes of a lower score are noise
CONFIDENT = 0.3  # a person of a higher score is preferred to a larger one below it
SAME = 0.5  # overlap above which two boxes show one thing
LONG_ENOUGH = 0.4  # of the longest side that was chosen before; slivers are not chosen


def network_input(frame: np.ndarray) -> np.ndarray:
    """uint8 RGB [h, w, 3] -> float32 [1, 3, 640, 640] in 0..1; the shape is not kept."""
    pixels = resize_linear(frame, SIDE, SIDE).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(pixels) / np.float32(255)


def boxes(rows: np.ndarray, size: Size, as_upstream: bool = False) -> np.ndarray:
    """Detector's rows [N, 6] (corners, score, class) -> float64 [n, 6] in whole pixels of the frame, best score first.

    A box that a better one covers is left out; with `as_upstream` also where the better one shows another class.
    """
    rows = rows[np.isfinite(rows).all(-1) & (np.abs(rows[:, :4]) < FAR).all(-1)]
    rows = rows[rows[:, 4] > FAINTEST]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    corners = rows[:, :4] * (np.array(size * 2) / SIDE)
    start, extent = np.trunc(corners[:, :2]), np.trunc(corners[:, 2:] - corners[:, :2])
    found = np.concatenate([start, start + extent, rows[:, 4:]], axis=1)
    kept: list[np.ndarray] = []
    for box in found:
        rivals = [other for other in kept if as_upstream or other[5] == box[5]]
        if not rivals or overlap(box, np.array(rivals)).max() <= SAME:
            kept.append(box)
    return np.array(kept).reshape(-1, 6)


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlaps of a box with others [n, 4...]: shares of the area that both cover together, 0 to 1."""
    start, end = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    common = (end - start).clip(0).prod(-1)
    union = area(box) + area(others) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def area(box: np.ndarray) -> np.ndarray:
    return (box[..., 2:4] - box[..., :2]).clip(0).prod(-1)


def persons(rows: np.ndarray, size: Size, as_upstream: bool = False) -> np.ndarray:
    """List the people of a frame, float64 [n, 5] (corners, score), best score first."""
    found = boxes(rows, size, as_upstream)
    found = found[found[:, 5] == PERSON, :5]
    if not as_upstream:
        found[:, :4] = found[:, :4].clip(0, size * 2)
        found = found[area(found) > 0]
    return found


def person(rows: np.ndarray, size: Size, as_upstream: bool = False) -> np.ndarray:
    """Choose the person of a single frame, float64 [5]: the largest; without a person the whole frame, with score -1.

    People of `CONFIDENT` scores go first, unless `as_upstream`, which takes a huge faint box.
    """
    found = persons(rows, size, as_upstream)
    certain = found[found[:, 4] >= CONFIDENT]
    return largest(certain if len(certain) and not as_upstream else found, size)


def largest(people: np.ndarray, size: Size) -> np.ndarray:
    """Choose the box of the largest area, except slivers; the whole frame with score -1 when there is none."""
    best, most = np.array([0, 0, *size, -1], np.float64), -1.0
    sides = people[:, 2:4] - people[:, :2]
    longest = sides.max(initial=0)
    for box, extent in zip(people, sides, strict=True):
        if extent.prod() > most and extent.max() >= LONG_ENOUGH * longest:
            best, most, longest = box, extent.prod(), extent.max()
    return best

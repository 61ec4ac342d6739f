"""Masks of a person: their growth and blocks, and the clicks and key frames that a segmenter is asked with.

A mask is uint8 [H, W], 1 where the person is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wan.geometry import Size
from wan.modules.animate.preprocess.joints import CERTAIN

CHUNK = 400  # frames that are segmented together, as upstream
FAR = 1e4  # shares of a frame; nothing lies farther outside
Clicks = tuple[np.ndarray, np.ndarray]  # places int32 [n, 2] in pixels, and labels int32 [n], 1 or 0
CLICKED = (0, 1, 2, 5, 8, 11, 10, 13)  # nose, neck, shoulders, hips, ankles


def shaped(mask: np.ndarray, iterations: int = 3, k: int = 7, w_len: int = 1, h_len: int = 1) -> np.ndarray:
    """Grow a mask and fill its blocks; without iterations it stays as it is."""
    return filled(grown(mask, k, iterations), w_len, h_len) if iterations > 0 else mask.copy()


def grown(mask: np.ndarray, k: int, iterations: int) -> np.ndarray:
    """Grow a mask by a square of `k` pixels, `iterations` times. An even square reaches farther right and down."""
    before, after = (k - 1 - k // 2) * iterations, k // 2 * iterations
    result, part = np.zeros_like(mask), around(mask, before, after)
    mask = mask[part]
    for axis in (0, 1):
        mask = spread(spread(mask, -before, axis), after, axis)
    result[part] = mask
    return result


def around(mask: np.ndarray, before: int = 0, after: int = 0) -> tuple[slice, slice]:
    """Find the part of the frame outside which nothing is set, so many pixels larger. It may be empty."""
    (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    tall, wide = (slice(max(place[0] - before, 0), place[-1] + after + 1) for place in (rows, columns))
    return tall, wide


def spread(mask: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """Set the `reach` places behind each that is set, before it for a reach below zero; each step doubles the way."""
    mask, done, way = mask.copy(), 0, min(abs(reach), mask.shape[axis])
    while done < way:
        step = min(done + 1, way - done)
        there, here = [[slice(None)] * 2 for _ in range(2)]
        there[axis], here[axis] = slice(step, None), slice(None, -step)
        there, here = (there, here) if reach > 0 else (here, there)
        mask[tuple(there)] |= mask[tuple(here)].copy()
        done += step
    return mask


def filled(mask: np.ndarray, w_len: int, h_len: int) -> np.ndarray:
    """Fill every cell of a grid that has a pixel of the mask. The grid divides the box around the mask.

    As upstream cells end before the last row and column of the box, and a rest makes a narrower cell.
    """
    (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
    if not len(rows):
        return mask.copy()
    tops, lefts = cells(rows[-1] - rows[0], h_len), cells(columns[-1] - columns[0], w_len)
    result = mask.copy()
    if len(tops) and len(lefts):
        box = mask[rows[0] : rows[-1], columns[0] : columns[-1]]
        touched = np.maximum.reduceat(np.maximum.reduceat(box, tops, 0), lefts, 1)
        high, wide = np.diff([*tops, box.shape[0]]), np.diff([*lefts, box.shape[1]])
        box = touched.repeat(high, 0).repeat(wide, 1)
        result[rows[0] : rows[-1], columns[0] : columns[-1]] |= box
    return result


def cells(length: int, count: int) -> np.ndarray:
    """List the starts of cells along a side. Sides shorter than `count` have cells of a pixel."""
    return np.arange(0, length, max(1, length // count))


def without(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Make the place of the person black, uint8 [H, W, 3]."""
    result, (rows, columns) = frame.copy(), around(mask)
    kept = np.repeat(mask[rows, columns] == 0, 3, axis=1)  # by samples, in rows: much quicker than by pixels
    result.reshape(len(frame), -1)[rows, 3 * columns.start : 3 * columns.stop] *= kept
    return result


def chunks(count: int) -> list[range]:
    """Divide frames into chunks that are segmented one after the other."""
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def key_frames(count: int) -> list[int]:
    """List the frames of a chunk that are clicked: the first one of few, else four to seven, as upstream."""
    return list(range(0, count, count // 4 if count > 4 else count))


def clicks(body: np.ndarray, size: Size, others: Sequence[np.ndarray] = (), as_upstream: bool = False) -> Clicks:
    """Choose the clicks for a body [20, 3] in shares of the frame: places int32 [n, 2], and labels, 1 or 0.

    Joints in the frame that are certain are clicked. The chests of `others`, boxes in pixels, get a label 0, unless the
    person's own joints lie there. `as_upstream` clicks eight joints, wherever they are, and nobody else. There may be
    no click.
    """
    joints = body[list(CLICKED)]
    shares = np.nan_to_num(joints[:, :2]).astype(np.float64).clip(-FAR, FAR)
    places = (shares * size).astype(np.int32)
    if as_upstream:
        return places, np.ones(len(places), np.int32)
    certain = np.isfinite(joints).all(1) & (joints[:, 2] >= CERTAIN)
    places = places[certain & ((places >= 0) & (places < size)).all(1)]
    chests = [((x1 + x2) / 2, y1 + (y2 - y1) * 0.3) for x1, y1, x2, y2, *_ in others if free((x1, y1, x2, y2), places)]
    away = np.array(chests, np.float64).reshape(-1, 2).astype(np.int32)
    away = away[((away >= 0) & (away < size)).all(1)]
    return np.concatenate([places, away]), np.array([1] * len(places) + [0] * len(away), np.int32)


def free(box: tuple[float, ...], places: np.ndarray) -> bool:
    """Tell whether the middle of a box, where another person is clicked, is free of places [n, 2]."""
    x1, y1, x2, y2 = box
    middle, reach = np.array(((x1 + x2) / 2, y1 + (y2 - y1) * 0.3)), np.array((x2 - x1, y2 - y1)) / 4
    return not (np.abs(places - middle) <= reach).all(1).any()

"""Drawing of a figure: limbs, joints and hands in the colours that the generator was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from wan.geometry import Size
from wan.modules.animate.preprocess import rasters
from wan.modules.animate.preprocess.joints import (
    CERTAIN,
    COLOURS,
    HAND_EDGE_COLOURS,
    HAND_EDGES,
    HAND_POINT_COLOUR,
    LIMB_COLOURS,
    LIMBS,
)
from wan.modules.animate.preprocess.rasters import Runs, whole

HAND_POINT_COLOURS = np.array([HAND_POINT_COLOUR] * 21, np.uint8)
Layer = tuple[np.ndarray, Runs]  # the colours of its shapes, which are drawn in order


def draw(body: np.ndarray, hands: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """Draw a figure on black, uint8 [H, W, 3].

    body [20, 3] and each hand [21, 3] are x and y in pixels, and confidence. Points of less than `CERTAIN` and those
    that are not finite are left out. Points may lie outside; a hand is cut at the left and the upper border.
    """
    stroke = max(int(min(size) / 200) - 1, 1)
    layers = [*figure(body, stroke, size)]
    for points in hands:
        layers += hand(points, max(stroke // 2, 1), size)
    return painted(layers, size)


def figure(body: np.ndarray, stroke: int, size: Size) -> Iterator[Layer]:
    """Draw limbs, then joints."""
    is_seen = seen(body)
    number = np.array([limb for limb, ends in enumerate(LIMBS) if is_seen[list(ends)].all()], int)
    points = np.clip(np.nan_to_num(body[:, :2]).astype(np.float64), -rasters.FAR, rasters.FAR)
    start, end = points[np.array(LIMBS)[number]].swapaxes(0, 1)
    x, y = (start - end).T
    half = whole(np.hypot(x, y) / 2)
    axes = np.stack([half, np.full_like(half, stroke)], axis=1)
    degrees = np.degrees(np.arctan2(y, x)).astype(int)
    yield LIMB_COLOURS[number], rasters.ellipses(whole((start + end) / 2), axes, degrees, size)
    yield COLOURS[is_seen], rasters.circles(whole(points[is_seen]), stroke, size[1])


def hand(points: np.ndarray, stroke: int, size: Size) -> Iterator[Layer]:
    """Draw the edges of a hand, then its points."""
    place = whole(np.nan_to_num(points[:, :2]))
    is_seen = seen(points) & (place >= 1).all(-1)
    edges = np.array(HAND_EDGES)
    number = np.flatnonzero(is_seen[edges].all(-1))
    start, end = place[edges[number]].swapaxes(0, 1)
    yield HAND_EDGE_COLOURS[number], rasters.strokes(start, end, stroke, size)
    yield HAND_POINT_COLOURS[is_seen], rasters.circles(place[is_seen], stroke, size[1])


def seen(points: np.ndarray) -> np.ndarray:
    """Tell which points [n, 3] are drawn."""
    return np.isfinite(points).all(-1) & (points[:, 2] >= CERTAIN)


def painted(layers: Sequence[Layer], size: Size) -> np.ndarray:
    """Paint runs of pixels on black, each shape over those before it."""
    width, height = size
    palette, runs = [np.zeros((1, 3), np.uint8)], []
    for colours, found in layers:
        runs.append(found._replace(shape=found.shape + sum(map(len, palette))))
        palette.append(colours)
    shape, row, first, last = rasters.joined(*runs)
    first = first.clip(0)
    run, column = rasters.spread(first, (np.minimum(last, width - 1) - first + 1).clip(0))
    place, shape = row[run] * width + column, shape[run].astype(np.uint8)
    top = np.zeros(width * height, np.uint8)  # the uppermost shape of each pixel
    np.maximum.at(top, place, shape)
    wins = top[place] == shape
    image = np.zeros((width * height, 3), np.uint8)
    image[place[wins]] = np.concatenate(palette)[shape[wins]]
    return image.reshape(height, width, 3)

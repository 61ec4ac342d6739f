"""Shapes as rows of pixels, in integers: those of OpenCV, whose drawings the generator was trained with.

A shape becomes `Runs`, horizontal runs of pixels. Runs may end outside the canvas; there are none in rows outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FAR = 1 << 20  # pixels; places farther away are drawn from here, so that no integer overflows
ONE = 1 << 16
# Sines of whole degrees, with seven digits
SINES = np.round(np.sin(np.radians(np.arange(361))), 7).astype(np.float32).astype(np.float64)
COSINES = SINES[(450 - np.arange(361)) % 360]


class Runs(NamedTuple):
    """Horizontal runs of pixels: the shape that each belongs to, its row, its first and its last column."""

    shape: np.ndarray
    row: np.ndarray
    first: np.ndarray
    last: np.ndarray


def whole(points: np.ndarray) -> np.ndarray:
    """Truncate coordinates to int64, at most `FAR` away."""
    return np.trunc(np.clip(points, -FAR, FAR)).astype(np.int64)


def lines(a: np.ndarray, b: np.ndarray, height: int) -> Runs:
    """Make lines of one pixel between places, int64 [n, 2] each, in rows 0 to `height` - 1. Their ends are set."""
    swap = (b[:, 0] < a[:, 0])[:, None]  # lines are walked from the left; this decides ties
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    across, down = (b - a).T
    step, down = np.where(down < 0, -1, 1), np.abs(down)
    top = np.maximum(np.minimum(a[:, 1], b[:, 1]), 0)
    count = np.maximum(np.minimum(np.maximum(a[:, 1], b[:, 1]), height - 1) - top + 1, 0)
    line, row = spread(top, count)
    across, down, (x, y) = across[line], down[line], a[line].T
    along = (row - y) * step[line]  # rows below or above the start
    # Flat lines have a run in each row, of the columns whose height is nearest to it. Steep ones have one pixel.
    first = -(-(2 * across * along - across + 1) // np.maximum(2 * down, 1))
    last = -(-(2 * across * (along + 1) - across + 1) // np.maximum(2 * down, 1)) - 1
    steep = (2 * across * along + down - 1) // np.maximum(2 * down, 1)
    level, is_steep = down == 0, down > across
    first = np.where(level, 0, np.where(is_steep, steep, first.clip(0)))
    last = np.where(level, across, np.where(is_steep, steep, np.minimum(last, across)))
    return Runs(line, row, x + first, x + last)


def polygons(corners: np.ndarray, height: int) -> Runs:
    """Fill convex polygons, int64 [n, corners, 2], with their outlines."""
    count = corners.shape[1]
    ends = np.roll(corners, -1, axis=1)
    shape, corner = np.nonzero((corners != ends).any(-1) | (np.arange(count) == 0))
    a, b = corners[shape, corner], ends[shape, corner]
    edge, row, first, last = lines(a, b, height)
    place = shape[edge] * height + row
    left = np.full(len(corners) * height, 2 * FAR)
    right = np.full(len(corners) * height, -2 * FAR)
    np.minimum.at(left, place, first)
    np.maximum.at(right, place, np.maximum(last, filled_to(a, b)(edge, row)))
    place = np.flatnonzero(left <= right)
    return Runs(*np.divmod(place, height), left[place], right[place])


def filled_to(a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Compute the column that filling reaches: that of an edge, int64 [n, 2] each, with halves rounded up.

    Outlines round them down. Slopes have 16 fractional bits.
    """
    is_up = (b[:, 1] < a[:, 1])[:, None]
    a, b = np.where(is_up, b, a), np.where(is_up, a, b)
    across, down = (b - a).T
    slope = np.trunc((across * 2 * ONE + down) / np.maximum(2 * down, 1)).astype(np.int64)
    return lambda edge, row: a[edge, 0] + ((slope[edge] * (row - a[edge, 1]) + ONE // 2) >> 16)


def ellipses(centre: np.ndarray, axes: np.ndarray, degrees: np.ndarray, height: int) -> Runs:
    """Fill ellipses, turned by whole degrees; centres and half axes are int64 [n, 2]."""
    x, y = axes[:, :1] * COSINES, axes[:, 1:] * SINES
    cosine, sine = COSINES[degrees % 360][:, None], SINES[degrees % 360][:, None]
    corners = np.stack([centre[:, :1] + x * cosine - y * sine, centre[:, 1:] + x * sine + y * cosine], axis=-1)
    return polygons(np.rint(corners).astype(np.int64), height)


def circles(centre: np.ndarray, radius: int, height: int) -> Runs:
    """Fill circles of one radius around places, int64 [n, 2]."""
    half = half_widths(radius)
    row = centre[:, 1:] + np.arange(-radius, radius + 1)
    shape, line = np.nonzero((row >= 0) & (row < height))
    x = centre[shape, 0]
    return Runs(shape, row[shape, line], x - half[line], x + half[line])


def half_widths(radius: int) -> np.ndarray:
    """Half widths of the rows of a circle, from the top to the bottom, by the midpoint rule."""
    half, error, across, down = np.zeros(2 * radius + 1, np.int64), 0, radius, 0
    while across >= down:
        for row, width in ((down, across), (across, down)):
            half[[radius - row, radius + row]] = np.maximum(half[radius + row], width)
        down += 1
        error += 2 * down - 1
        if error > 0:
            error -= 2 * across - 1
            across -= 1
    return half


def strokes(a: np.ndarray, b: np.ndarray, thickness: int, height: int) -> Runs:
    """Make lines of any thickness with round ends, by the rule of OpenCV: 2 gives three pixels, 3 gives five."""
    if thickness == 1:
        return lines(a, b, height)
    radius = (thickness + 1) // 2
    along = (b - a) / np.maximum(np.linalg.norm(b - a, axis=1, keepdims=True), 1e-9) * radius
    side = np.stack([-along[:, 1], along[:, 0]], axis=1)
    corners = np.rint(np.stack([a + side, a - side, b - side, b + side], axis=1)).astype(np.int64)
    parts = polygons(corners, height), circles(a, radius, height), circles(b, radius, height)
    return Runs(*map(np.concatenate, zip(*parts, strict=True)))


def spread(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the numbers of several ranges: the range that each number belongs to, and the number."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + np.repeat(first - np.cumsum(count) + count, count)

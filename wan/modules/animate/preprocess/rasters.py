"""Shapes as rows of pixels, in integers: those of OpenCV, whose drawings the generator was trained with.

A shape becomes `Runs`, horizontal runs of pixels. Runs may end outside the canvas; there are none in rows outside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wan.geometry import Size

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


def polygons(corners: np.ndarray, size: Size) -> Runs:
    """Fill convex polygons, int64 [n, corners, 2], with their outlines."""
    ends = np.roll(corners, -1, axis=1)
    shape, corner = np.nonzero((corners != ends).any(-1) | (np.arange(corners.shape[1]) == 0))
    shape, a, b = cut(shape, corners[shape, corner], ends[shape, corner], size)
    runs = lines(a, b, size[1])
    return joined(filled(corners * ONE, size[1]), runs._replace(shape=shape[runs.shape]))


def filled(corners: np.ndarray, height: int) -> Runs:
    """Fill polygons, int64 [n, corners, 2] with 16 fractional bits, between their two chains from the top down.

    A chain leaves out corners that are not below all before: rounded corners need not be convex. The last row is empty.
    """
    count = corners.shape[1]
    step, top = np.arange(count), corners[..., 1].argmin(1)[:, None]
    order = np.concatenate([top + step, top - step]) % count
    x, y = np.moveaxis(np.take_along_axis(np.concatenate([corners] * 2), order[..., None], 1), -1, 0)
    row = rounded(y)
    lowest = np.maximum.accumulate(row, axis=1)
    chain, corner = np.nonzero(row[:, 1:] > lowest[:, :-1])
    start, x, ahead = lowest[chain, corner], x[chain, corner], x[chain, corner + 1]
    down = row[chain, corner + 1] - start
    slope = quotient(2 * (ahead - x) + down, 2 * down)
    first = start.clip(0, height)
    side, at = spread(first, (start + down).clip(0, height) - first)
    column = rounded(x[side] + slope[side] * (at - start[side]))
    which, shape = np.divmod(chain[side], len(corners))
    columns = np.zeros((2, len(corners) * height), np.int64)
    columns[which, shape * height + at] = column
    found = np.unique(shape * height + at)
    return Runs(*np.divmod(found, height), *np.sort(columns[:, found], axis=0))


def ellipses(centre: np.ndarray, axes: np.ndarray, degrees: np.ndarray, size: Size) -> Runs:
    """Fill ellipses, turned by whole degrees; centres and half axes are int64 [n, 2]."""
    x, y = axes[:, :1] * COSINES, axes[:, 1:] * SINES
    cosine, sine = COSINES[degrees % 360][:, None], SINES[degrees % 360][:, None]
    corners = np.stack([centre[:, :1] + x * cosine - y * sine, centre[:, 1:] + x * sine + y * cosine], axis=-1)
    return polygons(without_repeats(np.rint(corners).astype(np.int64)), size)


def without_repeats(corners: np.ndarray) -> np.ndarray:
    """Leave out corners that equal the one before; those of shorter polygons repeat their last one at the end."""
    if not len(corners):
        return corners
    differs = (corners[:, 1:] != corners[:, :-1]).any(-1)
    place = np.cumsum(differs, axis=1)
    kept = np.repeat(corners[:, -1:], place[:, -1].max() + 1, axis=1)
    kept[:, 0] = corners[:, 0]
    shape, corner = np.nonzero(differs)
    kept[shape, place[shape, corner]] = corners[shape, corner + 1]
    return kept


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


def strokes(a: np.ndarray, b: np.ndarray, thickness: int, size: Size) -> Runs:
    """Make lines of any thickness with round ends, by the rule of OpenCV: 2 gives three pixels, 3 gives five."""
    height, margin, radius = size[1], thickness if thickness > 1 else 0, (thickness + 1) // 2
    line, a, b = cut(np.arange(len(a)), a + margin, b + margin, (size[0] + 2 * margin, height + 2 * margin))
    a, b = a - margin, b - margin
    if thickness == 1:
        runs = lines(a, b, height)
    else:
        along = (b - a) * (radius * ONE) / np.maximum(np.linalg.norm(b - a, axis=1, keepdims=True), 1)
        side = np.rint(along[:, ::-1] * (1, -1)).astype(np.int64)
        corners = np.stack([a * ONE + side, a * ONE - side, b * ONE - side, b * ONE + side], axis=1)
        runs = joined(bars(corners, size), circles(a, radius, height), circles(b, radius, height))
    return runs._replace(shape=line[runs.shape])


def bars(corners: np.ndarray, size: Size) -> Runs:
    """Fill polygons of four corners, int64 [n, 4, 2] with 16 fractional bits, with their outlines."""
    runs = outlines(*(ends.reshape(-1, 2) for ends in (corners, np.roll(corners, -1, axis=1))), size)
    return joined(filled(corners, size[1]), runs._replace(shape=runs.shape // 4))


def outlines(a: np.ndarray, b: np.ndarray, size: Size) -> Runs:
    """Make lines of one pixel between places with 16 fractional bits, of the pixels inside the canvas."""
    line, a, b = cut(np.arange(len(a)), a, b, (size[0] * ONE, size[1] * ONE))
    major = np.where(np.abs(b - a)[:, 0] > np.abs(b - a)[:, 1], 0, 1)[:, None]  # the axis with a pixel at each step
    a, b = (np.concatenate([np.take_along_axis(end, axis, 1) for axis in (major, 1 - major)], axis=1) for end in (a, b))
    swap = (b[:, 0] < a[:, 0])[:, None]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    length, rise = (b - a).T
    slope = quotient(rise * ONE, length | 1)
    start = rounded(a[:, 0])
    step, place = spread(start, (length >> 16) + 1)
    other = rounded(a[step, 1] + slope[step] * (place - start[step]))
    step = np.concatenate([step, np.arange(len(b))])
    pixel = np.stack([np.concatenate([place, rounded(b[:, 0])]), np.concatenate([other, rounded(b[:, 1])])])
    column, row = np.where(major[step, 0] == 0, pixel, pixel[::-1])
    inside = row < size[1]
    return Runs(line[step][inside], row[inside], column[inside], column[inside])


def cut(line: np.ndarray, a: np.ndarray, b: np.ndarray, size: Size) -> tuple[np.ndarray, ...]:
    """Cut lines at the borders, places truncated towards the moved end, and leave out those outside."""
    if not len(a) or (min(a.min(), b.min()) >= 0 and (np.maximum(a, b).max(0) < size).all()):
        return line, a, b
    a, b = a.copy(), b.copy()
    for axis, last in ((1, size[1] - 1), (0, size[0] - 1)):
        other = 1 - axis
        stays = ((a[:, axis] >= 0) | (b[:, axis] >= 0)) & ((a[:, axis] <= last) | (b[:, axis] <= last))
        line, a, b = line[stays], a[stays], b[stays]
        for end in (a, b):
            border = end[:, axis].clip(0, last)
            share = (border - end[:, axis]).astype(float) * (b - a)[:, other]
            end[:, other] += quotient(share, (b - a)[:, axis])
            end[:, axis] = border
    return line, a, b


def joined(*parts: Runs) -> Runs:
    """Put runs after one another."""
    return Runs(*map(np.concatenate, zip(*parts, strict=True)))


def rounded(places: np.ndarray) -> np.ndarray:
    """Round places with 16 fractional bits, halves up."""
    return (places + ONE // 2) >> 16


def quotient(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Divide whole numbers, truncated towards zero; by zero it is zero."""
    return np.trunc(over / np.where(under == 0, 1, under)).astype(np.int64)


def spread(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the numbers of several ranges: the range that each number belongs to, and the number."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + np.repeat(first - np.cumsum(count) + count, count)

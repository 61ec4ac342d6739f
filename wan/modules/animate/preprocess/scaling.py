"""Resizing by area and of cut-out parts, with the values of OpenCV, which released networks were fed with."""

from __future__ import annotations

import math

import numpy as np

from wan.letterbox import blocks

Rect = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are not part of it


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink uint8 [h, w, C] to [height, width, C]: each pixel is the mean of the area that it covers."""
    rows, columns, channels = image.shape
    flat, wide = image.reshape(rows, -1), np.empty((rows, width * channels), np.float32)
    parts = [
        ((place[:, None] * channels + np.arange(channels)).ravel(), weight.repeat(channels))
        for place, weight in covered(columns, width)
    ]
    for part in blocks(rows):
        wide[part] = sum(flat[part].take(place, 1) * weight for place, weight in parts)
    result = np.empty((height, width * channels), np.uint8)
    is_half = (rows, columns) == (2 * height, 2 * width)  # here OpenCV takes a shorter way, which rounds halves up
    for part in blocks(height):
        mean = sum(wide[place[part]] * weight[part, None] for place, weight in covered(rows, height))
        result[part] = mean + 0.5 if is_half else np.rint(mean)
    return result.reshape(height, width, channels)


def covered(length: int, wanted: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """List the places that each of `wanted` places covers, one after the other, with their shares as float32."""
    scale = length / wanted
    start = np.arange(wanted) * scale
    end = np.minimum(start + scale, length)
    found = []
    for place in np.floor(start).astype(int) + np.arange(math.ceil(scale) + 1)[:, None]:
        share = np.minimum(place + 1, end) - np.maximum(place, start)
        share[share < 1e-3] = 0  # as OpenCV
        if share.any():
            found.append((place.clip(max=length - 1), (share / (end - start)).astype(np.float32)))
    return found


def cut_out(image: np.ndarray, part: Rect, height: int, width: int) -> np.ndarray:
    """Resize a part of a picture, uint8 [h, w, C], to float32 [height, width, C], bilinear; what is outside is black.

    The part may be of any size, and lie outside; memory does not grow with it.
    """
    left, top, right, bottom = part
    result = image
    for axis, start, end, wanted in ((0, top, bottom, height), (1, left, right, width)):
        length = max(1, end - start)
        place = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32).clip(0, length - 1)
        first = np.floor(place).astype(int)
        share = np.expand_dims(place - first.astype(np.float32), (1, 2) if axis == 0 else (0, 2))
        second = np.minimum(first + 1, length - 1)
        result = taken(result, start + first, axis) * (1 - share) + taken(result, start + second, axis) * share
    return result


def taken(image: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Take rows (axis 0) or columns (axis 1) of a picture; those outside are black."""
    inside = (places >= 0) & (places < image.shape[axis])
    found = image.take(np.where(inside, places, 0), axis)
    found[(slice(None),) * axis + (~inside,)] = 0
    return found

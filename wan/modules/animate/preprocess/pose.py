"""Pose estimator: the part of the frame that it sees, its input, and the joints in its heatmaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wan.geometry import Size
from wan.modules.animate.preprocess.scaling import Rect, cut_out

HEIGHT, WIDTH = 256, 192  # pixels of the estimator's input
HEAT_HEIGHT, HEAT_WIDTH = 64, 48
MARGIN = 1.25
SMALLEST = 10  # pixels; a person of a smaller box is looked for in the whole frame
MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # red, green, blue; by number, whatever the order of the channels
STD = np.array((0.229, 0.224, 0.225), np.float32)
SIGMA, RADIUS = 2.0, 5  # heatmap pixels, of the blur before a maximum is refined


@dataclass(frozen=True)
class Crop:
    """Part of a frame in the shape of the estimator's input. Centre and size are (x, y) in pixels."""

    centre: tuple[float, float]
    size: tuple[float, float]

    @property
    def part(self) -> Rect:
        (x, y), (width, height) = self.centre, self.size
        return round(x - width / 2), round(y - height / 2), round(x + width / 2), round(y + height / 2)


def crop_around(box: np.ndarray, size: Size) -> Crop:
    """Frame a person's box [5] (corners, score) with a margin; without a person, or a tiny one, the whole frame."""
    x1, y1, x2, y2, score = box.tolist()
    if not np.isfinite(box).all() or score <= 0 or min(x2 - x1, y2 - y1) < SMALLEST:
        x1, y1, (x2, y2) = 0, 0, size
    height = MARGIN * max((x2 - x1) * HEIGHT / WIDTH, y2 - y1)
    return Crop(((x1 + x2) / 2, (y1 + y2) / 2), (height * WIDTH / HEIGHT, height))


def network_input(frame: np.ndarray, crop: Crop, order: str = "bgr") -> np.ndarray:
    """uint8 RGB [h, w, 3] -> normalised float32 [1, 3, 256, 192].

    `order`: "bgr" gives the network blue first, as the released system does by mistake; "rgb" is what it was made for.
    """
    pixels = cut_out(frame, crop.part, HEIGHT, WIDTH)
    pixels = pixels[..., ::-1] if order == "bgr" else pixels
    return np.ascontiguousarray(((pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)[None])


def joints_of(heatmaps: np.ndarray, crop: Crop) -> np.ndarray:
    """Heatmaps float32 [K, 64, 48] -> float32 [K, 3]: x and y in pixels of the frame, and confidence."""
    found = peaks(heatmaps).astype(np.float64)
    scale = np.array(crop.size) / (HEAT_WIDTH, HEAT_HEIGHT)
    found[:, :2] = found[:, :2] * scale + crop.centre - np.array(crop.size) / 2
    return found.astype(np.float32)


def peaks(heatmaps: np.ndarray) -> np.ndarray:
    """Find the maximum of each heatmap [K, 64, 48], refined to parts of a pixel: float32 [K, 3], x, y and its value.

    The logarithm of the blurred map is taken for a parabola (distribution-aware decoding, arXiv:1910.06278). A map
    without a positive value gives (-1, -1).
    """
    heatmaps = np.nan_to_num(heatmaps, nan=-1.0)
    top = heatmaps.max((1, 2))
    y, x = np.divmod(heatmaps.reshape(len(heatmaps), -1).argmax(1), HEAT_WIDTH)
    found = np.stack([x, y, top], axis=1).astype(np.float32)
    inner = (top > 0) & (x > 1) & (x < HEAT_WIDTH - 2) & (y > 1) & (y < HEAT_HEIGHT - 2)
    found[inner, :2] += steps(heatmaps[inner], x[inner], y[inner])
    found[top <= 0, :2] = -1
    return found


def steps(heatmaps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute Newton's step [K, 2] from the maximum of each map towards that of its blurred logarithm."""
    blur = blurred(heatmaps)
    blur *= (heatmaps.max((1, 2)) / blur.max((1, 2)))[:, None, None]

    def here(right: int, down: int) -> np.ndarray:
        return np.log(np.maximum(blur[np.arange(len(x)), y + down, x + right], 1e-10)).astype(np.float64)

    gx, gy = (here(1, 0) - here(-1, 0)) / 2, (here(0, 1) - here(0, -1)) / 2
    gxx = (here(2, 0) - 2 * here(0, 0) + here(-2, 0)) / 4
    gyy = (here(0, 2) - 2 * here(0, 0) + here(0, -2)) / 4
    gxy = (here(1, 1) - here(1, -1) - here(-1, 1) + here(-1, -1)) / 4
    determinant = gxx * gyy - gxy**2
    safe = np.where(determinant == 0, 1, determinant)
    step = np.stack([gxy * gy - gyy * gx, gxy * gx - gxx * gy], axis=1) / safe[:, None]
    return np.where((determinant != 0)[:, None], step, 0)


def blurred(heatmaps: np.ndarray) -> np.ndarray:
    """Blur maps by a Gaussian of 11 pixels; around them is zero."""
    rows, columns = (gaussian(length) for length in heatmaps.shape[1:])
    return rows @ heatmaps @ columns


def gaussian(length: int) -> np.ndarray:
    """Matrix [length, length] of a blur along an axis."""
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    weight = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
    blur = np.exp(-(distance**2) / (2 * SIGMA**2)) / weight.sum()
    return np.where(distance <= RADIUS, blur, 0).astype(np.float32)

"""Frames of the driving video: which of them are taken, and the sizes that they and the picture get."""

from __future__ import annotations

import logging
import math

import numpy as np

from wan.geometry import Size
from wan.letterbox import letterbox, resize_linear
from wan.modules.animate.preprocess.scaling import resize_area

log = logging.getLogger(__name__)

STEP = 16  # pixels; sides are multiples of it


def size_of_area(size: Size, area: int) -> Size:
    """Compute the size of about `area` pixels with the shape of `size`, rounded down to multiples of `STEP`."""
    width, height = size
    high = math.sqrt(area / (width / height))
    return fitting(area / high), fitting(high)


def fitting(side: float) -> int:
    """Round a side down to a multiple of `STEP`, at least one."""
    return max(STEP, int(side // STEP * STEP))


def resize_to_area(image: np.ndarray, area: int) -> np.ndarray:
    """Resize a picture, uint8 [h, w, 3], to about `area` pixels: averaged when it shrinks, else bilinear."""
    rows, columns = image.shape[:2]
    width, height = size_of_area((columns, rows), area)
    return letterbox(image, height, width, resize_area if width * height < columns * rows else resize_linear)


def select(count: int, rate: float, fps: float, end: float) -> list[int]:
    """List the numbers of the frames that are taken at `fps`, of `count` frames at `rate` that end after `end` seconds.

    `fps` -1 takes the rate of the video. Frames are dropped or repeated, never blended. A count that differs from
    duration times rate by more than a tenth is taken for a wrong header, as upstream does. The list may be empty.
    """
    by_time = int(end * rate + 0.5)
    if abs(count - by_time) / count > 0.1:
        log.warning("the video has %d frames, and its duration and rate tell %d; the latter is used", count, by_time)
        count = min(by_time, count) or count
    fps = rate if fps == -1 else fps
    return [min(max(round(number / fps * rate), 0), count - 1) for number in range(int(count / rate * fps))]

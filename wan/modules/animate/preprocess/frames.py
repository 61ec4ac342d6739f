"""Frames of the driving video: which of them are taken, and the sizes that they and the picture get."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

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
    if (width, height) == (columns, rows):
        return image
    return letterbox(image, height, width, resize_area if width * height < columns * rows else resize_linear)


def select_by_time(times: Sequence[float], end: float, fps: float) -> list[int]:
    """List the numbers of the frames that are taken at `fps`: those nearest in time, at least one.

    times: those of all frames in seconds, rising, at any rate; `end`: the end of the last one. At a constant rate these
    are the frames of `select`.
    """
    count = max(1, int((end - times[0]) * fps + 1e-6))
    places = np.interp(times[0] + np.arange(count) / fps, times, np.arange(len(times)))
    return np.rint(places.round(6)).astype(int).tolist()


def select(count: int, rate: float, fps: float, end: float) -> list[int]:
    """List the frames that upstream takes at `fps`, of `count` frames at a mean `rate` that end after `end` seconds.

    `fps` -1 takes the rate of the video. Frames are dropped or repeated, never blended. A count that differs from
    duration times rate by more than a tenth is taken for a wrong header. The list may be empty.
    """
    by_time = int(end * rate + 0.5)
    last = count - 1
    if abs(count - by_time) / count > 0.1:
        log.warning("the video has %d frames, and its duration and rate tell %d; the latter is used", count, by_time)
        count, last = by_time, min(last, max(by_time - 1, 0))
    fps = rate if fps == -1 else fps
    return [min(max(round(number / fps * rate), 0), last) for number in range(int(count / rate * fps))]

"""Frames of a video that guide another one: chosen by time, placed in its size, read as clips need them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from wan import media
from wan.framing import covering_size, letterbox_borders, short_side_size
from wan.geometry import Size
from wan.media import from_uint8

Frame = tuple[Fraction, np.ndarray]


def whole_stride(fps: float, wanted_fps: float) -> int:
    """Number of frames that upstream steps on by, at least 1: the ratio of the rates, rounded."""
    return max(1, round(fps / wanted_fps))


class GuidingFrames:
    """Frames of a video file at `fps`, placed in `size` (width, height). The file is read on as clips ask for more.

    A frame is the nearest in time, and the video is covered and cut. With `as_upstream` frames are whole strides apart,
    and borders are grey. Frames past the end are black, as in the training of the released model.
    """

    def __init__(self, path: str | Path, size: Size, fps: float = 16, as_upstream: bool = False):
        self.path, self.size, self.fps, self.as_upstream = path, size, Fraction(fps), as_upstream
        self._start()

    def clip(self, first_frame: int, num_frames: int) -> Tensor:
        """Return frames [3, num_frames, H, W], float32 in [-1, 1]; the first one stands for those before it."""
        numbers = [max(0, number) for number in range(first_frame, first_frame + num_frames)]
        black = torch.full((3, self.size[1], self.size[0]), -1.0)
        frames = torch.empty(3, num_frames, *black.shape[1:])
        for place, number in enumerate(numbers):
            if place and number == numbers[place - 1]:
                frames[:, place] = frames[:, place - 1]
                continue
            pixels = self._at(number / self.fps)
            frames[:, place] = black if pixels is None else self.placed(pixels)
        return frames

    def placed(self, pixels: np.ndarray) -> Tensor:
        """uint8 [h, w, 3] -> [3, H, W] in [-1, 1]: scaled (bilinear, antialiased), and cut to the size."""
        height, width = pixels.shape[:2]
        rule = short_side_size((width, height), min(self.size)) if self.as_upstream else None
        wide, high = rule or covering_size((width, height), self.size)
        image = from_uint8(torch.from_numpy(pixels.copy()))[None]
        image = interpolate(image, (high, wide), mode="bilinear", antialias=True, align_corners=False)[0]
        left, top, right, bottom = letterbox_borders((wide, high), self.size)
        image = pad(image, (left, right, top, bottom))
        left, top = (round((side - wanted) / 2) for side, wanted in zip(image.shape[:0:-1], self.size, strict=True))
        return image[:, top : top + self.size[1], left : left + self.size[0]]

    def _start(self) -> None:
        self._frames = self._timed()
        self._here, self._next, self._gap = next(self._frames), next(self._frames, None), 1 / self.fps

    def _timed(self) -> Iterator[Frame]:
        """Yield the frames of the file at their times; as upstream, at those of whole strides."""
        frames = media.upright_frames(self.path)
        if not self.as_upstream:
            return frames
        stride = whole_stride(media.frame_rate(self.path), self.fps)
        return ((number / (stride * self.fps), pixels) for number, (_, pixels) in enumerate(frames))

    def _at(self, time: Fraction) -> np.ndarray | None:
        """Find the frame nearest in time, the earlier one of two; None past the end of the last one."""
        if time < self._here[0]:
            self._start()
        while self._next is not None and self._next[0] - time < abs(time - self._here[0]):
            self._gap = self._next[0] - self._here[0] or self._gap
            self._here, self._next = self._next, next(self._frames, None)
        return self._here[1] if self._next is not None or time < self._here[0] + self._gap else None

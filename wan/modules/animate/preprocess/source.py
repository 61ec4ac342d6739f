"""Driving video: the frames that are taken from it, decoded forwards, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from wan import media
from wan.files import shown
from wan.geometry import Size
from wan.inputs import Film
from wan.modules.animate.preprocess.frames import select, select_by_time
from wan.performance import MOST_FRAMES
from wan.values import called, rate, real

CLOSE = 1e-6  # seconds, which are no difference
SOURCE_RATE = -1  # a rate that stands for that of the video


@dataclass(frozen=True)
class Driving:
    """Frames of a video file: their numbers, rising, perhaps repeated; the rate they are shown at; the part in seconds.

    `size` is (width, height), upright.
    """

    film: Film
    numbers: tuple[int, ...]
    rate: Fraction
    start: float
    length: float

    @property
    def size(self) -> Size:
        return self.film.size

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(
        cls,
        path: str,
        fps: Fraction | int = 30,
        start: float = 0,
        length: float | None = None,
        as_upstream: bool = False,
    ) -> Driving:
        """Choose the frames of a file: those nearest in time to `fps` a second, -1 for the rate of the video.

        `as_upstream` steps through them by the mean rate. Raises FileNotFoundError, and ValueError that names the fault
        and the cure.
        """
        film = Film.of(path, "video_path")
        times, end = media.frame_times(path)
        mean = rate("fps", media.frame_rate(path))
        wanted = mean if fps == SOURCE_RATE else rate("fps", fps)
        if wanted <= 0:
            raise ValueError(f"{called('fps')} must be above 0, or -1 for the rate of the video, got {wanted}; try 30")
        media.check_fps(wanted)
        start = real("start", start)
        if not 0 <= start < end:
            raise ValueError(
                f"{called('start')} must lie in the video, which has {float(end):g} s, got {start:g}; try 0"
            )
        if length is not None and real("len", length) <= 0:
            raise ValueError(f"{called('len')} must be above 0 seconds, got {length:g}; leave it out for all")
        stop = float(end) if length is None else min(float(end), start + length)
        if (count := int((stop - start) * wanted)) > MOST_FRAMES:
            raise ValueError(
                f"{shown(path)} has {count} frames at {float(wanted):g} a second, and at most {MOST_FRAMES} are taken; "
                f"choose a smaller {called('fps')}, or a part of the video"
            )
        first = sum(time < start - CLOSE for time in times)
        inside = [float(time) for time in times[first:] if time < stop - CLOSE] or [float(times[-1])]
        first = min(first, len(times) - 1)
        if as_upstream:
            numbers = select(len(inside), float(mean), float(wanted), stop - start)
            if not numbers:
                raise ValueError(f"{shown(path)} is too short for a frame at {float(wanted):g} frames a second")
        else:
            numbers = select_by_time(inside, stop, float(wanted))
        return cls(film, tuple(first + number for number in numbers), wanted, start, stop - start)

    def frames(self) -> Iterator[np.ndarray]:
        """Decode the frames, uint8 [H, W, 3] RGB. Raises ValueError for a file that ends early, or changes its size."""
        wanted = iter(self.numbers)
        number, count = next(wanted, None), 0
        for count, (_, frame) in enumerate(media.upright_frames(self.film.path), 1):
            while number == count - 1:
                if frame.shape[1::-1] != self.size:
                    raise ValueError(
                        f"{shown(self.film.path)} changes its size at frame {number}; convert it to one size"
                    )
                yield np.ascontiguousarray(frame)
                number = next(wanted, None)
            if number is None:
                return
        raise ValueError(
            f"{shown(self.film.path)} ends after {count} frames, and frame {number} is needed; copy it again"
        )

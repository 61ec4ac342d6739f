"""A performance that drives a character: videos of pose and face, and of the surroundings, read as clips need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from wan import media


class Frames(Protocol):
    """Frames of a video by their numbers."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> np.ndarray:
        """Return frames, uint8 [n, H, W, 3], in the order of `numbers`."""


@dataclass(frozen=True)
class Performance:
    """Frames of all videos, and the picture of the character; `background` and `mask` replace a person by it.

    `pose` has the size and the number of frames of the video that is made. White in `mask` is the place of the person.
    """

    pose: Frames
    face: Frames
    reference: np.ndarray  # uint8 [h, w, 3], of any size
    background: Frames | None = None
    mask: Frames | None = None


class FileFrames:
    """Frames of a video file of `count` frames. It is decoded forwards; the frames of the last request are kept."""

    def __init__(self, path: str | Path, count: int):
        self.path, self.count = path, count
        self._kept: dict[int, np.ndarray] = {}
        self._restart()

    def __len__(self) -> int:
        return self.count

    def take(self, numbers: Sequence[int]) -> np.ndarray:
        """Return frames, uint8 [n, H, W, 3]. Raises ValueError when the file ends before one of them."""
        wanted = set(numbers)
        found = {number: frame for number, frame in self._kept.items() if number in wanted}
        missing = sorted(wanted - found.keys())
        if missing and missing[0] < self._next:
            self._restart()
        for number in missing:
            while self._next <= number:
                frame = next(self._frames, None)
                if frame is None:
                    raise ValueError(f"{self.path} ends after {self._next} frames, and {self.count} were counted")
                self._next += 1
            found[number] = frame[1]
        self._kept = found
        return np.stack([found[number] for number in numbers])

    def _restart(self) -> None:
        self._frames, self._next = media.upright_frames(self.path), 0

"""Plan of a run of the stage: its settings as the flags say, and the sizes that follow from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from wan.containers import LONGEST_SIDE, MOST_PIXELS
from wan.geometry import Size, format_size
from wan.inputs import Picture
from wan.modules.animate.preprocess.frames import resize_to_area, size_of_area
from wan.modules.animate.preprocess.people import Choice
from wan.modules.animate.preprocess.source import Driving
from wan.values import called, real

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the stage, as the flags of the command say. `area` is in pixels."""

    video: str
    picture: str
    folder: Path
    area: int = 1280 * 720
    fps: Fraction | int = 30
    start: float = 0.0
    length: float | None = None
    retargets: bool = False
    edits: bool = False
    replaces: bool = False
    iterations: int = 3
    k: int = 7
    w_len: int = 1
    h_len: int = 1
    person: Choice = None
    as_upstream: bool = False
    smooth: float = 0.0  # seconds
    preview: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError for values that cannot be, and log those that have no effect."""
        for name, value in (("k", self.k), ("w_len", self.w_len), ("h_len", self.h_len)):
            if value < 1:
                raise ValueError(f"{called(name)} must be at least 1, got {value}; try {getattr(Settings, name)}")
        if self.iterations < 0:
            raise ValueError(f"{called('iterations')} must be 0 or more, got {self.iterations}; try 3")
        if not 0 <= real("smooth", self.smooth) <= 1:
            raise ValueError(f"{called('smooth')} must be 0 to 1 second, got {self.smooth:g}; try 0.1")
        if self.area < 16 * 16:
            raise ValueError(f"{called('resolution_area')} has {self.area} pixels; try 1280 720")
        if isinstance(self.person, int) and self.person < 1:
            raise ValueError(f"{called('person')} counts from 1, from left to right, got {self.person}")
        if self.edits and not self.retargets:
            raise ValueError(f"{called('use_flux')} needs {called('retarget_flag')}; add it, or leave it out")
        if self.retargets and self.replaces:
            log.warning(
                "%s has no effect with %s: the character stands where the person stands",
                called("retarget_flag"),
                called("replace_flag"),
            )
        if not self.replaces:
            changed = [
                name for name in ("iterations", "k", "w_len", "h_len") if getattr(self, name) != getattr(Settings, name)
            ]
            if changed:
                names = ", ".join(map(called, changed))
                log.warning("%s has no effect without %s", names, called("replace_flag"))

    @property
    def has_retargeting(self) -> bool:
        return self.retargets and not self.replaces


@dataclass(frozen=True)
class Plan:
    """Sizes of a run: the picture gets the area that was asked, and in replacement the frames do."""

    settings: Settings
    driving: Driving
    character: Picture

    @classmethod
    def of(cls, settings: Settings) -> Plan:
        """Read the headers of the video, and the picture. Raises FileNotFoundError, and ValueError as `check`."""
        driving = Driving.of(settings.video, settings.fps, settings.start, settings.length, settings.as_upstream)
        plan = cls(settings, driving, Picture.of(settings.picture, "refer_path"))
        plan.check()
        return plan

    def check(self) -> None:
        """Refuse sizes that no video can have, and a person outside the video. Raises ValueError."""
        width, height = self.pose_size
        person, within = self.settings.person, self.driving.size
        if isinstance(person, tuple) and not all(0 <= place < side for place, side in zip(person, within, strict=True)):
            raise ValueError(
                f"{called('person')} is a point of the first frame, which has {format_size(within)} pixels, got "
                f"{person[0]:g},{person[1]:g}"
            )
        if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
            raise ValueError(
                f"a video of {format_size((width, height))} cannot be written: H.264 has at most {LONGEST_SIDE} pixels "
                f"in a side, and {MOST_PIXELS} in all; choose a smaller {called('resolution_area')}, or crop "
                f"{called('video_path' if self.settings.replaces else 'refer_path')}"
            )

    @property
    def person(self) -> Choice:
        """Choice of the person, a point in pixels of `size`; the user gives it in those of the video."""
        person = self.settings.person
        if not isinstance(person, tuple):
            return person
        x, y = (place * new / old for place, new, old in zip(person, self.size, self.driving.size, strict=True))
        return x, y

    @property
    def picture(self) -> np.ndarray:
        """Picture of the character in the size of the pose video, uint8 [H, W, 3]."""
        return resize_to_area(np.array(self.character.pixels), self.settings.area)

    @property
    def size(self) -> Size:
        """Size of the frames."""
        return size_of_area(self.driving.size, self.settings.area) if self.settings.replaces else self.driving.size

    @property
    def pose_size(self) -> Size:
        """Size of the pose video, and of the video that is made."""
        return self.size if self.settings.replaces else size_of_area(self.character.size, self.settings.area)

    def frames(self) -> Iterator[np.ndarray]:
        """Decode the frames, uint8 [H, W, 3]."""
        for frame in self.driving.frames():
            yield resize_to_area(frame, self.settings.area) if self.settings.replaces else frame

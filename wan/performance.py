"""Performance that drives a character: a folder of videos of pose and face, and of the surroundings.

Preprocessing writes such a folder. Its videos are read as clips need them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wan import geometry, images, media
from wan.files import read_json, shown
from wan.geometry import Size, format_size
from wan.inputs import Film, Input, Sound, file_digest, stored_path
from wan.values import called, dictionary, parse_rate, quoted, rate, text, whole

log = logging.getLogger(__name__)

POSE, FACE, REFERENCE = "src_pose.mp4", "src_face.mp4", "src_ref.png"
BACKGROUND, MASK = "src_bg.mp4", "src_mask.mp4"
DESCRIPTION = "meta.json"
MOST_FRAMES = 1_000_000  # nine hours; of a wrong number would come as many clips
WHITE = 128  # level from which on a mask is set
BETWEEN = 0.3  # share of pixels that are neither black nor white, which no mask has, however soft its edges
MAX_DESCRIPTION_BYTES = 64_000_000  # it lists boxes and key points of every frame


class Frames(Protocol):
    """Frames of a video by their numbers."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> np.ndarray:
        """Return frames, uint8 [n, H, W, 3], in the order of `numbers`."""


@dataclass(frozen=True)
class Footage:
    """Frames of all videos, and the picture of the character; `background` and `mask` replace a person by it.

    `pose` has the size and the number of frames of the video that is made. White in `mask` is the place of the person.
    """

    pose: Frames
    face: Frames
    reference: np.ndarray  # uint8 [h, w, 3], of any size
    background: Frames | None = None
    mask: Frames | None = None

    def fresh(self) -> Footage:
        """Return the same footage, for a reader that goes its own way."""
        return self


class FileFrames:
    """Frames of a video file. It is decoded forwards; the frames of the last request are kept."""

    def __init__(self, path: str | Path):
        self.film = Film.of(path)
        self._kept: dict[int, np.ndarray] = {}
        self._restart()

    def __len__(self) -> int:
        return self.film.frames

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
                    raise ValueError(
                        f"{shown(self.film.path)} ends after {self._next} frames, and {len(self)} were counted"
                    )
                self._next += 1
                if frame[1].shape[1::-1] != self.film.size:
                    raise ValueError(
                        f"{shown(self.film.path)} changes its size at frame {self._next - 1}; make it again in one size"
                    )
            found[number] = frame[1]
        self._kept = found
        return np.stack([found[number] for number in numbers])

    def _restart(self) -> None:
        self._frames, self._next = media.upright_frames(self.film.path), 0


class FolderFootage:
    """`Footage` of a folder. A file is opened when it is asked for; FileNotFoundError and ValueError name its fault."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fresh(self) -> FolderFootage:
        """Return the same footage, for a reader that goes its own way: a file is only read forwards."""
        return FolderFootage(self.folder)

    @cached_property
    def pose(self) -> FileFrames:
        return FileFrames(self.folder / POSE)

    @cached_property
    def face(self) -> FileFrames:
        return FileFrames(self.folder / FACE)

    @cached_property
    def reference(self) -> np.ndarray:
        return np.asarray(images.read_image(self.folder / REFERENCE))

    @cached_property
    def background(self) -> FileFrames:
        return FileFrames(self._needed(BACKGROUND))

    @cached_property
    def mask(self) -> FileFrames:
        return FileFrames(self._needed(MASK))

    def _needed(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{shown(self.folder)} has no {name}, which {called('replace_flag')} needs; preprocess the video with "
                f"--replace_flag, or leave {called('replace_flag')} out"
            )
        return path


@dataclass(frozen=True)
class Performance(Input):
    """Performance as an input: its folder, the size, number and rate of its frames, and a hash of its files.

    `footage` is its content, None in a request that was stored. `path` is None for footage from memory.
    """

    noun = "folder of the performance"
    place = "DIR"

    path: str | None
    size: Size
    frames: int
    rate: Fraction
    sha256: str
    footage: Any = field(default=None, compare=False, repr=False)

    @cached_property
    def sound(self) -> Sound | None:
        """Sound that the description names. Raises ValueError for one that cannot be read."""
        return described_sound(Path(self.path)) if self.path and self.footage is not None else None

    @classmethod
    def of(cls, value: Any, name: str = "performance") -> Performance:
        """Open a folder, or take `Footage`, or a performance. Raises FileNotFoundError or ValueError."""
        if isinstance(value, Performance):
            return value
        if isinstance(value, Footage):
            height, width = value.pose.take([0]).shape[1:3]
            return cls(None, (width, height), len(value.pose), Fraction(30), "", value)
        if not isinstance(value, (str, Path)) or not str(value).strip():
            raise ValueError(f"{called(name)} is the folder that preprocessing wrote, got {quoted(value)}")
        folder = Path(value)
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "is not there"
            raise FileNotFoundError(f"{shown(folder)} {what}; {called(name)} is the folder that preprocessing wrote")
        if missing := [file for file in (POSE, FACE, REFERENCE) if not (folder / file).is_file()]:
            raise FileNotFoundError(
                f"{shown(folder)} has no {' and no '.join(missing)}; {called(name)} is the folder that preprocessing "
                "wrote"
            )
        footage = FolderFootage(folder)
        film, _, _ = footage.pose.film, footage.face, footage.reference
        return cls(
            str(folder), film.size, film.frames, rate("fps", media.frame_rate(film.path)), _digest(folder), footage
        )

    def check(self, replaces: bool, may_differ: bool) -> None:
        """Refuse videos that do not belong together, and sizes that no model makes.

        `replaces`: the background and the mask are used. `may_differ`: videos may be longer or shorter than the pose.
        Raises FileNotFoundError and ValueError that name the file, the fault and the cure.
        """
        if any(side % 16 for side in self.size):
            near = (max(16, round(side / 16) * 16) for side in self.size)
            raise ValueError(
                f"{self._named(POSE)} has {format_size(self.size)} pixels, and both sides must be multiples of 16; "
                f"preprocess the video again, or scale it to {format_size(tuple(near))}"
            )
        if self.frames > MOST_FRAMES:
            raise ValueError(
                f"{self._named(POSE)} has {self.frames} frames, and at most {MOST_FRAMES} are taken; cut it"
            )
        if self.footage is None:  # it is to be made
            return
        others = {FACE: self.footage.face}
        if replaces:
            others |= {BACKGROUND: self.footage.background, MASK: self.footage.mask}
        for name, frames in others.items():
            size = frames.take([0]).shape[2:0:-1]
            if name != FACE and size != self.size:
                raise ValueError(
                    f"{self._named(name)} has {format_size(size)} pixels, and {POSE} {format_size(self.size)}; they "
                    "are made together: preprocess the video again"
                )
            if name == FACE and size[0] != size[1]:
                raise ValueError(
                    f"{self._named(name)} has {format_size(size)} pixels, and a face must be square, as 512*512; "
                    "preprocess the video again"
                )
            if len(frames) != self.frames and not may_differ:
                raise ValueError(
                    f"{self._named(name)} has {len(frames)} frames, and {POSE} {self.frames}; preprocess the video "
                    f"again (with {called('as_upstream')} a shorter one runs back and forth)"
                )
        if replaces and (share := _share_between(self.footage.mask.take([0])[0])) > BETWEEN:
            raise ValueError(
                f"{self._named(MASK)} is neither black nor white in {share:.0%} of its first frame; is it the file of "
                f"something else, for example {BACKGROUND}? Preprocess the video again"
            )
        if replaces and not any(frame.max() >= WHITE for frame in _each(self.footage.mask)):
            raise ValueError(
                f"{self._named(MASK)} is black in all {len(self.footage.mask)} frames: nobody would be replaced; "
                f"preprocess the video again, or leave {called('replace_flag')} out"
            )

    def __str__(self) -> str:
        return f"{format_size(self.size)}, {self.frames} frames at {float(self.rate):g} fps"

    def to_dict(self) -> dict[str, Any]:
        values = {"path": self.path, "size": format_size(self.size), "frames": self.frames}
        return values | {"rate": str(self.rate), "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> Performance:
        """Make the performance of a `to_dict`, checked. Raises ValueError."""
        names = ("path", "size", "frames", "rate", "sha256")
        path, size, frames, fps, digits = (dictionary(cls.noun, values).get(name) for name in names)
        if not 1 <= whole("frames", frames) <= MOST_FRAMES:
            raise ValueError(f"frames of the performance must be 1 to {MOST_FRAMES}, got {quoted(frames)}")
        size = geometry.parse_size(text("size", size))
        return cls(stored_path(path, cls.noun), size, frames, parse_rate(text("rate", fps)), text("sha256", digits))

    def _named(self, name: str) -> str:
        return shown(Path(self.path, name)) if self.path else name


def described_sound(folder: Path) -> Sound | None:
    """Open the sound that a folder's description names; None without one. Raises ValueError for a wrong description.

    The description has `sound`: a `path`, seen from the folder, and the `start` and `length` of the part in seconds.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        return None
    sound = dictionary(shown(file), read_json(file, MAX_DESCRIPTION_BYTES)).get("sound")
    if sound is None:
        return None
    noun = f"sound of {shown(file)}"
    if (path := stored_path(dictionary(noun, sound).get("path"), noun)) is None:
        return None
    path = folder / path
    if not os.path.isfile(path):  # Path.is_file raises for names that no file can have
        log.warning(
            "%s names the sound %s, which is not there; the video has none without --sound", shown(file), shown(path)
        )
        return None
    start, length = sound.get("start"), sound.get("length")
    names = f"start of {shown(file)}", f"length of {shown(file)}"
    return Sound.of(path).part(0 if start is None else start, length, names)


def _share_between(mask: np.ndarray) -> float:
    """Share of the pixels of a mask that are neither dark nor light, beside its soft edges."""
    return float(((mask.min(-1) < 192) & (mask.max(-1) > 64)).mean())


def _each(frames: Frames) -> Any:
    return (frames.take([number])[0] for number in range(len(frames)))


def _digest(folder: Path) -> str:
    """Hash the files of a performance."""
    files = (folder / name for name in (POSE, FACE, REFERENCE, BACKGROUND, MASK))
    lines = "".join(f"{file.name} {file_digest(str(file))}\n" for file in files if file.is_file())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]

"""Inputs from which a video is made besides text: read, checked, hashed, and stored without content."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from wan import geometry
from wan.files import shown
from wan.geometry import Size, format_size
from wan.values import called, dictionary, quoted, real, text, whole

LONGEST_PATH = 4096
SPEECH_RATE = 16_000  # Hz, of speech encoders
PART = ("audio_start", "audio_len")  # fields of a request
LONGEST_SOUND = 6 * 3600  # seconds, of 64 kB each in memory


class Input:
    """Input of a video. A field of a request becomes an input by its type alone."""

    noun: ClassVar[str]  # in messages
    place: ClassVar[str] = "FILE"  # or DIR
    path: str | None  # None for an input from memory
    sha256: str  # recognises the content

    @classmethod
    def of(cls, value: Any, name: str) -> Input:
        """Read the value of the field `name`: a path, or an object in memory. Raises ValueError or OSError."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that identify the input, without its content."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Any) -> Input:
        """Make the input of a `to_dict`, which may come from any file. Raises ValueError."""
        raise NotImplementedError


@dataclass(frozen=True)
class Picture(Input):
    """Image that a video is made from: its path, upright size and hash.

    `pixels` is the RGB PIL image, None in a request that was stored; `path` is None for an image from memory.
    """

    noun = "image"

    path: str | None
    size: Size
    sha256: str  # the first 16 digits
    pixels: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, image: Any, name: str = "image") -> Picture:
        """Read a file, or take a PIL image. Raises FileNotFoundError or ValueError that names the fault."""
        from wan import images

        if isinstance(image, (str, Path)):
            pixels, path = images.read_image(image), str(image)
        elif hasattr(image, "getexif"):
            pixels, path = images.upright_rgb(image), None
        else:
            raise ValueError(f"{called(name)} is a path or a PIL image, got {type(image).__name__}")
        return cls(path, pixels.size, images.digest(image if path else pixels)[:16], pixels)

    def __str__(self) -> str:
        return format_size(self.size)

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": format_size(self.size), "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> Picture:
        """Make the picture of a `to_dict`, checked. Raises ValueError."""
        path, size, digits = (dictionary(cls.noun, values).get(name) for name in ("path", "size", "sha256"))
        return cls(stored_path(path, cls.noun), geometry.parse_size(text("size", size)), text("sha256", digits))


@dataclass(frozen=True)
class Sound(Input):
    """Sound of a file, or of a video: its path and hash, and its length at 16 kHz. `start` and `length` are a part.

    `waveform` [samples] is mono float32 at 16 kHz, None in a request that was stored. `start` and `length` are in
    seconds of the file; the part is at most as long as `length`.
    """

    noun = "sound"

    path: str
    samples: int
    sha256: str
    start: float = 0.0
    length: float | None = None
    waveform: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, sound: Any, name: str = "audio") -> Sound:
        """Decode a file. Raises FileNotFoundError or ValueError that names the fault."""
        import torch

        from wan import audio

        path = _file_name(sound, name)
        heard = bytearray()  # grows without a second copy
        for chunk in audio.sound_chunks(path, SPEECH_RATE):
            heard += chunk.tobytes()
            if len(heard) > 4 * SPEECH_RATE * LONGEST_SOUND:
                raise ValueError(f"{shown(path)} has more than {LONGEST_SOUND // 3600} hours of sound; cut it first")
        if not heard:
            raise ValueError(f"{shown(path)} has a track of sound, and nothing in it; name another file")
        waveform = torch.frombuffer(heard, dtype=torch.float32)
        if not waveform.isfinite().all():
            raise ValueError(f"{shown(path)} has samples that are not finite numbers; save it again, as 16-bit wav")
        return cls(path, len(waveform), file_digest(path), waveform=waveform)

    def part(self, start: float | None = None, length: float | None = None, names: tuple[str, str] = PART) -> Sound:
        """Cut out a part of a whole sound; None means from its beginning, or to its end. Raises ValueError.

        `names` are those of the fields of a request, for errors.
        """
        start = real(names[0], start or 0)
        if start < 0:
            raise ValueError(f"{called(names[0])} must be 0 or more, got {start:g}")
        if start >= self.seconds:
            which = f"the end of {shown(self.path)}, which has {self.seconds:g} s"
            raise ValueError(f"{called(names[0])} {start:g} is beyond {which}; try a smaller one")
        if length is not None and real(names[1], length) <= 0:
            raise ValueError(f"{called(names[1])} must be above 0 seconds, got {length:g}; leave it out for all")
        first = min(round(start * SPEECH_RATE), self.samples - 1)
        last = self.samples if length is None else min(self.samples, first + max(1, round(length * SPEECH_RATE)))
        waveform = None if self.waveform is None else self.waveform[first:last]
        return replace(self, samples=last - first, start=start, length=length, waveform=waveform)

    @property
    def seconds(self) -> float:
        return self.samples / SPEECH_RATE

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s"

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "samples": self.samples, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> Sound:
        """Make the sound of a `to_dict`, checked. Raises ValueError."""
        path, samples, digits = (dictionary(cls.noun, values).get(name) for name in ("path", "samples", "sha256"))
        if not 1 <= whole("samples", samples) <= SPEECH_RATE * LONGEST_SOUND:
            raise ValueError(f"samples of the sound must be 1 to {SPEECH_RATE * LONGEST_SOUND}, got {quoted(samples)}")
        return cls(stored_path(text("path", path), cls.noun), samples, text("sha256", digits))


@dataclass(frozen=True)
class Film(Input):
    """Video whose frames guide another one: its path, upright size, number of frames and hash."""

    noun = "video"

    path: str
    size: Size
    frames: int
    sha256: str

    @classmethod
    def of(cls, video: Any, name: str = "pose_video") -> Film:
        """Read the headers and the first frame of a file. Raises FileNotFoundError or ValueError."""
        from wan import media

        path = _file_name(video, name)
        first = next(media.upright_frames(path), None)
        if first is None:
            raise ValueError(f"{shown(path)} has no frames, or is cut off before the first; name a whole video")
        height, width = first[1].shape[:2]
        return cls(path, (width, height), media.written(path)[0], file_digest(path))

    def __str__(self) -> str:
        return f"{format_size(self.size)}, {self.frames} frames"

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": format_size(self.size), "frames": self.frames, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> Film:
        """Make the video of a `to_dict`, checked. Raises ValueError."""
        names = ("path", "size", "frames", "sha256")
        path, size, frames, digits = (dictionary(cls.noun, values).get(name) for name in names)
        if whole("frames", frames) < 1:
            raise ValueError(f"frames of the video must be 1 or more, got {quoted(frames)}")
        size = geometry.parse_size(text("size", size))
        return cls(stored_path(text("path", path), cls.noun), size, frames, text("sha256", digits))


def _file_name(value: Any, name: str) -> str:
    """Check that the value of the field `name` is the path of a file that may be there. Raises ValueError."""
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError(f"{called(name)} is the path of a file, got {quoted(value)}")
    if "://" in str(value):
        raise ValueError(f"nothing is fetched from the network; save {shown(value)} as a file and name that")
    return str(value)


def file_digest(path: str) -> str:
    """First 16 digits of the SHA-256 of a file."""
    from wan import images

    return images.digest(path)[:16]


def stored_path(path: Any, noun: str) -> str | None:
    """Check the path of an input in a stored request; None for an input from memory. Raises ValueError."""
    if path is not None and (not isinstance(path, str) or "\0" in path or not 0 < len(path) <= LONGEST_PATH):
        raise ValueError(f"the path of the {noun} must be text, got {quoted(path)}")
    return path

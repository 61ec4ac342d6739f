"""Inputs from which a video is made besides text: read, checked, hashed, and stored without content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from wan import geometry
from wan.geometry import Size, format_size
from wan.values import called, dictionary, quoted, text

LONGEST_PATH = 4096


class Input:
    """Input of a video. A field of a request becomes an input by its type alone."""

    noun: ClassVar[str]  # in messages
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


def stored_path(path: Any, noun: str) -> str | None:
    """Check the path of an input in a stored request; None for an input from memory. Raises ValueError."""
    if path is not None and (not isinstance(path, str) or "\0" in path or not 0 < len(path) <= LONGEST_PATH):
        raise ValueError(f"the path of an {noun} must be text, got {quoted(path)}")
    return path

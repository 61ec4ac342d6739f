"""Open files of video and sound: by their content alone, within limits, and only if they are whole.

FFmpeg reads what is there of a Matroska or AVI file without a word, so that the rest would pass for a shorter film.
Such a file has a length by its own header; one that is shorter was cut off.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wan.files import disk_named, no_file, shown

LONGEST_SIDE, MOST_PIXELS, LARGEST = 16_384, 8192 * 4352, "8192*4352"  # of H.264; larger ones are not decoded either

# Containers of video and sound: the place of their mark, the mark, and FFmpeg's name. Playlists, patterns of file
# names, devices and descriptions of streams are not among them: they would open other files, and the network.
CONTAINERS = (
    *((4, mark, "mov") for mark in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (8, b"WAVE", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    *((0, mark, "mp3") for mark in (b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2")),
    *((0, mark, "aac") for mark in (b"\xff\xf1", b"\xff\xf9")),
)

PICTURE_MARKS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"WEBP")

CONTENT = (errno.EINVAL, errno.EPERM, errno.EIO)  # what FFmpeg says of a damaged file; Python itself reads it

LIMITS = {"max_pixels": str(MOST_PIXELS)}  # of decoders

HEAD = 4096  # bytes; descriptions of the format in front of the content are far shorter
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # of Matroska and WebM
UNKNOWN_RIFF = (0, 0xFFFFFFFF)  # lengths that programs write which do not know it yet


def container_of(head: bytes) -> str | None:
    """Name the container of a file by its first 12 bytes, as FFmpeg calls it; None for others."""
    return next((kind for at, mark, kind in CONTAINERS if head[at:].startswith(mark)), None)


@contextmanager
def open_media(path: str | Path, what: str = "video", better: str = "mp4") -> Iterator[Any]:
    """Open a file of one of `CONTAINERS`, chosen by its content. Files that it refers to cannot be opened."""
    import av

    name = shown(path)
    if not Path(path).is_file():
        raise no_file(path)
    with disk_named(Path(path)), open(path, "rb") as file:
        head = file.read(12)
        file.seek(0)
        kind = container_of(head)
        if not head:
            raise ValueError(f"{name} is empty; copy it again, or name another file")
        if kind is None and any(mark in head for mark in PICTURE_MARKS):
            raise ValueError(f"{name} is a picture, and a {what} is wanted; name another file")
        if kind is None:
            raise ValueError(f"{name} is not a {what} that can be read; convert it to {better}")
        try:
            options = {"protocol_whitelist": "none", **LIMITS}
            container = av.open(file, format=kind, metadata_errors="replace", options=options)
            with container:
                _refuse_huge(container, name)
                yield container
        except av.error.FFmpegError as error:
            if isinstance(error, OSError) and error.errno not in CONTENT:  # the disk or the rights
                raise
            larger = f", or its frames are larger than {LARGEST}" if error.errno == errno.EINVAL else ""
            cure = f"it may be incomplete{larger}: copy it again, or convert it to {better}"
            raise ValueError(
                f"{name} is not a {what} that can be read ({shown(error.strerror, 100)}); {cure}"
            ) from None


def _refuse_huge(container: Any, name: str) -> None:
    """Refuse large frames, and let the decoders refuse those whose size the header does not tell."""
    for context in (stream.codec_context for stream in container.streams.video if stream.codec_context is not None):
        if context.width * context.height > MOST_PIXELS:
            size = f"{context.width}*{context.height}"
            raise ValueError(f"{name} has frames of {size} pixels, and at most {LARGEST} are read; scale it down")
        context.options = LIMITS


def first_stream(streams: Sequence[Any], path: str | Path, kind: str, better: str = "mp4") -> Any:
    """Return the first stream of a kind. Raises ValueError when there is none, or it names no codec."""
    if not streams or streams[0].codec_context is None:
        cure = f" that can be read; convert it to {better}" if streams else "; name a file that has"
        raise ValueError(f"{shown(path)} has no {kind} in it{cure}")
    return streams[0]


def is_cut_off(path: str | Path) -> bool:
    """Tell whether a file ends before its header says so. Files of other kinds, and unknown lengths, are not."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    told = _matroska(head) if head.startswith(EBML) else _riff(head) if head.startswith(b"RIFF") else None
    return told is not None and Path(path).stat().st_size < told


def _riff(head: bytes) -> int | None:
    """End of the first chunk; large AVI files have more."""
    length = int.from_bytes(head[4:8], "little")
    return None if length in UNKNOWN_RIFF else 8 + length


def _matroska(head: bytes) -> int | None:
    """End of the segment, which holds everything but the description of the format."""
    length, at = _number(head, len(EBML))
    if length is None or head[at + length : at + length + 4] != SEGMENT:
        return None
    length, at = _number(head, at + length + 4)
    return None if length is None else at + length


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """Read a number whose first byte tells its own length; return it, None for "unknown", and the place after it."""
    if at >= len(data) or not data[at]:
        return None, at
    count = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + count], "big") & ((1 << 7 * count) - 1)
    return None if value == (1 << 7 * count) - 1 else value, at + count

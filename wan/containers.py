"""Containers of films: the length that a file must have by its own header. One that is shorter was cut off.

FFmpeg reads what is there of a Matroska or AVI file without a word, so that the rest would pass for a shorter film.
"""

from __future__ import annotations

from pathlib import Path

HEAD = 4096  # bytes; descriptions of the format in front of the content are far shorter
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # of Matroska and WebM
UNKNOWN_RIFF = (0, 0xFFFFFFFF)  # lengths that programs write which do not know it yet


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

"""Write files completely or not at all, under names that the file system takes; show and parse untrusted text."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from wan.program import printable

SHORTEST_LIMIT = 143  # bytes of a file name in encrypted home folders; others take 255
MAX_TRIES = 1000  # names that are tried


@contextmanager
def atomic_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary name beside `path`; the file is renamed to `path` when the block succeeds, else removed.

    Raises FileExistsError when `path` exists, or appears meanwhile, and may not be replaced.
    """
    path = Path(path)
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name, or allow it to be overwritten")
    _make_folder(path.parent)
    temporary = _partial(path.parent)
    _unfinished.add(temporary)
    try:
        temporary.touch()
        usual = temporary.stat().st_mode  # by the umask; safetensors makes files that only their owner can read
        yield temporary
        temporary.chmod(usual)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if overwrite or not _link(temporary, path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


_unfinished: set[Path] = set()
_numbers = itertools.count()


def remove_partial_files() -> None:
    """Remove the unfinished files of `atomic_file`, before another thread ends the process at once."""
    for temporary in list(_unfinished):
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Remove and return the partial files that dead processes of this machine left in `folder`."""
    removed: list[Path] = []
    if os.name != "posix":  # elsewhere `os.kill` could end the process that it asks about
        return removed
    for path in folder.glob(f".wan-{_machine()}-*.partial"):
        match = re.fullmatch(r"\.wan-\w+-(\d+)-\d+\.partial", path.name)
        if match and not _is_alive(int(match[1])):
            with suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def numbered(path: Path, suffix: str) -> Iterator[Path]:
    """Yield names beside `path`: its stem, `stem-2`, ..., cut to what the file system takes, each before `suffix`."""
    try:
        limit = os.pathconf(path.parent, "PC_NAME_MAX")
    except (OSError, AttributeError, ValueError):  # a folder that is not there yet, or a system without the call
        limit = SHORTEST_LIMIT
    for number in range(1, MAX_TRIES):
        stem, end = path.stem, (f"-{number}" if number > 1 else "") + suffix
        while len(os.fsencode(stem + end)) > limit:
            stem = stem[:-1]
        yield path.with_name(stem + end)


def stored_name(text: str) -> str:
    """Decode a file name, stored by a process of any locale, to this process' text for the same bytes; else ""."""
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return ""


def check_writable(
    path: str | Path, overwrite: bool = False, needed: int = 0, other: str = "--output_dir or --save_file"
) -> None:
    """Make sure that `needed` bytes can be written to `path`, before hours of work.

    Makes its folder, and a file for a moment. Raises FileExistsError or ValueError that says what to do: `other` are
    the flags for another place.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file in it, or use --output_dir {path}")
    if os.path.lexists(path) and not overwrite:
        link = ", a link to nowhere" if path.is_symlink() and not path.exists() else ""
        raise FileExistsError(f"{path} exists already{link}; choose another name, or give --overwrite to replace it")
    try:
        _make_folder(path.parent)
        _probe(_partial(path.parent))
        if not os.path.lexists(path):
            _probe(path)  # its name may be too long, or have characters that this file system refuses
    except OSError as error:
        raise ValueError(f"cannot write to {path} ({error.strerror}); choose another {other}") from None
    largest = _file_size_limit()
    if largest is not None and largest < needed:
        raise ValueError(
            f"files may have at most {largest} bytes here (ulimit -f), and this run writes about {needed}; "
            "raise that limit"
        )
    check_room(path.parent, needed, "are to be written", "make room, or choose another --output_dir")


def check_room(folder: Path, needed: int, what: str, cure: str) -> int:
    """Return the bytes that are left where a folder is or will be. Raises ValueError when `needed` are more.

    what: continues "40 GB ...", such as "are to be written".
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(f"{shown(there.absolute())} has {in_units(free)} left, and {in_units(needed)} {what}; {cure}")
    return free


def in_units(size: int) -> str:
    """Write a number of bytes: `28.9 GB`, `3.2 MB`, `0.5 kB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


@contextmanager
def utf8_name(path: Path, misleading: str | None = None) -> Iterator[str]:
    """Give a UTF-8 name of an existing file, its own or that of a link, for libraries that take no other.

    The name does not end in `misleading`, a suffix from which a library would conclude the wrong format.
    """
    if path.suffix != misleading and is_unicode(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        is_kept = path.suffix.isascii() and path.suffix != misleading
        link = Path(folder, "file").with_suffix(path.suffix if is_kept else "")
        link.symlink_to(path.resolve())
        yield str(link)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # this error would seem to be about the file that is to be made
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder)) from None


def _partial(folder: Path) -> Path:
    """A short ASCII name that no other process takes, absolute: media libraries read `a:b` as a protocol."""
    return Path(os.path.abspath(folder)) / f".wan-{_machine()}-{os.getpid()}-{next(_numbers)}.partial"


def _machine() -> str:
    """Return eight digits that are the same for all processes that see each other's process numbers."""
    parts = [platform.node().encode()]
    with suppress(OSError):
        parts.append(os.readlink(b"/proc/self/ns/pid"))
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_bytes())  # two hosts of one name may share a network drive
    return hashlib.sha256(b" ".join(parts)).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be another user's
    return True


def _probe(path: Path) -> None:
    path.touch(exist_ok=False)
    path.unlink()


def _file_size_limit() -> int | None:
    """Bytes that a file of this process may have; None where that is unlimited."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _link(temporary: Path, path: Path) -> bool:
    """Give the finished file its name without ever replacing another; False where the file system has no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"{path} appeared while its content was being made; it was left as it is") from None
    except OSError:
        return False
    return True


# ---- untrusted text ----


def shown(text: Any, limit: int = 200) -> str:
    """Make `text` safe for a message: it is cut at `limit`; line breaks, control characters, bad bytes are escaped."""
    return printable(str(text), limit)


def is_unicode(text: str) -> bool:
    """Tell whether every encoding of Unicode can write a text: no letter is a lone surrogate, an undecodable byte."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON in UTF-8. Raises ValueError for every fault: also for deep nesting, NaN and a repeated name."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, max_bytes: int) -> Any:
    """Parse a JSON file. Raises ValueError that names the file, also when it has more than `max_bytes`."""
    refuse_placeholder(path)
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{shown(path)} has {path.stat().st_size} bytes; such a file has at most {max_bytes}")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{shown(path)} is not valid JSON: {shown(error)}") from None


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(result := dict(pairs)) < len(pairs):
        raise ValueError("it has two values of one name")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


@contextmanager
def disk_named(path: Path) -> Iterator[None]:
    """Add the name of the file to errors of the disk that come without one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def no_file(path: str | Path, kind: str = "file") -> ValueError | FileNotFoundError:
    """Make the error for a path that is no file: it is a folder, or missing; a file of a similar name is suggested."""
    if os.path.isdir(path):
        return ValueError(f"{shown(path)} is a folder; name one {kind} in it")
    return FileNotFoundError(f"there is no {kind} {shown(path)}{did_you_mean(Path(path), 0.8)}")


def did_you_mean(path: Path, likeness: float) -> str:
    """Ask "did you mean" about a similar name beside `path`; "" without one. At `likeness` 1 only case may differ."""
    with suppress(OSError, ValueError):
        names = {name.lower(): name for name in os.listdir(path.parent) if name != path.name}
        for near in get_close_matches(path.name.strip().lower(), names, n=1, cutoff=likeness):
            return f"; did you mean {shown(path.with_name(names[near]))}?"
    return ""


def refuse_placeholder(path: Path) -> None:
    """Raise ValueError for an empty file, a Git-LFS pointer or a web page: leftovers of a download that went wrong.

    Raises FileNotFoundError for what is no file: opening a FIFO would wait for ever.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {shown(path)}")
    with disk_named(path), open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, kind in PLACEHOLDERS.items():
        if start.startswith(mark):
            raise ValueError(f"{shown(path)} is {kind}")
    if not start and path.stat().st_size < 64:
        raise ValueError(f"{shown(path)} is empty: it has {path.stat().st_size} bytes; download it again")


_POINTER = "a Git-LFS pointer, not the file itself: run git lfs pull there, or download it with hf download"
_PAGE = "a web page, not the file itself: download it with hf download, logged in where that is needed"
PAGE_MARKS = (b"<!doctype html", b"<html", b"<?xml", b"<error")
PLACEHOLDERS = {b"version https://git-lfs": _POINTER, **dict.fromkeys(PAGE_MARKS, _PAGE)}

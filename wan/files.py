"""Files that appear complete or not at all, and text from files of strangers."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and vanishes when it does not.

    FileExistsError when `path` exists, or appears meanwhile, and may not be replaced.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name, or allow it to be overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")
    _unfinished.add(temporary)
    try:
        temporary.touch()
        usual = temporary.stat().st_mode  # what the umask says; safetensors makes files that only their owner can read
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


def remove_partial_files() -> None:
    """For a process that is about to be ended from another thread: what `atomic_file` would remove on the way out."""
    for temporary in list(_unfinished):
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Make sure that `path` can be written, before hours of work: makes its folder and a probe file in it.

    Raises FileExistsError or ValueError that says what to do.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file in it, or use --output_dir {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name, or give --overwrite to replace it")
    probe = path.parent / f".{path.stem[:40]}.{os.getpid()}.probe"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent} ({error.strerror}); choose another --output_dir") from None


def _link(temporary: Path, path: Path) -> bool:
    """Give the finished file its name without ever replacing another; False where the file system has no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"{path} appeared while its content was being made; it was left as it is") from None
    except OSError:
        return False
    return True


# ---- what strangers wrote ----


def shown(text: Any, limit: int = 200) -> str:
    """`text` as a log or a message may show it: what a terminal would obey is escaped, beyond `limit` it is cut.

    Line breaks are escaped as well; a surrogate of an undecodable byte becomes its escape.
    """
    text = str(text)
    cut = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError whatever is wrong with it, bad nesting and NaN included."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, max_bytes: int) -> Any:
    """The value of a JSON file. Raises ValueError that names the file, also when it has more than `max_bytes`."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{shown(path)} has {path.stat().st_size} bytes; such a file has at most {max_bytes}")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{shown(path)} is not valid JSON: {shown(error)}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")

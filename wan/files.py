"""Files that appear complete or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

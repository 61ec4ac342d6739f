"""Read state dicts written by `torch.save`; nothing but tensors is ever built from such a file."""

from __future__ import annotations

import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from wan.files import disk_named, shown, utf8_name

MAX_PICKLE_BYTES = 64_000_000  # of the part that names the tensors; for a thousand tensors it has 0.2 MB
MAX_OPCODES = 1_000_000  # in that part; for a thousand tensors there are 50 thousand
SMALL_RECORD = 1 << 20  # bytes; records up to here have their checksum compared at every opening
END_OF_ARCHIVE = b"PK\x05\x06"  # starts the last 22 bytes of an archive without a comment
# Everything that the pickle of a dict of plain tensors imports.
NEEDED = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor(_v[23])?|parameter)|torch\.nn\.parameter\.Parameter"
    r"|torch\.(storage\.)?\w+Storage|torch\.(u?int|b?float|bool)\w*"
)


def load_pickled(path: Path, checksums: bool = False, below: str = "") -> dict[str, Tensor]:
    """Map the tensors of a file written by `torch.save`. A dict with a dict `state_dict` or `model` means that one
    alone.

    Only entries whose names begin with `below` are read; with it, others may be anything that needs no imports.

    A file that would import more than tensors need is refused. Only then torch's weights-only reader opens it. That
    reader had holes before torch 2.10 (CVE-2026-24747): with an older torch, open only files whose origin you trust,
    or safetensors. Files from before torch 1.6 are read into memory.

    `checksums` compares the data of all records with their checksums, once per file and process.
    """
    is_zip = is_archive(path)
    try:
        stat = path.stat()
        identity = stat.st_ino, stat.st_size, stat.st_mtime_ns
        foreign = _foreign_calls(path, identity)
        if checksums and is_zip:
            _compare_checksums(path, identity)
    except Exception as error:  # damage shows as almost any exception
        raise _damaged(path, error) from None
    if foreign:
        raise ValueError(
            f"{shown(path)} is refused: it holds more than tensors ({some(foreign, 3)}), and reading that could run "
            "code from the file. Get the weights as safetensors"
        )
    try:
        with warnings.catch_warnings(), utf8_name(path, misleading=".safetensors") as name:
            warnings.simplefilter("ignore")
            state = torch.load(name, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise _damaged(path, error) from None
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(inner := dict.get(state, name), dict):
            state = inner  # beside it a trainer stores counts and settings
    if not isinstance(state, dict):
        raise ValueError(f"{shown(path)} holds a {type(state).__name__}, not a dict of named tensors")
    wanted = {
        name: value
        for name, value in dict.items(state)
        if not below or (isinstance(name, str) and name.startswith(below))
    }
    problems = [f"{shown(name, 80)} {bad}" for name, value in wanted.items() if (bad := _objection(name, value))]
    if problems:
        raise ValueError(f"{shown(path)} is not a plain state dict: {some(problems)}")
    return {name: value.detach() for name, value in wanted.items()}


def is_archive(path: Path) -> bool:
    """Tell whether a file is in the current format of `torch.save`, a zip archive, which can be mapped."""
    with disk_named(path), open(path, "rb") as file:
        return file.read(2) == b"PK"


def some(names: Iterable[Any], limit: int = 8) -> str:
    """Join the first names to a text of bounded length that ends with the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name, 120) for name in names[:limit]) + more


@lru_cache(maxsize=8)
def _foreign_calls(path: Path, identity: tuple[int, ...]) -> list[str]:
    """List the imports of a file that tensors do not need. `identity` tells the cache that the file has changed."""
    with disk_named(path), open(path, "rb") as file:
        calls = _check_archive(file) if is_archive(path) else _calls(file, pickles=5)
    return sorted({call for call in calls if not NEEDED.fullmatch(call)})


def _check_archive(file: BinaryIO) -> set[str]:
    """Check an archive, and list what its pickle imports. A damaged one can raise any kind of exception."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 22))
    if file.read(4) != END_OF_ARCHIVE:
        raise ValueError("it does not end where its directory ends")
    with zipfile.ZipFile(file) as archive:
        for record in _records(archive):
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"record {shown(record.filename, 80)} is compressed")
            with archive.open(record) as data:  # compares the record's header with the directory
                if record.file_size <= SMALL_RECORD:
                    data.read()  # compares the checksum
        (pickled,) = (record for record in _records(archive) if record.filename.endswith("/data.pkl"))
        if pickled.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its list of tensors has {pickled.file_size} bytes")
        return _calls(io.BytesIO(archive.read(pickled)), pickles=1)


def _records(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """List the records of an archive. A checksum of 0 (torch's `set_crc32_options`) is removed: it is not compared."""
    for record in archive.infolist():
        if getattr(record, "CRC", None) == 0:
            del record.CRC
    return archive.infolist()


def _calls(file: BinaryIO, pickles: int) -> set[str]:
    """List the names that the next pickles of a file would import, without running them."""
    found = set()
    for _ in range(pickles):
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > MAX_OPCODES:
                raise ValueError(f"its list of tensors has more than {MAX_OPCODES} steps")
            if opcode.name in ("GLOBAL", "INST"):
                found.add(argument.replace(" ", "."))
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                found.add(f"a name made by {opcode.name}")
    return found


@lru_cache(maxsize=8)
def _compare_checksums(path: Path, identity: tuple[int, ...]) -> None:
    """Read all records and compare their checksums. `identity` tells the cache that the file has changed."""
    with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def compare(record: zipfile.ZipInfo) -> None:
            with archive.open(record) as data:
                while data.read(1 << 22):
                    pass

        list(pool.map(compare, _records(archive)))


def _objection(name: Any, value: Any) -> str | None:
    """Say what keeps an entry from being a weight, or None."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, not the name of a tensor"
    if type(value) not in (Tensor, nn.Parameter):
        return "is no tensor"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_neg():
        return "is sparse, quantized, without data or on another device"
    extent = 1
    for size, stride in sorted(zip(value.shape, value.stride(), strict=True), key=lambda axis: axis[1]):
        if size > 1 and stride < extent:
            return f"repeats its data: shape {shown(list(value.shape), 60)}, strides {shown(value.stride(), 60)}"
        extent += (size - 1) * stride if size > 0 else 0
    return None


def _damaged(path: Path, error: Exception) -> ValueError:
    """Make the error for a file that could not be read, without torch's advice on safety."""
    reason = reason_of(error)
    return ValueError(f"{shown(path)} is damaged, truncated or no file of torch.save ({reason}); download it again")


def reason_of(error: Exception) -> str:
    """Return the first line of torch's error about a file, without its advice on safety."""
    reason = next(iter(str(error).splitlines()), "")
    return type(error).__name__ if " " not in reason or "weights_only" in reason else shown(reason, 150)

"""Named tensors of a checkpoint, whatever it is stored in. Nothing is read before it is asked for.

Tensors of safetensors and .pth files are views of a private memory mapping: they cost no memory until touched, the
kernel may drop their pages again, and writing to one copies the page and leaves the file alone. The file must not be
truncated while such a tensor lives; replacing it (as every writer here does, with `os.replace`) is safe.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
MAX_INDEX_BYTES = 64_000_000
INDEX_SUFFIX = ".safetensors.index.json"
PICKLED_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorSource(ABC):
    """Tensors by name; only `get` reads them."""

    description: str  # the file or folder, for messages

    @abstractmethod
    def names(self) -> list[str]:
        """All names, in the order in which reading them is fastest."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype: ...

    @abstractmethod
    def get(self, name: str) -> Tensor:
        """The tensor on the CPU in its stored dtype; do not write to it."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every shape by name, to infer a configuration from."""
        return {name: self.shape(name) for name in self.names()}


def open_source(path: str | Path) -> TensorSource:
    """Open a checkpoint folder (indexed shards or one safetensors file), a *.safetensors or a *.pth, .pt, .ckpt, .bin.

    Headers are read and checked here, tensors are not. Raises FileNotFoundError naming everything that is missing and
    ValueError for a damaged file or one that holds anything but tensors.
    """
    path = Path(path)
    if path.is_dir():
        return SafetensorsSource(folder_shards(path), str(path))
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return SafetensorsSource({path: None}, str(path))
    if path.suffix in PICKLED_SUFFIXES:
        return MemorySource(load_pickled(path), str(path))
    known = ", ".join((".safetensors", *PICKLED_SUFFIXES))
    raise ValueError(f"{path} is not a checkpoint this program reads: expected a folder or a file ending in {known}")


class MemorySource(TensorSource):
    """Tensors that are already there: a state dict, or the mapped tensors of a .pth file."""

    def __init__(self, tensors: Mapping[str, Tensor], description: str = "the given state dict"):
        self.tensors = tensors
        self.description = description

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def get(self, name: str) -> Tensor:
        return self.tensors[name]


# ---- safetensors ----


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes [start, stop) of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsSource(TensorSource):
    """One or more safetensors files; only the one read last stays open, so address space and page tables stay small."""

    def __init__(self, shards: Mapping[Path, set[str] | None], description: str):
        """shards: each file with the names it must hold according to the index (None: whatever it holds)."""
        self.description = description
        self.entries: dict[str, Entry] = {}
        self._open: tuple[Path, Any] | None = None
        for file, promised in shards.items():
            found = read_header(file)
            absent = sorted((promised or set()) - found.keys())
            if absent:
                raise ValueError(f"{file} lacks tensors that the index places there: {_some(absent)}")
            twice = sorted(found.keys() & self.entries.keys())
            if twice:
                raise ValueError(f"{file} repeats tensors of {self.entries[twice[0]].file.name}: {_some(twice)}")
            self.entries.update(found)

    def names(self) -> list[str]:
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.entries[name].dtype

    def get(self, name: str) -> Tensor:
        entry = self.entries[name]
        try:
            return self._handle(entry.file).get_tensor(name)
        except Exception as error:  # safetensors raises its own types, all of which mean that the bytes are bad
            raise ValueError(f"{entry.file}: cannot read tensor {name}: {error}; download the file again") from error

    def _handle(self, file: Path) -> Any:
        if self._open is None or self._open[0] != file:
            from safetensors import safe_open

            self._open = None  # unmaps the previous shard, unless tensors of it are still in use
            self._open = (file, safe_open(file, framework="pt", device="cpu"))
        return self._open[1]


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors a safetensors file promises, in file order, with sizes and positions checked against the file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(
                f"{path} is not a complete safetensors file: it has {size} bytes and announces a header of {length}; "
                "download it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {name: _entry(path, 8 + length, fields) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged safetensors header: {error}; download it again") from error
    entries = dict(sorted(entries.items(), key=lambda item: item[1].start))
    end = 8 + length
    for name, entry in entries.items():
        expected = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start < end or entry.stop - entry.start != expected:
            raise ValueError(
                f"{path} is damaged: tensor {name} of shape {list(entry.shape)} needs {expected} bytes after byte "
                f"{end}, the header gives it bytes {entry.start} to {entry.stop}; download it again"
            )
        if entry.stop > size:
            raise ValueError(
                f"{path} is truncated: tensor {name} ends at byte {entry.stop}, the file at {size}; download it again"
            )
        end = entry.stop
    return entries


def _entry(path: Path, base: int, fields: dict[str, Any]) -> Entry:
    start, stop = fields["data_offsets"]
    shape = tuple(fields["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"shape {shape} at {start}-{stop}")
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {fields['dtype']}; known are {', '.join(DTYPES)}")
    return Entry(path, DTYPES[fields["dtype"]], shape, base + start, base + stop)


# ---- folders ----


def folder_shards(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, each with the names its index promises; all missing ones are named at once."""
    index = _preferred(folder, INDEX_SUFFIX)
    if index is not None:
        shards = read_index(index)
    else:
        files = sorted(folder.glob("*.safetensors"))
        shards = dict.fromkeys(_complete_set(files), None) if files else {}
        if not shards and (one := _preferred(folder, ".safetensors")) is not None:
            shards = {one: None}
        if not shards:
            raise FileNotFoundError(f"{folder} holds no *.safetensors and no *{INDEX_SUFFIX}")
    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing)}")
    return shards


def read_index(path: Path) -> dict[Path, set[str]]:
    """The `weight_map` of an index by file. Entries must be plain names of safetensors files beside the index."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; an index stays below {MAX_INDEX_BYTES}")
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = list(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of safetensors shards: it has no weight_map ({error})") from error
    shards: dict[Path, set[str]] = {}
    for name, file in pairs:
        if not isinstance(file, str) or not re.fullmatch(r"[\w.+ -]+\.safetensors", file, re.ASCII):
            raise ValueError(
                f"{path} places {name} in {file!r}: only the name of a safetensors file beside it is allowed"
            )
        shards.setdefault(path.parent / file, set()).add(name)
    return dict(sorted(shards.items()))


def _complete_set(files: list[Path]) -> list[Path]:
    """All files `X-00001-of-0000k.safetensors` that the first such name announces; [] when nothing is numbered."""
    for file in files:
        match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.safetensors", file.name)
        if match:
            stem, _, count = match.groups()
            return [file.with_name(f"{stem}-{i:05d}-of-{count}.safetensors") for i in range(1, int(count) + 1)]
    return []


def _preferred(folder: Path, suffix: str) -> Path | None:
    """The file of that suffix with one of the usual names, or the only one; None when there is none."""
    for stem in ("diffusion_pytorch_model", "model"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    files = sorted(folder.glob(f"*{suffix}"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds several checkpoints, name one: {', '.join(file.name for file in files)}")
    return files[0] if files else None


# ---- pickled state dicts ----


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by `torch.save`, mapped; a dict whose only key is `state_dict` is unwrapped.

    Only tensors are ever built from the file: torch's weights-only reader refuses anything else, and there is no way
    around it here. That reader had holes itself before torch 2.10 (CVE-2026-24747): with an older torch, open only
    files whose origin you trust, or safetensors.
    """
    is_zip = check_pickled(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than tensors, and reading that could run code from the "
            f"file ({_first_line(error)}). Get the weights as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or truncated ({_first_line(error)}); download it again") from error
    while isinstance(state, dict) and list(state) == ["state_dict"]:
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dict of named tensors")
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} is not a plain state dict: these entries are not tensors: {_some(others)}")
    return state


def check_pickled(path: Path) -> bool:
    """Raise ValueError when a file of `torch.save` is visibly cut off; whether it is in the format that can be mapped.

    Reads a few bytes only: the current format is a zip archive, whose directory comes last. Files from before torch 1.6
    are none and show nothing.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
        raise ValueError(f"{path} is damaged or truncated: it has {path.stat().st_size} bytes; download it again")
    return start == b"PK"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def in_file_order(source: TensorSource, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(wanted name, stored name) pairs of `names`, in the order the source is read fastest."""
    wanted = {stored: name for name, stored in names.items()}
    return ((wanted[stored], stored) for stored in source.names() if stored in wanted)

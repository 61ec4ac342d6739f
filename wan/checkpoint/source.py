"""Named tensors of a checkpoint in any form of storage. A tensor is read when it is asked for.

Tensors of safetensors and .pth files are views of a private memory mapping: they cost no memory until touched, the
kernel may drop their pages again, and writing to one copies the page and leaves the file alone. The file must not be
truncated while such a tensor lives; replacing it (as every writer here does, with `os.replace`) is safe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wan.checkpoint.formats import CURE, Shapes, foreign_file, released_names, unread_form
from wan.checkpoint.pickled import is_archive, load_pickled, some
from wan.files import disk_named, parse_json, read_json, refuse_placeholder, shown

Config = TypeVar("Config")
MAX_HEADER_BYTES = 16_000_000  # the format allows 100 MB; the largest released model has 0.2 MB
MAX_INDEX_BYTES = 16_000_000
MAX_AXES = 8
MAX_SHARDS = 1000
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
PACKED = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}  # types of quantised weights that the format knows as well


def open_source(path: str | Path, checksums: bool = False, below: str = "") -> TensorSource:
    """Open a checkpoint folder (indexed shards or one file), a safetensors file or one of `torch.save`.

    The content of a file decides its form, not its name. Only headers are read and checked, except with `checksums`
    (see `load_pickled`; safetensors files have none). With `below` the source has the tensors whose names begin with
    it. Raises FileNotFoundError naming all that is missing, and ValueError for a damaged file or one that holds
    anything but tensors.
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    source = TensorSource(folder_shards(path) if path.is_dir() else {path: None}, str(path), checksums, below)
    types = {name: str(source.dtype(name)).removeprefix("torch.") for name in source.names()}
    try:
        what = unread_form(source.shapes(), types)
    except ValueError as error:
        raise ValueError(f"{source.description}: {error}") from None
    if what:
        raise ValueError(f"{source.description} cannot be read by this version: it holds {what}")
    return source


# ---- files ----


@dataclass(frozen=True)
class Entry:
    """One tensor in `file`; in a safetensors file its data are the bytes [start, stop)."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0


class TensorSource:
    """Tensors by name, which `get` reads. One file is open at a time, so address space and page tables stay small."""

    def __init__(
        self, shards: Mapping[Path, set[str] | None], description: str, checksums: bool = False, below: str = ""
    ):
        """shards: each file with the names it must hold according to the index (None: whatever it holds).

        `below`: see `open_source`.
        """
        self.description = description  # the file or folder, for messages
        self._below = below
        self.entries: dict[str, Entry] = {}
        self._open: tuple[Path, Callable[[str], Tensor]] | None = None
        for file, promised in shards.items():
            found = read_contents(file, checksums, below)
            absent = sorted((promised or set()) - found.keys())
            if absent:
                raise ValueError(f"{file} lacks tensors that the index places there: {some(absent)}")
            twice = sorted(found.keys() & self.entries.keys())
            if twice:
                raise ValueError(f"{file} repeats tensors of {self.entries[twice[0]].file.name}: {some(twice)}")
            self.entries.update((name, entry) for name, entry in found.items() if name.startswith(below))

    def names(self) -> list[str]:
        """List all names, in the order in which reading them is fastest."""
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.entries[name].dtype

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Map every name to its shape."""
        return {name: self.shape(name) for name in self.names()}

    def inferred(self, config_of: Callable[[Shapes], Config]) -> Config:
        """Infer a configuration from the shapes under released names. A ValueError names the file."""
        names, _ = released_names(self.names())
        try:
            return config_of({name: self.shape(stored) for name, stored in names.items()})
        except ValueError as error:
            raise ValueError(f"{self.description}: {error}") from None

    def get(self, name: str) -> Tensor:
        """Return the tensor on the CPU in its stored dtype; do not write to it."""
        entry = self.entries[name]
        try:
            if self._open is None or self._open[0] != entry.file:
                self._open = None  # unmaps the previous file, unless tensors of it are still in use
                self._open = (entry.file, _reader(entry.file, self._below))
            return self._open[1](name)
        except Exception as error:  # safetensors raises its own types, all of which mean that the bytes are bad
            raise ValueError(
                f"{entry.file}: cannot read tensor {shown(name)}: {shown(error)}; download the file again"
            ) from error


def _reader(file: Path, below: str) -> Callable[[str], Tensor]:
    if not is_safetensors(file):
        return load_pickled(file, below=below).__getitem__
    from safetensors import safe_open

    return safe_open(file, framework="pt", device="cpu").get_tensor


def read_contents(path: Path, checksums: bool = False, below: str = "") -> dict[str, Entry]:
    """List the tensors of a weight file, in file order, checked against its size. Raises ValueError.

    Of a pickled file only names that begin with `below` are listed.
    """
    refuse_placeholder(path)
    if is_safetensors(path):
        return read_header(path)
    with open(path, "rb") as file:
        start = file.read(8)
    if what := foreign_file(start):
        raise ValueError(f"{shown(path)} cannot be read by this version: it is {what}")
    is_pickled = is_archive(path) or start[:1] == b"\x80"
    if is_pickled or path.suffix in PICKLED_SUFFIXES:
        tensors = load_pickled(path, checksums, below)
        return {name: Entry(path, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        return read_header(path)  # raises, with the reason
    raise ValueError(f"{shown(path)} is no weight file: neither safetensors nor written by torch.save")


def is_safetensors(path: Path) -> bool:
    """Tell whether a file starts with a safetensors header: its length in 8 bytes, then a JSON object."""
    if not path.is_file():
        return False
    with disk_named(path), open(path, "rb") as file:
        start = file.read(9)
    return start[4:] == b"\0\0\0\0{"


def read_header(path: Path) -> dict[str, Entry]:
    """List the tensors in the header of a safetensors file, in file order; sizes and positions must fit the file."""

    def damaged(what: str) -> ValueError:
        return ValueError(f"{path} {what}; download it again")

    size = path.stat().st_size
    with disk_named(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise damaged(f"is not a complete safetensors file: it has {size} bytes and announces a header of {length}")
        text = file.read(length)
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ must hold texts")  # the library that reads the tensors takes no others,
        "".join(header).encode()  # and no halves of surrogate pairs
        packed = PACKED.intersection(str(fields["dtype"]) for fields in header.values())
        entries = {} if packed else {name: _entry(path, 8 + length, fields) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(f"has a damaged safetensors header: {shown(error)}") from None
    if packed:
        raise ValueError(
            f"{path} cannot be read by this version: it holds weights quantised to {', '.join(sorted(packed))}; {CURE}"
        )
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 8 + length
    for name, entry in entries.items():
        expected = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != end or entry.stop - entry.start != expected:
            raise damaged(
                f"is damaged: tensor {shown(name)} of shape {list(entry.shape)} needs {expected} bytes from byte {end} "
                f"on, the header gives it bytes {entry.start} to {entry.stop}"
            )
        if entry.stop > size:
            raise damaged(f"is truncated: tensor {shown(name)} ends at byte {entry.stop}, the file at {size}")
        end = entry.stop
    if end != size:
        raise damaged(f"is damaged: its tensors end at byte {end}, the file at {size}")
    return entries


def _entry(path: Path, base: int, fields: dict[str, Any]) -> Entry:
    start, stop = fields["data_offsets"]
    shape = tuple(fields["shape"])
    if len(shape) > MAX_AXES or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop)):
        raise ValueError(f"shape {shown(shape, 80)} at {shown((start, stop), 80)}")
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {shown(fields['dtype'], 40)}; known are {', '.join(DTYPES)}")
    return Entry(path, DTYPES[fields["dtype"]], shape, base + start, base + stop)


# ---- folders ----


def folder_shards(folder: Path) -> dict[Path, set[str] | None]:
    """List the weight files of a folder, each with the names of its index. Raises one error for all missing files."""
    if index := _preferred(folder, INDEX_SUFFIX):
        shards = read_index(index)
    else:
        shards = dict.fromkeys(_complete_set(sorted(folder.glob("*.safetensors"))))
        if not shards and (one := _preferred(folder, ".safetensors")):
            shards = {one: None}
        if not shards:
            others = [file.name for file in sorted(folder.glob("*")) if file.suffix in (".gguf", *PICKLED_SUFFIXES)]
            instead = f", only {some(others)}, which is not read there" if others else ""
            raise FileNotFoundError(f"{folder} holds no *.safetensors and no *{INDEX_SUFFIX}{instead}")
    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(shards)} weight files: {some(missing)}")
    return shards


def read_index(path: Path) -> dict[Path, set[str]]:
    """Group the `weight_map` of an index by file. Files must be plain names of safetensors files beside the index."""
    weight_map = index.get("weight_map") if isinstance(index := read_json(path, MAX_INDEX_BYTES), dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} is not an index of safetensors shards: it has no weight_map")
    shards: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.+ -]{1,200}\.safetensors", file, re.ASCII):
            raise ValueError(
                f"{path} places {shown(name)} in {shown(repr(file))}: only the name of a safetensors file beside it is "
                "allowed"
            )
        shards.setdefault(path.parent / file, set()).add(name)
    return dict(sorted(shards.items()))


def _complete_set(files: list[Path]) -> list[Path]:
    """List all files `X-00001-of-0000k.safetensors` that the first such name announces; [] when none is numbered."""
    for file in files:
        match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.safetensors", file.name)
        if match:
            stem, _, count = match.groups()
            if int(count) > MAX_SHARDS:
                raise FileNotFoundError(f"{file.parent} lacks most of the {count} files that {file.name} announces")
            return [file.with_name(f"{stem}-{i:05d}-of-{count}.safetensors") for i in range(1, int(count) + 1)]
    return []


def _preferred(folder: Path, suffix: str) -> Path | None:
    """Find the file with `suffix` that is the model of a folder, by a usual name or as the only candidate, or None.

    A LoRA, or a VAE or text encoder beside a transformer, is no candidate.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    files = sorted(folder.glob(f"*{suffix}"))
    if len(files) > 1 and suffix == ".safetensors":
        shapes = {file: {name: entry.shape for name, entry in read_header(file).items()} for file in files}
        names = {file: released_names(shapes[file])[0] for file in files}
        models = [file for file in files if "patch_embedding.weight" in names[file]]
        files = models or [file for file in files if unread_form(shapes[file], {}) is None]
    if len(files) > 1:
        raise ValueError(f"{folder} holds several checkpoints, name one: {some(file.name for file in files)}")
    return files[0] if files else None

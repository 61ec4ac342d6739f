"""Repacked weights beside the files that they were made from: stored in the types in which a model works.

They stay views of their files when they are loaded, and half as much is read. The copy of a folder `model` is
`model/repacked`, that of a file `t5.pth` is `t5.repacked`; with matrices in 8 bits `model/repacked-fp8`. It belongs to
the content of the files, not to their names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path

import torch
from torch import Tensor

from wan.checkpoint.fingerprint import sample
from wan.checkpoint.layout import weight_files
from wan.checkpoint.loading import STEM
from wan.checkpoint.source import INDEX_SUFFIX, TensorSource, folder_shards, open_source
from wan.choices import QUANTIZED
from wan.files import atomic_file, check_room, read_json

log = logging.getLogger(__name__)
INDEX = f"{STEM}{INDEX_SUFFIX}"
MAX_INDEX_BYTES = 16_000_000
NAMES = {kind: "repacked" if kind is None else f"repacked-{kind}" for kind in (None, *QUANTIZED)}  # by --quantize


def place_of(path: Path, kind: str | None = None) -> Path:
    """Folder of the repacked copy of a model folder or weight file; `kind` of `QUANTIZED`: with matrices in 8 bits."""
    return path / NAMES[kind] if path.is_dir() else path.with_suffix(f".{NAMES[kind]}")


def identity(path: Path) -> str:
    """Digits that identify the weights of a part, by samples of its files."""
    return hashlib.sha256(b"".join(map(sample, weight_files(path)))).hexdigest()[:16]


def freshest(path: Path, kind: str | None = None) -> Path:
    """Return the place of a repacked copy of a part that is complete and of these weights, else the part itself.

    A copy with matrices in 8 bits of `kind` comes first, then that with whole ones.
    """
    for place in dict.fromkeys((place_of(path, kind), place_of(path))):
        if not (place / INDEX).is_file():
            continue
        index = read_json(place / INDEX, MAX_INDEX_BYTES)
        metadata = index.get("metadata") if isinstance(index, dict) else None
        if isinstance(metadata, dict) and metadata.get("made_of") == identity(path):
            return place
        log.warning(
            "%s is ignored: it was made of other weights than those beside it; repack again, or remove it", place
        )
    return path


def open_copy(place: Path) -> TensorSource:
    """Open a folder that `freshest` returned; in a copy matrices may have 8 bits, which are refused elsewhere."""
    return TensorSource(folder_shards(place), str(place))


@dataclass(frozen=True)
class Copy:
    """Copy of a part that is to be written.

    `names` in the model -> names in `source`; make(name, tensor) turns a stored tensor into those of the copy, by name.
    """

    path: Path
    place: Path
    source: TensorSource
    names: Mapping[str, str]
    make: Callable[[str, Tensor], Mapping[str, Tensor]]

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Files of the copy, one for each block, with the names in the model of what they are made of."""
        groups = [list(group) for _, group in groupby(sorted(self.names, key=_block), _block)]
        return {f"{STEM}-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}

    @cached_property
    def expected(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of each file, without values."""

        def read(key: str) -> Tensor:
            return torch.empty(self.source.shape(key), dtype=self.source.dtype(key), device="meta")

        return {file: self.tensors(group, read) for file, group in self.files.items()}

    @cached_property
    def made_of(self) -> str:
        return identity(self.path)

    def tensors(self, group: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        made = (self.make(name, read(self.names[name])) for name in group)
        return dict(chain.from_iterable(tensors.items() for tensors in made))

    def metadata(self, file: str) -> dict[str, str]:
        types = ",".join(str(tensor.dtype) for tensor in self.expected[file].values())
        return {"made_of": self.made_of, "types": types}

    def missing(self) -> list[str]:
        """Files that an earlier run, which may have ended early, has not written."""
        return [f for f, tensors in self.expected.items() if not _is_done(self.place / f, tensors, self.metadata(f))]

    def write(self) -> None:
        """Write what is missing, in the order of blocks; then the index.

        A file appears when it was read again and has the right values.
        """
        self.place.mkdir(exist_ok=True)
        for file in self.missing():
            _write(self.place / file, self.tensors(self.files[file], self.source.get), self.metadata(file))
        index = {
            "metadata": {"made_of": self.made_of},
            "weight_map": {name: file for file, tensors in self.expected.items() for name in tensors},
        }
        with atomic_file(self.place / INDEX, overwrite=True) as partial:
            partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        for stale in self.place.glob(f"{STEM}-*.safetensors"):
            if stale.name not in self.files:
                stale.unlink()


def check_disk(copies: Iterable[Copy]) -> None:
    """Raise ValueError, before anything is written, when a disk has no room for what is missing of the copies."""
    needed: dict[int, tuple[Path, int]] = {}  # by disk
    for copy in copies:
        folder = copy.place.parent
        size = sum(tensor.nbytes for file in copy.missing() for tensor in copy.expected[file].values())
        disk = folder.stat().st_dev
        needed[disk] = folder, needed.get(disk, (folder, 0))[1] + size
    for folder, size in needed.values():
        check_room(folder, size, "are to be written", "make room there")


def _block(name: str) -> tuple[int, str]:
    """Number and name of the block that a tensor belongs to; the others come first."""
    match = re.match(r"blocks\.(\d{1,6})\.", name)
    return (int(match[1]), match[0]) if match else (-1, "")


def _is_done(file: Path, names: Iterable[str], metadata: Mapping[str, str]) -> bool:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            return stored.metadata() == dict(metadata) and set(stored.keys()) == set(names)
    except SafetensorError:
        return False


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic_file(file, overwrite=True) as partial:
        save_file(dict(tensors), partial, metadata=dict(metadata))
        again = TensorSource({partial: None}, str(partial))
        wrong = [name for name, tensor in tensors.items() if not same_bits(again.get(name), tensor)]
        if wrong:
            raise OSError(f"{file} was not written right: {wrong[0]} differs when it is read again")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare values and NaNs."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def working_types(
    source: TensorSource, names: Mapping[str, str], keep_float32: Callable[[str], bool], dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """Types in which a model works: `dtype`, and float32 for the names that keep it; numbers of other kinds stay."""

    def of(name: str) -> torch.dtype:
        if not source.dtype(names[name]).is_floating_point:
            return source.dtype(names[name])
        return torch.float32 if keep_float32(name) else dtype

    return {name: of(name) for name in names}


def models(folder: Path) -> Iterator[tuple[Path, TensorSource]]:
    """Yield the weights in a folder: itself, the folders in it, and the weight files that are no model's shards."""
    copies = set(NAMES.values())
    for path in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if path != folder and copies & {path.name, path.suffix.removeprefix(".")}:
            continue
        try:
            yield path, open_source(path)
        except FileNotFoundError:  # other things, such as a tokenizer
            continue
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".pth", ".safetensors") and STEM not in path.name:
            yield path, open_source(path)

"""Repacked weights beside the files that they were made from: stored in the types in which a model works.

They stay views of their files when they are loaded, and half as much is read. The copy of a folder `model` is
`model/repacked`, that of a file `t5.pth` is `t5.repacked`. It belongs to the content of the files, not to their names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from wan.checkpoint.fingerprint import sample
from wan.checkpoint.layout import weight_files
from wan.checkpoint.loading import STEM
from wan.checkpoint.source import INDEX_SUFFIX, TensorSource, open_source
from wan.files import atomic_file, read_json

log = logging.getLogger(__name__)
INDEX = f"{STEM}{INDEX_SUFFIX}"
MAX_INDEX_BYTES = 16_000_000


def place_of(path: Path) -> Path:
    """Folder of the repacked copy of a model folder or weight file."""
    return path / "repacked" if path.is_dir() else path.with_suffix(".repacked")


def identity(path: Path) -> str:
    """Digits that identify the weights of a part, by samples of its files."""
    return hashlib.sha256(b"".join(map(sample, weight_files(path)))).hexdigest()[:16]


def freshest(path: Path) -> Path:
    """Return the place of the repacked copy of a part if it is complete and of these weights, else the part itself."""
    place = place_of(path)
    if not (place / INDEX).is_file():
        return path
    index = read_json(place / INDEX, MAX_INDEX_BYTES)
    metadata = index.get("metadata") if isinstance(index, dict) else None
    if isinstance(metadata, dict) and metadata.get("made_of") == identity(path):
        return place
    log.warning("%s is ignored: it was made of other weights than those beside it; repack again, or remove it", place)
    return path


def repack(source: TensorSource, names: Mapping[str, str], dtypes: Mapping[str, torch.dtype], path: Path) -> Path:
    """Write the tensors of a part, `names` in the model -> names in `source`, in the order of blocks and in `dtypes`.

    There is a file for each block, which appears when it was read again and has the right values. Files of an earlier
    run that ended early are kept. The index is written last. Returns the folder.
    """
    place, made_of = place_of(path), identity(path)
    place.mkdir(exist_ok=True)
    groups = [list(group) for _, group in groupby(sorted(names, key=_block), _block)]
    files = [f"{STEM}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for file, group in zip(files, groups, strict=True):
        wanted = {"made_of": made_of, "types": ",".join(str(dtypes[name]) for name in group)}
        if not _is_done(place / file, group, wanted):
            tensors = {name: source.get(names[name]).to(dtypes[name]).contiguous() for name in group}
            _write(place / file, tensors, wanted)
    index = {
        "metadata": {"made_of": made_of},
        "weight_map": {name: file for file, group in zip(files, groups, strict=True) for name in group},
    }
    with atomic_file(place / INDEX, overwrite=True) as partial:
        partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for stale in place.glob(f"{STEM}-*.safetensors"):
        if stale.name not in files:
            stale.unlink()
    return place


def _block(name: str) -> tuple[int, str]:
    """Number and name of the block that a tensor belongs to; the others come first."""
    match = re.match(r"blocks\.(\d{1,6})\.", name)
    return (int(match[1]), match[0]) if match else (-1, "")


def _is_done(file: Path, names: list[str], metadata: Mapping[str, str]) -> bool:
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
    for path in (folder, *sorted(child for child in folder.iterdir() if child.is_dir() and child.name != "repacked")):
        if path.suffix == ".repacked":
            continue
        try:
            yield path, open_source(path)
        except FileNotFoundError:  # other things, such as a tokenizer
            continue
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".pth", ".safetensors") and STEM not in path.name:
            yield path, open_source(path)

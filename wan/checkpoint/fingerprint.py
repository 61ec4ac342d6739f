"""Fingerprint of the weights of a checkpoint, made without reading them all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wan.checkpoint.layout import part, weight_files, weights_of
from wan.checkpoint.source import is_safetensors, read_header

WHOLE_BYTES = 8_000_000  # files up to this size are read whole
EDGE_BYTES = 65_536  # read at both ends of larger ones: the header, and the checksums that end a .pth
PLACES = 64  # samples, evenly spread over the rest
PLACE_BYTES = 4096
TENSOR_BYTES = 256  # of every tensor of a safetensors file


def fingerprint(checkpoint_dir: str | Path, config: Any) -> str:
    """Return 16 hex digits that identify the weights of a checkpoint of the task `config`, wherever its folder lies.

    They are a hash of the sizes of all files with weights and of the tokenizer, and of samples of their bytes. Every
    tensor is sampled, because a fine-tune has the headers of its base. For 126 GB about 4 MB are read. The same weights
    in other shards or formats have other digits. Raises FileNotFoundError when a file is missing.
    """
    parts = [*sorted(config.experts), *weights_of(config)]
    files = [(name, file) for name in parts for file in weight_files(part(checkpoint_dir, name))]
    files.append(("tokenizer", part(checkpoint_dir, config.t5_tokenizer) / "tokenizer.json"))
    digest = hashlib.sha256()
    for role, path in files:
        digest.update(role.encode() + sample(path))
    return digest.hexdigest()[:16]


def same_weights(one: Path, other: Path) -> bool:
    """Tell whether two models, files or folders of the same shards, agree in all that a fingerprint reads."""
    ours, theirs = weight_files(one), weight_files(other)
    same = (a.samefile(b) or sample(a) == sample(b) for a, b in zip(ours, theirs, strict=False))
    return len(ours) == len(theirs) and all(same)


def sample(path: Path) -> bytes:
    """Hash the size of a file and samples of its bytes."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with open(path, "rb") as file:
        for start, length in _places(path):
            file.seek(start)
            digest.update(file.read(length))
    return digest.digest()


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the parts of a file that are sampled."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        yield 0, size
        return
    yield 0, EDGE_BYTES
    yield size - EDGE_BYTES, EDGE_BYTES
    yield from ((size * place // PLACES, PLACE_BYTES) for place in range(PLACES))
    if is_safetensors(path):
        for entry in read_header(path).values():
            yield (entry.start + entry.stop) // 2, min(TENSOR_BYTES, (entry.stop - entry.start + 1) // 2)

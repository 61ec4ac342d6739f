"""Cache of latents, captions and conditions on disk: written once, then memory-mapped."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan.files import atomic_file, read_json, shown
from wan.training.objective import FlowBatch

INDEX_FILE = "index.json"
MAX_INDEX_BYTES = 1_000_000_000  # of captions


class CacheWriter:
    """Writer of samples to a folder: one raw float16 file per shape, and an index that `close` writes.

    A row of a file is a latent, followed by its conditions along the channels, and by named inputs of other shapes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("latents-*.bin"), folder / INDEX_FILE]:
            stale.unlink(missing_ok=True)
        self._buckets: dict[str, dict] = {}

    def add(
        self,
        latent: Tensor,
        captions: Sequence[str],
        conditions: Sequence[Tensor] = (),
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a latent [C, T, H, W] with its captions and conditions [C', T, H, W] (I2V's y).

        One caption and, if there are conditions, one of them is drawn each time the sample is used. `inputs` are other
        arguments of the model for this sample, of any shape; the samples of a batch have the same names and shapes.
        """
        if not captions:
            raise ValueError("a sample needs at least one caption (an empty one trains without text)")
        inputs = dict(sorted((inputs or {}).items()))
        row = torch.cat([latent, *conditions])
        split, shapes = [len(part) for part in (latent, *conditions)], {n: list(x.shape) for n, x in inputs.items()}
        name = f"latents-{'+'.join(map(str, split))}x{_sizes(latent.shape[1:])}"
        name = "-".join([name, *(f"{n}-{_sizes(shape)}" for n, shape in shapes.items())]) + ".bin"
        described = {"shape": list(row.shape), "split": split, "inputs": shapes, "captions": []}
        bucket = self._buckets.setdefault(name, described)
        with open(self.folder / name, "ab") as file:
            for part in (row, *inputs.values()):
                file.write(part.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
        bucket["captions"].append(list(captions))

    def close(self) -> None:
        """Write the index. Without it the folder is no cache, so a killed run cannot leave half of one."""
        with atomic_file(self.folder / INDEX_FILE, overwrite=True) as file:
            file.write_text(json.dumps(self._buckets))


class LatentCache:
    """Reader of the folder of a CacheWriter; samples are read when they are drawn.

    `weights` are the shares with which conditions are drawn; None: equal ones. With `evenness` samples of low contrast
    are drawn more often, in proportion to std ** -evenness of their latents: their errors count less in a squared loss.
    """

    def __init__(self, folder: Path, weights: Sequence[float] | None = None, evenness: float = 0.0):
        if not self.exists(folder):
            raise ValueError(f"{folder} holds no latent cache (no {INDEX_FILE}); encode the videos first")
        index = _read_index(folder)
        self._captions = [bucket["captions"] for bucket in index.values()]
        self._splits = [np.cumsum(bucket["split"]) for bucket in index.values()]
        counts = {len(split) - 1 for split in self._splits}
        if weights is not None and counts != {len(weights)}:
            raise ValueError(f"{len(weights)} weights do not fit samples with {sorted(counts)} conditions")
        self._shares = None if weights is None else np.array(weights) / sum(weights)
        self._shapes = [{"": bucket["shape"], **bucket.get("inputs", {})} for bucket in index.values()]  # "": latent
        self._rows = [
            np.memmap(folder / name, np.float16, "r", shape=(len(bucket["captions"]), _row_length(bucket)))
            for name, bucket in index.items()
        ]
        self._odds: list[np.ndarray] | None = None
        if evenness:
            videos = (
                [self._parts(n, row)[""][: ends[0]] for row in self._rows[n]] for n, ends in enumerate(self._splits)
            )
            odds = (_contrast(latents) ** -evenness for latents in videos)
            self._odds = [share / share.sum() for share in odds]

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / INDEX_FILE).is_file()

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of a latent and of each of its conditions."""
        return tuple(np.diff(self._splits[0], prepend=0).tolist())

    def captions(self) -> list[str]:
        """Every distinct caption, sorted."""
        return sorted({c for bucket in self._captions for sample in bucket for c in sample})

    def draw(self, batch_size: int, seed: int, index: int) -> FlowBatch:
        """Draw batch number `index`: samples of one shape, each with one of its captions and of its conditions.

        A shape is drawn in proportion to its samples. The result depends on the arguments alone, which makes training
        resumable (see training.loop).
        """
        rng = np.random.default_rng((seed, index))
        sizes = np.array([len(rows) for rows in self._rows])
        bucket = rng.choice(len(sizes), p=sizes / sizes.sum())
        rows = (
            rng.integers(sizes[bucket], size=batch_size)
            if self._odds is None
            else rng.choice(sizes[bucket], size=batch_size, p=self._odds[bucket])
        )
        parts = self._parts(bucket, torch.from_numpy(self._rows[bucket][rows].astype(np.float32)))
        samples = parts.pop("")
        captions = [self._captions[bucket][row] for row in rows]
        captions = [c[rng.integers(len(c))] for c in captions]
        ends = self._splits[bucket]
        if len(ends) == 1:
            return FlowBatch(samples, captions, inputs=parts)
        chosen = rng.choice(len(ends) - 1, size=batch_size, p=self._shares)
        conditions = [s[ends[i] : ends[i + 1]] for s, i in zip(samples, chosen, strict=True)]
        return FlowBatch(samples[:, : ends[0]], captions, torch.stack(conditions), parts)

    def _parts(self, bucket: int, rows: Any) -> dict[str, Any]:
        """Take rows [..., n] of a bucket apart: "" is the latent with its conditions, the others are named inputs."""
        parts, start = {}, 0
        for name, shape in self._shapes[bucket].items():
            parts[name] = rows[..., start : start + math.prod(shape)].reshape(*rows.shape[:-1], *shape)
            start += math.prod(shape)
        return parts


def _read_index(folder: Path) -> dict[str, dict]:
    """Read the index of `CacheWriter.close` and check it against the files beside it. Raises ValueError."""
    path = folder / INDEX_FILE
    index = read_json(path, MAX_INDEX_BYTES)
    if not isinstance(index, dict) or not index or not all(_is_bucket(folder, *item) for item in index.items()):
        raise ValueError(
            f"{shown(path)} does not describe the files beside it; delete that folder, and the videos are encoded again"
        )
    return index


def _is_bucket(folder: Path, name: str, bucket: Any) -> bool:
    try:
        shape, split, captions = (bucket[key] for key in ("shape", "split", "captions"))
        inputs = bucket.get("inputs", {})  # caches of earlier versions have none
        return (
            all(type(size) is int and size > 0 for size in (*shape, *split, *(n for x in inputs.values() for n in x)))
            and all(key.isidentifier() for key in inputs)
            and len(shape) == 4
            and sum(split) == shape[0]
            and all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in captions)
            and re.fullmatch(r"latents-[\d+x]+[\w-]*\.bin", name, re.ASCII) is not None
            and (folder / name).stat().st_size == 2 * _row_length(bucket) * len(captions) > 0
        )
    except (KeyError, TypeError, AttributeError, OSError):
        return False


def _row_length(bucket: dict) -> int:
    return sum(math.prod(shape) for shape in (bucket["shape"], *bucket.get("inputs", {}).values()))


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _contrast(latents: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation of each of latents [C, T, H, W] around its channels' means, or a quarter of the mean."""
    contrast = np.sqrt([latent.astype(np.float64).var(axis=(1, 2, 3)).mean() for latent in latents])
    return np.maximum(contrast, contrast.mean() / 4 + 1e-12)

"""Cache of latents, captions and conditions on disk: written once, then memory-mapped."""

import json
import math
import re
from collections.abc import Sequence
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

    A row of a file is a latent, followed by its conditions along the channels.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("latents-*.bin"), folder / INDEX_FILE]:
            stale.unlink(missing_ok=True)
        self._buckets: dict[str, dict] = {}

    def add(self, latent: Tensor, captions: Sequence[str], conditions: Sequence[Tensor] = ()) -> None:
        """Add a latent [C, T, H, W] with its captions and conditions [C', T, H, W] (I2V's y).

        One caption and, if there are conditions, one of them is drawn each time the sample is used.
        """
        if not captions:
            raise ValueError("a sample needs at least one caption (an empty one trains without text)")
        row = torch.cat([latent, *conditions]).detach().cpu().to(torch.float16).contiguous()
        split = [len(part) for part in (latent, *conditions)]
        name = f"latents-{'+'.join(map(str, split))}x{'x'.join(map(str, latent.shape[1:]))}.bin"
        bucket = self._buckets.setdefault(name, {"shape": list(row.shape), "split": split, "captions": []})
        with open(self.folder / name, "ab") as file:
            file.write(row.numpy().tobytes())
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
        self._latents = [
            np.memmap(folder / name, np.float16, "r", shape=(len(bucket["captions"]), *bucket["shape"]))
            for name, bucket in index.items()
        ]
        self._odds: list[np.ndarray] | None = None
        if evenness:
            videos = (rows[:, : ends[0]] for rows, ends in zip(self._latents, self._splits, strict=True))
            odds = (_contrast(latents) ** -evenness for latents in videos)
            self._odds = [share / share.sum() for share in odds]

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / INDEX_FILE).is_file()

    def __len__(self) -> int:
        return sum(map(len, self._latents))

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
        sizes = np.array([len(latents) for latents in self._latents])
        bucket = rng.choice(len(sizes), p=sizes / sizes.sum())
        rows = (
            rng.integers(sizes[bucket], size=batch_size)
            if self._odds is None
            else rng.choice(sizes[bucket], size=batch_size, p=self._odds[bucket])
        )
        samples = torch.from_numpy(self._latents[bucket][rows].astype(np.float32))
        captions = [self._captions[bucket][row] for row in rows]
        captions = [c[rng.integers(len(c))] for c in captions]
        ends = self._splits[bucket]
        if len(ends) == 1:
            return FlowBatch(samples, captions)
        chosen = rng.choice(len(ends) - 1, size=batch_size, p=self._shares)
        conditions = [s[ends[i] : ends[i + 1]] for s, i in zip(samples, chosen, strict=True)]
        return FlowBatch(samples[:, : ends[0]], captions, torch.stack(conditions))


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
        return (
            all(type(size) is int and size > 0 for size in (*shape, *split))
            and len(shape) == 4
            and sum(split) == shape[0]
            and all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in captions)
            and re.fullmatch(r"latents-[\d+x]+\.bin", name, re.ASCII) is not None
            and (folder / name).stat().st_size == 2 * math.prod(shape) * len(captions) > 0
        )
    except (KeyError, TypeError, OSError):
        return False


def _contrast(latents: np.ndarray) -> np.ndarray:
    """Standard deviation of each of latents [N, C, T, H, W] around its channels' means, or a quarter of the mean."""
    contrast = np.sqrt([latent.astype(np.float64).var(axis=(1, 2, 3)).mean() for latent in latents])
    return np.maximum(contrast, contrast.mean() / 4 + 1e-12)

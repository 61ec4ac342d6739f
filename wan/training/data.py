"""Latents and captions on disk, encoded once and memory-mapped from then on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan.training.objective import FlowBatch

INDEX_FILE = "index.json"


class CacheWriter:
    """Appends samples to a folder: one raw float16 file per latent shape, and an index written by `close`."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob("latents-*.bin"), folder / INDEX_FILE]:
            stale.unlink(missing_ok=True)
        self._buckets: dict[str, dict] = {}

    def add(self, latent: Tensor, captions: Sequence[str]) -> None:
        """latent [C, T, H, W]; every caption describes it, and one of them is drawn each time it is used."""
        if not captions:
            raise ValueError("a sample needs at least one caption (an empty one trains without text)")
        name = "latents-" + "x".join(map(str, latent.shape)) + ".bin"
        bucket = self._buckets.setdefault(name, {"shape": list(latent.shape), "captions": []})
        with open(self.folder / name, "ab") as file:
            file.write(latent.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
        bucket["captions"].append(list(captions))

    def close(self) -> None:
        """Write the index; without it the folder is not a cache, so a killed run cannot leave half of one."""
        partial = self.folder / (INDEX_FILE + ".partial")
        partial.write_text(json.dumps(self._buckets))
        os.replace(partial, self.folder / INDEX_FILE)


class LatentCache:
    """A folder of CacheWriter, read lazily."""

    def __init__(self, folder: Path):
        if not self.exists(folder):
            raise ValueError(f"{folder} holds no latent cache (no {INDEX_FILE}); encode the videos first")
        index = json.loads((folder / INDEX_FILE).read_text())
        self._captions = [bucket["captions"] for bucket in index.values()]
        self._latents = [
            np.memmap(folder / name, np.float16, "r", shape=(len(bucket["captions"]), *bucket["shape"]))
            for name, bucket in index.items()
        ]

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / INDEX_FILE).exists()

    def __len__(self) -> int:
        return sum(map(len, self._latents))

    def captions(self) -> list[str]:
        """Every distinct caption, sorted."""
        return sorted({c for bucket in self._captions for sample in bucket for c in sample})

    def draw(self, batch_size: int, seed: int, index: int) -> FlowBatch:
        """Batch number `index`: samples of one shape, the shape drawn by its number of samples, a caption for each.

        A pure function of its arguments, which is what makes training resumable (see training.loop).
        """
        rng = np.random.default_rng((seed, index))
        sizes = np.array([len(latents) for latents in self._latents])
        bucket = rng.choice(len(sizes), p=sizes / sizes.sum())
        rows = rng.integers(sizes[bucket], size=batch_size)
        latents = torch.from_numpy(self._latents[bucket][rows].astype(np.float32))
        captions = [self._captions[bucket][row] for row in rows]
        return FlowBatch(latents, [c[rng.integers(len(c))] for c in captions])

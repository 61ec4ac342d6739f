"""Packing of the frames before a clip: the nearer a latent frame, the more tokens it gets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.model import PatchEmbedding, patchify

# Latent frames from the last one backwards: (frames, patch, positions in time of the tokens' frames).
BUCKETS: tuple[tuple[int, tuple[int, int, int], tuple[int, ...]], ...] = (
    (1, (1, 2, 2), (-1,)),
    (2, (2, 4, 4), (-3,)),
    (16, (4, 8, 8), (-19, -14, -9, -4)),
)
HISTORY_FRAMES = sum(frames for frames, _, _ in BUCKETS)


class FramePacker(nn.Module):
    """Embedding of 19 latent frames of history in one and a half times the tokens of one frame."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj, self.proj_2x, self.proj_4x = (PatchEmbedding(channels, dim, patch, patch) for _, patch, _ in BUCKETS)

    def forward(self, latents: Tensor) -> Tensor:
        """Embed the last frames of latents [B, C, T, h, w] -> [B, L, dim]; zero frames stand in for missing ones."""
        kept = latents[:, :, -HISTORY_FRAMES:]
        kept, parts = F.pad(kept, (0, 0, 0, 0, HISTORY_FRAMES - kept.shape[2], 0)), []
        for (frames, patch, _), embed in zip(BUCKETS, (self.proj, self.proj_2x, self.proj_4x), strict=True):
            kept, bucket = kept[:, :, : kept.shape[2] - frames], kept[:, :, kept.shape[2] - frames :]
            parts.append(embed(patchify(bucket, patch)))
        return torch.cat(parts, dim=1)


def history_positions(rows: int, columns: int) -> Tensor:
    """Positions [L, 3] (time, row, column) of packed history; the video has `rows` and `columns` of tokens.

    Tokens of larger patches are spread over the same rows and columns, from the first to the last.
    """
    parts = []
    for _, (_, high, wide), times in BUCKETS:
        axes = torch.tensor(times), spread(rows, rows * 2 // high), spread(columns, columns * 2 // wide)
        parts.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3))
    return torch.cat(parts)


def spread(length: int, count: int) -> Tensor:
    """Spread `count` positions over 0..length - 1, rounded down."""
    return torch.arange(count) * (length - 1) // max(count - 1, 1)

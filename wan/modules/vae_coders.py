"""The encoder and the decoder around any list of stages. Tensors are [B, C, T, H, W]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan.modules.vae_blocks import (
    AttentionBlock,
    CausalConv3d,
    DupUp3D,
    FrameCache,
    OutputHead,
    Resample,
    ResidualBlock,
    run_chunk,
)

FRAMES_AT_ONCE = 4  # frames that a decoder stage processes together when streaming


class Encoder3d(nn.Module):
    """[B, channels, T, H, W] -> moments [B, 2z, T', h, w] through `downsamples`, in two steps: `local`, then `context`.

    `temporal` says for each change of resolution whether it halves the frame rate, too.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        downsamples: nn.Sequential,
        temporal: Sequence[bool],
        z_dim: int,
        dropout: float,
    ):
        super().__init__()
        self.conv1 = CausalConv3d(channels, widths[0], 3, padding=1)
        self.downsamples = downsamples
        self.middle = middle(widths[-1], dropout)
        self.head = OutputHead(widths[-1], z_dim * 2)
        # frames of the video that reach each stage as FRAMES_AT_ONCE
        self.frames_at_once = [FRAMES_AT_ONCE * 2 ** sum(temporal[:stage]) for stage in range(len(temporal) + 1)]

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self.context(self.local(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """The last stage takes all of x; earlier ones a few frames at a time if there is a cache: theirs are larger."""
        return self._through(self.stages(), x, cache)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return self.head(run_chunk(self.middle, x, cache), cache)

    def stages(self) -> list[list[nn.Module]]:
        """The layers of each resolution; the last one of a stage leads to the next."""
        raise NotImplementedError

    def _through(self, stages: list[list[nn.Module]], x: Tensor, cache: FrameCache | None) -> Tensor:
        *earlier, last = stages
        if not earlier:
            return run_chunk(last, self.conv1(x, cache), cache)
        size = x.shape[2] if cache is None else self.frames_at_once[len(earlier) - 1]
        parts = x.split(size, dim=2)
        return run_chunk(last, join([self._through(earlier, part, cache) for part in parts]), cache)


class Decoder3d(nn.Module):
    """[B, z, T', h, w] -> [B, channels, T, H, W] through `upsamples`, in two steps: `context`, then `local`."""

    def __init__(self, z_dim: int, widths: Sequence[int], upsamples: nn.Sequential, channels: int, dropout: float):
        super().__init__()
        self.conv1 = CausalConv3d(z_dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0], dropout)
        self.upsamples = upsamples
        self.head = OutputHead(widths[-1], channels)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.middle, self.conv1(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
        """Yield the frames of [B, C, T', h, w] in order, at most FRAMES_AT_ONCE at a time if there is a cache."""
        for part in run_stages(self.stages(), x, cache):
            yield self.head(part, cache)

    def stages(self) -> list[Stage]:
        raise NotImplementedError


class Stage(NamedTuple):
    """What happens at one resolution of a decoder, and the way to the next."""

    blocks: Sequence[nn.Module]
    resample: Resample | None  # None: the last stage
    shortcut: DupUp3D | None = None  # from the input of the stage to its resampled result

    def finish(self, y: Tensor, x: Tensor | None, cache: FrameCache | None) -> Tensor:
        """The end of the stage for some of its frames: y after the blocks, x before them."""
        y = self.resample(y, cache)
        return y if self.shortcut is None else self.shortcut(x, y)


def run_stages(stages: Sequence[Stage], x: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
    """The first stage on all of x, the later ones on a few frames at a time if there is a cache: theirs are larger.

    A tensor is let go as soon as nothing needs it, which the names below see to.
    """
    stage, *later = stages
    given = None if stage.shortcut is None else x
    for block in stage.blocks:
        x = block(x, cache)
    if stage.resample is None:
        yield x
        return
    limit = FRAMES_AT_ONCE // 2 if stage.resample.mode == "upsample3d" else FRAMES_AT_ONCE
    size = x.shape[2] if cache is None else limit
    for start in range(0, x.shape[2], size):
        frames = slice(start, start + size)
        before = None if given is None else given[:, :, frames]
        yield from run_stages(later, stage.finish(x[:, :, frames], before, cache), cache)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Consecutive parts of a video -> the whole."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def middle(dim: int, dropout: float) -> nn.Sequential:
    """The layers at latent resolution; the only ones that see a whole frame."""
    return nn.Sequential(ResidualBlock(dim, dim, dropout), AttentionBlock(dim), ResidualBlock(dim, dim, dropout))

"""Decode on all ranks: each decodes a band of rows of every frame, and the result is exact.

A convolution looks one row up and one down, so before it ranks exchange the rows at the edges of their bands. Nothing
is computed twice but attention: it sees whole frames, at the lowest resolution, and every rank computes all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from wan.distributed.util import all_gather, all_to_all
from wan.modules.vae_blocks import AttentionBlock, CausalConv3d, Resample, added, layout
from wan.modules.vae_wrapper import VideoVAE
from wan.parallel import shares

SMALL = 32 * 32  # positions of a latent frame up to which one rank alone is faster than an exchange of rows


def decode_in_bands(vae: VideoVAE, latent: Tensor, mesh: DeviceMesh) -> Iterator[Tensor]:
    """Run `vae.decode_stream(latent)` on all ranks of a one-dimensional mesh; only the first one gets the frames.

    The others yield nothing, but must be iterated, because all compute together. The first one decodes tiles and small
    frames alone: then frames are those of one process to the last bit.
    """
    group, rows = mesh.get_group(), shares(latent.shape[2], mesh.size())
    small = latent.shape[2:].numel() <= SMALL or rows[-1] == 0
    if vae.tiling is not None or small or mesh.size() == 1:
        if group.rank() == 0:
            yield from vae.decode_stream(latent)
        return
    with exchanging_rows(vae.model.decoder, group, rows):
        for chunk in vae.decode_stream(latent.split(rows, dim=2)[group.rank()]):
            frames = _collect(chunk, group, [n * vae.model.config.stride[1] for n in rows])
            if frames is not None:
                yield frames


@contextmanager
def exchanging_rows(decoder: nn.Module, group: ProcessGroup, rows: list[int]) -> Iterator[None]:
    """Let `decoder` work on bands within the block: rank r of the group has rows[r] of the latent's rows, in order."""
    hooks = []
    for module in decoder.modules():
        band = _band_of(module, group, rows)
        if band is not None:
            hooks.append(module.register_forward_pre_hook(band.before, with_kwargs=True))
            hooks.append(module.register_forward_hook(band.after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _band_of(module: nn.Module, group: ProcessGroup, rows: list[int]) -> _Neighbours | _WholeFrames | None:
    """Make the exchange with other bands that a module needs; None for a module that looks at one position."""
    if isinstance(module, AttentionBlock):
        return _WholeFrames(group, rows)
    if isinstance(module, Resample):
        return _Neighbours(group, scale=2)
    if isinstance(module, CausalConv3d) and module.kernel_size[1] > 1:
        return _Neighbours(group, scale=1)
    return None


class _Neighbours:
    """Hooks around a module that looks one row up and down, and makes `scale` rows of each."""

    def __init__(self, group: ProcessGroup, scale: int):
        self.group, self.scale = group, scale
        self.above, self.below = int(group.rank() > 0), int(group.rank() < group.size() - 1)
        self.residual: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Extend the input [B, C, T, h, W] by the nearest row of the band above and of the band below."""
        x, *others = args
        if "residual" in kwargs:  # is added to the result of the band alone
            self.residual, kwargs = kwargs["residual"], {**kwargs, "residual": None}
        return (self._extended(x), *others), kwargs

    def after(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        """Cut off the rows of the result that belong to the neighbours."""
        y = y[:, :, :, self.scale * self.above : y.shape[3] - self.scale * self.below]
        residual, self.residual = self.residual, None
        return y if residual is None else added(residual, y)

    def _extended(self, x: Tensor) -> Tensor:
        first, last = x[:, :, :, :1], x[:, :, :, -1:]
        rank, counts = self.group.rank(), [0] * self.group.size()
        edges = []
        if self.above:
            counts[rank - 1] = first.numel()
            edges.append(first)
        if self.below:
            counts[rank + 1] = last.numel()
            edges.append(last)
        received = all_to_all(torch.cat([edge.flatten() for edge in edges]), counts, counts, self.group)
        rows = [part.view(first.shape) for part in received.split(first.numel())]
        b, c, t, h, w = x.shape
        shape = (b, c, t, h + len(rows), w)
        extended = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))
        extended[:, :, :, self.above : self.above + h] = x
        for place, row in zip([0] * self.above + [-1] * self.below, rows, strict=True):
            extended[:, :, :, place] = row[:, :, :, 0]
        return extended


class _WholeFrames:
    """Hooks around a module that looks at all positions of a frame."""

    def __init__(self, group: ProcessGroup, rows: list[int]):
        self.group, self.rows = group, rows

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        x, *others = args
        padded = F.pad(x, (0, 0, 0, max(self.rows) - x.shape[3]))
        bands = zip(all_gather(padded, self.group), self.rows, strict=True)
        whole = torch.cat([band[:, :, :, :n] for band, n in bands], dim=3)
        return (whole.contiguous(memory_format=layout(x)), *others), kwargs

    def after(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        return y.split(self.rows, dim=3)[self.group.rank()]


def _collect(band: Tensor, group: ProcessGroup, rows: list[int]) -> Tensor | None:
    """Bands [3, f, rows[r], W] of all ranks -> frames [3, f, H, W] on the first one, None on the others."""
    others = [0] * (group.size() - 1)
    sizes = [band.numel() // band.shape[2] * n for n in rows]
    first = group.rank() == 0
    received = all_to_all(band.flatten(), [band.numel(), *others], sizes if first else [0, *others], group)
    if not first:
        return None
    channels, frames, _, width = band.shape
    parts = zip(received.split(sizes), rows, strict=True)
    return torch.cat([part.view(channels, frames, n, width) for part, n in parts], dim=2)

"""Spread a model's tokens over ranks: each embeds, transforms and predicts its own; only attention sees all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from wan.distributed.ulysses import ulysses
from wan.distributed.util import all_gather, get_world_size
from wan.modules.model import WanModel, WanSelfAttention
from wan.modules.steps import Conditioning, Segment, Segments, Step, Tokens

RunBlocks = Callable[[Iterable[Step], Tokens, Conditioning], Tokens]


def parallelize(model: WanModel, mesh: DeviceMesh) -> None:
    """Spread the tokens of `model` over a one-dimensional mesh, in place of any earlier one; a mesh of one undoes it.

    Every rank calls the model with the same arguments and gets the whole result, equal to that of one process.
    """
    group = None if mesh.size() == 1 else mesh.get_group()
    if getattr(model.run_blocks, "group", None) is group:
        return
    for block in model.blocks:
        attend = getattr(block.self_attn.attend, "single", block.self_attn.attend)
        block.self_attn.attend = attend if group is None else ulysses(attend, group)
    run = getattr(model.run_blocks, "single", model.run_blocks)
    model.run_blocks = run if group is None else sharded(run, group)


def sp_attn_forward(self: WanSelfAttention, *inputs: Any) -> Tensor:
    """Call self-attention, under upstream's name for a method of it; `sp_dit_forward` spreads the tokens for all."""
    return type(self).forward(self, *inputs)


def sp_dit_forward(self: WanModel, *inputs: Any, **named: Any) -> list[Tensor]:
    """Call a model whose tokens all processes share, under upstream's name for a method of it.

    Scripts write `model.forward = types.MethodType(sp_dit_forward, model)`.
    """
    if get_world_size() > 1 and not hasattr(self.run_blocks, "group"):
        device = self.patch_embedding.weight.device.type
        parallelize(self, init_device_mesh(device, (get_world_size(),)))
    return type(self).forward(self, *inputs, **named)


def sharded(run: RunBlocks, group: ProcessGroup) -> RunBlocks:
    """Wrap `run`: it gets this rank's share of the tokens, and the results of all ranks are gathered."""

    def own(tokens: Tokens) -> Tokens:
        return shard(tokens, group.rank(), group.size())

    def gathered(part: Tokens, tokens: Tokens) -> Tokens:
        whole = all_gather(part.x, group).transpose(0, 1).flatten(1, 2)  # [P, B, l, C] -> [B, P * l, C]
        return tokens._replace(x=whole[:, : tokens.x.shape[1]])

    def run_shard(steps: Iterable[Step], tokens: Tokens, cond: Conditioning) -> Tokens:
        if isinstance(tokens, list):  # of branches
            return list(map(gathered, run_shard.single(steps, list(map(own, tokens)), cond), tokens))
        return gathered(run_shard.single(steps, own(tokens), cond), tokens)

    run_shard.single, run_shard.group = run, group
    return run_shard


def shard(tokens: Tokens, rank: int, count: int) -> Tokens:
    """Cut out the tokens of `rank` of `count`. Parts are equal, the last ones are filled up with zero tokens.

    `lengths` still counts the real tokens of all ranks, so that attention ignores the filling.
    """
    batch, length = tokens.x.shape[:2]
    size = -(-length // count)
    start = rank * size
    lengths = tokens.lengths or ((length,) * batch if size * count > length else None)
    rope = _rows(tokens.rope, start, size)  # a zero row makes a zero query, whose result is finite and dropped
    segments = _cut(tokens.segments, start, size, length)
    return Tokens(_rows(tokens.x, start, size), rope, segments, lengths, tokens.start + start)


def _rows(x: Tensor, start: int, size: int) -> Tensor:
    """Cut rows [start, start + size) of x [B, L, ...], with zeros beyond L."""
    part = x[:, start : start + size]
    missing = size - part.shape[1]
    return F.pad(part, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else part


def _cut(segments: Segments, start: int, size: int, length: int) -> Segments:
    """Cut segments to the tokens [start, start + size); padding beyond `length` belongs to the last one."""
    parts = []
    for segment in segments:
        stop = start + size if segment.stop == length else segment.stop
        low, high = max(segment.start - start, 0), min(stop - start, size)
        if low < high:
            parts.append(Segment(low, high, segment.rows))
    return tuple(parts)

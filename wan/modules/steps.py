"""Steps of a transformer's trunk, and what flows through them.

A token is a row of `x` with a rotary row and a place in a *segment*. A segment has one timestep. So the time MLP runs
once per distinct timestep, and no tensor holds the modulation of every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Segment(NamedTuple):
    """Tokens start..stop of every sample, and the row of the timestep table for each sample."""

    start: int
    stop: int
    rows: Tensor  # [B]


# Segments cover all tokens in order: one where each sample has one timestep, two with a clean first frame.
Segments = tuple[Segment, ...]


class Tokens(NamedTuple):
    """Batch of token sequences; samples shorter than L are padded at the end."""

    x: Tensor  # [B, L, C] the residual stream; raw patches before the trunk, predicted ones after it
    rope: Tensor  # [B or 1, L, D/2, 2] float32 (cos, sin)
    segments: Segments
    lengths: tuple[int, ...] | None  # real tokens per sample; None when there is no padding
    start: int = 0  # index of the first of these tokens in the whole sequence: they may be a part of it


Size = Sequence[int]  # frames, rows, columns of a latent


@dataclass(frozen=True)
class Prepared:
    """Values that depend on no timestep, made once for a clip and branch of guidance; other tasks add fields."""

    context: Tensor  # [B, text_len, C] text states
    rope: Tensor  # as in Tokens, like the next three
    segments: Segments
    num_timesteps: int  # rows of time features that the segments use
    lengths: tuple[int, ...] | None
    sizes: tuple[Size, ...]  # of the latents
    y: Sequence[Tensor] | None  # channels [C', F, H, W] that are appended to each latent
    # runs the trunk's steps, by `run_blocks` of the model and with a state of its own (`block_cache`)
    through: Callable[..., Tokens] | None = field(default=None, kw_only=True)


class Conditioning(NamedTuple):
    """Input of every step besides the tokens. S is the number of timesteps."""

    time: Tensor  # [S, C] float32, for the head
    modulation: Tensor  # [S, 6, C] float32, for the blocks
    prepared: Prepared


class Step(NamedTuple):
    """Step of the trunk: a function of tokens, and the modules that it calls."""

    run: Callable[[Tokens, Conditioning], Tokens]
    modules: tuple[nn.Module, ...]


def run_blocks(steps: Iterable[Step], tokens: Tokens, cond: Conditioning) -> Tokens:
    """Apply the steps in order. A model is sharded or streamed by replacing this function."""
    for step in steps:
        tokens = step.run(tokens, cond)
    return tokens


def of_branches(step: Step) -> Step:
    """Let a step take lists of tokens and of conditions, one of each branch of guidance; it changes the first list."""

    def run(tokens: list[Tokens], conds: list[Conditioning]) -> list[Tokens]:
        for index, cond in enumerate(conds):
            tokens[index] = step.run(tokens[index], cond)
        return tokens

    return Step(run, step.modules)


def by_frame(fn: Callable[[Tensor, slice], Tensor], tokens: Tokens, tokens_per_frame: int, num_frames: int) -> Tensor:
    """Replace the first `num_frames` frames, of N tokens each, in `tokens.x` by fn(x [B, f, N, C], frames).

    `frames` tells which f latent frames x has. If the tokens are a part of the sequence, missing tokens of its first
    and last frame are zeros. A part without frames calls `fn` on zeros: other processes wait for its weights.
    """
    x, n, start = tokens.x, tokens_per_frame, tokens.start
    count = min(max(n * num_frames - start, 0), x.shape[1])  # tokens of these frames in x
    first = min(start // n, num_frames - 1)
    stop = max(-(-(start + count) // n), first + 1) if count else first + 1
    before = start - n * first if count else 0
    missing = (before, n * (stop - first) - before - count)
    frames = F.pad(x[:, :count], (0, 0, *missing)) if any(missing) else x[:, :count]
    result = fn(frames.unflatten(1, (-1, n)), slice(first, stop)).flatten(1, 2)[:, before : before + count]
    return result if count == x.shape[1] else torch.cat([result, x[:, count:]], dim=1)


def by_segment(
    fn: Callable[..., Tensor], segments: Segments, table: Tensor, *parts: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute fn(*parts, *vectors), [B, L, C], as `dtype`; the k vectors are a segment's rows of table [S, k, C]."""

    def apply(segment: Segment) -> Tensor:
        rows = table[segment.rows]  # [B, k, C]
        vectors = rows[0].unbind(0) if len(rows) == 1 else rows[:, :, None].unbind(1)  # [C] takes the fused path
        return fn(*(part[:, segment.start : segment.stop] for part in parts), *vectors)

    if len(segments) == 1:
        return apply(segments[0]).to(dtype)
    out = torch.empty(parts[0].shape, dtype=dtype, device=parts[0].device)
    for segment in segments:
        out[:, segment.start : segment.stop] = apply(segment)
    return out

"""Clips of a video, which are made one after the other, and the events that a run reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from wan.geometry import LatentShape


@dataclass(frozen=True)
class Clip:
    """Clip as its task describes it: the latent to sample, its conditions, and the way to decode it.

    `positive` and `negative` are further arguments of `model.prepare` for the two branches of guidance. `lead` is
    decoded in front of the latent. `skip` first frames of the latent are not decoded. `drop` first decoded frames are
    not part of the video.
    """

    shape: LatentShape  # of the latent that is sampled
    seed: int
    y: Tensor | None = None  # channels [C, T, H, W] that are appended to every latent
    keep: Callable[[Tensor], Tensor] = lambda latent: latent  # restores known content before and after each step
    segments: tuple[tuple[int, int], ...] | None = None  # (tokens, row) in order: row 0 has a step's timestep, 1 has 0
    positive: Mapping[str, Any] = field(default_factory=dict)
    negative: Mapping[str, Any] = field(default_factory=dict)
    lead: Tensor | None = None  # [z, t, H, W]
    skip: int = 0
    drop: int = 0


def overlapping(num_frames: int, longest: int, overlap: int, is_full: bool = False) -> list[range]:
    """Divide a video into clips of equal length, 4n+1, that begin with the last `overlap` frames of the one before.

    There are as few as `longest` allows, and they are as short as they can then be, or all of `longest` with `is_full`.
    The last one may end after the video. Raises ValueError for a clip that would give the next one too few frames.
    """
    if longest < max(2, 2 * overlap):
        raise ValueError(f"clips of {longest} frames are too short to share {overlap} with the next one")
    count = max(1, -(-(num_frames - overlap) // (longest - overlap)))
    fresh = longest - overlap  # frames that a clip adds
    if not is_full:
        length = -(-(num_frames + (count - 1) * overlap) // count)
        fresh = -(-(length - 1) // 4) * 4 + 1 - overlap
    return [range(fresh * index, fresh * (index + 1) + overlap) for index in range(count)]


def back_and_forth(count: int, wanted: int) -> list[int]:
    """Number `wanted` frames of a video of `count`: after the last one it runs backwards, then forwards again."""
    period = max(1, 2 * count - 2)
    return [min(place, period - place) for place in (index % period for index in range(wanted))]


@dataclass(frozen=True)
class SampledClip:
    """Sampled clip, with all that decoding needs: the latent [z, T, H, W], and `lead`, `skip` and `drop` of its `Clip`.

    Tensors are float32 and on the CPU.
    """

    latent: Tensor
    lead: Tensor | None = None
    skip: int = 0
    drop: int = 0


class StepDone(NamedTuple):
    """Event: a solver step of clip `index` of `count` is done; `latent` is its result, on the device."""

    index: int
    count: int
    step: int  # from 1
    steps: int
    latent: Tensor


class ClipSampled(NamedTuple):
    """Event: the latent of a clip is complete. A caller that saves it now can go on from here after any failure."""

    index: int
    count: int
    clip: SampledClip


class FramesDecoded(NamedTuple):
    """Event: the next frames of the video, [3, f, H, W] in [-1, 1], float32, on the device or on the CPU."""

    index: int
    count: int
    frames: Tensor


Event = StepDone | ClipSampled | FramesDecoded

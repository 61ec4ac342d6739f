"""Encoder, decoder and the configuration of a causal video autoencoder. Tensors are [B, C, T, H, W]."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from wan.checkpoint.formats import describe_contents
from wan.files import shown
from wan.modules.vae_blocks import (
    AttentionBlock,
    CausalConv3d,
    DownStage,
    DupUp3D,
    FrameCache,
    OutputHead,
    Resample,
    ResidualBlock,
    UpStage,
    run_chunk,
    stage_layers,
)

PIXEL_CHANNELS = 3
MAX_WIDTH, MAX_STAGES, MAX_BLOCKS = 1 << 16, 8, 32  # far beyond any VAE, and small enough to build one without weights
ENDS = {"encoder.conv1.weight", "conv2.weight", "decoder.head.2.weight"}


@dataclass(frozen=True)
class VAEConfig:
    """Architecture of a causal video autoencoder; the defaults are the released VAE 2.1."""

    dim: int = 96  # channels at full resolution
    z_dim: int = 16  # latent channels
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each stage, in units of dim
    num_res_blocks: int = 2  # per encoder stage; the decoder has one more
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # at each transition between stages
    dropout: float = 0.0

    title: ClassVar[str] = "VAE 2.1"
    patch: ClassVar[int] = 1  # rows and columns of pixels that are folded into channels before the first convolution
    shortcuts: ClassVar[bool] = False  # around every change of resolution, which then keeps the channels
    layer_pattern: ClassVar[str] = r"encoder\.downsamples\.(\d+)\."  # the numbers of a layer, in order

    def __post_init__(self):
        object.__setattr__(self, "dim_mult", tuple(self.dim_mult))
        object.__setattr__(self, "temporal_downsample", tuple(bool(flag) for flag in self.temporal_downsample))
        if min(self.dim, self.z_dim, self.num_res_blocks, *self.dim_mult) < 1:
            raise ValueError(f"dim, z_dim, num_res_blocks and every dim_mult must be at least 1, got {self}")
        widest = max(self.z_dim, self.dim * max(self.dim_mult))
        if widest > MAX_WIDTH or len(self.dim_mult) > MAX_STAGES or self.num_res_blocks > MAX_BLOCKS:
            raise ValueError(
                f"a VAE has at most {MAX_WIDTH} channels, {MAX_STAGES} stages and {MAX_BLOCKS} blocks in each, got "
                f"{widest}, {len(self.dim_mult)} and {self.num_res_blocks}"
            )
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample needs one flag per transition between stages: {len(self.dim_mult) - 1} "
                f"for dim_mult {self.dim_mult}, got {len(self.temporal_downsample)}"
            )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent element: frames, rows, columns."""
        space = self.patch * 2 ** len(self.temporal_downsample)
        return 2 ** sum(self.temporal_downsample), space, space

    @property
    def folded_channels(self) -> int:
        return PIXEL_CHANNELS * self.patch**2

    @property
    def encoder_widths(self) -> list[int]:
        """Channels before the first stage and after each."""
        return [self.dim * mult for mult in (1, *self.dim_mult)]

    @property
    def decoder_dim(self) -> int:
        return self.dim

    @property
    def decoder_widths(self) -> list[int]:
        """Channels before the decoder's first stage, the lowest resolution, and after each."""
        return [self.decoder_dim * mult for mult in (self.dim_mult[-1], *self.dim_mult[::-1])]

    @property
    def decoder_inputs(self) -> list[int]:
        """Channels that each stage of the decoder is given; without shortcuts the way to it halves them."""
        first, *later, _ = self.decoder_widths
        return [first, *(width if self.shortcuts else width // 2 for width in later)]

    @property
    def encoder_halo(self) -> int:
        """Latent pixels beyond a tile that reach it through the encoder's stages (9 for the released VAEs)."""
        return self._reach(self.num_res_blocks)

    @property
    def decoder_halo(self) -> int:
        """Latent pixels beyond a tile that reach it through the decoder's stages (13 for the released VAEs)."""
        return self._reach(self.num_res_blocks + 1)

    def _reach(self, blocks: int) -> int:
        """Add up two convolutions a block, one a change of resolution, and the outermost; each reaches one position."""
        stages = len(self.dim_mult)
        inner = sum(2 * blocks / 2**i for i in range(stages)) + sum(1 / 2**i for i in range(1, stages))
        return math.ceil(inner + 1 / 2 ** (stages - 1))

    @classmethod
    def from_state(cls, shapes: Mapping[str, Sequence[int]]) -> VAEConfig:
        """Read the architecture off the names and shapes of a VAE's tensors.

        Raises ValueError when the names are not those of this kind of VAE, and says what they look like.
        """
        pattern = re.compile(cls.layer_pattern + r"(?:residual\.6|resample\.1)\.weight")
        matches = [match for match in map(pattern.fullmatch, shapes) if match]
        names = [match[0] for match in sorted(matches, key=lambda match: [int(n) for n in match.groups()])]
        if not names or not ENDS <= shapes.keys():
            contents = describe_contents(shapes) or "nothing that this version knows"
            raise ValueError(
                f"not the tensors of {cls.title}; they look like {contents}: "
                f"{len(shapes)}, such as {', '.join(shown(name, 80) for name in list(shapes)[:3]) or 'none'}"
            )
        if odd := [name for name in (*ENDS, *names) if len(shapes[name]) not in (4, 5) or 0 in shapes[name]]:
            raise ValueError(f"not the tensors of {cls.title}: {odd[0]} has shape {list(shapes[odd[0]])}")
        dim, z_dim = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
        widths, blocks, temporal = [], [0], []
        for name in names:
            if "residual" in name:
                blocks[-1] += 1
            else:
                widths.append(shapes[name][0])
                blocks.append(0)
                temporal.append(name.replace("resample.1", "time_conv") in shapes)
        widths.append(shapes[names[-1]][0])
        if len(set(blocks)) > 1 or any(width % dim for width in widths):
            raise ValueError(
                f"unsupported VAE: stage widths {shown(widths, 80)} on base width {dim}, residual blocks "
                f"{shown(blocks, 80)}"
            )
        return cls(dim, z_dim, tuple(width // dim for width in widths), blocks[0], tuple(temporal))


class Encoder3d(nn.Module):
    """[B, channels, T, H, W] -> moments [B, 2z, T', h, w] through `downsamples`: `local`, then `context`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, temporal = config.encoder_widths, config.temporal_downsample
        self.conv1 = CausalConv3d(config.folded_channels, widths[0], 3, padding=1)
        stages = []
        for (width, out), halves in zip(pairwise(widths), (*temporal, None), strict=True):
            how = width, out, config.num_res_blocks, halves, config.dropout
            stages.append([DownStage(*how)] if config.shortcuts else stage_layers("down", *how))
        self.downsamples = nn.Sequential(*chain(*stages))
        self.layers_per_stage = [len(layers) for layers in stages]
        self.middle = middle(widths[-1], config.dropout)
        self.head = OutputHead(widths[-1], config.z_dim * 2)
        self.temporal = temporal

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self.context(self.local(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """Run all stages: the last one on all of x, with a cache the earlier ones on a few frames, which are larger."""
        return self._through(cut(self.downsamples, self.layers_per_stage), x, cache)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return self.head(run_chunk(self.middle, x, cache), cache)

    def _through(self, stages: list[list[nn.Module]], x: Tensor, cache: FrameCache | None) -> Tensor:
        *earlier, last = stages
        if not earlier:
            return run_chunk(last, self.conv1(x, cache), cache)
        parts = x.split(x.shape[2] if cache is None else self._frames_for(len(earlier) - 1, cache), dim=2)
        return run_chunk(last, join([self._through(earlier, part, cache) for part in parts]), cache)

    def _frames_for(self, stage: int, cache: FrameCache) -> int:
        """Count the frames of the video that reach a stage as `cache.frames_at_once`; two or more if it halves them."""
        return max(cache.frames_at_once, 1 + self.temporal[stage]) * 2 ** sum(self.temporal[:stage])


class Decoder3d(nn.Module):
    """[B, z, T', h, w] -> [B, channels, T, H, W] through `upsamples`: `context`, then `local`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, temporal = config.decoder_widths, (*config.temporal_downsample[::-1], None)
        self.conv1 = CausalConv3d(config.z_dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0], config.dropout)
        stages = []
        for width, out, doubles in zip(config.decoder_inputs, widths[1:], temporal, strict=True):
            how = width, out, config.num_res_blocks + 1, doubles, config.dropout
            stages.append([UpStage(*how)] if config.shortcuts else stage_layers("up", *how, resampled=out // 2))
        self.upsamples = nn.Sequential(*chain(*stages))
        self.layers_per_stage = [len(layers) for layers in stages]
        self.head = OutputHead(widths[-1], config.folded_channels)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.middle, self.conv1(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
        """Yield the frames of [B, C, T', h, w] in order, a few at a time if there is a cache."""
        stages = [Stage.of(layers) for layers in cut(self.upsamples, self.layers_per_stage)]
        # a loop would hold the part before the one that is computed
        return map(partial(self.head, cache=cache), run_stages(stages, x, cache))


class Stage(NamedTuple):
    """The blocks at one resolution of a decoder, and the way to the next."""

    blocks: Sequence[nn.Module]
    resample: Resample | None  # None: the last stage
    shortcut: DupUp3D | None = None  # from the input of the stage to its resampled result

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> Stage:
        """Read the layers of VAE 2.1, or the one `UpStage` of VAE 2.2."""
        if isinstance(layers[0], UpStage):
            return cls.of(layers[0].upsamples)._replace(shortcut=layers[0].shortcut)
        *blocks, last = layers
        return cls(blocks, last) if isinstance(last, Resample) else cls(layers, None)

    def finish(self, y: Tensor, x: Tensor | None, cache: FrameCache | None) -> Tensor:
        """End the stage for some of its frames: y after the blocks, x before them."""
        y = self.resample(y, cache)
        return y if self.shortcut is None else self.shortcut(x, y)


def run_stages(stages: Sequence[Stage], x: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
    """Run the first stage on all of x; with a cache the later ones, whose frames are larger, take a few at a time.

    No name here holds a tensor longer than it is needed.
    """
    stage, *later = stages
    given = None if stage.shortcut is None else x
    for block in stage.blocks:
        x = block(x, cache)
    if stage.resample is None:
        yield x
        return
    if cache is None:
        yield from run_stages(later, stage.finish(x, given, cache), cache)
        return
    most = cache.frames_at_once
    size = max(1, most // 2) if stage.resample.mode == "upsample3d" else most
    for start in range(0, x.shape[2], size):
        frames = slice(start, start + size)
        before = None if given is None else given[:, :, frames]
        parts = list(stage.finish(x[:, :, frames], before, cache).split(most, dim=2))
        while parts:
            yield from run_stages(later, parts.pop(0), cache)


def cut(layers: nn.Sequential, counts: Sequence[int]) -> list[list[nn.Module]]:
    """Cut consecutive layers into stages of so many."""
    rest = iter(layers)
    return [list(islice(rest, count)) for count in counts]


def join(parts: Sequence[Tensor]) -> Tensor:
    """Join consecutive parts of a video [B, C, t, H, W]."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def middle(dim: int, dropout: float) -> nn.Sequential:
    """Build the layers at latent resolution, the only ones that see a whole frame."""
    return nn.Sequential(ResidualBlock(dim, dim, dropout), AttentionBlock(dim), ResidualBlock(dim, dim, dropout))

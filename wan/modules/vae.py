"""What both video autoencoders share: the configuration, and encoding and decoding in chunks of frames."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from wan.checkpoint.formats import describe_contents
from wan.files import shown
from wan.modules.vae_blocks import AttentionBlock, CausalConv3d, FrameCache, Resample, RMS_norm
from wan.modules.vae_coders import Decoder3d, Encoder3d, join

PIXEL_CHANNELS = 3
MAX_WIDTH, MAX_STAGES, MAX_BLOCKS = 1 << 16, 8, 32  # far beyond any VAE, and small enough to build one without weights
LATENTS_AT_ONCE = 4  # latent frames decoded together: enough to filter in groups of 4, few enough to be small


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
    def encoder_halo(self) -> int:
        """Latent pixels beyond a tile that reach it through the encoder's stages (9 for the released VAEs)."""
        stages = len(self.dim_mult)
        reach = 1 / 2 ** (stages - 1)  # the stem; then per stage two convolutions a block, and downsampling's
        reach += sum(2 * self.num_res_blocks / 2**i for i in range(stages)) + sum(1 / 2**i for i in range(1, stages))
        return math.ceil(reach)

    @property
    def decoder_halo(self) -> int:
        """Latent pixels beyond a tile that reach it through the decoder's stages (13 for the released VAEs)."""
        stages = len(self.dim_mult)
        reach = 1 / 2 ** (stages - 1)  # the head; then per stage two convolutions a block, and upsampling's
        blocks = self.num_res_blocks + 1
        reach += sum(2 * blocks / 2**i for i in range(stages)) + sum(1 / 2**i for i in range(1, stages))
        return math.ceil(reach)

    @classmethod
    def from_state(cls, shapes: Mapping[str, Sequence[int]]) -> VAEConfig:
        """Read the architecture of such a VAE off its tensor names and shapes.

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


ENDS = {"encoder.conv1.weight", "conv2.weight", "decoder.head.2.weight"}


class CausalVAE(nn.Module):
    """Encode and decode around an `encoder` and a `decoder`, both cut in two at the middle block.

    A subclass sets `encoder` (`local`, then `context`) and `decoder` (`context`, then `local`, which yields its result
    in parts): `local` is the part that is local in space, `context` the part at latent resolution whose attention sees
    whole frames. Latents are raw here; the published scaling belongs to the wrappers.
    """

    config_class: ClassVar[type[VAEConfig]] = VAEConfig
    encoder: Encoder3d
    decoder: Decoder3d

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.z_dim = config.z_dim
        self.conv1 = CausalConv3d(config.z_dim * 2, config.z_dim * 2, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)

    def encode_moments(self, video: Tensor, chunk: int | None = None, tile: int | None = None) -> tuple[Tensor, Tensor]:
        """[B, 3, T, H, W] -> mean and log-variance, each [B, z, T', h, w]; frames after the last group are ignored.

        `chunk` is how many frames (a multiple of the temporal stride) pass the lowest resolution together; higher ones
        take 4 at a time. None encodes everything at once. `tile` is the edge of a tile in latent pixels, None for whole
        frames. Neither changes more than rounding.
        """
        frames = self._usable_frames(video)
        if chunk is not None and (chunk < 1 or chunk % self.config.stride[0]):
            raise ValueError(f"chunk must be a positive multiple of {self.config.stride[0]} frames, got {chunk}")
        cache = None if chunk is None else FrameCache()
        if tile is None:
            parts = [self.encoder(self._folded(part), cache) for part in chunks(frames, chunk)]
        else:
            features = self._encode_tiles(frames, chunk, tile)
            latents = None if chunk is None else chunk // self.config.stride[0]
            parts = [self.encoder.context(part, cache) for part in chunks(features, latents)]
        mean, log_variance = self.conv1(join(parts)).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, video: Tensor, chunk: int | None = None, tile: int | None = None) -> Tensor:
        """[B, 3, T, H, W] -> mean [B, z, T', h, w]; deterministic. Options as in `encode_moments`."""
        return self.encode_moments(video, chunk, tile)[0]

    def decode(self, z: Tensor, chunk: int | None = None, tile: int | None = None) -> Tensor:
        """[B, z, T', h, w] -> [B, 3, T, H, W], not clamped; options as in `decode_chunks`."""
        return join(list(self.decode_chunks(z, chunk, tile))).to(self.conv1.weight.device)

    def decode_chunks(
        self, z: Tensor, chunk: int | None = LATENTS_AT_ONCE, tile: int | None = None
    ) -> Iterator[Tensor]:
        """Decode consecutive parts [B, 3, t, H, W] of the video, in memory that does not depend on its length.

        `chunk` is how many latent frames pass the lowest resolution at a time; higher ones take at most 4 frames. None
        decodes everything at once. With `tile`, the edge of a tile in latent pixels, the memory is that of one tile.
        The whole video is then collected on the CPU before the first part is yielded, and the parts stay there.
        """
        if z.ndim != 5 or z.shape[1] != self.z_dim or 0 in z.shape:
            raise ValueError(f"a latent must be [B, {self.z_dim}, T, h, w] with T, h, w >= 1, got {list(z.shape)}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 latent frame, got {chunk}")
        cache = None if chunk is None else FrameCache()
        features = (self.decoder.context(self.conv2(part), cache) for part in chunks(self._to_compute(z), chunk))
        if tile is None:
            for part in features:
                yield from self._pixels(part, cache)
        else:
            video = self._decode_tiles(join(list(features)), chunk, tile)
            yield from chunks(video, chunk and chunk * self.config.stride[0])

    def _encode_tiles(self, frames: Tensor, chunk: int | None, tile: int) -> Tensor:
        """The encoder up to its middle block, [B, 3, T, H, W] -> [B, C, T', h, w]; time inside, so that one tile's
        cache lives at a time."""
        strides, halo = self.config.stride[1:], self.config.encoder_halo
        grid = [tile_axis(size // stride, tile, halo) for size, stride in zip(frames.shape[3:], strides, strict=True)]
        rows = []
        for row in grid[0]:
            cells = []
            for column in grid[1]:
                pixels = frames[:, :, :, row.pixels(strides[0]), column.pixels(strides[1])]
                cache = None if chunk is None else FrameCache()
                parts = [self.encoder.local(self._folded(part), cache) for part in chunks(pixels, chunk)]
                cells.append(join([part[:, :, :, row.keep, column.keep] for part in parts]))
            rows.append(torch.cat(cells, dim=4))
        return torch.cat(rows, dim=3)

    def _decode_tiles(self, features: Tensor, chunk: int | None, tile: int) -> Tensor:
        """The decoder after its middle block, [B, C, T', h, w] -> [B, 3, T, H, W] on the CPU."""
        time, *strides = self.config.stride
        b, _, t, h, w = features.shape
        shape = (b, PIXEL_CHANNELS, (t - 1) * time + 1, h * strides[0], w * strides[1])
        video = torch.empty(shape, dtype=features.dtype, device="cpu")
        for row in tile_axis(h, tile, self.config.decoder_halo):
            for column in tile_axis(w, tile, self.config.decoder_halo):
                start, cache = 0, None if chunk is None else FrameCache()
                parts = chunks(features[:, :, :, row.read, column.read], chunk)
                for frames in (frames for part in parts for frames in self._pixels(part, cache)):
                    frames = frames[:, :, :, scaled(row.keep, strides[0]), scaled(column.keep, strides[1])]
                    target = video[:, :, start : start + frames.shape[2]]
                    target[:, :, :, scaled(row.place, strides[0]), scaled(column.place, strides[1])] = frames
                    start += frames.shape[2]
        return video

    def _folded(self, pixels: Tensor) -> Tensor:
        """What the encoder takes."""
        return self._to_compute(fold(pixels, self.config.patch))

    def _pixels(self, features: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
        """The decoder after its middle block, frame by frame or a few at a time."""
        return (unfold(part, self.config.patch) for part in self.decoder.local(features, cache))

    def _to_compute(self, x: Tensor) -> Tensor:
        """Device and type of the weights, and on a CPU the layout in which channels are neighbours."""
        layout = torch.channels_last_3d if self.conv1.weight.device.type == "cpu" else torch.contiguous_format
        return x.to(self.conv1.weight).contiguous(memory_format=layout)

    def _usable_frames(self, video: Tensor) -> Tensor:
        """The video without the frames after its last complete group."""
        frames, height, width = self.config.stride
        if video.ndim != 5 or video.shape[1] != PIXEL_CHANNELS or video.shape[0] < 1:
            raise ValueError(f"a video must be [B, 3, T, H, W], got {list(video.shape)}")
        t, h, w = video.shape[2:]
        if t < 1:
            raise ValueError("a video needs at least 1 frame, got none")
        if h < height or w < width:
            raise ValueError(f"a video must be at least {width} pixels wide and {height} high, got {w}x{h}")
        return video[:, :, : (t - 1) // frames * frames + 1]

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights to train from. Attention starts as a no-op, temporal resampling as nearest neighbour."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_in = module.weight[0].numel()
                nn.init.uniform_(module.weight, -((1 / fan_in) ** 0.5), (1 / fan_in) ** 0.5, generator=generator)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, RMS_norm):
                nn.init.ones_(module.gamma)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.proj.weight)
            elif isinstance(module, Resample) and hasattr(module, "time_conv"):
                nn.init.zeros_(module.time_conv.weight)
                out, dim = module.time_conv.weight.shape[:2]
                with torch.no_grad():
                    module.time_conv.weight[:, :, -1, 0, 0] = torch.eye(dim).repeat(out // dim, 1)


@dataclass(frozen=True)
class Tile:
    """One tile along one axis of `size` latent pixels."""

    read: slice  # what is computed: the tile and its halo
    keep: slice  # the tile, counted from the start of `read`
    place: slice  # the tile in the whole
    size: int

    def pixels(self, stride: int) -> slice:
        """`read` in pixels; the last tile takes the pixels that fill no latent pixel along, as the whole would."""
        return slice(self.read.start * stride, None if self.read.stop == self.size else self.read.stop * stride)


def tile_axis(size: int, tile: int, halo: int) -> list[Tile]:
    """Cut `size` into tiles of nearly equal length, at most `tile`, each read with `halo` more on inner sides."""
    if tile < 1:
        raise ValueError(f"a tile must be at least 1 latent pixel, got {tile}")
    count = -(-size // tile)
    edges = [size * i // count for i in range(count + 1)]
    result = []
    for start, stop in pairwise(edges):
        low, high = max(0, start - halo), min(size, stop + halo)
        result.append(Tile(slice(low, high), slice(start - low, stop - low), slice(start, stop), size))
    return result


def scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def chunks(x: Tensor, size: int | None) -> Iterator[Tensor]:
    """Cut [B, C, T, H, W] along T: one frame, then `size` at a time; one piece when `size` is None."""
    if size is None:
        yield x
        return
    yield x[:, :, :1]
    for start in range(1, x.shape[2], size):
        yield x[:, :, start : start + size]


def fold(x: Tensor, patch: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C * patch * patch, T, H / patch, W / patch]: each patch of pixels becomes channels.

    Channels are in the order (channel, column within the patch, row within the patch), as released weights expect.
    """
    if patch == 1:
        return x
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t, h // patch, patch, w // patch, patch)
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`."""
    if patch == 1:
        return x
    x = x.unflatten(1, (-1, patch, patch))  # [B, C, column, row, T, H, W]
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)

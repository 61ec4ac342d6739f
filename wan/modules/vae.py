"""The video autoencoder: encoding and decoding in chunks of frames, and in tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from wan.modules.vae_blocks import FRAMES_AT_ONCE, AttentionBlock, CausalConv3d, FrameCache, Resample, RMS_norm
from wan.modules.vae_coders import PIXEL_CHANNELS, Decoder3d, Encoder3d, VAEConfig, join

LATENTS_AT_ONCE = 4  # latent frames decoded together: enough to filter in groups of 4, few enough to be small


class CausalVAE(nn.Module):
    """Encode and decode under the released parameter names.

    The encoder (`local`, then `context`) and the decoder (`context`, then `local`) are cut in two at the middle block:
    `local` is local in space, `context` is at latent resolution and its attention sees whole frames. Latents are raw
    here; the published scaling belongs to the wrappers.
    """

    config_class: ClassVar[type[VAEConfig]] = VAEConfig

    def __init__(self, config: VAEConfig | None = None):
        super().__init__()
        self.config = config = config or self.config_class()
        self.z_dim = config.z_dim
        self.conv1 = CausalConv3d(config.z_dim * 2, config.z_dim * 2, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.encoder = Encoder3d(config)
        self.decoder = Decoder3d(config)

    def encode_moments(
        self, video: Tensor, chunk: int | None = None, tile: int | None = None, at_once: int = FRAMES_AT_ONCE[-1]
    ) -> tuple[Tensor, Tensor]:
        """[B, 3, T, H, W] -> mean and log-variance, each [B, z, T', h, w]; frames after the last group are ignored.

        `chunk` frames, a multiple of the temporal stride, pass the lowest resolution together; higher resolutions take
        `at_once`, of `FRAMES_AT_ONCE`. None encodes everything at once. `tile` is the edge of a tile in latent pixels,
        None for whole frames. All three change rounding alone.
        """
        frames = self._usable_frames(video)
        if chunk is not None and (chunk < 1 or chunk % self.config.stride[0]):
            raise ValueError(f"chunk must be a positive multiple of {self.config.stride[0]} frames, got {chunk}")
        cache = None if chunk is None else FrameCache(at_once)
        if tile is None:
            parts = [self.encoder(self._folded(part), cache) for part in chunks(frames, chunk)]
        else:
            features = self._encode_tiles(frames, chunk, tile, at_once)
            latents = None if chunk is None else chunk // self.config.stride[0]
            parts = [self.encoder.context(part, cache) for part in chunks(features, latents)]
        mean, log_variance = self.conv1(join(parts)).chunk(2, dim=1)
        return mean, log_variance

    def encode(
        self, video: Tensor, chunk: int | None = None, tile: int | None = None, at_once: int = FRAMES_AT_ONCE[-1]
    ) -> Tensor:
        """[B, 3, T, H, W] -> mean [B, z, T', h, w]; deterministic. Options as in `encode_moments`."""
        return self.encode_moments(video, chunk, tile, at_once)[0]

    def decode(
        self, z: Tensor, chunk: int | None = None, tile: int | None = None, at_once: int = FRAMES_AT_ONCE[-1]
    ) -> Tensor:
        """[B, z, T', h, w] -> [B, 3, T, H, W], not clamped; options as in `decode_chunks`."""
        return join(list(self.decode_chunks(z, chunk, tile, at_once))).to(self.conv1.weight.device)

    def decode_chunks(
        self,
        z: Tensor,
        chunk: int | None = LATENTS_AT_ONCE,
        tile: int | None = None,
        at_once: int = FRAMES_AT_ONCE[-1],
    ) -> Iterator[Tensor]:
        """Decode consecutive parts [B, 3, t, H, W] of the video, in memory that does not depend on its length.

        `chunk` latent frames pass the lowest resolution together; higher resolutions take at most `at_once` frames, of
        `FRAMES_AT_ONCE`. None decodes everything at once. With `tile`, the edge of a tile in latent pixels, the device
        holds one tile at a time, and the video is put together on the CPU before its first part is yielded from there.
        """
        if z.ndim != 5 or z.shape[1] != self.z_dim or 0 in z.shape:
            raise ValueError(f"a latent must be [B, {self.z_dim}, T, h, w] with T, h, w >= 1, got {list(z.shape)}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 latent frame, got {chunk}")
        cache = None if chunk is None else FrameCache(at_once)
        features = (self.decoder.context(self.conv2(part), cache) for part in chunks(self._to_compute(z), chunk))
        if tile is None:
            for part in features:
                yield from self._pixels(part, cache)
        else:
            video = self._decode_tiles(join(list(features)), chunk, tile, at_once)
            yield from chunks(video, chunk and chunk * self.config.stride[0])

    def _encode_tiles(self, frames: Tensor, chunk: int | None, tile: int, at_once: int) -> Tensor:
        """Run the encoder up to its middle block, [B, 3, T, H, W] -> [B, C, T', h, w].

        Each tile passes with all of its frames, so that there is one cache at a time.
        """
        strides, halo = self.config.stride[1:], self.config.encoder_halo
        h, w = (size // stride for size, stride in zip(frames.shape[3:], strides, strict=True))
        grid = tiles(h, w, tile, halo)
        rows = []
        for row in grid[0]:
            cells = []
            for column in grid[1]:
                pixels = frames[:, :, :, row.pixels(strides[0]), column.pixels(strides[1])]
                cache = None if chunk is None else FrameCache(at_once)
                parts = [self.encoder.local(self._folded(part), cache) for part in chunks(pixels, chunk)]
                cells.append(join([part[:, :, :, row.keep, column.keep] for part in parts]))
            rows.append(torch.cat(cells, dim=4))
        return torch.cat(rows, dim=3)

    def _decode_tiles(self, features: Tensor, chunk: int | None, tile: int, at_once: int) -> Tensor:
        """Run the decoder after its middle block, [B, C, T', h, w] -> [B, 3, T, H, W] on the CPU."""
        time, *strides = self.config.stride
        b, _, t, h, w = features.shape
        shape = (b, PIXEL_CHANNELS, (t - 1) * time + 1, h * strides[0], w * strides[1])
        video = torch.empty(shape, dtype=features.dtype, device="cpu")
        rows, columns = tiles(h, w, tile, self.config.decoder_halo)
        for row in rows:
            for column in columns:
                start, cache = 0, None if chunk is None else FrameCache(at_once)
                parts = chunks(features[:, :, :, row.read, column.read], chunk)
                for frames in (frames for part in parts for frames in self._pixels(part, cache)):
                    frames = frames[:, :, :, scaled(row.keep, strides[0]), scaled(column.keep, strides[1])]
                    target = video[:, :, start : start + frames.shape[2]]
                    target[:, :, :, scaled(row.place, strides[0]), scaled(column.place, strides[1])] = frames
                    start += frames.shape[2]
        return video

    def _folded(self, pixels: Tensor) -> Tensor:
        """Fold pixels for the encoder, on its device."""
        return self._to_compute(fold(pixels, self.config.patch))

    def _pixels(self, features: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
        """Run the decoder after its middle block and yield a few frames [B, 3, t, H, W] at a time."""
        return (unfold(part, self.config.patch) for part in self.decoder.local(features, cache))

    def _to_compute(self, x: Tensor) -> Tensor:
        """Give x the device and type of the weights, and the layout in which channels are neighbours."""
        layout = torch.contiguous_format if self.conv1.weight.device.type == "mps" else torch.channels_last_3d
        return x.to(self.conv1.weight).contiguous(memory_format=layout)

    def _usable_frames(self, video: Tensor) -> Tensor:
        """Check a video [B, 3, T, H, W] and leave out the frames after its last complete group."""
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
        """Draw weights to train from. Attention starts as a no-op, temporal resampling as nearest neighbour."""
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

    read: slice  # the part that is computed: the tile and its halo
    keep: slice  # the tile, counted from the start of `read`
    place: slice  # the tile in the whole
    size: int

    def pixels(self, stride: int) -> slice:
        """Give `read` in pixels. The last tile includes the pixels at the edge that fill no latent pixel."""
        return slice(self.read.start * stride, None if self.read.stop == self.size else self.read.stop * stride)


def tiles(height: int, width: int, tile: int, halo: int) -> tuple[list[Tile], list[Tile]]:
    """Cut a latent into rows and columns of tiles, none of which computes more positions than squares of edge `tile`.

    Of all such cuts it is the one with the least work. Often that is strips, which have fewer inner sides: for VAE 2.2
    at 1280x704 and tile 256 they are 2.6 times the work of whole frames, where squares are 5 times.
    """
    if tile < 1:
        raise ValueError(f"a tile must be at least 1 latent pixel, got {tile}")
    squares = -(-height // tile), -(-width // tile)
    cuts = [[Cut.of(size, count, halo) for count in range(1, min(size, 2 * most) + 1)]
            for size, most in zip((height, width), squares, strict=True)]  # fmt: skip
    limit = math.prod(axis[count - 1].longest for axis, count in zip(cuts, squares, strict=True))
    fits = (pair for pair in product(*cuts) if pair[0].longest * pair[1].longest <= limit)
    rows, columns = min(fits, key=lambda pair: (pair[0].computed * pair[1].computed, -pair[0].longest))
    return rows.tiles, columns.tiles


class Cut(NamedTuple):
    """An axis cut into tiles, with the latent pixels that are computed for the largest one and for all."""

    tiles: list[Tile]
    longest: int
    computed: int

    @classmethod
    def of(cls, size: int, count: int, halo: int) -> Cut:
        tiles = tile_axis(size, count, halo)
        read = [tile.read.stop - tile.read.start for tile in tiles]
        return cls(tiles, max(read), sum(read))


def tile_axis(size: int, count: int, halo: int) -> list[Tile]:
    """Cut `size` into `count` tiles of nearly equal length, each read with `halo` more on inner sides."""
    edges = [size * i // count for i in range(count + 1)]
    result = []
    for start, stop in pairwise(edges):
        low, high = max(0, start - halo), min(size, stop + halo)
        result.append(Tile(slice(low, high), slice(start - low, stop - low), slice(start, stop), size))
    return result


def scaled(part: slice, factor: int) -> slice:
    """Give a slice of latent pixels in pixels."""
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
    return rearrange(x, "b c t (h j) (w k) -> b (c k j) t h w", j=patch, k=patch) if patch > 1 else x


def unfold(x: Tensor, patch: int) -> Tensor:
    """Undo `fold`."""
    return rearrange(x, "b (c k j) t h w -> b c t (h j) (w k)", j=patch, k=patch) if patch > 1 else x

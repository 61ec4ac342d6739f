"""VAE 2.1: 4 x 8 x 8 compression into 16 channels. Used by T2V, I2V, S2V and Animate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from wan.checkpoint.formats import released_names
from wan.checkpoint.loading import load_module
from wan.checkpoint.source import open_source
from wan.modules.vae import CausalVAE, VAEConfig, middle
from wan.modules.vae_blocks import CausalConv3d, FrameCache, OutputHead, Resample, ResidualBlock, run_chunk

PIXEL_CHANNELS = 3
FRAMES_AT_ONCE = 4  # frames that a decoder stage processes together when streaming

# Statistics of the released model's latents, per channel: constants of the system, in no checkpoint.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class Wan2_1_VAE:
    """Lists of videos [3, T, H, W] in [-1, 1] <-> lists of scaled float32 latents [16, T', h, w].

    A list may be any iterable, also a stacked 5-D tensor; its elements may differ in size and are processed one by one.
    """

    def __init__(
        self,
        z_dim: int = 16,
        vae_pth: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        tiling: int | None = None,
        model: CausalVAE2_1 | None = None,
    ):
        """Load `vae_pth`, or wrap `model`. Computes in `dtype`, whatever autocast region the caller is in.

        `tiling` is the edge in pixels of the tiles that frames are cut into when memory is short; None: whole frames.
        The result is the same; small tiles cost time, because each is computed with a margin of 104 pixels around it.
        """
        if z_dim != len(LATENT_MEAN):
            raise ValueError(f"VAE 2.1 has {len(LATENT_MEAN)} latent channels, got z_dim {z_dim}")
        if (vae_pth is None) == (model is None):
            raise ValueError("give vae_pth, the path of Wan2.1_VAE.pth, or a model; exactly one of the two")
        self.dtype = dtype
        self.device = torch.device(device)
        self.model = load_vae(vae_pth, dtype, device) if model is None else model.to(self.device, dtype)
        if self.model.z_dim != z_dim:
            raise ValueError(f"the VAE has {self.model.z_dim} latent channels, the published statistics {z_dim}")
        self.tiling = tiling
        self.mean = torch.tensor(LATENT_MEAN, device=self.device).view(-1, 1, 1, 1)
        # Upstream multiplies and divides by the rounded reciprocal; dividing by the std itself differs by 5e-6.
        self.inverse_std = 1.0 / torch.tensor(LATENT_STD, device=self.device).view(-1, 1, 1, 1)

    def encode(self, videos: Iterable[Tensor]) -> list[Tensor]:
        """Videos [3, T, H, W] -> latents [16, 1 + (T - 1) // 4, H // 8, W // 8], float32, deterministic.

        Any float dtype and device; at least 1 frame and 8x8 pixels. Frames after the last full group of 4 are ignored.
        """
        return [self._encode_one(video) for video in videos]

    def decode(self, latents: Iterable[Tensor]) -> list[Tensor]:
        """Latents [16, T', h, w] -> videos [3, 4T' - 3, 8h, 8w], float32, clamped to [-1, 1]."""
        return [self._decode_one(latent) for latent in latents]

    def decode_stream(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode [16, T', h, w] into consecutive chunks [3, f, H, W] as `decode` would, one at a time."""
        if latent.ndim != 4 or latent.shape[0] != self.model.z_dim:
            raise ValueError(f"a latent must be [{self.model.z_dim}, T, h, w], got {list(latent.shape)}")
        latent = latent.to(self.device, torch.float32) / self.inverse_std + self.mean
        steps = self.model.decode_chunks(latent[None], tile=self._tile())
        while (chunk := self._next(steps)) is not None:
            yield chunk[0].float().clamp_(-1, 1)

    def _encode_one(self, video: Tensor) -> Tensor:
        if video.ndim != 4:
            raise ValueError(f"encode takes a list of videos [3, T, H, W], got an element of shape {list(video.shape)}")
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            mean = self.model.encode(video[None], chunk=4, tile=self._tile())[0].float()
        return (mean - self.mean) * self.inverse_std

    def _decode_one(self, latent: Tensor) -> Tensor:
        video, start = None, 0
        for chunk in self.decode_stream(latent):
            if video is None:  # written in place: joining at the end would hold every frame twice
                time, height, width = self.model.config.stride
                t, h, w = latent.shape[1:]
                video = chunk.new_empty(PIXEL_CHANNELS, (t - 1) * time + 1, h * height, w * width)
            video[:, start : start + chunk.shape[1]] = chunk
            start += chunk.shape[1]
        return video

    def _next(self, steps: Iterator[Tensor]) -> Tensor | None:
        # Entered for each chunk: a region held open across `yield` would leak into the consumer.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return next(steps, None)

    def _tile(self) -> int | None:
        if self.tiling is None:
            return None
        stride = self.model.config.stride[1]
        if self.tiling < stride:
            raise ValueError(f"tiling must be None or at least {stride} pixels, got {self.tiling}; 256 is a good start")
        return self.tiling // stride


def load_vae(path: str | Path, dtype: torch.dtype, device: torch.device | str) -> CausalVAE2_1:
    """Read a VAE 2.1 of any size; its architecture is that of the tensors in the file."""
    source = open_source(path)
    stored, _ = released_names(source.names())
    config = VAEConfig.from_state({name: source.shape(key) for name, key in stored.items()})
    return load_module(lambda: CausalVAE2_1(config), source, dtype=dtype, device=device)


class Encoder3d(nn.Module):
    """[B, 3, T, H, W] -> moments [B, 2z, T', h, w]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.dim * mult for mult in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(PIXEL_CHANNELS, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for stage, (width, out) in enumerate(pairwise(widths)):
            for block in range(config.num_res_blocks):
                layers.append(ResidualBlock(width if block == 0 else out, out, config.dropout))
            if stage < len(config.temporal_downsample):
                temporal = config.temporal_downsample[stage]
                layers.append(Resample(out, "downsample3d" if temporal else "downsample2d"))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(widths[-1], config.dropout)
        self.head = OutputHead(widths[-1], config.z_dim * 2)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self.context(self.local(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.downsamples, self.conv1(x, cache), cache)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return self.head(run_chunk(self.middle, x, cache), cache)


class Decoder3d(nn.Module):
    """[B, z, T', h, w] -> [B, 3, T, H, W], in two steps: `context`, then `local`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        mults = config.dim_mult[::-1]
        widths = [config.dim * mult for mult in (mults[0], *mults)]
        temporal = config.temporal_downsample[::-1]
        self.conv1 = CausalConv3d(config.z_dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0], config.dropout)
        layers: list[nn.Module] = []
        for stage, (width, out) in enumerate(pairwise(widths)):
            width = width // 2 if stage else width  # upsampling has halved the channels
            for block in range(config.num_res_blocks + 1):
                layers.append(ResidualBlock(width if block == 0 else out, out, config.dropout))
            if stage < len(temporal):
                layers.append(Resample(out, "upsample3d" if temporal[stage] else "upsample2d", out // 2))
        self.upsamples = nn.Sequential(*layers)
        self.head = OutputHead(widths[-1], PIXEL_CHANNELS)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.middle, self.conv1(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
        """Yield the frames of [B, C, T', h, w] in order, at most FRAMES_AT_ONCE at a time if there is a cache."""
        cuts = [i for i, layer in enumerate(self.upsamples) if isinstance(layer, Resample)]
        stages = [list(self.upsamples[start:stop]) for start, stop in pairwise([0, *cuts, len(self.upsamples)])]
        stages[-1].append(self.head)
        return self._run_stages(stages, x, cache)

    def _run_stages(self, stages: list[list[nn.Module]], x: Tensor, cache: FrameCache | None) -> Iterator[Tensor]:
        """The first stage on all of x, the later ones on a few frames at a time: their frames are larger."""
        first, *later = stages
        x = run_chunk(first, x, cache)
        if not later:
            yield x
            return
        doubles = later[0][0].mode == "upsample3d"
        size = x.shape[2] if cache is None else FRAMES_AT_ONCE // 2 if doubles else FRAMES_AT_ONCE
        for part in x.split(size, dim=2):
            yield from self._run_stages(later, part, cache)


class CausalVAE2_1(CausalVAE):
    """The network under its released parameter names; latents without the published scaling."""

    def __init__(self, config: VAEConfig | None = None):
        super().__init__(config or VAEConfig())
        self.encoder = Encoder3d(self.config)
        self.decoder = Decoder3d(self.config)

"""VAE 2.1: 4 x 8 x 8 compression into 16 channels. Used by T2V, I2V, S2V and Animate."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from wan.modules.vae import CausalVAE, VAEConfig, head, middle
from wan.modules.vae_blocks import CausalConv3d, FrameCache, Resample, ResidualBlock, run_chunk

PIXEL_CHANNELS = 3


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
        self.head = head(widths[-1], config.z_dim * 2)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self.context(self.local(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.downsamples, self.conv1(x, cache), cache)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.head, run_chunk(self.middle, x, cache), cache)


class Decoder3d(nn.Module):
    """[B, z, T', h, w] -> [B, 3, T, H, W]."""

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
        self.head = head(widths[-1], PIXEL_CHANNELS)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self.local(self.context(x, cache), cache)

    def context(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.middle, self.conv1(x, cache), cache)

    def local(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return run_chunk(self.head, run_chunk(self.upsamples, x, cache), cache)


class CausalVAE2_1(CausalVAE):
    """The network under its released parameter names; latents without the published scaling."""

    def __init__(self, config: VAEConfig | None = None):
        super().__init__(config or VAEConfig())
        self.encoder = Encoder3d(self.config)
        self.decoder = Decoder3d(self.config)

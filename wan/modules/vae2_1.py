"""VAE 2.1: 4 x 8 x 8 compression into 16 channels. Used by T2V, I2V, S2V and Animate."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import nn

from wan.modules.vae import CausalVAE, VAEConfig
from wan.modules.vae_blocks import CausalConv3d as CausalConv3d  # where upstream's scripts look for it
from wan.modules.vae_blocks import Resample, ResidualBlock
from wan.modules.vae_coders import Decoder3d, Encoder3d, Stage
from wan.modules.vae_wrapper import VideoVAE

LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class CausalVAE2_1(CausalVAE):
    """The network under its released parameter names; latents without the published scaling."""

    def __init__(self, config: VAEConfig | None = None):
        super().__init__(config or VAEConfig())
        config = self.config
        z_dim, channels, temporal = config.z_dim, config.folded_channels, config.temporal_downsample
        self.encoder = FlatEncoder3d(
            channels, config.encoder_widths, downsamples(config), temporal, z_dim, config.dropout
        )
        self.decoder = FlatDecoder3d(z_dim, config.decoder_widths, upsamples(config), channels, config.dropout)


WanVAE_ = CausalVAE2_1  # upstream's name


class Wan2_1_VAE(VideoVAE):
    """Videos [3, T, H, W] <-> latents [16, 1 + (T - 1) // 4, H // 8, W // 8]; at least 8x8 pixels."""

    network, file = CausalVAE2_1, "Wan2.1_VAE.pth"
    latent_mean, latent_std = LATENT_MEAN, LATENT_STD


def downsamples(config: VAEConfig) -> nn.Sequential:
    """The encoder's layers, counted through: per stage its residual blocks, then the way to half the resolution."""
    layers: list[nn.Module] = []
    for stage, (width, out) in enumerate(pairwise(config.encoder_widths)):
        for block in range(config.num_res_blocks):
            layers.append(ResidualBlock(width if block == 0 else out, out, config.dropout))
        if stage < len(config.temporal_downsample):
            layers.append(Resample(out, "downsample3d" if config.temporal_downsample[stage] else "downsample2d"))
    return nn.Sequential(*layers)


def upsamples(config: VAEConfig) -> nn.Sequential:
    """The decoder's layers, counted through."""
    temporal = config.temporal_downsample[::-1]
    layers: list[nn.Module] = []
    for stage, (width, out) in enumerate(pairwise(config.decoder_widths)):
        width = width // 2 if stage else width  # upsampling has halved the channels
        for block in range(config.num_res_blocks + 1):
            layers.append(ResidualBlock(width if block == 0 else out, out, config.dropout))
        if stage < len(temporal):
            layers.append(Resample(out, "upsample3d" if temporal[stage] else "upsample2d", out // 2))
    return nn.Sequential(*layers)


class FlatEncoder3d(Encoder3d):
    def stages(self) -> list[list[nn.Module]]:
        return cut(self.downsamples)


class FlatDecoder3d(Decoder3d):
    def stages(self) -> list[Stage]:
        *stages, last = cut(self.upsamples)
        return [*(Stage(layers[:-1], layers[-1]) for layers in stages), Stage(last, None)]


def cut(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """The layers of each resolution: a cut behind every change."""
    stages: list[list[nn.Module]] = [[]]
    for layer in layers:
        stages[-1].append(layer)
        if isinstance(layer, Resample):
            stages.append([])
    return stages

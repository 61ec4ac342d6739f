"""VAE 2.1: 4 x 8 x 8 compression into 16 channels. Used by T2V, I2V, S2V and Animate."""

from __future__ import annotations

from wan.modules.vae import CausalVAE
from wan.modules.vae_blocks import CausalConv3d as CausalConv3d  # where upstream's scripts look for it
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


WanVAE_ = CausalVAE2_1  # upstream's name


class Wan2_1_VAE(VideoVAE):
    """Videos [3, T, H, W] <-> latents [16, 1 + (T - 1) // 4, H // 8, W // 8]; at least 8x8 pixels."""

    network, file = CausalVAE2_1, "Wan2.1_VAE.pth"
    latent_mean, latent_std = LATENT_MEAN, LATENT_STD

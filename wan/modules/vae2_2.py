"""VAE 2.2: 4 x 16 x 16 compression into 48 channels. Used by TI2V-5B.

Unlike in VAE 2.1, pixels are folded 2x2 into channels, and every stage that changes the resolution has a shortcut
without parameters around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from wan.modules.vae import CausalVAE
from wan.modules.vae_blocks import CausalConv3d as CausalConv3d  # where upstream's scripts look for it
from wan.modules.vae_coders import MAX_WIDTH, VAEConfig
from wan.modules.vae_wrapper import VideoVAE

LATENT_MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
LATENT_STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)


@dataclass(frozen=True)
class VAE2_2Config(VAEConfig):
    """Architecture of a VAE with folded pixels and shortcuts; the defaults are the released VAE 2.2."""

    dim: int = 160  # channels of the encoder at the resolution of the folded pixels
    z_dim: int = 48
    dec_dim: int = 256  # channels of the decoder there

    title: ClassVar[str] = "VAE 2.2"
    patch: ClassVar[int] = 2
    shortcuts: ClassVar[bool] = True
    layer_pattern: ClassVar[str] = r"encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\."

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.dec_dim <= MAX_WIDTH:
            raise ValueError(f"dec_dim must be at least 1 and at most {MAX_WIDTH}, got {self.dec_dim}")
        mult, factors = self.dim_mult, [8 if doubles else 4 for doubles in self.temporal_downsample]
        encoder = zip((1, *mult[:-1]), mult, (*factors, 1), strict=True)
        decoder = zip(mult[1:-1], mult[2:], factors[:-1], strict=True)  # its shortcut into the last stage is missing
        for width, groups, factor in (*encoder, *decoder):
            if width * factor % groups:
                fitting = [n for n in range(1, width * factor + 1) if width * factor % n == 0]
                near = sorted(sorted(fitting, key=lambda n: abs(n - groups))[:2])
                raise ValueError(
                    f"dim_mult {mult}: a shortcut has to cut {width} x {factor} channels, in units of dim, into "
                    f"{groups} equal groups; try {' or '.join(map(str, near))} instead of {groups}"
                )

    @property
    def decoder_dim(self) -> int:
        return self.dec_dim

    @classmethod
    def from_state(cls, shapes: Mapping[str, Sequence[int]]) -> VAE2_2Config:
        config = super().from_state(shapes)
        return replace(config, dec_dim=shapes["decoder.head.2.weight"][1] // config.dim_mult[0])


class CausalVAE2_2(CausalVAE):
    """The network under its released parameter names; latents without the published scaling."""

    config_class = VAE2_2Config

    def _usable_frames(self, video: Tensor) -> Tensor:
        frames = super()._usable_frames(video)
        (h, w), steps = video.shape[3:], self.config.stride[1:]
        if h % steps[0] or w % steps[1]:
            near = [max(1, round(size / step)) * step for size, step in zip((h, w), steps, strict=True)]
            raise ValueError(
                f"{self.config.title} needs a width and height that are multiples of {steps[1]} pixels, got {w}x{h}; "
                f"the nearest size is {near[1]}x{near[0]}"
            )
        return frames


WanVAE_ = CausalVAE2_2  # upstream's name


class Wan2_2_VAE(VideoVAE):
    """Videos [3, T, H, W] <-> latents [48, 1 + (T - 1) // 4, H / 16, W / 16]; H and W are multiples of 16."""

    network, file = CausalVAE2_2, "Wan2.2_VAE.pth"
    latent_mean, latent_std = LATENT_MEAN, LATENT_STD

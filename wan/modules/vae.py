"""What both video autoencoders share: the configuration, and encoding and decoding in chunks of frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wan.modules.vae_blocks import AttentionBlock, CausalConv3d, FrameCache, Resample, ResidualBlock, RMS_norm


@dataclass(frozen=True)
class VAEConfig:
    """Architecture of a causal video autoencoder; the defaults are the released VAE 2.1."""

    dim: int = 96  # channels at full resolution
    z_dim: int = 16  # latent channels
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each stage, in units of dim
    num_res_blocks: int = 2  # per encoder stage; the decoder has one more
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # at each transition between stages
    dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "dim_mult", tuple(self.dim_mult))
        object.__setattr__(self, "temporal_downsample", tuple(bool(flag) for flag in self.temporal_downsample))
        if min(self.dim, self.z_dim, self.num_res_blocks, *self.dim_mult) < 1:
            raise ValueError(f"dim, z_dim, num_res_blocks and every dim_mult must be at least 1, got {self}")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample needs one flag per transition between stages: {len(self.dim_mult) - 1} "
                f"for dim_mult {self.dim_mult}, got {len(self.temporal_downsample)}"
            )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent element: frames, rows, columns."""
        space = 2 ** len(self.temporal_downsample)
        return 2 ** sum(self.temporal_downsample), space, space

    @classmethod
    def from_state(cls, shapes: Mapping[str, Sequence[int]]) -> VAEConfig:
        """Read the architecture of a VAE 2.1 off its tensor names and shapes.

        Raises ValueError when the names are not those of such an encoder.
        """
        try:
            dim, z_dim = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
            widths, blocks, temporal = [], [0], []
            index = 0
            while True:
                prefix = f"encoder.downsamples.{index}."
                if f"{prefix}residual.6.weight" in shapes:
                    blocks[-1] += 1
                    width = shapes[f"{prefix}residual.6.weight"][0]
                elif f"{prefix}resample.1.weight" in shapes:
                    temporal.append(f"{prefix}time_conv.weight" in shapes)
                    widths.append(width)
                    blocks.append(0)
                else:
                    break
                index += 1
            widths.append(width)
        except (KeyError, UnboundLocalError):
            raise ValueError(
                "not the tensors of a VAE 2.1: expected encoder.conv1.weight, conv2.weight and encoder.downsamples.*, "
                f"got {len(shapes)} tensors such as {', '.join(list(shapes)[:3]) or 'none'}"
            ) from None
        if len(set(blocks)) > 1 or any(width % dim for width in widths):
            raise ValueError(f"unsupported VAE: stage widths {widths} on base width {dim}, residual blocks {blocks}")
        return cls(dim, z_dim, tuple(width // dim for width in widths), blocks[0], tuple(temporal))


class CausalVAE(nn.Module):
    """Encode and decode around an `encoder` and a `decoder`, both cut in two at the middle block.

    A subclass sets `encoder` (`local`, then `context`) and `decoder` (`context`, then `local`): `local` is the part
    local in space, `context` the part at latent resolution whose attention sees whole frames. Latents are raw here;
    the published scaling belongs to the wrappers.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.z_dim = config.z_dim
        self.conv1 = CausalConv3d(config.z_dim * 2, config.z_dim * 2, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)

    def encode_moments(self, video: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """[B, 3, T, H, W] -> mean and log-variance, each [B, z, T', h, w]; frames after the last group are ignored.

        `chunk` is how many frames (a multiple of the temporal stride) are encoded at a time; None encodes all at once.
        """
        usable = self._check_video(video)
        cache = None if chunk is None else FrameCache()
        parts = [self.encoder(frames, cache) for frames in chunks(video[:, :, :usable], chunk)]
        mean, log_variance = self.conv1(join(parts)).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, video: Tensor, chunk: int | None = None) -> Tensor:
        """[B, 3, T, H, W] -> mean [B, z, T', h, w]; deterministic."""
        return self.encode_moments(video, chunk)[0]

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        """[B, z, T', h, w] -> [B, 3, T, H, W], not clamped; `chunk` latent frames at a time, None for all at once."""
        return join(list(self.decode_chunks(z, chunk)))

    def decode_chunks(self, z: Tensor, chunk: int | None = 1) -> Iterator[Tensor]:
        """Decode `chunk` latent frames at a time, yielding [B, 3, t, H, W]; memory does not grow with the length."""
        if z.ndim != 5 or z.shape[1] != self.z_dim or 0 in z.shape:
            raise ValueError(f"a latent must be [B, {self.z_dim}, T, h, w] with T, h, w >= 1, got {list(z.shape)}")
        cache = None if chunk is None else FrameCache()
        for part in chunks(z, chunk, first=1):
            yield self.decoder(self.conv2(part), cache)

    def _check_video(self, video: Tensor) -> int:
        """How many frames of the video are encoded."""
        frames, height, width = self.config.stride
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[0] < 1:
            raise ValueError(f"a video must be [B, 3, T, H, W], got {list(video.shape)}")
        t, h, w = video.shape[2:]
        if t < 1:
            raise ValueError("a video needs at least 1 frame, got none")
        if h < height or w < width:
            raise ValueError(f"a video must be at least {width} pixels wide and {height} high, got {w}x{h}")
        return (t - 1) // frames * frames + 1

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


def chunks(x: Tensor, size: int | None, first: int = 1) -> Iterator[Tensor]:
    """Cut [B, C, T, H, W] along T: `first` frames, then `size` at a time; one piece when `size` is None."""
    if size is None:
        yield x
        return
    yield x[:, :, :first]
    for start in range(first, x.shape[2], size):
        yield x[:, :, start : start + size]


def join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def middle(dim: int, dropout: float) -> nn.Sequential:
    """The layers at latent resolution; the only ones that see a whole frame."""
    return nn.Sequential(ResidualBlock(dim, dim, dropout), AttentionBlock(dim), ResidualBlock(dim, dim, dropout))


def head(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(RMS_norm(dim), nn.SiLU(), CausalConv3d(dim, out_dim, 3, padding=1))

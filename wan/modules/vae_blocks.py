"""Building blocks of the causal video autoencoders, shared by VAE 2.1 and 2.2. Tensors are [B, C, T, H, W].

Every block maps a chunk of frames to a chunk of frames. With a `FrameCache` it continues where the previous chunk
ended; without one the chunk is a whole video. Both give the same numbers, because the state of a convolution is exactly
the two input frames before the chunk, and zeros before the first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wan.choices import VAE_FRAMES

HISTORY = 2  # frames a temporal kernel of 3 looks back
NORM_FLOOR = 1e-12
FRAMES_AT_ONCE = VAE_FRAMES  # fewer need less memory, and on a GPU hardly more time
QUERIES_AT_ONCE = 4096  # without a fused kernel, attention takes memory for these and not for all


class FrameCache:
    """The last input frames of every stateful module, for one video that arrives in chunks.

    `frames_at_once` is the most that high resolutions take together, and 2 where the frame rate changes after them.
    """

    def __init__(self, frames_at_once: int = FRAMES_AT_ONCE[-1]):
        if frames_at_once not in FRAMES_AT_ONCE:
            raise ValueError(f"frames at once can be {', '.join(map(str, FRAMES_AT_ONCE))}, got {frames_at_once}")
        self.frames_at_once = frames_at_once
        self._frames: dict[nn.Module, Tensor] = {}

    def get(self, module: nn.Module) -> Tensor | None:
        """Look up the frames that the previous chunk left, None before the first."""
        return self._frames.get(module)

    def put(self, module: nn.Module, frames: Tensor) -> None:
        self._frames[module] = frames


def layout(x: Tensor) -> torch.memory_format:
    """Order of x [B, C, T, H, W] in memory, also of a view. Kernels depend on it, and so does rounding."""
    return torch.channels_last_3d if x.stride(1) == 1 else torch.contiguous_format


def added(residual: Tensor, y: Tensor) -> Tensor:
    """Add a result to the stream; in the memory of y, if it has the type of the stream."""
    return y.add_(residual) if y.dtype == residual.dtype else residual + y


def with_history(x: Tensor, module: nn.Module, cache: FrameCache | None) -> Tensor:
    """Put the two frames before a chunk, or zeros, in front of it: [B, C, T, H, W] -> [B, C, 2 + T, H, W]."""
    state = None if cache is None else cache.get(module)
    x = F.pad(x, (0, 0, 0, 0, HISTORY, 0)) if state is None else torch.cat([state, x], dim=2)
    if cache is not None:
        cache.put(module, x[:, :, -HISTORY:].clone())
    return x


class CausalConv3d(nn.Conv3d):
    """3-D convolution that sees no future frame: all padding in time, twice that of one side, stands in front."""

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H', W']; a kernel without padding in time has no history."""
        return self._conv_with_history(x, cache) if self.padding[0] else self._conv(x, self.weight)

    def _conv_with_history(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        first = cache is None or cache.get(self) is None
        if first and x.shape[2] == 1:  # only the last time tap meets data: a 2-D convolution, a third of the work
            if cache is not None:
                cache.put(self, F.pad(x, (0, 0, 0, 0, 1, 0)))
            return self._conv(x, self.weight[:, :, -1:])
        return self._conv(with_history(x, self, cache), self.weight)

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.shape[3:] == (1, 1):  # a 2-D convolution over (frames, positions): 3-D kernels do not optimise these
            y = F.conv2d(x.flatten(3), weight.flatten(3), self.bias, (self.stride[0], 1))
            return y.unflatten(3, x.shape[3:])
        return F.conv3d(x, weight, self.bias, self.stride, (0, *self.padding[1:]))


class RMS_norm(nn.Module):
    """x / max(|x|_2, 1e-12) * sqrt(C) * gamma over the channel axis 1, for each position alone."""

    def __init__(self, dim: int, images: bool = False):
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *((1, 1) if images else (1, 1, 1))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inverse(x) * self.gain(x)  # this order costs half of what F.normalize does in training

    def inverse(self, x: Tensor) -> Tensor:
        """Compute 1 / |x| [B, 1, ...], in float32 also under autocast."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return norm.clamp_min(NORM_FLOOR).reciprocal().to(x.dtype)

    def gain(self, x: Tensor) -> Tensor:
        """Return the factor of each channel, in the type of x."""
        return (self.gamma * self.scale).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolution steps and a shortcut, [B, in_dim, T, H, W] -> [B, out_dim, T, H, W]."""

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.0):
        super().__init__()
        self.residual = nn.Sequential(
            RMS_norm(in_dim),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, 3, padding=1),
            RMS_norm(out_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            CausalConv3d(out_dim, out_dim, 3, padding=1),
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        norm1, silu1, conv1, norm2, silu2, dropout, conv2 = self.residual
        y = conv1(silu1(norm1(x)), cache)
        y = conv2(dropout(silu2(norm2(y))), cache)
        return self.shortcut(x) + y


class OutputHead(nn.Sequential):
    """Norm, SiLU and the last convolution, [B, dim, T, H, W] -> [B, out_dim, T, H, W]."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__(RMS_norm(dim), nn.SiLU(), CausalConv3d(dim, out_dim, 3, padding=1))

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        norm, silu, conv = self
        return conv(silu(norm(x)), cache)


class AttentionBlock(nn.Module):
    """Self-attention inside each frame, one head over all positions; frames never see each other."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMS_norm(dim, images=True)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        b, _, t, h, w = x.shape
        # Channels last, and 1x1 convolutions as products of matrices: a fused kernel, on any device, asks for operands
        # whose last stride is 1. Any other goes to the plain one, which writes a matrix of H*W x H*W numbers a frame.
        frames = self.norm(x.transpose(1, 2).flatten(0, 1))
        tokens = frames.flatten(2).transpose(1, 2).contiguous()  # [B*T, H*W, C]
        q, k, v = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias).unsqueeze(1).chunk(3, dim=-1)
        # The head size is C (384 and more): beyond flash kernels, so this is PyTorch's own attention on every device.
        parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(QUERIES_AT_ONCE, dim=2)]
        mixed = F.linear(torch.cat(parts, dim=2).squeeze(1), self.proj.weight.flatten(1), self.proj.bias)
        return x + mixed.unflatten(1, (h, w)).unflatten(0, (b, t)).permute(0, 4, 1, 2, 3)


class Resample(nn.Module):
    """Halve or double the rows and columns, and for the 3d modes the frame rate.

    mode is "downsample2d", "downsample3d", "upsample2d" or "upsample3d". The first frame of a video stays one frame:
    it goes around the temporal convolution. Upsampling also keeps it out of the history of the frames that follow.
    """

    def __init__(self, dim: int, mode: str, out_dim: int | None = None):
        super().__init__()
        self.mode = mode
        out_dim = dim if out_dim is None else out_dim
        if mode.startswith("upsample"):
            self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(dim, out_dim, 3, padding=1))
        else:
            # One zero row below and one zero column to the right, then stride 2: odd sizes round down.
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, out_dim, 3, stride=2))
        if mode == "upsample3d":
            self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1), padding=(1, 0, 0))
        elif mode == "downsample3d":
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        if self.mode == "upsample3d":
            x = self._double_frames(x, cache)
        b, _, t, _, _ = x.shape
        frames = self.resample(x.transpose(1, 2).flatten(0, 1))
        x = frames.unflatten(0, (b, t)).transpose(1, 2)
        return self._halve_frames(x, cache) if self.mode == "downsample3d" else x

    def _double_frames(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """1 + m first frames -> 1 + 2m, m later frames -> 2m."""
        if cache is not None and cache.get(self.time_conv) is not None:
            return self._pairs(x, cache)
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2] == 0:
            if cache is not None:
                cache.put(self.time_conv, x.new_zeros(*x.shape[:2], HISTORY, *x.shape[3:]))
            return first
        return torch.cat([first, self._pairs(rest, cache)], dim=2)

    def _pairs(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """[B, C, m, H, W] -> [B, C, 2m, H, W]: the first half of the channels is the earlier frame of each pair."""
        pairs = self.time_conv(x, cache)
        b, c, t, h, w = x.shape
        out = torch.empty((b, c, 2 * t, h, w), dtype=pairs.dtype, device=x.device, memory_format=layout(pairs))
        for place, frames in enumerate(pairs.chunk(2, dim=1)):
            out[:, :, place::2] = frames
        return out

    def _halve_frames(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """2m + 1 first frames -> m + 1, 2m later frames -> m."""
        last = None if cache is None else cache.get(self.time_conv)
        if cache is not None:
            cache.put(self.time_conv, x[:, :, -1:].clone())
        if last is not None:
            return self.time_conv(torch.cat([last, x], dim=2))
        first = x[:, :, :1]
        return first if x.shape[2] == 1 else torch.cat([first, self.time_conv(x)], dim=2)


class AvgDown3D(nn.Module):
    """Average groups of values: the shortcut past a stage that lowers the resolution. It has no parameters.

    The values of each `time` frames x `space` rows x `space` columns, in the order (channel, frame, row, column), are
    cut into out_dim groups of equal size. A number of frames that is no multiple of `time` gets zero frames in front.
    """

    def __init__(self, in_dim: int, out_dim: int, time: int, space: int):
        super().__init__()
        self.time, self.space, self.out_dim = time, space, out_dim
        assert in_dim * time * space * space % out_dim == 0

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim, T, H, W] -> [B, out_dim, T / time, H / space, W / space]."""
        if self.time == self.space == 1 and x.shape[1] == self.out_dim:
            return x
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.time, 0))
        x = rearrange(x, "b c (t i) (h j) (w k) -> b (c i j k) t h w", i=self.time, j=self.space, k=self.space)
        return x.unflatten(1, (self.out_dim, -1)).mean(dim=2)


class DupUp3D(nn.Module):
    """Repeat values: the shortcut past a stage that raises the resolution. It has no parameters.

    Each channel is repeated until there are out_dim * time * space * space of them, which are then spread over
    `time` frames x `space` rows x `space` columns: the inverse of the order of `AvgDown3D`.
    """

    def __init__(self, in_dim: int, out_dim: int, time: int, space: int):
        super().__init__()
        self.time, self.space, self.repeats = time, space, out_dim * time * space * space // in_dim
        assert self.repeats * in_dim == out_dim * time * space * space

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add x [B, in_dim, T, H, W], repeated, to y [B, out_dim, T', H * space, W * space].

        Where y starts a video, it has T' = T * time - (time - 1) frames: the first frame of x is not repeated in time.
        """
        x = x.repeat_interleave(self.repeats, dim=1)
        x = rearrange(x, "b (c i j k) t h w -> b c (t i) (h j) (w k)", i=self.time, j=self.space, k=self.space)
        return y + x[:, :, -y.shape[2] :]


def run_chunk(layers: Iterable[nn.Module], x: Tensor, cache: FrameCache | None) -> Tensor:
    """Apply `layers` in order; each continues from its frames in `cache`."""
    for layer in layers:
        x = layer(x, cache)
    return x


def stage_layers(
    way: str, width: int, out: int, blocks: int, temporal: bool | None, dropout: float, resampled: int | None = None
) -> list[nn.Module]:
    """Build the residual blocks of one resolution, then the way "up" or "down" to the next, with `resampled` channels.

    temporal: whether the frame rate changes, too; None when the resolution stays.
    """
    layers: list[nn.Module] = [ResidualBlock(out if block else width, out, dropout) for block in range(blocks)]
    if temporal is not None:
        layers.append(Resample(out, f"{way}sample{'3d' if temporal else '2d'}", resampled))
    return layers


class DownStage(nn.Module):
    """`stage_layers` down, plus the average of the input."""

    def __init__(self, width: int, out: int, blocks: int, temporal: bool | None, dropout: float = 0.0):
        super().__init__()
        self.downsamples = nn.Sequential(*stage_layers("down", width, out, blocks, temporal, dropout))
        self.shortcut = AvgDown3D(width, out, 2 if temporal else 1, 1 if temporal is None else 2)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return run_chunk(self.downsamples, x, cache) + self.shortcut(x)


class UpStage(nn.Module):
    """`stage_layers` up, plus the repeated input where the resolution changes. `vae_coders.run_stages` runs it."""

    def __init__(self, width: int, out: int, blocks: int, temporal: bool | None, dropout: float = 0.0):
        super().__init__()
        self.upsamples = nn.Sequential(*stage_layers("up", width, out, blocks, temporal, dropout))
        self.shortcut = None if temporal is None else DupUp3D(width, out, 2 if temporal else 1, 2)

"""Inference of the VAE's blocks in less memory than the plain ones, and on request with convolutions in half precision.

Norm, SiLU and history are written into one buffer, the input of a convolution, and the residual is added in place: the
values are those of the plain blocks, to the last bit. On a CPU convolutions with many channels use `vae_kernels`, which
rounds differently.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.vae_blocks import (
    HISTORY,
    CausalConv3d,
    DupUp3D,
    FrameCache,
    OutputHead,
    Resample,
    ResidualBlock,
    RMS_norm,
    added,
    layout,
)
from wan.modules.vae_kernels import causal_conv3d, upsample_conv2d

MIN_CHANNELS = 64  # below, the transforms of the CPU kernels cost more than they save
MIN_POSITIONS = 512  # below, transforming the weights costs more than it saves


def prepare(network: nn.Module, device: torch.device, conv_dtype: torch.dtype | None = None) -> None:
    """Let the blocks of a VAE infer as this file does. Parameters, their names and training stay.

    With `conv_dtype` convolutions that see neighbours have weights and inputs of that type, around a stream in the type
    of the network. On CUDA weights get the layout in which channels are neighbours, as activations have it.
    With several threads beside busy programs the CPU kernels need `program.share_cores`: docs/log.md, 2026-11-25.
    """
    for module in network.modules():
        if isinstance(module, Resample):
            module.resample.__class__ = Resampling
        module.__class__ = FUSED.get(type(module), type(module))
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            if conv_dtype is not None and max(module.kernel_size) > 1:
                for parameter in module.parameters():
                    parameter.data = parameter.data.to(conv_dtype)
            if device.type == "cuda":
                rank = module.weight.ndim
                channels_last = torch.channels_last if rank == 4 else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=channels_last)


class FusedConv3d(CausalConv3d):
    def forward(
        self,
        x: Tensor,
        cache: FrameCache | None = None,
        *,
        norm: RMS_norm | None = None,
        residual: Tensor | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """Convolve x, or with `norm` SiLU(norm(x)), and add `residual`.

        The result has the type of `residual`, with `norm` alone that of the weights, else that of x. With `overwrite`
        the memory of x may be used for it.
        """
        if self.kernel_size == (3, 3, 3) and suits(x, self.weight):
            history = None if cache is None else cache.get(self)
            gain = None if norm is None else (norm.gamma * norm.scale).flatten()
            y, history = causal_conv3d(
                x, history, self.weight, self.bias, gain=gain, residual=residual, overwrite=overwrite
            )
            if cache is not None:
                cache.put(self, history)
            return y
        if torch.is_grad_enabled() or not self.padding[0]:
            y = super().forward(x if norm is None else F.silu(norm(x)), cache)
        else:
            y = self._in_one_buffer(x, cache, norm)
        if norm is None:
            y = y.to(x.dtype)
        return y if residual is None else added(residual, y)

    def _in_one_buffer(self, x: Tensor, cache: FrameCache | None, norm: RMS_norm | None) -> Tensor:
        state = None if cache is None else cache.get(self)
        b, c, t, h, w = x.shape
        past = 0 if state is None and t == 1 else HISTORY  # one frame after nothing: the last tap alone meets data
        order = layout(self.weight if x.is_cuda else x)
        like = {"dtype": self.weight.dtype, "device": x.device, "memory_format": order}
        buffer = torch.empty((b, c, past + t, h, w), **like)
        if past and state is None:
            buffer[:, :, :past].zero_()
        elif past:
            buffer[:, :, :past].copy_(state)
        activate(x, norm, buffer[:, :, past:])
        if cache is not None:
            if state is None:
                state = torch.empty((b, c, HISTORY, h, w), **like)
                state[:, :, :1].zero_()
                cache.put(self, state)
            kept = min(HISTORY, past + t)
            state[:, :, HISTORY - kept :].copy_(buffer[:, :, -kept:])
        return self._conv(buffer, self.weight if past else self.weight[:, :, -1:])

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return super()._conv(x if torch.is_grad_enabled() else x.to(weight.dtype), weight)


def activate(x: Tensor, norm: RMS_norm | None, out: Tensor) -> None:
    """Write SiLU(norm(x)), or without `norm` x, to `out`; computed in the type of the norm."""
    if norm is None:
        out.copy_(x)
    elif x.dtype == norm.gamma.dtype == out.dtype:
        torch.mul(x, norm.inverse(x), out=out)
        F.silu(out.mul_(norm.gain(x)), inplace=True)
    else:
        for frame, target in zip(x.unbind(2), out.unbind(2), strict=True):  # values between are as large as one frame
            values = frame.unsqueeze(2).to(norm.gamma.dtype)
            values = (values * norm.inverse(values)).mul_(norm.gain(values))
            target.unsqueeze(2).copy_(F.silu(values, inplace=True))


class FusedBlock(ResidualBlock):
    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        if self.training:
            return super().forward(x, cache)
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        y = conv1(x, cache, norm=norm1)
        return conv2(y, cache, norm=norm2, residual=self.shortcut(x), overwrite=True)


class FusedHead(OutputHead):
    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self[2](x, cache, norm=self[0]).to(x.dtype)


class FusedRepeat(DupUp3D):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the repeated x to y in place, without a copy of it."""
        if torch.is_grad_enabled():
            return super().forward(x, y)
        per_output = self.time * self.space * self.space  # repeated channels for one of y
        missing = x.shape[2] * self.time - y.shape[2]
        for i, j, k in product(range(self.time), range(self.space), range(self.space)):
            first = i < missing  # a frame of x that has no such frame of y
            frames = y[:, :, first * self.time + i - missing :: self.time, j :: self.space, k :: self.space]
            offset = (i * self.space + j) * self.space + k
            frames.add_(self._channels(x[:, :, int(first) :], offset, per_output))
        return y

    def _channels(self, x: Tensor, offset: int, step: int) -> Tensor:
        """Take every `step`th channel from `offset` on of x with repeated channels; a view where that is possible."""
        if step % self.repeats == 0:
            return x[:, offset // self.repeats :: step // self.repeats]
        return x.repeat_interleave(self.repeats, dim=1)[:, offset::step]


class Resampling(nn.Sequential):
    """Doubling by nearest neighbours or one zero row and column, then a convolution."""

    def forward(self, frames: Tensor) -> Tensor:
        change, conv = self
        if isinstance(change, nn.Upsample) and suits(frames, conv.weight):
            return upsample_conv2d(frames, conv.weight, conv.bias)
        if torch.is_grad_enabled():
            return super().forward(frames)
        return super().forward(frames.to(conv.weight.dtype)).to(frames.dtype)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the kernels are faster for a convolution of `x` [B, C, ..., H, W]: inference on a CPU, float32."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and weight.shape[1] >= MIN_CHANNELS
        and x.shape[2:].numel() >= MIN_POSITIONS
    )


FUSED = {CausalConv3d: FusedConv3d, ResidualBlock: FusedBlock, OutputHead: FusedHead, DupUp3D: FusedRepeat}

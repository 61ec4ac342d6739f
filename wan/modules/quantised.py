"""Weights of the trunk's linear layers in 8 bits, with a scale for each output channel.

The values are those of int8, or of float8 with 4 bits of exponent and 3 of mantissa. Both are exact in bfloat16, and so
are the scales: a product in bfloat16 adds no error of its own to that of the weights. Where the device multiplies 8
bits, the input is rounded as well, with a scale for each token. Norms, embeddings, time, modulation, biases and head
stay.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.choices import QUANTIZED
from wan.modules.layers import Linear, replace_linears

TYPES: dict[str, torch.dtype] = {name: getattr(torch, full) for name, full in QUANTIZED.items()}
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
TINY = 2.0**-100


def quantise_linears(module: nn.Module, kind: str) -> None:
    """Replace every `Linear` below a module; layers with precision rules of their own are of other classes."""
    replace_linears(module, lambda m: QuantisedLinear(m, TYPES[kind]) if type(m) is Linear else None)


class QuantisedLinear(nn.Module):
    """x @ weight.T * scale + bias, in the type that the weights had."""

    def __init__(self, linear: nn.Linear, kind: torch.dtype):
        super().__init__()
        self.dtype = linear.weight.dtype
        for name, tensor in stored(linear.weight.detach(), kind).items():
            self.register_buffer(name, tensor)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return product(x.to(self.dtype), self.weight, self.scale, self.bias)


def stored(weight: Tensor, kind: torch.dtype) -> dict[str, Tensor]:
    """Make the buffers of a `QuantisedLinear`: `weight` [out, in] in `kind`, and `scale` [out], float32."""
    values, scale = quantise(weight, kind, torch.bfloat16)
    return {"weight": values, "scale": scale[:, 0].contiguous()}


def quantise(x: Tensor, kind: torch.dtype, scale_type: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x [N, C] -> values of `kind`, and float32 scales [N, 1] that `scale_type` holds exactly."""
    scale = (x.abs().amax(dim=1, keepdim=True).float() / LARGEST[kind]).clamp_min(TINY).to(scale_type).float()
    values = x.float() / scale
    values = values.round() if kind == torch.int8 else values
    return values.clamp_(-LARGEST[kind], LARGEST[kind]).to(kind), scale


def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] @ weight [out, in].T * scale [out] + bias, by the product of 8 bits if the device has one."""
    suits = x.dtype == torch.bfloat16 and all(side % 16 == 0 for side in weight.shape) and x[..., 0].numel() > 16
    if suits and multiplies(x.device, weight.dtype):
        y = scaled_product(x.flatten(0, -2), weight, scale).unflatten(0, x.shape[:-1])
    else:
        y = F.linear(x, weight.to(x.dtype)).mul_(scale.to(x.dtype))
    return y if bias is None else y.add_(bias)


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Round x [N, in] to the type of the weights, and multiply there; the result is bfloat16 [N, out]."""
    values, of_rows = quantise(x, weight.dtype)
    if weight.dtype == torch.int8:
        return (torch._int_mm(values, weight.T) * of_rows * scale).bfloat16()
    return torch._scaled_mm(values, weight.T, of_rows, scale[None], out_dtype=torch.bfloat16)


@cache
def multiplies(device: torch.device, kind: torch.dtype) -> bool:
    """Try `scaled_product` on a CUDA device: tell whether it runs there and is right. Elsewhere it is not faster."""
    if device.type != "cuda":
        return False
    x = torch.eye(32, device=device, dtype=torch.bfloat16)
    try:
        found = scaled_product(x, x.to(kind), torch.ones(32, device=device))
    except RuntimeError:  # no such kernel there
        return False
    return torch.allclose(found, x, rtol=2**-6, atol=1e-6)

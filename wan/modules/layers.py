"""Small layers of the diffusion transformer, each with its precision rule (reference: core, section 3.6).

The dtype of a block's weights is the compute dtype of its branches: bfloat16 weights give bfloat16 matrix products
around a float32 residual stream, float32 weights give float32 throughout. Layers that are sensitive to rounding (time
embedding, modulation, norms, head) compute in float32 whatever the dtype of their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """Linear layer that computes in the dtype of its weights, for inputs of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.weight.dtype)
        return F.linear(x, self.weight, self.bias)


def compute_type(layer: nn.Module) -> torch.dtype:
    """Type that a linear layer, or one in its place, computes in."""
    return getattr(layer, "dtype", None) or layer.weight.dtype


class FeedForward(nn.Sequential):
    """Linear, GELU-tanh, Linear."""

    has_fused_gelu = False  # outside of training, the first product applies the GELU before it writes its result

    def __init__(self, dim: int, hidden: int):
        super().__init__(Linear(dim, hidden), nn.GELU(approximate="tanh"), Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        if not self.has_fused_gelu or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        up, _, down = self
        rows = product_with_gelu(x.to(up.weight.dtype).flatten(0, -2), up.weight, up.bias)
        return down(rows.unflatten(0, x.shape[:-1]))


def product_with_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute GELU(x @ weight.T + bias) [L, hidden] in one kernel; the device decides between tanh and erf."""
    return torch._addmm_activation(bias, x, weight.T, use_gelu=True)


@cache
def fuses_gelu_tanh(device: torch.device, dtype: torch.dtype) -> bool:
    """Try `product_with_gelu` on the device: tell whether it runs there and computes tanh. A CPU computes erf."""
    x = torch.linspace(-3.5, -1, 128, device=device).diag().to(dtype)  # where tanh and erf differ by up to a fifth
    try:
        found = product_with_gelu(x, torch.eye(128, device=device, dtype=dtype), torch.zeros_like(x[0]))
    except RuntimeError:  # no such kernel there
        return False
    return torch.allclose(found, F.gelu(x, approximate="tanh"), rtol=2**-6, atol=1e-6)


class Float32Linear(nn.Linear):
    """Linear layer that computes in float32, with weights of any dtype and in any autocast region."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


class AdaptedLinear(nn.Module):
    """Linear layer with a low-rank adapter beside its weights: linear(x) + scale * up @ down @ x."""

    def __init__(self, linear: nn.Module, down: Tensor, up: Tensor, scale: float):
        """linear: any layer with a `weight`; down [rank, in], up [out, rank]: they get the type of the weight."""
        super().__init__()
        self.linear, self.scale = linear, scale
        for name, factor in (("down", down), ("up", up)):
            self.register_buffer(name, factor.to(linear.weight.device, compute_type(linear)), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Weight without the adapter."""
        return self.linear.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.down.dtype

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x.to(self.down.dtype), self.down)
        return self.linear(x).add(F.linear(low, self.up), alpha=self.scale)


def replace_linears(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Swap linears below `module`, in place, for quantised or packed ones or ones with an adapter.

    `make(child)` returns the replacement of a linear, or of a module with several as a whole. It returns None for every
    other module, whose children are then visited.
    """
    for name, child in list(module.named_children()):
        made = make(child)
        if made is None:
            replace_linears(child, make)
        else:
            setattr(module, name, made)


class WanRMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last axis; statistics in float32, rounded to x's dtype before the weight."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, None, self.eps) * self.weight


class WanLayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, float32 inside and in its result's rounding: returns x's dtype."""

    def __init__(self, dim: int, eps: float = 1e-6, elementwise_affine: bool = False):
        super().__init__(dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def sinusoidal_embedding_1d(dim: int, position: Tensor) -> Tensor:
    """Features [L, dim] in float64 of positions [L]: cosines, then sines, of position * 10000^(-k / (dim/2))."""
    if dim % 2:
        raise ValueError(f"the width of a sinusoidal embedding must be even, got {dim}")
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=position.device) / half
    angles = position.to(torch.float64)[:, None] * 10000.0**-exponent
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LN(x) * (1 + scale) + shift in float32, for x [..., C] and shift, scale [C] or broadcastable to x.

    A bfloat16 x has its normalised value rounded to bfloat16 first, as upstream does before its first block.
    """
    dim = x.shape[-1:]
    if x.dtype == torch.float32 and shift.ndim == 1:  # one pass: the modulation is an affine layer norm
        return F.layer_norm(x, dim, 1 + scale, shift, eps)
    normed = F.layer_norm(x.float(), dim, eps=eps).to(x.dtype).float()
    return torch.addcmul(shift, normed, 1 + scale)

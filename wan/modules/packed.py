"""Packed bfloat16 weights, in the blocked layout of a CPU's matrix units, with the activation fused into the product.

A plain bfloat16 `F.linear` reorders its whole weight on every call, and writes the product before the GELU reads it
again. Weights that are packed once after loading need neither. The GELU then has one rounding less.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wan.modules.layers import Linear, replace_linears


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether this PyTorch and this processor have the packed product for weights of `dtype`."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and has_bfloat16_products()
    )


def has_bfloat16_products() -> bool:
    """Tell whether this processor multiplies bfloat16 matrices fast; else a product takes up to 50 times as long."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linears(module: nn.Module) -> None:
    """Replace every bfloat16 `Linear` below `module` by its packed form, and a feed-forward of two as a whole.

    For inference on a CPU only: packed weights are not parameters, so the module can no longer be saved or trained.
    """
    replace_linears(module, _packed)


def _packed(module: nn.Module) -> nn.Module | None:
    if _is_feed_forward(module):
        return PackedFeedForward(module)
    return PackedLinear(module) if isinstance(module, Linear) and module.weight.dtype == torch.bfloat16 else None


def _is_feed_forward(module: nn.Module) -> bool:
    if not isinstance(module, nn.Sequential) or [type(m) for m in module] != [Linear, nn.GELU, Linear]:
        return False
    return module[1].approximate == "tanh" and all(module[i].weight.dtype == torch.bfloat16 for i in (0, 2))


class PackedFeedForward(nn.Module):
    """Linear, GELU-tanh, Linear, some rows at a time.

    The allocator reuses the memory of the wide intermediate of a slice. The whole one (35 MB at 1950 tokens of width
    8960) would be new pages of the system every time, which took a third of the product's time.
    """

    def __init__(self, feed_forward: nn.Sequential):
        super().__init__()
        self.up, self.down = PackedLinear(feed_forward[0], gelu=True), PackedLinear(feed_forward[2])

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or x.shape[1] <= SLICE_ROWS:
            return self.down(self.up(x))
        return torch.cat([self.down(self.up(part)) for part in x.split(SLICE_ROWS, dim=1)], dim=1)


SLICE_ROWS = 1024  # fewer rows read the weights too often: 1.60 TFLOP/s at 512 rows of 5120, 1.91 at 1024, 1.56 at 4680


class PackedLinear(nn.Module):
    """x @ weight.T + bias, then GELU-tanh with `gelu`; bfloat16 operands, float32 accumulation."""

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)  # opaque layout
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        product = _opaque_product if torch.compiler.is_compiling() else _packed_product
        return product(x.to(torch.bfloat16), self.weight, self.bias, self.gelu)


def _packed_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    post = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *post)


@torch.library.custom_op("wan::packed_linear", mutates_args=())
def _opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """Compute the product as one step of a compiled graph: the compiler has no rule for packed weights."""
    return _packed_product(x, weight, bias, gelu)


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])

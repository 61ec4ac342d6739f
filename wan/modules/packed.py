"""bfloat16 weights in the blocked layout that a CPU's matrix units read, with the activation fused into the product.

A plain bfloat16 `F.linear` reorders its whole weight on every call and writes the product before the GELU reads it
again; packed once after loading, neither happens. The arithmetic is the same, with one rounding less at the GELU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wan.modules.layers import Linear


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch and this processor have the packed product."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack_linears(module: nn.Module) -> None:
    """Replace every bfloat16 `Linear` below `module` by its packed form, and a GELU that follows one by nothing.

    For inference on a CPU only: packed weights are not parameters, so the module can no longer be saved or trained.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for i, (name, child) in enumerate(children):
            if not isinstance(child, Linear) or child.weight.dtype != torch.bfloat16:
                continue
            follower = children[i + 1] if isinstance(parent, nn.Sequential) and i + 1 < len(children) else None
            fuse = follower is not None and isinstance(follower[1], nn.GELU) and follower[1].approximate == "tanh"
            setattr(parent, name, PackedLinear(child, gelu=fuse))
            if fuse:
                setattr(parent, follower[0], nn.Identity())


class PackedLinear(nn.Module):
    """x @ weight.T + bias, then GELU-tanh if asked for; bfloat16 operands, float32 accumulation."""

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
    """The product as one step of a compiled graph: the compiler has no rule for weights that are already packed."""
    return _packed_product(x, weight, bias, gelu)


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])

"""Causal convolutions over time that turn a signal at the rate of the frames into tokens of latent frames."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv1d(nn.Module):
    """Convolution of kernel 3 over time that sees no later step: two copies of the first step stand in front.

    It computes in float32, whatever the type of its weights.
    """

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, L] -> float32 [B, C', ceil(L / stride)]."""
        x = F.pad(x.float(), (2, 0), mode="replicate")
        return F.conv1d(x, self.conv.weight.float(), self.conv.bias.float(), self.conv.stride)


def norm_act(x: Tensor) -> Tensor:
    """Layer norm over the channels of x [B, C, L], without weights, then SiLU."""
    return F.silu(F.layer_norm(x.transpose(1, 2), x.shape[1:2], eps=1e-6)).transpose(1, 2)


class MotionEncoder(nn.Module):
    """Base of encoders with a trunk of three convolutions: a first one into several heads, then two of stride 2.

    The heads share the trunk. `widths` are those of a head behind the convolutions.
    """

    def __init__(self, in_dim: int, heads: int, widths: tuple[int, int, int]):
        super().__init__()
        self.heads = heads
        self.conv1_local = CausalConv1d(in_dim, heads * widths[0])
        self.conv2 = CausalConv1d(widths[0], widths[1], stride=2)
        self.conv3 = CausalConv1d(widths[1], widths[2], stride=2)

    def trunk(self, x: Tensor) -> Tensor:
        """Lead a head through the trunk: x [B, C, L] -> [B, ceil(ceil(L / 2) / 2), C']."""
        return norm_act(self.conv3(norm_act(self.conv2(norm_act(x))))).transpose(1, 2)

    def local(self, x: Tensor) -> Tensor:
        """Compute the tokens of each head: x [B, C, L] -> [B, L', heads, C']."""
        each = self.conv1_local(x).unflatten(1, (self.heads, -1)).flatten(0, 1)
        return self.trunk(each).unflatten(0, (-1, self.heads)).transpose(1, 2)

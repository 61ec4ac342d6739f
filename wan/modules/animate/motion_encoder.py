"""Encoder of a face to a motion vector: a sum of learned directions that are orthogonal to each other.

It computes in float32, whatever the type of its weights. It works once per clip.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.animate.config import AnimateModelConfig

FRAMES = 8  # that are encoded together; more take more memory


class FaceMotionEncoder(nn.Module):
    """Residual blocks that halve a face to one pixel, linear layers to a few coefficients, and their directions."""

    def __init__(self, config: AnimateModelConfig):
        super().__init__()
        size, channels, style = config.motion_encoder_size, config.motion_encoder_channels, config.motion_style_dim
        halved = [size >> n for n in range(size.bit_length() - 2)]  # down to 4
        convs = [
            nn.Sequential(EqualConv(3, channels[size], 1), BiasedLeakyReLU(channels[size])),
            *(ResidualBlock(channels[side], channels[side // 2]) for side in halved[:-1]),
            EqualConv(channels[4], style, 4),
        ]
        layers = [*(EqualLinear(style, style) for _ in range(4)), EqualLinear(style, config.motion_dim)]
        net = nn.ModuleDict({"convs": nn.ModuleList(convs)})
        self.enc = nn.ModuleDict({"net_app": net, "fc": nn.Sequential(*layers)})
        self.dec = nn.ModuleDict({"direction": Directions(config.motion_encoder_dim, config.motion_dim)})

    def forward(self, faces: Tensor) -> Tensor:
        """Encode faces [N, 3, S, S] in [-1, 1] to float32 [N, motion_encoder_dim]."""
        return torch.cat([self.dec["direction"](self.coefficients(part)) for part in faces.float().split(FRAMES)])

    def coefficients(self, x: Tensor) -> Tensor:
        """Encode faces [N, 3, S, S] to the amounts of each direction, [N, motion_dim]."""
        for layer in self.enc["net_app"]["convs"]:
            x = layer(x)
        return self.enc["fc"](x.flatten(1))


class EqualConv(nn.Module):
    """Convolution without bias, with stored weights of unit variance that are scaled by their fan-in on use."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_dim, in_dim, kernel, kernel))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


class EqualLinear(nn.Module):
    """Linear layer, with stored weights of unit variance that are scaled by their fan-in on use."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float() / math.sqrt(self.weight.shape[1]), self.bias.float())


class BiasedLeakyReLU(nn.Module):
    """Bias per channel, leaky ReLU, and a factor that keeps the variance."""

    def __init__(self, dim: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.float(), 0.2) * math.sqrt(2)


class Blur(nn.Module):
    """Binomial filter of 4 x 4 pixels, with zeros around the image.

    Released files store the filter. It is a constant, and the stored values are not used.
    """

    def __init__(self, padding: int):
        super().__init__()
        self.padding = padding
        self.register_buffer("kernel", torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H + 2 * padding - 3, W + 2 * padding - 3]."""
        row = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, padding=self.padding, groups=x.shape[1])


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut that halve the sides of an image; a blur before each step of two pixels."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.conv1 = nn.Sequential(EqualConv(in_dim, in_dim, 3, padding=1), BiasedLeakyReLU(in_dim))
        self.conv2 = nn.Sequential(Blur(2), EqualConv(in_dim, out_dim, 3, stride=2), BiasedLeakyReLU(out_dim))
        self.skip = nn.Sequential(Blur(1), EqualConv(in_dim, out_dim, 1, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Directions(nn.Module):
    """Sum of orthonormal directions: the Q factor of the stored matrix.

    The signs of the columns are those of Householder reflections, as LAPACK and cuSOLVER compute them. Other signs
    would turn expressions into their opposite.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, count))

    def basis(self) -> Tensor:
        """Return the directions, the columns of [dim, count]."""
        return torch.linalg.qr(self.weight.float() + 1e-8).Q

    def forward(self, amounts: Tensor) -> Tensor:
        """[N, count] -> [N, dim]."""
        return amounts @ self.basis().T

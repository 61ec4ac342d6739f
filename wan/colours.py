"""Colours of the clips of a video: their drift, its correction, and pixels of the background around a character."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

FEATHER = 64  # the soft edge of a mask is as wide as the shorter side divided by this
# sRGB (linear) -> XYZ, and the white of D65
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)


@dataclass
class Colours:
    """Sums over pixels of some frames: their number, and of each channel the sum of values and of squares."""

    count: float = 0.0
    total: Tensor | float = 0.0  # [3]
    squares: Tensor | float = 0.0  # [3]

    def add(self, frames: Tensor, weight: Tensor | None = None) -> None:
        """Add frames [3, F, H, W]; `weight` [F, H, W] says how much each pixel counts."""
        frames = frames.double()
        weight = torch.ones(frames.shape[1:], dtype=torch.float64) if weight is None else weight.double()
        self.count += weight.sum().item()
        self.total = self.total + (frames * weight).sum((1, 2, 3))
        self.squares = self.squares + (frames.square() * weight).sum((1, 2, 3))

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0).sqrt()

    def drift_from(self, other: Colours) -> float:
        """CIE Lab difference of the mean colours."""
        return (lab(self.mean) - lab(other.mean)).norm().item()


def matched(frames: Tensor, found: Colours, wanted: Colours) -> Tensor:
    """Give frames [3, F, H, W] the mean and deviation of each channel that `wanted` has, where they have `found`."""
    gain = torch.where(found.deviation > 1e-3, wanted.deviation / found.deviation.clamp(min=1e-3), 1.0)
    shift = wanted.mean - found.mean * gain
    gain, shift = (values.to(frames)[:, None, None, None] for values in (gain, shift))
    return (frames * gain + shift).clamp(-1, 1)


def composited(frames: Tensor, background: Tensor, mask: Tensor) -> Tensor:
    """Take frames [3, F, H, W] where `mask` [F, H, W] is 1, and the background elsewhere.

    The edge is soft, and lies outside the mask: inside, the background may be painted over.
    """
    radius = max(1, min(mask.shape[1:]) // FEATHER)
    sides = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
    grown = max_pool2d(mask[:, None], **sides)
    share = avg_pool2d(grown, **sides, count_include_pad=False)[:, 0]
    return background + share * (frames - background)


def lab(rgb: Tensor) -> Tensor:
    """Convert sRGB [3] in [-1, 1] to CIE Lab (D65)."""
    value = (rgb.double() + 1) / 2
    linear = torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    xyz = torch.tensor(XYZ, dtype=torch.float64) @ linear / torch.tensor(WHITE, dtype=torch.float64)
    x, y, z = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=0) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])

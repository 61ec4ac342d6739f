"""A transformer small enough for several processes on one core, and inputs of every kind that it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wan.modules.model import WanModel, WanModelConfig
from wan.modules.steps import Conditioning, Step, Tokens, by_frame

CONFIG = WanModelConfig(
    dim=64, ffn_dim=96, num_heads=4, num_layers=2, in_dim=6, out_dim=6, text_len=8, text_dim=10, freq_dim=16
)


class FrameAdapter(nn.Module):
    """Adds to a token what depends on its latent frame."""

    def __init__(self, dim: int, num_frames: int):
        super().__init__()
        self.mix = nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.zeros(num_frames, dim))

    def forward(self, x: Tensor, frames: slice) -> Tensor:
        return x + self.mix(x) * self.table[frames, None]


class AdaptedModel(WanModel):
    """Has a step of its own after the first block, for the first two latent frames of three tokens."""

    def __init__(self, config: WanModelConfig):
        super().__init__(config)
        self.adapter = FrameAdapter(config.dim, 2)

    def trunk(self) -> list[Step]:
        first, block, *rest = super().trunk()
        return [first, block, Step(self.adapt, (self.adapter,)), *rest]

    def adapt(self, tokens: Tokens, cond: Conditioning) -> Tokens:
        return tokens._replace(x=by_frame(self.adapter, tokens, 3, 2))


def tiny_model(config: WanModelConfig = CONFIG, seed: int = 0, kind: type[WanModel] = WanModel) -> WanModel:
    model = kind(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.requires_grad_(False).eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _case(sizes: list[tuple[int, int, int]], t: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    latents = [randn(6, *size, seed=i) for i, size in enumerate(sizes)]
    return latents, t, [randn(5 + i, 10, seed=10 + i) for i in range(len(sizes))]


def _two(first: int, rest: int) -> Tensor:
    return torch.tensor([[0.0] * first + [700.0] * rest])


CASES: dict[str, tuple[Any, ...]] = {
    "even": _case([(2, 4, 8)], torch.tensor([500])),  # 16 tokens
    "uneven length": _case([(3, 2, 6)], torch.tensor([500])),  # 9 tokens
    "fewer tokens than ranks": _case([(3, 2, 2)], torch.tensor([500])),
    "ragged batch": _case([(3, 2, 6), (1, 2, 4), (2, 4, 4)], torch.tensor([900, 13, 500])),
    "two segments": _case([(4, 2, 6)], _two(3, 9)),  # a clean first frame
    "two segments, uneven": _case([(3, 2, 6)], _two(3, 6)),
    "two segments, ragged": _case([(3, 2, 6), (1, 2, 4)], torch.cat([_two(3, 6), _two(9, 0)])),
}

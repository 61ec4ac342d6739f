"""A speech-to-video transformer with random weights, and inputs for it."""

from typing import Any

import torch
from torch import Tensor

from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.config import S2VModelConfig

CONFIG = S2VModelConfig(
    dim=32,
    ffn_dim=48,
    num_heads=4,
    num_layers=3,
    in_dim=16,
    out_dim=16,
    text_len=6,
    text_dim=10,
    freq_dim=16,
    audio_dim=8,
    audio_layers=3,
    audio_inject_layers=(0, 2),
)
SIZE = (2, 8, 16)  # of the latent: 64 tokens in 2 frames


def tiny_model(config: S2VModelConfig = CONFIG, seed: int = 0) -> WanModel_S2V:
    model, generator = WanModel_S2V(config), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.requires_grad_(False).eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip_inputs(size: tuple[int, int, int] = SIZE, seed: int = 0) -> dict[str, Any]:
    """Make the inputs of `prepare` for one sample, besides text."""
    frames, rows, columns = size
    return {
        "ref_latents": [randn(16, 1, rows, columns, seed=seed + 1)],
        "motion_latents": [randn(16, 19, rows, columns, seed=seed + 2)],
        "cond_states": [randn(16, *size, seed=seed + 3)],
        "audio_input": randn(1, CONFIG.audio_layers, CONFIG.audio_dim, 4 * frames, seed=seed + 4),
    }


def call(model: WanModel_S2V, t: int = 700, size: tuple[int, int, int] = SIZE, seed: int = 0, **changes: Any) -> Tensor:
    """Predict the velocity of one random sample."""
    inputs = clip_inputs(size, seed) | changes
    [velocity] = model([randn(16, *size, seed=seed)], torch.tensor([t]), [randn(5, 10, seed=seed + 5)], None, **inputs)
    return velocity

"""A transformer of character animation with random weights, and inputs for it."""

from typing import Any

import torch
from torch import Tensor

from wan.modules.animate import WanAnimateModel
from wan.modules.animate.config import AnimateModelConfig

CONFIG = AnimateModelConfig(
    dim=32,
    ffn_dim=48,
    num_heads=4,
    num_layers=4,
    text_len=6,
    text_dim=10,
    freq_dim=16,
    image_dim=12,
    motion_encoder_size=8,
    motion_encoder_channels={4: 6, 8: 4},
    motion_style_dim=8,
    motion_dim=3,
    motion_encoder_dim=8,
    face_encoder_hidden_dim=8,
    face_encoder_num_heads=2,
    face_adapter_interval=2,
)
SIZE = (3, 4, 6)  # of the latent: 18 tokens in 3 frames, the first of which is the reference picture


def tiny_model(config: AnimateModelConfig = CONFIG, seed: int = 0) -> WanAnimateModel:
    model, generator = WanAnimateModel(config), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        std = 1 if name.startswith("motion_encoder") else 0.2
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model.requires_grad_(False).eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip_inputs(size: tuple[int, int, int] = SIZE, seed: int = 0, batch: int = 1) -> dict[str, Any]:
    """Make the inputs of `prepare`, besides text."""
    frames, rows, columns = size
    return {
        "y": [*randn(batch, 20, *size, seed=seed + 1)],
        "clip_fea": randn(batch, 257, CONFIG.image_dim, seed=seed + 2),
        "pose_latents": randn(batch, 16, frames - 1, rows, columns, seed=seed + 3),
        "face_pixel_values": randn(batch, 3, 4 * frames - 7, 8, 8, seed=seed + 4).tanh(),
    }


def call(
    model: WanAnimateModel, t: int = 700, size: tuple[int, int, int] = SIZE, seed: int = 0, **changes: Any
) -> Tensor:
    """Predict the velocity of one random sample."""
    inputs = clip_inputs(size, seed) | changes
    context = [randn(5, 10, seed=seed + 5)]
    [velocity] = model([randn(16, *size, seed=seed)], torch.tensor([t]), context=context, **inputs)
    return velocity


def clip_state(dim: int = 8, layers: int = 3, image_size: int = 28, seed: int = 0) -> dict[str, Tensor]:
    """Make random tensors of CLIP's vision tower under the released names, and one of its text tower."""
    generator = torch.Generator().manual_seed(seed)
    block = {"norm1": (dim,), "attn.to_qkv": (3 * dim, dim), "attn.proj": (dim, dim), "norm2": (dim,)}
    block |= {"mlp.0": (2 * dim, dim), "mlp.2": (dim, 2 * dim)}
    shapes = {f"transformer.{n}.{name}.weight": shape for n in range(layers) for name, shape in block.items()}
    shapes |= {f"{name}.weight": (dim,) for name in ("pre_norm", "post_norm")}
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    shapes |= {"cls_embedding": (1, 1, dim), "pos_embedding": (1, (image_size // 14) ** 2 + 1, dim), "head": (dim, 6)}
    shapes["patch_embedding.weight"] = (dim, 3, 14, 14)
    state = {f"visual.{name}": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return state | {"log_scale": torch.ones(()), "textual.token_embedding.weight": torch.zeros(4, 4)}

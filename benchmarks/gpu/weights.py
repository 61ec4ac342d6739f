"""Models of released sizes with random weights, drawn on the device; toy sizes are for trying the parts out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.counted.cases import clip_shape
from benchmarks.gpu.runner import Skip
from wan.checking import MODELS, VAES
from wan.configs import WAN_CONFIGS
from wan.experts import choose_kernels
from wan.forecast import denoise_bytes
from wan.geometry import token_count
from wan.modules.model import WanModel, time_features
from wan.modules.vae_wrapper import VideoVAE
from wan.nano.random import VAE_SIZES
from wan.runtime import Runtime

TOY_MODEL = {"dim": 64, "ffn_dim": 128, "num_heads": 2, "text_dim": 32, "text_len": 16}
PROMPT = 100


def transformer(task: str, device: torch.device, layers: int | None = None, toy: bool = False) -> WanModel:
    """Make the transformer of a task in the default precision, as `wan.experts` makes it ready."""
    kind, sizes = MODELS[WAN_CONFIGS[task].model_type], WAN_CONFIGS[task].architecture()
    sizes = sizes | ({"num_layers": layers} if layers else {}) | (TOY_MODEL if toy else {})
    with torch.device("meta"):
        model = kind(kind.config_class.from_dict(sizes))
    draw(model, device, lambda name: torch.float32 if kind.keeps_float32(name) else torch.bfloat16)
    return choose_kernels(model, Runtime.from_flags(device=str(device), offload="none"))


def draw(module: nn.Module, device: torch.device, dtype: Callable[[str], torch.dtype]) -> nn.Module:
    """Give a module without storage random weights, of the type for each name."""
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in [*module.named_parameters()]:
        owner, _, leaf = name.rpartition(".")
        value = torch.empty(weight.shape, dtype=dtype(name), device=device).normal_(0, 0.02, generator=generator)
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight", "gamma")):
            value.add_(1)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return module.eval()


def forward_of(
    model: WanModel, task: str, size: str, device: torch.device, toy: bool, frame_num: int | None = None
) -> Callable[[WanModel], list[Tensor]]:
    """Draw the inputs of a forward of a task, and return it as a function of the model, which prepares at first."""
    shape = (model.config.out_dim, 2, 8, 8) if toy else clip_shape(task, size, frame_num)
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(shape, generator=generator).to(device)
    tokens = min(PROMPT, model.config.text_len)
    context = torch.randn(tokens, model.config.text_dim, generator=generator).to(device, torch.bfloat16)
    features = time_features(torch.tensor([500, 0]), model.config.freq_dim, device)
    prepared = None

    def run(model: WanModel) -> list[Tensor]:
        nonlocal prepared
        prepared = prepared or model.prepare([context], [shape[1:]])
        return model([latent], features, prepared)

    return run


def fitting_layers(task: str, size: str, room: int, most: int | None = None) -> int:
    """Number of blocks of a transformer, of all or of `most`, whose weights fit into `room` beside activations."""
    sizes = WAN_CONFIGS[task].architecture()
    dim, hidden = sizes["dim"], sizes["ffn_dim"]
    config = MODELS[WAN_CONFIGS[task].model_type].config_class.from_dict(sizes)
    tokens = token_count(clip_shape(task, size), config.patch_size)
    block = 2 * (8 * dim * dim + 2 * dim * hidden)
    left = room - int(1.1 * denoise_bytes(tokens, dim, hidden, torch.bfloat16)) - (1 << 30)
    count = min(most or config.num_layers, config.num_layers, left // block)
    if count < 1:
        raise Skip(f"one block of {task} at {size} needs more than the {room / 1e9:.1f} GB that are free")
    return count


def vae_sizes(task: str, toy: bool) -> dict[str, Any]:
    """Sizes of the autoencoder of a task that differ from the released ones."""
    kind = VAES[WAN_CONFIGS[task].z_dim].network.config_class
    return {name: value for name, value in VAE_SIZES.items() if toy and hasattr(kind, name)}


def autoencoder(task: str, device: torch.device, toy: bool) -> VideoVAE:
    """Make the autoencoder of a task."""
    kind = VAES[WAN_CONFIGS[task].z_dim]
    with torch.device("meta"):
        model = kind.network(kind.network.config_class(**vae_sizes(task, toy)))
    return kind(model=draw(model, device, lambda name: torch.float32), device=device)

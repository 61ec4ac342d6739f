"""A complete checkpoint folder of random weights, small enough to be written and run in a second."""

from __future__ import annotations

from pathlib import Path

import torch

from wan.checkpoint.loading import save_safetensors_folder
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.t5 import T5Config, T5Encoder
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1
from wan.nano.tokenizer import VOCAB_SIZE, build_tokenizer

TEXT_DIM = 16
DIT = WanModelConfig(
    model_type="t2v",
    dim=32,
    ffn_dim=64,
    num_heads=2,
    num_layers=2,
    in_dim=16,
    out_dim=16,
    text_dim=TEXT_DIM,
    text_len=64,
    freq_dim=32,
)
VAE = VAEConfig(dim=4, z_dim=16, dim_mult=(1, 1, 1, 1), num_res_blocks=1, temporal_downsample=(False, True, True))
T5 = T5Config(VOCAB_SIZE, dim=TEXT_DIM, dim_attn=TEXT_DIM, dim_ffn=32, num_heads=2, num_layers=1)


def write_random_t2v(folder: Path, seed: int = 0) -> Path:
    """Write a T2V-A14B folder in the released layout, marked as one of the nano family; returns `folder`."""
    generator = torch.Generator().manual_seed(seed)
    for expert in ("high_noise_model", "low_noise_model"):
        model = WanModel(DIT)
        model.init_weights(generator)
        save_safetensors_folder(model.state_dict(), folder / expert, {**DIT.to_dict(), "family": "nano"})
    for module, name in ((T5Encoder(T5), "models_t5_umt5-xxl-enc-bf16.pth"), (CausalVAE2_1(VAE), "Wan2.1_VAE.pth")):
        module.init_weights(generator)
        torch.save(module.state_dict(), folder / name)
    build_tokenizer(folder / "google" / "umt5-xxl")
    return folder

"""Write random miniatures in the released folder layout: they make noise, but run every code path in milliseconds."""

import json
from pathlib import Path

import torch
from torch import nn

from wan.checking import MODELS, VAES
from wan.checkpoint.layout import own_name
from wan.checkpoint.loading import save_safetensors_folder
from wan.configs import NANO_CONFIGS
from wan.modules.t5 import T5Config, T5Encoder
from wan.nano.worlds import BACKGROUNDS, COLORS, MOTIONS, SHAPES

TEXT_DIM = 16
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
VAE_SIZES = {"dim": 8, "dec_dim": 8, "dim_mult": (1, 1, 1, 1), "num_res_blocks": 1}  # of those that a network has


def write_random_checkpoint(folder: Path, task: str = "t2v-A14B", seed: int = 0) -> Path:
    """Write a checkpoint of the nano family with random weights, the same for the same seed; returns `folder`."""
    config = NANO_CONFIGS[task]
    generator = torch.Generator().manual_seed(seed)
    kind = MODELS[config.model_type]
    model = kind.config_class(
        model_type=config.model_type,
        in_dim=config.in_dim,
        out_dim=config.out_dim,
        dim=32,
        ffn_dim=64,
        num_heads=2,
        num_layers=2,
        text_dim=TEXT_DIM,
        text_len=config.text_len,
    )
    for expert in config.experts:
        module = _filled(kind(model), generator)
        save_safetensors_folder(module.state_dict(), folder / expert, model.to_dict() | {"family": "nano"})
    vocab_size = _write_tokenizer(folder / own_name(config.t5_tokenizer))
    text = T5Config(vocab_size, dim=TEXT_DIM, dim_attn=TEXT_DIM, dim_ffn=32, num_heads=2, num_layers=1)
    torch.save(_filled(T5Encoder(text), generator).state_dict(), folder / own_name(config.t5_checkpoint))
    network = VAES[config.z_dim].network
    sizes = {name: size for name, size in VAE_SIZES.items() if hasattr(network.config_class, name)}
    vae = _filled(network(network.config_class(**sizes)), generator)
    torch.save(vae.state_dict(), folder / own_name(config.vae_checkpoint))
    return folder


def _filled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Initialise as for training, but no weight (heads, gates) with zeros, so that every part has an effect."""
    module.init_weights(generator)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
    return module


def _write_tokenizer(folder: Path) -> int:
    """Write a tokenizer of whole words of the small world; returns the size of its vocabulary."""
    words = [*SPECIAL_TOKENS, "a", "on", "moves", "background", *SHAPES, *COLORS, *BACKGROUNDS, *MOTIONS]
    description = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    return len(words)

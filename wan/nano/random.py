"""Write random miniatures in the released folder layout: they make noise, but run every code path in milliseconds."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from wan.checking import MODELS, VAES
from wan.checkpoint.layout import own_name
from wan.checkpoint.loading import save_safetensors_folder
from wan.configs import NANO_CONFIGS
from wan.modules.speech import KERNELS, STRIDES, SpeechEncoder
from wan.modules.t5 import T5Config, T5Encoder
from wan.nano.worlds import BACKGROUNDS, COLORS, MOTIONS, SHAPES

TEXT_DIM = 16
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
SPEECH_MODEL = {"audio_dim": 8, "audio_layers": 3, "audio_inject_layers": (0, 1)}
SPEECH_ENCODER = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "layer",
    "layer_norm_eps": 1e-5,
    "conv_dim": [8] * len(KERNELS),
    "conv_kernel": list(KERNELS),
    "conv_stride": list(STRIDES),
}
ANIMATE_MODEL = {
    "num_layers": 5,
    "image_dim": 16,
    "motion_encoder_size": 8,
    "motion_encoder_channels": {4: 8, 8: 8},
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 8,
    "face_encoder_hidden_dim": 8,
}
FURTHER_SIZES = {"s2v": SPEECH_MODEL, "animate": ANIMATE_MODEL}  # by model_type
CLIP_WIDTH, CLIP_PIXELS, CLIP_PATCH = 16, 224, 14
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
        text_dim=TEXT_DIM,
        text_len=config.text_len,
        **{"num_layers": 2} | FURTHER_SIZES.get(config.model_type, {}),
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
    if config.speech_checkpoint:
        _write_speech_encoder(folder / config.speech_checkpoint, generator)
    if config.clip_checkpoint:
        torch.save(_clip_weights(generator), folder / config.clip_checkpoint)
    return folder


def _filled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Initialise as for training, but no weight (heads, gates) with zeros, so that every part has an effect."""
    module.init_weights(generator)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
    return module


def _write_speech_encoder(folder: Path, generator: torch.Generator) -> None:
    """Write a speech encoder as small as its layout allows."""
    module = SpeechEncoder(SPEECH_ENCODER)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.2, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SPEECH_ENCODER))
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000, "do_normalize": True}))


def _clip_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw the vision tower of a CLIP of two layers, under the names of the released file."""
    width, patches = CLIP_WIDTH, (CLIP_PIXELS // CLIP_PATCH) ** 2
    shapes = {
        "cls_embedding": (1, 1, width),
        "pos_embedding": (1, 1 + patches, width),
        "patch_embedding.weight": (width, 3, CLIP_PATCH, CLIP_PATCH),
        **{f"pre_norm.{part}": (width,) for part in ("weight", "bias")},
    }
    layers = {
        "attn.to_qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.0": (32, width),
        "mlp.2": (width, 32),
    }
    for layer in (f"transformer.{index}" for index in range(2)):
        for name, shape in layers.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        shapes |= {f"{layer}.norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
    norms = {name for name in shapes if "norm" in name and name.endswith("weight")}
    return {
        f"visual.{name}": torch.ones(shape) if name in norms else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


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

"""Check the files of a checkpoint against the task before weights are read.

Listings, indices, headers, lists of tensors and the tokenizer are read, and for its checksums all data of the VAE.
A released checkpoint takes about a second, most of it for the tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from wan.checkpoint.layout import check_folder, part
from wan.checkpoint.loading import check_fits, empty, read_config
from wan.checkpoint.lora import Lora
from wan.checkpoint.recognise import recognise, refusal
from wan.checkpoint.source import open_source
from wan.configs import TaskConfig
from wan.modules.animate import WanAnimateModel
from wan.modules.animate.clip import check_clip
from wan.modules.animate.config import IMAGE_TOKENS, AnimateModelConfig
from wan.modules.model import WanModel
from wan.modules.model_config import WanModelConfig
from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.config import S2VModelConfig
from wan.modules.speech import check_speech_encoder
from wan.modules.t5 import T5Config, T5Encoder, check_tokenizer
from wan.modules.tokenizers import HuggingfaceTokenizer
from wan.modules.vae2_1 import Wan2_1_VAE
from wan.modules.vae2_2 import Wan2_2_VAE
from wan.modules.vae_wrapper import open_vae

MODELS = {  # by model_type
    "t2v": WanModel,
    "i2v": WanModel,
    "ti2v": WanModel,
    "s2v": WanModel_S2V,
    "animate": WanAnimateModel,
}
VAES = {16: Wan2_1_VAE, 48: Wan2_2_VAE}  # by latent channels
# Fields that decide the task of a model: one that differs from the preset means another task.
TASK_FIELDS = ("model_type", "in_dim", "out_dim", "patch_size")


def check_checkpoint(checkpoint_dir: Path, config: TaskConfig) -> None:
    """Check that a folder has all files of a task, that each is complete, and that they fit the task and each other.

    Raises FileNotFoundError or ValueError that names the file and the fault.
    """
    _refuse_nano(checkpoint_dir, config)
    try:
        check_folder(checkpoint_dir, config)
    except (FileNotFoundError, ValueError):
        if checkpoint_dir.exists() and (reason := refusal(checkpoint_dir, recognise(checkpoint_dir), config.name)):
            raise ValueError(reason) from None
        raise
    models = {expert: expert_config(checkpoint_dir, config, expert) for expert in sorted(config.experts)}
    for expert, model in models.items():
        check_fits(lambda model=model: MODELS[config.model_type](model), open_source(checkpoint_dir / expert))
    _check_vae(part(checkpoint_dir, config.vae_checkpoint), config)
    text = part(checkpoint_dir, config.t5_checkpoint)
    source = open_source(text)
    encoder = source.inferred(T5Config.from_state)
    check_fits(lambda: T5Encoder(encoder), source)
    for expert, model in models.items():
        if model.text_dim != encoder.dim:
            raise ValueError(
                f"{text} gives text states of width {encoder.dim}, and {checkpoint_dir / expert} reads "
                f"{model.text_dim}: they belong to different checkpoints"
            )
    if config.speech_checkpoint:
        _check_speech(part(checkpoint_dir, config.speech_checkpoint), models["."], checkpoint_dir)
    if config.clip_checkpoint:
        _check_clip(part(checkpoint_dir, config.clip_checkpoint), models["."], checkpoint_dir)
    if config.uses_lora:
        expert_lora(checkpoint_dir, config, ".")
    folder = part(checkpoint_dir, config.t5_tokenizer)
    check_tokenizer(HuggingfaceTokenizer(folder, config.text_len, "whitespace"), encoder, text)


def expert_config(checkpoint_dir: Path, config: TaskConfig, expert: str) -> WanModelConfig:
    """Read the sizes of a diffusion model of a task from its `config.json`; missing fields are those of the task.

    Released models must match every field of the preset, other models only `TASK_FIELDS`.
    """
    needed = config.architecture()
    model = MODELS[config.model_type].config_class.read(checkpoint_dir / expert, needed)
    for field in needed if config.family == "wan2.2" else TASK_FIELDS:
        if getattr(model, field) != needed[field]:
            raise ValueError(
                f"{checkpoint_dir / expert}/config.json has {field} {getattr(model, field)!r}, and --task "
                f"{config.name} needs {needed[field]!r}: this is another model"
            )
    if model.text_len < config.text_len:
        raise ValueError(
            f"{checkpoint_dir / expert}/config.json has text_len {model.text_len}, and prompts of --task {config.name} "
            f"have up to {config.text_len} tokens: this is another model"
        )
    return model


def expert_lora(checkpoint_dir: Path, config: TaskConfig, expert: str) -> Lora | None:
    """Open the adapters that are merged into a transformer, if the config uses any; reads no weights.

    Raises FileNotFoundError, and ValueError that lists all tensors which cannot be used.
    """
    if not config.uses_lora:
        return None
    model = expert_config(checkpoint_dir, config, expert)
    weights = empty(lambda: MODELS[config.model_type](model)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return Lora(part(checkpoint_dir, config.lora_checkpoint), shapes)


def _check_vae(path: Path, config: TaskConfig) -> None:
    network = VAES[config.z_dim].network
    source, vae = open_vae(network, path)
    if (vae.z_dim, vae.stride) != (config.z_dim, tuple(config.vae_stride)):
        raise ValueError(
            f"{path} has {vae.z_dim} latent channels and strides {vae.stride}, and --task {config.name} needs "
            f"{config.z_dim} and {tuple(config.vae_stride)}: this is another VAE"
        )
    check_fits(lambda: network(vae), source)


def _check_speech(folder: Path, model: S2VModelConfig, checkpoint_dir: Path) -> None:
    found, wanted = check_speech_encoder(folder), (model.audio_layers, model.audio_dim)
    if found != wanted:
        raise ValueError(
            f"{folder} gives {found[0]} states of width {found[1]}, and the model in {checkpoint_dir} reads "
            f"{wanted[0]} of width {wanted[1]}: they belong to different checkpoints"
        )


def _check_clip(path: Path, model: AnimateModelConfig, checkpoint_dir: Path) -> None:
    clip = check_clip(path)
    found, wanted = (clip.num_tokens, clip.dim), (IMAGE_TOKENS, model.image_dim)
    if found != wanted:
        raise ValueError(
            f"{path} gives {found[0]} tokens of width {found[1]}, and the model in {checkpoint_dir} reads {wanted[0]} "
            f"of width {wanted[1]}: they belong to different checkpoints"
        )


def _refuse_nano(checkpoint_dir: Path, config: TaskConfig) -> None:
    """Refuse a nano folder with the config of a released model, and name the right config."""
    folder = checkpoint_dir / config.experts[-1]
    if config.family != "nano" and (folder / "config.json").is_file() and read_config(folder).get("family") == "nano":
        raise ValueError(
            f"{checkpoint_dir} holds a model of the nano family; its config is wan.configs.get_config({config.name!r}, "
            "'nano')"
        )

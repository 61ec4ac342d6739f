"""`python -m wan.training config.toml`: videos with captions -> caches -> a trained DiT in the released layout."""

import logging
import sys
from pathlib import Path

if __name__ == "__main__":  # before torch is imported
    from wan.program import share_cores

    share_cores()

import torch
from torch import Tensor

from wan.checking import MODELS, VAES
from wan.checkpoint.layout import part
from wan.conditioning import condition
from wan.configs import get_config
from wan.configs.shared_config import TaskConfig
from wan.files import atomic_file
from wan.modules.vae_wrapper import VideoVAE
from wan.parser import Parser, exit_code
from wan.runtime import resolve_device
from wan.training.config import DataConfig, TrainConfig
from wan.training.data import CacheWriter, LatentCache
from wan.training.loop import fit
from wan.training.objective import StoredText, flow_objective, prepare_model
from wan.training.preview import previewer

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
TEXT_FILE = "text.safetensors"
ENCODED = ("t2v", "i2v", "ti2v")  # types of models that need no more than a video with captions

log = logging.getLogger("wan.training")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m wan.training", description=__doc__)
    parser.add_argument("config", help="a TOML file; docs/training.md lists what it may hold")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(TrainConfig.from_toml(args.config))


def train(config: TrainConfig) -> None:
    """Encode what the cache lacks, train, and write the averaged weights to `output / expert`."""
    from wan.checkpoint.loading import save_safetensors_folder

    settings = get_config(config.task, config.family)
    check_device(config.device)
    for folder in (config.output, config.data.cache.parent):  # a place that cannot be written is found out now
        folder.mkdir(parents=True, exist_ok=True)
    warn_about_range(config, settings.boundary)
    build_caches(config, settings)
    model = build_model(config)
    prepare_model(model, config.loop)
    cache = LatentCache(config.data.cache)
    if len(cache.channels) - 1 != int(settings.model_type == "i2v"):
        raise ValueError(f"{config.data.cache} was made for another task than {config.task}; give another [data] cache")
    text = StoredText(config.data.cache / TEXT_FILE, config.device)
    text.check(cache.captions(), model.config.text_dim)
    first = cache.draw(1, config.loop.seed, 0)
    fit(
        model,
        flow_objective(model, text, config.flow),
        lambda index: cache.draw(config.loop.batch_size, config.loop.seed, index),
        config.loop,
        config.output / "state",
        preview=previewer(config, settings, model, text, first) if config.loop.preview_every else None,
        loss_bins=config.flow.loss_bins,
    )
    save_safetensors_folder(
        {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        config.output / config.expert,
        {"_class_name": "WanModel", **model.config.to_dict()},
    )
    log.info("wrote %s", config.output / config.expert)


def check_device(name: str) -> None:
    """Raise ValueError for a device that this machine lacks; it names those that it has."""
    try:
        resolve_device(name)
    except ValueError as error:
        raise ValueError(str(error).replace("--device", "device")) from None


def warn_about_range(config: TrainConfig, boundary: float | None) -> None:
    """Warn when an expert is trained on timesteps of the other one."""
    if boundary is None:
        return
    ranges = {"high_noise_model": (boundary * 1000, 1000.0), "low_noise_model": (0.0, boundary * 1000)}
    low, high = ranges.get(config.expert, (0.0, 1000.0))
    if config.flow.t_min < low or config.flow.t_max > high:
        log.warning(
            "%s is used for timesteps %.0f-%.0f, but is trained on %.0f-%.0f; set [flow] t_min and t_max",
            *(config.expert, low, high, config.flow.t_min, config.flow.t_max),
        )


def build_model(config: TrainConfig) -> torch.nn.Module:
    """Load the expert of the checkpoint, or make a new one of the given architecture; float32 for training."""
    kind = MODELS[get_config(config.task, config.family).model_type]
    if config.architecture is None:
        model = kind.from_pretrained(config.checkpoint, config.expert, dtype=torch.float32)
    else:
        model = kind(kind.config_class.from_dict(config.architecture))
        model.init_weights(torch.Generator().manual_seed(config.loop.seed))
    return model.to(config.device, torch.float32).requires_grad_(True)


# ---------------------------------------------------------------- caches


def build_caches(config: TrainConfig, settings: TaskConfig) -> None:
    """Encode the latents of every video, and the text states of every caption and preview prompt."""
    folder = config.data.cache
    if not LatentCache.exists(folder):
        if settings.model_type not in ENCODED:
            raise ValueError(
                f"{folder} holds no latent cache, and videos are not enough for one of {config.task}: write it by "
                "wan.training.data.CacheWriter, with what the model needs as named inputs"
            )
        find_clips(config.data)  # before weights load
        encode_videos(config.data, load_vae(config, settings), folder, with_first_frame=settings.model_type == "i2v")
    text_file = folder / TEXT_FILE
    if not text_file.is_file():
        encoder = load_text_encoder(config, settings)
        captions = [*LatentCache(folder).captions(), *config.preview_prompts]
        with atomic_file(text_file, overwrite=True) as file:
            StoredText.write(file, captions, lambda caption: encoder([caption], config.device)[0])


def encode_videos(data: DataConfig, vae: VideoVAE, folder: Path, with_first_frame: bool = False) -> None:
    """Write the latent cache of a folder of videos; each needs a text file of the same name, one caption per line.

    `with_first_frame` adds the condition of the first frame for image-to-video.
    """
    paths = find_clips(data)
    writer = CacheWriter(folder)
    for i, path in enumerate(paths):
        captions = read_captions(path.with_suffix(".txt"))
        with torch.no_grad():
            clip = load_clip(path, data).to(vae.device)
            conditions = [condition(vae.encode, {0: clip[:, 0]}, data.frame_num)] if with_first_frame else []
            writer.add(vae.encode([clip])[0], captions or [""], conditions)
        log.info("encoded %s (%d/%d)", path.name, i + 1, len(paths))
    writer.close()


def find_clips(data: DataConfig) -> list[Path]:
    """List the videos of the folder, each with a caption file. Raises ValueError or FileNotFoundError for none."""
    if not data.videos.is_dir():
        raise FileNotFoundError(f"there is no folder {data.videos}; [data] videos names the folder of the clips")
    paths = sorted(p for p in data.videos.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise ValueError(f"{data.videos} holds no videos ({', '.join(VIDEO_SUFFIXES)})")
    silent = [f"{p.name} (needs {p.stem}.txt)" for p in paths if not p.with_suffix(".txt").exists()]
    if silent:
        raise ValueError(f"videos without a caption file in {data.videos}: {', '.join(silent[:5])}")
    return paths


def read_captions(path: Path) -> list[str]:
    """Read the lines of a caption file that are not empty."""
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, perhaps GBK or Latin-1; convert it") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def load_clip(path: Path, data: DataConfig) -> Tensor:
    """Read the first `frame_num` frames, scaled and centre-cropped to `size`: float32 [3, F, H, W] in [-1, 1]."""
    from wan.media import from_uint8, read_video

    frames, rate = read_video(path)  # [F, H, W, 3] uint8
    if data.fps is not None:
        frames = frames[(torch.arange(int(len(frames) / rate * data.fps)) * rate / data.fps).long()]
    if len(frames) < data.frame_num:
        rate_text = "" if data.fps is None else f" at {data.fps} per second"
        raise ValueError(f"{path.name} has {len(frames)} frames{rate_text}, frame_num asks for {data.frame_num}")
    pixels = from_uint8(frames[: data.frame_num])  # [F, 3, H, W]
    width, height = data.size
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    size = (max(height, round(pixels.shape[2] * scale)), max(width, round(pixels.shape[3] * scale)))
    if size != tuple(pixels.shape[2:]):
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    pixels = pixels[:, :, top : top + height, left : left + width]
    return pixels.clamp(-1, 1).transpose(0, 1).contiguous()


def load_vae(config: TrainConfig, settings: TaskConfig) -> VideoVAE:
    return VAES[settings.z_dim](vae_pth=part(config.checkpoint, settings.vae_checkpoint), device=config.device)


def load_text_encoder(config: TrainConfig, settings: TaskConfig):
    from wan.modules.t5 import T5EncoderModel

    return T5EncoderModel(
        text_len=settings.text_len,
        dtype=settings.t5_dtype,
        device=config.device,
        checkpoint_path=part(config.checkpoint, settings.t5_checkpoint),
        tokenizer_path=part(config.checkpoint, settings.t5_tokenizer),
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))

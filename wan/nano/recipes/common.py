"""Shared parts of the recipes: the world's sizes, the loop's settings, the text side, sampling for a score, export."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wan.configs import nano_checkpoint
from wan.files import atomic_file
from wan.media import to_uint8
from wan.modules.model import WanModel
from wan.modules.packed import has_bfloat16_products
from wan.modules.t5 import T5Config, T5Encoder
from wan.modules.tokenizers import HuggingfaceTokenizer
from wan.nano import worlds
from wan.nano.tokenizer import build_tokenizer
from wan.sampling import Keep, Velocity, denoise, guided, identity, make_solver, switch_at
from wan.training.config import FlowConfig, LoopConfig
from wan.training.data import LatentCache
from wan.training.loop import fit
from wan.training.objective import TextStates, TrainedText, flow_objective, prepare_model
from wan.training.vae import psnr, to_unit

FRAMES = 17
TEXT_LEN, TEXT_DIM = 64, 96
IN_BFLOAT16 = has_bfloat16_products()  # float32 is faster where the processor has none
PRECISION = "bfloat16" if IN_BFLOAT16 else "float32"
EVENNESS = 1.5  # of the draws of image tasks: the faintest scenes are drawn three times as often as the mean
KEPT_BLOCKS = (0, 1, 3, 4)  # of the five blocks of a text-to-video expert, for the models that start from one
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
Batch = tuple[Tensor, list[list[str]]]  # videos [B, 3, F, H, W] in [-1, 1] and the captions of each


@dataclass(frozen=True)
class Recipe:
    """Stages of a family in order, and budgets of work: "full" for a good model, "smoke" for a test.

    A stage is `stage(folder, budget)`. It reads the files that earlier stages wrote to `folder`, and continues where
    a killed run stopped. `with_steps(budget, n)` replaces the number of steps of every training stage.
    """

    stages: dict[str, Callable]
    budgets: dict[str, object]
    with_steps: Callable


def dit_loop(steps: int, learning_rate: float = 2e-3) -> LoopConfig:
    """Settings with Muon, because AdamW (at 1e-3) is slow to learn motion; docs/log.md has the comparison."""
    return LoopConfig(
        steps=steps,
        batch_size=64,
        optimizer="muon",
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 50,
        warmup_steps=min(100, steps // 4),
        weight_decay=0.01,
        ema_decay=0.998,
        precision=PRECISION,
        compile=True,
        seed=5,
        log_every=max(1, min(50, steps // 4)),
        checkpoint_every=200,
    )


def fit_flow(
    module: nn.Module,
    dit: WanModel,
    text: TextStates,
    flow: FlowConfig,
    cache: LatentCache,
    folder: Path,
    config: LoopConfig,
    preview: Callable[[int], None] | None = None,
) -> None:
    """Train, and write the averaged weights to `folder/model.pt`."""
    prepare_model(dit, config)
    fit(
        module,
        flow_objective(dit, text, flow),
        lambda index: cache.draw(config.batch_size, config.seed, index),
        config,
        folder,
        preview=preview,
        loss_bins=flow.loss_bins,
    )
    save(module.state_dict(), folder / "model.pt")


def save(state: dict[str, Tensor], path: Path) -> None:
    with atomic_file(path, overwrite=True) as file:
        torch.save(state, file)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, and remove it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def kept_blocks(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the blocks of a text-to-video expert without its middle one."""
    blocks = ((new, part(stored, f"blocks.{old}.")) for new, old in enumerate(KEPT_BLOCKS))
    return {f"blocks.{new}.{name}": tensor.float() for new, block in blocks for name, tensor in block.items()}


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder of the tokenizer of this world; builds it on first use."""
    path = folder / "google" / "umt5-xxl"
    if not (path / "tokenizer.json").exists():
        build_tokenizer(path)
    return path


def nano_tokenizer(path: Path) -> Callable[[str], list[int]]:
    """Make a function from text to ids, cleaned and ended as in the pipeline, without padding."""
    tokenizer = HuggingfaceTokenizer(path, seq_len=TEXT_LEN, clean="whitespace")

    def tokenize(text: str) -> list[int]:
        ids, mask = tokenizer(text, return_mask=True)
        return ids[0, : int(mask.sum())].tolist()

    return tokenize


def text_config(tokenizer: Path) -> T5Config:
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    return T5Config(len(vocabulary), dim=TEXT_DIM, dim_attn=TEXT_DIM, dim_ffn=2 * TEXT_DIM, num_heads=4, num_layers=2)


def text_to_video_folder(folder: Path) -> Path:
    """Find the text-to-video checkpoint that other tasks start from: the one in `folder`, else the embedded one."""
    made = folder / "t2v-A14B"
    return made if made.is_dir() else nano_checkpoint("t2v-A14B")


def shipped_text(checkpoint: Path) -> TrainedText:
    """Load the text encoder of a checkpoint, frozen."""
    encoder = T5Encoder(text_config(checkpoint / "google" / "umt5-xxl"))
    encoder.load_state_dict(torch.load(checkpoint / T5_FILE, weights_only=True))
    return TrainedText(encoder.float().eval().requires_grad_(False), nano_tokenizer(checkpoint / "google" / "umt5-xxl"))


def render_many(count: int, split: str, seed: int, size: int, contrast: float = math.inf) -> np.ndarray:
    """Render videos of scenes whose contrast (`worlds.contrast`) is below a bound."""
    rng = np.random.default_rng(seed)
    drawn = (worlds.sample_scene(rng, split) for _ in itertools.count())
    scenes = itertools.islice((scene for scene in drawn if worlds.contrast(scene) < contrast), count)
    return np.stack([worlds.render(scene, FRAMES, size) for scene in scenes])


def training_videos(count: int, seed: int, size: int) -> Iterator[Batch]:
    """Draw scenes to train on, with eight captions each."""
    rng = np.random.default_rng(seed)
    for done in range(0, count, 32):
        scenes = [worlds.sample_scene(rng, "train") for _ in range(min(32, count - done))]
        videos = np.stack([worlds.render(scene, FRAMES, size) for scene in scenes])
        yield to_unit(videos), [[worlds.caption(scene, rng) for _ in range(8)] for scene in scenes]


def rendered(path: Path, count: int, split: str, seed: int, size: int, contrast: float = math.inf) -> np.ndarray:
    """Map the videos of `render_many` from a file, which is written on first use."""
    if not path.exists() or np.load(path, mmap_mode="r").shape[:3] != (count, FRAMES, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, render_many(count, split, seed, size, contrast))
    return np.load(path, mmap_mode="r")


def heldout(count: int, seed: int = 6) -> tuple[list[worlds.Scene], list[str]]:
    """Draw scenes of combinations that are never trained on, and a caption of each."""
    rng = np.random.default_rng(seed)
    scenes = [worlds.sample_scene(rng, "heldout") for _ in range(count)]
    return scenes, [worlds.caption(scene, rng) for scene in scenes]


def of_experts(
    high: WanModel, low: WanModel, boundary: float, text: TextStates, prompts: list[str], y: list[Tensor] | None = None
) -> Velocity:
    """Make the guided velocity of two experts, for one latent and prompt per sample; `y` as in `WanModel.forward`."""

    def guide(dit: WanModel) -> Velocity:
        def forward(latent: Tensor, t: int, context: list[Tensor]) -> Tensor:
            return torch.stack(dit(list(latent), torch.full((len(latent),), t), context, y=y))

        return guided(forward, text(prompts), text([""] * len(prompts)), 3.0)

    return switch_at(boundary, guide(high), guide(low))


@torch.no_grad()
def sample(noise: Tensor, velocity: Velocity, keep: Keep = identity) -> Tensor:
    """Denoise a batch of noise [B, C, T, h, w] in the family's default 20 steps."""
    latent = keep(noise)
    with torch.autocast("cpu", torch.bfloat16, enabled=IN_BFLOAT16), torch.compiler.set_stance("force_eager"):
        for step in denoise(latent, make_solver("unipc", 20, 3.0), velocity, keep):
            latent = step
    return latent


def count_right(scenes: Sequence[worlds.Scene], videos: Sequence[Tensor]) -> str:
    """Count the videos [3, F, H, W] whose pixels show each attribute of their scene."""
    seen = [worlds.measure(to_uint8(video).numpy()) for video in videos]
    fields = ("color", "background", "motion", "shape")
    right = {f: sum(getattr(a, f) == getattr(b, f) for a, b in zip(scenes, seen, strict=True)) for f in fields}
    return "held-out prompts: " + "  ".join(f"{name} {n}/{len(scenes)}" for name, n in right.items())


def first_frames(truth: Tensor, videos: Sequence[Tensor]) -> str:
    """PSNR of first frames against those of `truth` [B, 3, F, H, W], mean and worst."""
    values = [psnr((v[:, 0].cpu() - t[:, 0]).square().mean()).item() for v, t in zip(videos, truth, strict=True)]
    return f"first frame {sum(values) / len(values):.1f} dB, worst {min(values):.1f}"


def write_dit(state: dict[str, Tensor], model: WanModel, folder: Path) -> None:
    """Write a transformer in bfloat16 with its config.json."""
    from wan.checkpoint.loading import save_safetensors_folder

    state = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in state.items()}
    description = {"_class_name": type(model).__name__, "family": "nano", **model.config.to_dict()}
    save_safetensors_folder(state, folder, description, 2**30)


def report_size(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB", flush=True)

"""Trains the embedded miniature family: `python -m wan.nano.recipes t2v`; docs/training.md says what it took.

The stages run in order, each from the files of the ones before it in `--dir`; every stage continues where a killed run
stopped. All draws come from fixed seeds and budgets are counted in steps, so a run differs from another only by the
rounding of the machine.

    vae      the video VAE on rendered videos; its latents are standardised by the released constants
    latents  8,000 training videos, encoded once, with eight captions each
    dit      one DiT for all timesteps together with the text encoder
    experts  two copies of it, each continued on its own range of timesteps; the text encoder is frozen
    export   the released folder layout, bfloat16
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wan.media import to_uint8
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.t5 import T5Config, T5Encoder
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import LATENT_MEAN, LATENT_STD, CausalVAE2_1, Wan2_1_VAE
from wan.modules.vae_blocks import ResidualBlock
from wan.nano import worlds
from wan.sampling import Velocity, denoise, guided, make_solver, switch_at
from wan.training.config import FlowConfig, LoopConfig
from wan.training.data import CacheWriter, LatentCache
from wan.training.loop import fit
from wan.training.objective import TrainedText, flow_objective, prepare_model
from wan.training.vae import (
    VAELossConfig,
    fold_statistics,
    init_as_resampler,
    latent_statistics,
    random_crops,
    reconstruction_psnr,
    to_unit,
    vae_objective,
)

FRAMES, SIZE = 17, 64
TEXT_LEN, TEXT_DIM = 64, 96
BOUNDARY = 875.0
CROPS = ((0.8, 9, 32, 8), (1.0, 17, 64, 2))  # until this share of the run: frames, size, batch

VAE = VAEConfig(dim=16, z_dim=16, dim_mult=(1, 2, 2, 2), num_res_blocks=1, temporal_downsample=(False, True, True))
DIT = WanModelConfig(
    model_type="t2v", dim=160, ffn_dim=640, num_heads=4, num_layers=5, text_dim=TEXT_DIM, text_len=TEXT_LEN
)


@dataclass(frozen=True)
class Budget:
    """How much work each stage does."""

    vae_videos: int
    vae_steps: int
    videos: int
    dit_steps: int
    expert_steps: tuple[int, int]  # high-noise, low-noise


BUDGETS = {
    "full": Budget(vae_videos=2000, vae_steps=3000, videos=8000, dit_steps=4000, expert_steps=(1200, 3000)),
    "smoke": Budget(vae_videos=16, vae_steps=12, videos=48, dit_steps=6, expert_steps=(4, 4)),
}


# ---------------------------------------------------------------- stages


def train_vae(folder: Path, budget: Budget) -> None:
    videos = rendered(folder / "videos.npy", budget.vae_videos, "train", seed=1)
    vae = CausalVAE2_1(VAE)
    init_as_resampler(vae, torch.Generator().manual_seed(1))
    vae.encoder.compile(dynamic=False)  # 240 ms per step instead of 400; the crops come in two shapes
    for block in vae.decoder.modules():  # the decoder itself yields frames, which no compiler follows
        if isinstance(block, ResidualBlock):
            block.compile(dynamic=False)
    config = LoopConfig(
        steps=budget.vae_steps,
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        warmup_steps=min(100, budget.vae_steps // 4),
        weight_decay=1e-4,
        ema_decay=0.998,
        precision="bfloat16",
        seed=1,
        log_every=max(1, min(50, budget.vae_steps // 4)),
        checkpoint_every=250,
        preview_every=max(1, min(250, budget.vae_steps // 4)),
    )
    unseen = render_many(24, "heldout", seed=2)

    def draw(index: int) -> torch.Tensor:
        share = (index + 1) / budget.vae_steps
        frames, size, batch = next(row[1:] for row in CROPS if share <= row[0])
        crops = random_crops(videos, batch, frames, size, np.random.default_rng((1, index)), candidates=2)
        return crops.contiguous(memory_format=torch.channels_last_3d)  # the faster layout in oneDNN's convolutions

    def preview(step: int) -> None:
        print(f"step {step}  held-out PSNR {reconstruction_psnr(vae, unseen):.2f} dB", flush=True)

    fit(vae, vae_objective(vae, VAELossConfig(l1=0.2, l2=4.0, edge=0.2)), draw, config, folder / "vae", preview=preview)
    finish_vae(vae, videos, unseen, folder)


def finish_vae(vae: nn.Module, videos: np.ndarray, unseen: np.ndarray, folder: Path) -> None:
    """Standardise the latents by the released constants, and write the file that every later stage reads."""
    with torch.no_grad():
        batches = (vae.encode(to_unit(videos[i : i + 32])) for i in range(0, min(512, len(videos)), 32))
        mean, std = latent_statistics(batches)
    print("latent std per channel before folding:", " ".join(f"{s:.2f}" for s in std.tolist()), flush=True)
    fold_statistics(vae, mean, std, torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD))
    state = {name: tensor.contiguous().half() for name, tensor in vae.state_dict().items()}
    torch.save(state, folder / "Wan2.1_VAE.pth")
    vae.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    print(f"as stored: held-out PSNR {reconstruction_psnr(vae, unseen):.2f} dB", flush=True)


def encode_latents(folder: Path, budget: Budget) -> None:
    vae = Wan2_1_VAE(vae_pth=folder / "Wan2.1_VAE.pth")
    vae.model.encoder.compile(dynamic=False)
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
    rng = np.random.default_rng(3)
    writer = CacheWriter(folder / "latents")
    started = time.monotonic()
    statistics = []
    for done in range(0, budget.videos, 32):
        scenes = [worlds.sample_scene(rng, "train") for _ in range(min(32, budget.videos - done))]
        video = to_unit(np.stack([worlds.render(scene, FRAMES, SIZE) for scene in scenes]))
        video = video.contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = (vae.model.encode(video).float() - mean) / std  # Wan2_1_VAE.encode, several at a time
        for scene, latent in zip(scenes, latents, strict=True):
            writer.add(latent, [worlds.caption(scene, rng) for _ in range(8)])
        statistics.append(latents[:4])
        if done % 1024 == 0:
            print(f"{done + len(scenes)}/{budget.videos} videos  {time.monotonic() - started:.0f} s", flush=True)
    writer.close()
    mean, std = latent_statistics(statistics)
    print(f"latent mean {mean.abs().max():.3f} at most, std {std.min():.3f} to {std.max():.3f}", flush=True)


def train_dit(folder: Path, budget: Budget) -> None:
    generator = torch.Generator().manual_seed(4)
    tokenizer = nano_tokenizer(folder)
    both = nn.ModuleDict({"dit": WanModel(DIT), "text": T5Encoder(text_config(folder))})
    both["dit"].init_weights(generator)
    for layer in (*both["dit"].text_embedding, *both["dit"].time_embedding):
        if isinstance(layer, nn.Linear):  # 0.02, the usual choice, is far too little for a model this narrow
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
    both["text"].init_weights(generator)
    text = TrainedText(both["text"], tokenizer)
    config = replace(dit_loop(budget.dit_steps), preview_every=min(1000, budget.dit_steps))

    def preview(step: int) -> None:
        print(f"step {step}  {score(both['dit'], both['dit'], text, folder)}", flush=True)

    _fit_flow(both, both["dit"], text, FlowConfig(shift=3.0), folder / "dit", config, preview)


def train_experts(folder: Path, budget: Budget) -> None:
    base = torch.load(folder / "dit" / "model.pt", weights_only=True)
    encoder = T5Encoder(text_config(folder))
    encoder.load_state_dict(_part(base, "text."))
    encoder = encoder.to(torch.bfloat16).float().eval().requires_grad_(False)  # as it will be shipped
    text = TrainedText(encoder, nano_tokenizer(folder))
    experts = {name: WanModel(DIT) for name in ("high_noise_model", "low_noise_model")}
    for dit in experts.values():
        dit.load_state_dict(_part(base, "dit."))
    ranges = ((BOUNDARY, 1000.0), (0.0, BOUNDARY))
    for (name, dit), (low, high), steps in zip(experts.items(), ranges, budget.expert_steps, strict=True):
        flow = FlowConfig(shift=3.0, t_min=low, t_max=high)
        _fit_flow(dit, dit, text, flow, folder / name, dit_loop(steps))
        print(f"after {name}: {score(*experts.values(), text, folder)}", flush=True)


def export(folder: Path, budget: Budget) -> None:
    """Write the shipped folder; experts that were not trained yet are copies of the base model."""
    from wan.checkpoint.loading import save_safetensors_folder

    target = folder / "t2v-A14B"
    shutil.rmtree(target, ignore_errors=True)
    base = torch.load(folder / "dit" / "model.pt", weights_only=True)
    for name in ("high_noise_model", "low_noise_model"):
        path = folder / name / "model.pt"
        state = torch.load(path, weights_only=True) if path.exists() else _part(base, "dit.")
        state = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in state.items()}
        description = {"_class_name": "WanModel", "family": "nano", **DIT.to_dict()}
        save_safetensors_folder(state, target / name, description, 2**30)
    text = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in _part(base, "text.").items()}
    torch.save(text, target / "models_t5_umt5-xxl-enc-bf16.pth")
    shutil.copy(folder / "Wan2.1_VAE.pth", target)
    shutil.copytree(tokenizer_folder(folder), target / "google" / "umt5-xxl")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB", flush=True)


STAGES: dict[str, Callable[[Path, Budget], None]] = {
    "vae": train_vae,
    "latents": encode_latents,
    "dit": train_dit,
    "experts": train_experts,
    "export": export,
}


# ---------------------------------------------------------------- parts


def dit_loop(steps: int) -> LoopConfig:
    """Muon, because AdamW (at 1e-3) is slow to learn motion: docs/training.md has the comparison."""
    return LoopConfig(
        steps=steps,
        batch_size=64,
        optimizer="muon",
        learning_rate=2e-3,
        final_learning_rate=4e-5,
        warmup_steps=min(100, steps // 4),
        weight_decay=0.01,
        ema_decay=0.998,
        precision="bfloat16",
        compile=True,
        seed=5,
        log_every=max(1, min(50, steps // 4)),
        checkpoint_every=200,
    )


def _fit_flow(
    module: nn.Module,
    dit: WanModel,
    text: TrainedText,
    flow: FlowConfig,
    folder: Path,
    config: LoopConfig,
    preview: Callable[[int], None] | None = None,
) -> None:
    """Train, and write the averaged weights to `folder/model.pt`."""
    cache = LatentCache(folder.parent / "latents")
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
    partial = folder / "model.pt.partial"
    torch.save(module.state_dict(), partial)
    os.replace(partial, folder / "model.pt")


@torch.no_grad()
def score(high: WanModel, low: WanModel, text: TrainedText, folder: Path, count: int = 32) -> str:
    """Sample held-out scenes in one batch with the two experts, and count what the pixels show."""
    rng = np.random.default_rng(6)
    scenes = [worlds.sample_scene(rng, "heldout") for _ in range(count)]
    prompts = [worlds.caption(scene, rng) for scene in scenes]
    latent = torch.randn(
        count, 16, (FRAMES - 1) // 4 + 1, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(6)
    )

    def velocity_of(dit: WanModel) -> Velocity:
        def forward(latent: torch.Tensor, t: torch.Tensor, context: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack(dit(list(latent), t.expand(len(latent)), context))

        return guided(forward, text(prompts), text([""] * count), 3.0)

    with torch.autocast("cpu", torch.bfloat16), torch.compiler.set_stance("force_eager"):
        velocity = switch_at(BOUNDARY, velocity_of(high), velocity_of(low))
        for step in denoise(latent, make_solver("unipc", 20, 3.0), velocity):
            latent = step
    vae = Wan2_1_VAE(vae_pth=folder / "Wan2.1_VAE.pth")
    seen = [worlds.measure(to_uint8(video).numpy()) for video in vae.decode(list(latent))]
    fields = ("color", "background", "motion", "shape")
    right = {f: sum(getattr(a, f) == getattr(b, f) for a, b in zip(scenes, seen, strict=True)) for f in fields}
    return "held-out prompts: " + "  ".join(f"{name} {n}/{count}" for name, n in right.items())


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def tokenizer_folder(folder: Path) -> Path:
    """The vocabulary of this world, built on first use."""
    from wan.nano.tokenizer import build_tokenizer

    path = folder / "google" / "umt5-xxl"
    if not (path / "tokenizer.json").exists():
        build_tokenizer(path)
    return path


def nano_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """Text -> ids, cleaned and ended as the pipeline does it, without padding."""
    from wan.modules.tokenizers import HuggingfaceTokenizer

    tokenizer = HuggingfaceTokenizer(tokenizer_folder(folder), seq_len=TEXT_LEN, clean="whitespace")

    def tokenize(text: str) -> list[int]:
        ids, mask = tokenizer(text, return_mask=True)
        return ids[0, : int(mask.sum())].tolist()

    return tokenize


def text_config(folder: Path) -> T5Config:
    vocabulary = json.loads((tokenizer_folder(folder) / "tokenizer.json").read_text())["model"]["vocab"]
    return T5Config(len(vocabulary), dim=TEXT_DIM, dim_attn=TEXT_DIM, dim_ffn=2 * TEXT_DIM, num_heads=4, num_layers=2)


def render_many(count: int, split: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([worlds.render(worlds.sample_scene(rng, split), FRAMES, SIZE) for _ in range(count)])


def rendered(path: Path, count: int, split: str, seed: int) -> np.ndarray:
    """Videos of a seed, kept in a file."""
    if not path.exists() or len(np.load(path, mmap_mode="r")) != count:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, render_many(count, split, seed))
    return np.load(path, mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wan.nano.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=["t2v"])
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--dir", "--work", dest="folder", type=Path, default=Path("nano-training"))
    parser.add_argument("--budget", choices=list(BUDGETS), default="full")
    parser.add_argument("--steps", type=int, help="another number of steps for the training stages chosen")
    args = parser.parse_args()
    budget = BUDGETS[args.budget]
    if args.steps:
        budget = replace(budget, vae_steps=args.steps, dit_steps=args.steps, expert_steps=(args.steps, args.steps))
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in STAGES if args.stage == "all" else [args.stage]:
        started = time.monotonic()
        print(f"--- {name}", flush=True)
        STAGES[name](args.folder, budget)
        print(f"--- {name} done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

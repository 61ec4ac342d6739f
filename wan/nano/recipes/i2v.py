"""Image to video: two experts that start from those of text to video; VAE and text encoder are the same files.

latents  4,864 training videos and 704 still pictures, encoded once, each with three image conditions: of the first
         frame, of the first and the last, and of the last
experts  the text-to-video experts with one block less, each continued on its own range of timesteps
export   the released folder layout, bfloat16
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from wan.conditioning import condition_clip, condition_mask
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.vae2_1 import Wan2_1_VAE
from wan.nano import worlds
from wan.nano.recipes import autoencoder, common
from wan.nano.recipes.common import FRAMES, TEXT_DIM, TEXT_LEN, Recipe
from wan.nano.recipes.t2v import SIZE, VAE_FILE
from wan.nano.textures import texture
from wan.training.config import FlowConfig
from wan.training.data import LatentCache
from wan.training.objective import TextStates
from wan.training.vae import to_unit

BOUNDARY = 900.0
GIVEN = ((0,), (0, FRAMES - 1), (FRAMES - 1,))  # frames that a condition holds ...
WEIGHTS = (0.7, 0.2, 0.1)  # ... and how often it is drawn

DIT = WanModelConfig(
    model_type="i2v", in_dim=36, dim=160, ffn_dim=640, num_heads=4, num_layers=4, text_dim=TEXT_DIM, text_len=TEXT_LEN
)


@dataclass(frozen=True)
class Budget:
    videos: int
    pictures: int
    expert_steps: tuple[int, int]  # high-noise, low-noise


def encode_latents(folder: Path, budget: Budget) -> None:
    vae = Wan2_1_VAE(vae_pth=common.text_to_video_folder(folder) / VAE_FILE)
    videos = itertools.chain(common.training_videos(budget.videos, 7, SIZE), pictures(budget.pictures))

    def conditions(videos: Tensor) -> Tensor:
        return torch.stack([condition(vae, videos, given) for given in GIVEN], dim=1)

    autoencoder.encode_cache(vae, videos, folder / "i2v-latents", conditions)


def pictures(count: int) -> Iterator[common.Batch]:
    """Yield still pictures, so that the model learns to keep a first frame that shows nothing of this world."""
    rng = np.random.default_rng(8)
    for done in range(0, count, 32):
        still = np.stack([texture(rng, SIZE) for _ in range(min(32, count - done))])
        yield to_unit(np.repeat(still[:, None], FRAMES, axis=1)), [["", "a picture that stays still"]] * len(still)


def condition(vae: Wan2_1_VAE, videos: Tensor, given: Sequence[int]) -> Tensor:
    """Make y [B, 20, T, h, w] of videos [B, 3, F, H, W] of which only the frames `given` are known."""
    clips = torch.stack([condition_clip({i: video[:, i] for i in given}, FRAMES) for video in videos])
    latents = autoencoder.encode(vae, clips)
    mask = condition_mask(given, FRAMES, latents.shape[2:])
    return torch.cat([mask.expand(len(videos), -1, -1, -1, -1), latents], dim=1)


def train_experts(folder: Path, budget: Budget) -> None:
    source = common.text_to_video_folder(folder)
    text = common.shipped_text(source)
    experts = {name: from_text_expert(source / name) for name in ("high_noise_model", "low_noise_model")}
    ranges = ((BOUNDARY, 1000.0), (0.0, BOUNDARY))
    cache = LatentCache(folder / "i2v-latents", WEIGHTS, evenness=common.EVENNESS)
    for (name, dit), (low, high), steps in zip(experts.items(), ranges, budget.expert_steps, strict=True):
        config = replace(common.dit_loop(steps), preview_every=max(1, steps // 4))

        def preview(step: int) -> None:
            print(f"step {step}  {score(*experts.values(), text, source)}", flush=True)

        flow = FlowConfig(shift=3.0, t_min=low, t_max=high)
        common.fit_flow(dit, dit, text, flow, cache, folder / f"i2v-{name}", config, preview)


def from_text_expert(folder: Path) -> WanModel:
    """Load a text-to-video expert without its middle block; its new channels for the condition have zero weights."""
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    state = {name: tensor.float() for name, tensor in stored.items() if not name.startswith("blocks.")}
    model = WanModel(DIT)
    patches = torch.zeros_like(model.patch_embedding.weight)
    patches[:, : stored["patch_embedding.weight"].shape[1]] = stored["patch_embedding.weight"]
    model.load_state_dict(state | common.kept_blocks(stored) | {"patch_embedding.weight": patches})
    return model


@torch.no_grad()
def score(high: WanModel, low: WanModel, text: TextStates, source: Path, count: int = 24) -> str:
    """Animate the first frames of held-out scenes in one batch, and compare the pixels with what was asked."""
    scenes, prompts = common.heldout(count)
    truth = to_unit(np.stack([worlds.render(scene, FRAMES, SIZE) for scene in scenes]))
    vae = Wan2_1_VAE(vae_pth=source / VAE_FILE)
    y = list(condition(vae, truth, (0,)))
    shape = (count, 16, *y[0].shape[1:])

    velocity = common.of_experts(high, low, BOUNDARY, text, prompts, y)
    videos = vae.decode(list(common.sample(torch.randn(shape, generator=torch.Generator().manual_seed(6)), velocity)))
    return common.first_frames(truth, videos) + "  " + common.count_right(scenes, videos)


def export(folder: Path, budget: Budget) -> None:
    target = folder / "i2v-A14B"
    shutil.rmtree(target, ignore_errors=True)
    for name in ("high_noise_model", "low_noise_model"):
        state = torch.load(folder / f"i2v-{name}" / "model.pt", weights_only=True)
        common.write_dit(state, WanModel(DIT), target / name)
    common.report_size(target)


RECIPE = Recipe(
    stages={"latents": encode_latents, "experts": train_experts, "export": export},
    budgets={"full": Budget(4864, 704, (1200, 2700)), "smoke": Budget(48, 16, (4, 4))},
    with_steps=lambda budget, steps: replace(budget, expert_steps=(steps, steps)),
)

"""Text, with or without an image, to video: a VAE 2.2 and one model; the text encoder is that of text to video.

vae      the video VAE on rendered videos of 128 x 128 pixels; its latents get the mean and deviation of the released
         model, and are turned so that the first 16 of the 48 channels carry nearly everything
decoder  its decoder alone, from those channels and for outlines, half of them faint; the latents stay as they are
outlines the whole VAE, with more clips of the faintest contrasts
latents  6,000 training videos, encoded once, with eight captions each
dit      one DiT for all timesteps; part of the samples have their first frame given, without noise
export   the released folder layout, bfloat16
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from wan.geometry import first_frame_mask
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config, Wan2_2_VAE
from wan.nano import worlds
from wan.nano.recipes import autoencoder, common
from wan.nano.recipes.common import FRAMES, TEXT_DIM, TEXT_LEN, Recipe
from wan.sampling import guided, identity, keep_first_frame
from wan.training.config import FlowConfig
from wan.training.data import LatentCache
from wan.training.objective import TextStates
from wan.training.vae import to_unit

SIZE = 128
CROPS = ((0.8, 9, 64, 8), (1.0, 17, 128, 1))
DECODER_CROP = (1.0, 9, 128, 2)
OUTLINES_CROP = (1.0, 9, 96, 2)
CHANNELS = 16  # that carry something: a model of width 160 cannot free the 4 x 48 values of a token from noise
FAINT = 200.0  # contrast below which outlines are hard to draw; half of the clips of the decoder stage have less
FAINTEST = 120.0  # contrast that only green on grey stays below
VAE_FILE = "Wan2.2_VAE.pth"
FIRST_FRAME_SHARE = 0.35

VAE = VAE2_2Config(dim=16, dec_dim=24, dim_mult=(1, 2, 2, 2), num_res_blocks=1, temporal_downsample=(False, True, True))
DIT = WanModelConfig(
    model_type="ti2v", in_dim=48, out_dim=48, dim=160, ffn_dim=640, num_heads=4, num_layers=4,
    text_dim=TEXT_DIM, text_len=TEXT_LEN,
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    vae_videos: int
    vae_steps: int
    decoder_steps: int
    outlines_steps: int
    videos: int
    dit_steps: int


def train_vae(folder: Path, budget: Budget) -> None:
    videos = plain_videos(folder, budget)
    vae = CausalVAE2_2(VAE)
    autoencoder.train(vae, videos, CROPS, budget.vae_steps, folder / "ti2v-vae")
    autoencoder.standardise(vae, videos, Wan2_2_VAE)
    autoencoder.concentrate(vae, videos, Wan2_2_VAE, CHANNELS)
    autoencoder.store(vae, folder / "ti2v-vae" / VAE_FILE, SIZE)


def train_decoder(folder: Path, budget: Budget) -> None:
    vae = Wan2_2_VAE(vae_pth=folder / "ti2v-vae" / VAE_FILE).model
    videos = np.concatenate([plain_videos(folder, budget), faint_videos(folder, budget)])
    autoencoder.train_outlines(vae, videos, DECODER_CROP, budget.decoder_steps, folder / "ti2v-decoder")
    autoencoder.store(vae, folder / "ti2v-decoder" / VAE_FILE, SIZE)


def train_outlines(folder: Path, budget: Budget) -> None:
    vae = Wan2_2_VAE(vae_pth=folder / "ti2v-decoder" / VAE_FILE).model
    share = budget.vae_videos // 4
    faintest = common.rendered(folder / "faintest-128.npy", share, "train", seed=3, size=SIZE, contrast=FAINTEST)
    videos = np.concatenate([plain_videos(folder, budget)[:share], faint_videos(folder, budget)[:share], faintest])
    autoencoder.train_outlines(
        vae, videos, OUTLINES_CROP, budget.outlines_steps, folder / "ti2v-outlines", encoder=True
    )
    autoencoder.store(vae, folder / VAE_FILE, SIZE)


def plain_videos(folder: Path, budget: Budget) -> np.ndarray:
    return common.rendered(folder / "videos-128.npy", budget.vae_videos, "train", seed=1, size=SIZE)


def faint_videos(folder: Path, budget: Budget) -> np.ndarray:
    return common.rendered(folder / "faint-128.npy", budget.vae_videos, "train", seed=2, size=SIZE, contrast=FAINT)


def encode_latents(folder: Path, budget: Budget) -> None:
    videos = common.training_videos(budget.videos, 8, SIZE)
    autoencoder.encode_cache(Wan2_2_VAE(vae_pth=folder / VAE_FILE), videos, folder / "ti2v-latents")


def train_dit(folder: Path, budget: Budget) -> None:
    source = common.text_to_video_folder(folder)
    text = common.shipped_text(source)
    dit = from_text_expert(source / "low_noise_model")
    config = replace(common.dit_loop(budget.dit_steps), preview_every=max(1, min(1000, budget.dit_steps // 2)))

    def preview(step: int) -> None:
        print(f"step {step}  text: {score(dit, text, folder, image=False)}", flush=True)
        print(f"step {step}  image: {score(dit, text, folder, image=True)}", flush=True)

    flow = FlowConfig(shift=2.5, first_frame_share=FIRST_FRAME_SHARE, channels=CHANNELS)
    cache = LatentCache(folder / "ti2v-latents", evenness=common.EVENNESS)
    common.fit_flow(dit, dit, text, flow, cache, folder / "ti2v-dit", config, preview)


def from_text_expert(folder: Path) -> WanModel:
    """Take blocks, time and text embeddings of a text-to-video expert; patches and head of another latent are new."""
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    model = WanModel(DIT)
    model.init_weights(torch.Generator().manual_seed(9))
    state = {name: stored[name].float() for name in stored if name.startswith(("time_", "text_", "head.modulation"))}
    model.load_state_dict(model.state_dict() | state | common.kept_blocks(stored))
    return model


@torch.no_grad()
def score(dit: WanModel, text: TextStates, folder: Path, image: bool, count: int = 24) -> str:
    """Sample held-out scenes in one batch, from words or also the first frame, and compare the pixels."""
    scenes, prompts = common.heldout(count)
    truth = to_unit(np.stack([worlds.render(scene, FRAMES, SIZE) for scene in scenes]))
    vae = Wan2_2_VAE(vae_pth=folder / VAE_FILE)
    first = torch.stack(vae.encode(list(truth[:, :, :1])))
    noise = torch.randn(count, 48, (FRAMES - 1) // 4 + 1, *first.shape[3:], generator=torch.Generator().manual_seed(6))
    mask = first_frame_mask(noise.shape[1:], zero=image)
    by_token = mask[0, :, ::2, ::2].flatten()

    def forward(latent: Tensor, t: int, context: Sequence[Tensor]) -> Tensor:
        return torch.stack(dit(list(latent), (by_token * t).expand(count, -1), context))

    velocity = guided(forward, text(prompts), text([""] * count), 3.0)
    latents = common.sample(noise, velocity, keep_first_frame(first, mask) if image else identity)
    videos = vae.decode(list(latents))
    return common.first_frames(truth, videos) + "  " + common.count_right(scenes, videos)


def export(folder: Path, budget: Budget) -> None:
    target = folder / "ti2v-5B"
    shutil.rmtree(target, ignore_errors=True)
    common.write_dit(torch.load(folder / "ti2v-dit" / "model.pt", weights_only=True), WanModel(DIT), target)
    shutil.copy(folder / VAE_FILE, target)
    common.report_size(target)


RECIPE = Recipe(
    stages={
        "vae": train_vae,
        "decoder": train_decoder,
        "outlines": train_outlines,
        "latents": encode_latents,
        "dit": train_dit,
        "export": export,
    },
    budgets={
        "full": Budget(600, 2200, decoder_steps=2000, outlines_steps=1200, videos=6000, dit_steps=6000),
        "smoke": Budget(16, 12, decoder_steps=8, outlines_steps=6, videos=48, dit_steps=6),
    },
    with_steps=lambda budget, steps: replace(
        budget, vae_steps=steps, decoder_steps=steps, outlines_steps=steps, dit_steps=steps
    ),
)

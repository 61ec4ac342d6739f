"""Text to video: a VAE 2.1, a text encoder and two experts, from nothing.

vae      the video VAE on rendered videos; its latents get the mean and deviation of the released model
decoder  its decoder alone, on whole videos and for outlines; the latents stay as they are
latents  8,000 training videos, encoded once, with eight captions each
dit      one DiT for all timesteps together with the text encoder
experts  two copies of it, each continued on its own range of timesteps; the text encoder is frozen
export   the released folder layout, bfloat16
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from wan.modules.model import WanModel, WanModelConfig
from wan.modules.t5 import T5Encoder
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.nano.recipes import autoencoder, common
from wan.nano.recipes.common import FRAMES, T5_FILE, TEXT_DIM, TEXT_LEN, Recipe
from wan.training.config import FlowConfig
from wan.training.data import LatentCache
from wan.training.objective import TextStates, TrainedText

SIZE = 64
BOUNDARY = 875.0
CROPS = ((0.8, 9, 32, 8), (1.0, 17, 64, 2))
DECODER_CROP = (1.0, 9, 64, 4)
VAE_FILE = "Wan2.1_VAE.pth"

VAE = VAEConfig(dim=16, z_dim=16, dim_mult=(1, 2, 2, 2), num_res_blocks=1, temporal_downsample=(False, True, True))
DIT = WanModelConfig(
    model_type="t2v", dim=160, ffn_dim=640, num_heads=4, num_layers=5, text_dim=TEXT_DIM, text_len=TEXT_LEN
)


@dataclass(frozen=True)
class Budget:
    """Amount of work of each stage."""

    vae_videos: int
    vae_steps: int
    decoder_steps: int
    videos: int
    dit_steps: int
    expert_steps: tuple[int, int]  # high-noise, low-noise


def train_vae(folder: Path, budget: Budget) -> None:
    videos = common.rendered(folder / "videos.npy", budget.vae_videos, "train", seed=1, size=SIZE)
    vae = CausalVAE2_1(VAE)
    autoencoder.train(vae, videos, CROPS, budget.vae_steps, folder / "vae")
    autoencoder.standardise(vae, videos, Wan2_1_VAE)
    autoencoder.store(vae, folder / "vae" / VAE_FILE, SIZE)


def train_decoder(folder: Path, budget: Budget) -> None:
    videos = common.rendered(folder / "videos.npy", budget.vae_videos, "train", seed=1, size=SIZE)
    vae = Wan2_1_VAE(vae_pth=folder / "vae" / VAE_FILE).model
    autoencoder.train_outlines(vae, videos, DECODER_CROP, budget.decoder_steps, folder / "decoder")
    autoencoder.store(vae, folder / VAE_FILE, SIZE)


def encode_latents(folder: Path, budget: Budget) -> None:
    videos = common.training_videos(budget.videos, 3, SIZE)
    autoencoder.encode_cache(Wan2_1_VAE(vae_pth=folder / VAE_FILE), videos, folder / "latents")


def train_dit(folder: Path, budget: Budget) -> None:
    generator = torch.Generator().manual_seed(4)
    tokenizer = common.tokenizer_folder(folder)
    both = nn.ModuleDict({"dit": WanModel(DIT), "text": T5Encoder(common.text_config(tokenizer))})
    both["dit"].init_weights(generator)
    for layer in (*both["dit"].text_embedding, *both["dit"].time_embedding):
        if isinstance(layer, nn.Linear):  # 0.02, the usual choice, is far too little for a model this narrow
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
    both["text"].init_weights(generator)
    text = TrainedText(both["text"], common.nano_tokenizer(tokenizer))
    config = replace(common.dit_loop(budget.dit_steps), preview_every=min(1000, budget.dit_steps))

    def preview(step: int) -> None:
        print(f"step {step}  {score(both['dit'], both['dit'], text, folder)}", flush=True)

    cache = LatentCache(folder / "latents")
    common.fit_flow(both, both["dit"], text, FlowConfig(shift=3.0), cache, folder / "dit", config, preview)


def train_experts(folder: Path, budget: Budget) -> None:
    base = torch.load(folder / "dit" / "model.pt", weights_only=True)
    tokenizer = common.tokenizer_folder(folder)
    encoder = T5Encoder(common.text_config(tokenizer))
    encoder.load_state_dict(common.part(base, "text."))
    encoder = encoder.to(torch.bfloat16).float().eval().requires_grad_(False)  # as it will be shipped
    text = TrainedText(encoder, common.nano_tokenizer(tokenizer))
    experts = {name: WanModel(DIT) for name in ("high_noise_model", "low_noise_model")}
    for dit in experts.values():
        dit.load_state_dict(common.part(base, "dit."))
    ranges = ((BOUNDARY, 1000.0), (0.0, BOUNDARY))
    cache = LatentCache(folder / "latents")
    for (name, dit), (low, high), steps in zip(experts.items(), ranges, budget.expert_steps, strict=True):
        flow = FlowConfig(shift=3.0, t_min=low, t_max=high)
        common.fit_flow(dit, dit, text, flow, cache, folder / name, common.dit_loop(steps))
        print(f"after {name}: {score(*experts.values(), text, folder)}", flush=True)


@torch.no_grad()
def score(high: WanModel, low: WanModel, text: TextStates, folder: Path, count: int = 32) -> str:
    """Sample held-out scenes in one batch with the two experts, and count what the pixels show."""
    scenes, prompts = common.heldout(count)
    shape = (count, 16, (FRAMES - 1) // 4 + 1, SIZE // 8, SIZE // 8)

    velocity = common.of_experts(high, low, BOUNDARY, text, prompts)
    latents = common.sample(torch.randn(shape, generator=torch.Generator().manual_seed(6)), velocity)
    return common.count_right(scenes, Wan2_1_VAE(vae_pth=folder / VAE_FILE).decode(list(latents)))


def export(folder: Path, budget: Budget) -> None:
    """Write the shipped folder; experts that were not trained yet are copies of the base model."""
    target = folder / "t2v-A14B"
    shutil.rmtree(target, ignore_errors=True)
    base = torch.load(folder / "dit" / "model.pt", weights_only=True)
    for name in ("high_noise_model", "low_noise_model"):
        path = folder / name / "model.pt"
        state = torch.load(path, weights_only=True) if path.exists() else common.part(base, "dit.")
        common.write_dit(state, WanModel(DIT), target / name)
    text = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in common.part(base, "text.").items()}
    torch.save(text, target / T5_FILE)
    shutil.copy(folder / VAE_FILE, target)
    shutil.copytree(common.tokenizer_folder(folder), target / "google" / "umt5-xxl")
    common.report_size(target)


def with_steps(budget: Budget, steps: int) -> Budget:
    return replace(budget, vae_steps=steps, decoder_steps=steps, dit_steps=steps, expert_steps=(steps, steps))


RECIPE = Recipe(
    stages={
        "vae": train_vae,
        "decoder": train_decoder,
        "latents": encode_latents,
        "dit": train_dit,
        "experts": train_experts,
        "export": export,
    },
    budgets={
        "full": Budget(2000, 3000, decoder_steps=1500, videos=8000, dit_steps=4000, expert_steps=(1200, 3000)),
        "smoke": Budget(16, 12, decoder_steps=8, videos=48, dit_steps=6, expert_steps=(4, 4)),
    },
    with_steps=with_steps,
)

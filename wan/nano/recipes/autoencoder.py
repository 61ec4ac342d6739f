"""Train an autoencoder of the family: on random crops, then whole frames; standardise its latents; store float16."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wan.modules.vae_blocks import ResidualBlock
from wan.modules.vae_wrapper import VideoVAE
from wan.nano.recipes import common
from wan.training.config import LoopConfig
from wan.training.data import CacheWriter
from wan.training.loop import fit
from wan.training.vae import (
    VAELossConfig,
    fold_principal_axes,
    fold_statistics,
    init_as_resampler,
    latent_statistics,
    random_crops,
    reconstruction_psnr,
    to_unit,
    vae_objective,
)

Crop = tuple[float, int, int, int]  # share of the run up to which it is used, frames, size, batch


def train(vae: nn.Module, videos: np.ndarray, crops: Sequence[Crop], steps: int, folder: Path) -> None:
    """Train from nothing. The squared error has a large weight, so that colours are learnt first."""
    init_as_resampler(vae, torch.Generator().manual_seed(1))
    compile_parts(vae)

    def draw(index: int) -> Tensor:
        share = (index + 1) / steps
        frames, size, batch = next(row[1:] for row in crops if share <= row[0])
        return draw_crops(videos, batch, frames, size, (1, index))

    objective = vae_objective(vae, VAELossConfig(l1=0.2, l2=4.0, edge=0.2))
    fit(vae, objective, draw, loop(steps, 2e-3), folder, preview=preview(vae, videos.shape[2]))


def train_outlines(
    vae: nn.Module, videos: np.ndarray, crop: Crop, steps: int, folder: Path, encoder: bool = False
) -> None:
    """Train on for outlines of any contrast: the decoder, which leaves latents as they are, or with `encoder` all.

    Weights of latent channels that carry nothing stay zero. A decoder could use these constants as a bias, but a
    transformer leaves noise in them.
    """
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.conv2) + ((vae.encoder, vae.conv1) if encoder else ()):
        part.requires_grad_(True)
    update_only(vae.conv2.weight, (vae.conv2.weight != 0).any(dim=0, keepdim=True))
    if encoder:
        written = (vae.conv1.weight != 0).flatten(1).any(dim=1)
        update_only(vae.conv1.weight, written.view(-1, 1, 1, 1, 1))
        update_only(vae.conv1.bias, written)
    compile_parts(vae)

    def draw(index: int) -> Tensor:
        _, frames, size, batch = crop
        return draw_crops(videos, batch, frames, size, (3 if encoder else 2, index))

    objective = vae_objective(vae, VAELossConfig(l1=1.0, l2=4.0, edge=1.0, noise=0.25, even=True))
    fit(vae, objective, draw, loop(steps, 1e-3), folder, preview=preview(vae, videos.shape[2]))


def update_only(weight: nn.Parameter, where: Tensor) -> None:
    """Make the gradients of `weight` zero except `where`."""
    weight.register_hook(lambda gradient: gradient * where)


def compile_parts(vae: nn.Module) -> None:
    """Compile the encoder and the decoder's blocks; the decoder itself yields frames, which no compiler follows."""
    torch._dynamo.config.recompile_limit = 64  # every width and shape of crops is a graph of its own
    vae.encoder.compile(dynamic=False)
    for block in vae.decoder.modules():
        if isinstance(block, ResidualBlock):
            block.compile(dynamic=False)


def draw_crops(videos: np.ndarray, batch: int, frames: int, size: int, seed: tuple[int, int]) -> Tensor:
    drawn = random_crops(videos, batch, frames, size, np.random.default_rng(seed), candidates=2)
    return drawn.contiguous(memory_format=torch.channels_last_3d)  # the faster layout in oneDNN's convolutions


def loop(steps: int, learning_rate: float) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 100,
        warmup_steps=min(100, steps // 4),
        weight_decay=1e-4,
        ema_decay=0.998,
        precision=common.PRECISION,
        seed=1,
        log_every=max(1, min(50, steps // 4)),
        checkpoint_every=250,
        preview_every=max(1, min(250, steps // 4)),
    )


def preview(vae: nn.Module, size: int) -> Callable[[int], None]:
    unseen = common.render_many(12, "heldout", seed=2, size=size)

    def show(step: int) -> None:
        print(f"step {step}  held-out PSNR {reconstruction_psnr(vae, unseen):.2f} dB", flush=True)

    return show


@torch.no_grad()
def standardise(vae: nn.Module, videos: np.ndarray, wrapper: type[VideoVAE]) -> None:
    """Give the latents the mean and deviation of the released model: every pipeline uses those constants."""
    batches = (vae.encode(to_unit(videos[i : i + 32])) for i in range(0, min(512, len(videos)), 32))
    mean, std = latent_statistics(batches)
    print("latent std per channel before folding:", " ".join(f"{s:.2f}" for s in std.tolist()), flush=True)
    fold_statistics(vae, mean, std, torch.tensor(wrapper.latent_mean), torch.tensor(wrapper.latent_std))


@torch.no_grad()
def concentrate(vae: nn.Module, videos: np.ndarray, wrapper: type[VideoVAE], kept: int) -> None:
    """Turn standardised latents so that their first `kept` channels carry most; the other channels become constant."""
    moments = (vae.encode_moments(to_unit(videos[i : i + 8])) for i in range(0, min(160, len(videos)), 8))
    targets = torch.tensor(wrapper.latent_mean), torch.tensor(wrapper.latent_std)
    variances = fold_principal_axes(vae, moments, kept, *targets)
    print("variance along the axes:", " ".join(f"{v:.3f}" for v in variances.tolist()), flush=True)
    print(f"{kept} channels hold {100 * variances[:kept].sum() / variances.sum():.1f} % of it", flush=True)


def store(vae: nn.Module, path: Path, size: int) -> None:
    """Write the weights in float16, and print the PSNR of the stored ones."""
    state = {name: tensor.contiguous().half() for name, tensor in vae.state_dict().items()}
    common.save(state, path)
    vae.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    unseen = common.render_many(24, "heldout", seed=2, size=size)
    print(f"as stored: held-out PSNR {reconstruction_psnr(vae, unseen):.2f} dB", flush=True)


@torch.no_grad()
def encode(vae: VideoVAE, videos: Tensor) -> Tensor:
    """Encode videos [B, 3, F, H, W] as `vae.encode` does, but all at once and in bfloat16 where that is fast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=common.IN_BFLOAT16):
        mean = vae.model.encode(videos.contiguous(memory_format=torch.channels_last_3d)).float()
    return (mean - vae.mean) * vae.inverse_std


def encode_cache(
    vae: VideoVAE,
    batches: Iterable[common.Batch],
    folder: Path,
    conditions: Callable[[Tensor], Sequence[Sequence[Tensor]]] | None = None,
) -> None:
    """Encode videos into a cache, with their captions and the conditions that a function makes of a batch."""
    vae.model.encoder.compile(dynamic=False)
    writer, samples, started, done = CacheWriter(folder), [], time.monotonic(), 0
    for videos, captions in batches:
        latents = encode(vae, videos)
        given = conditions(videos) if conditions else [()] * len(videos)
        for latent, texts, of_video in zip(latents, captions, given, strict=True):
            writer.add(latent, texts, list(of_video))
        samples.append(latents[:4])
        done += len(videos)
        if done % 1024 == 0:
            print(f"{done} videos  {time.monotonic() - started:.0f} s", flush=True)
    writer.close()
    mean, std = latent_statistics(samples)
    print(f"latent mean {mean.abs().max():.3f} at most, std {std.min():.3f} to {std.max():.3f}", flush=True)

"""Training of the video VAE: the reconstruction objective, random crops, and the standardisation of its latents."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.media import from_uint8
from wan.modules.vae_blocks import Resample, ResidualBlock
from wan.training.loss import Loss


@dataclass(frozen=True)
class VAELossConfig:
    """Weights of the terms, per pixel (kl: per latent element)."""

    l1: float = 1.0
    l2: float = 1.0
    edge: float = 0.5  # L1 of differences between neighbouring pixels and frames: keeps outlines sharp
    kl: float = 1e-5
    noise: float = 1.0  # share of the encoder's uncertainty that the decoder is trained with; 0: the mean alone
    tone: float = 0.0  # squared error of the means of 8x8 pixels: keeps plain colours
    moving: float = 0.0  # extra weight of pixels that change within a clip, as those of lips do
    even: bool = False  # clips of low contrast get more weight; without it, their outlines are learnt last

    def __post_init__(self):
        if min(self.l1, self.l2, self.edge, self.kl, self.noise, self.moving, self.tone) < 0 or self.l1 + self.l2 == 0:
            raise ValueError(f"weights must not be negative, and l1 or l2 must be positive; got {self}")


def vae_objective(vae: nn.Module, config: VAELossConfig):
    """Make `objective(video [B, 3, T, H, W] in [-1, 1], generator) -> Loss`, which samples one latent per video.

    Training follows arXiv:1312.6114: latent = mean + exp(logvar / 2) noise. The released models use the mean alone.
    """

    def objective(video: Tensor, generator: torch.Generator) -> Loss:
        device = next(vae.parameters()).device
        video = video.to(device)
        mean, logvar = vae.encode_moments(video)
        mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        output = vae.decode(mean + config.noise * (logvar / 2).exp() * noise).float()
        difference = output - video
        plain, mean_square = difference, difference.detach().square().mean()
        if config.even:
            difference = difference * contrast_weights(video)
        if config.moving:
            difference = difference * (1 + config.moving * motion(video))
        l1, l2 = difference.abs().mean(), difference.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        total = config.l1 * l1 + config.l2 * l2 + config.kl * kl
        if config.tone:
            total = total + config.tone * F.avg_pool3d(plain, (1, 8, 8)).square().mean()
        if config.edge:
            total = total + config.edge * edge_loss(difference)
        return Loss(total, {"psnr": psnr(mean_square), "kl": kl.detach()})

    return objective


def contrast_weights(video: Tensor, most: float = 4.0) -> Tensor:
    """Weights [B, 1, 1, 1, 1]: 1 for a clip of the batch's mean contrast, more for less contrast, at most `most`."""
    contrast = video.std(dim=(2, 3, 4), keepdim=True).mean(dim=1, keepdim=True)
    return (contrast.mean() / contrast.clamp_min(1e-6)).clamp(max=most)


def motion(video: Tensor) -> Tensor:
    """Share of change [B, 1, T, H, W] in 0..1: 1 where a pixel is half a range or more from its mean over time."""
    return (video - video.mean(dim=2, keepdim=True)).abs().amax(dim=1, keepdim=True).clamp(max=1)


def edge_loss(difference: Tensor) -> Tensor:
    """Mean absolute gradient of a difference [B, C, T, H, W] along rows, columns and (with several) frames."""
    axes = [d for d in (2, 3, 4) if difference.shape[d] > 1]
    return sum(difference.diff(dim=d).abs().mean() for d in axes) / max(1, len(axes))


def psnr(mean_square: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB from a mean squared error on the range [-1, 1]."""
    return 10 * torch.log10(4 / mean_square)


@torch.no_grad()
def init_as_resampler(vae: nn.Module, generator: torch.Generator) -> None:
    """Draw weights with which the skip path of a VAE carries colours to the latents and back from the first step.

    Random weights lose the signal in the strided convolutions, and a small VAE would spend most of a short training on
    finding it again. Here downsampling starts as 2x2 averaging, upsampling as nearest neighbour, changes of width as
    orthogonal maps, and residual branches are small. The latents start with little noise.

    The shortcuts of VAE 2.2 average and repeat as well. Its convolutions still start like this: behind small ones,
    blocks learn slowly (18.9 dB instead of 21.0 after 200 steps; mean of three seeds).
    """
    vae.init_weights(generator)
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            module.residual[6].weight *= 0.2
            if isinstance(module.shortcut, nn.Conv3d):
                module.shortcut.weight[:, :, 0, 0, 0] = _orthogonal(*module.shortcut.weight.shape[:2], generator)
        elif isinstance(module, Resample):
            weight = module.resample[1].weight  # [out, in, 3, 3]
            out, width = weight.shape[:2]
            weight *= 0.2
            if module.mode.startswith("down"):
                weight[:, :, :2, :2] += 0.25 * torch.eye(out)[:, :, None, None]
            else:
                weight[:, :, 1, 1] += torch.eye(out) if out == width else _orthogonal(out, width, generator)
    for stem in (vae.encoder.conv1, vae.decoder.conv1):
        stem.weight *= 0.2
        stem.weight[:, :, -1, 1, 1] += _orthogonal(*stem.weight.shape[:2], generator)
    for outer in (vae.conv1, vae.conv2):
        outer.weight[:, :, 0, 0, 0] = _orthogonal(*outer.weight.shape[:2], generator)
    vae.conv1.bias[vae.z_dim :] = -6


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)


def random_crops(
    videos: np.ndarray, batch: int, frames: int, size: int, rng: np.random.Generator, candidates: int = 1
) -> Tensor:
    """Draw [batch, 3, frames, size, size] float32 in [-1, 1] from uint8 videos [N, F, H, W, 3]; half are mirrored.

    Of several `candidates` per crop the one with the most contrast is kept: plain areas teach little.
    """
    count, total, height, width, _ = videos.shape
    if frames % 4 != 1 or frames > total or size > min(height, width):
        raise ValueError(
            f"a crop of {frames} frames at {size} pixels does not fit videos of {videos.shape[1:4]} (frames 4n+1)"
        )
    crops = np.empty((batch, frames, size, size, 3), np.uint8)
    for crop in crops:
        pieces = []
        for _ in range(candidates):
            n, f = rng.integers(count), rng.integers(total - frames + 1)
            y, x = rng.integers(height - size + 1), rng.integers(width - size + 1)
            pieces.append(videos[n, f : f + frames, y : y + size, x : x + size])
        piece = pieces[0] if candidates == 1 else max(pieces, key=lambda p: p[::4, ::4, ::4].std(axis=(1, 2)).sum())
        crop[:] = piece[:, :, ::-1] if rng.random() < 0.5 else piece
    return to_unit(crops)


def to_unit(videos: np.ndarray) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.require(videos, requirements=["C", "W"]))  # a mapped file is copied
    return from_uint8(pixels).transpose(1, 2).contiguous()


@torch.no_grad()
def latent_statistics(latents: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float64 [z], over latents [B, z, T, h, w]."""
    count, total, square = 0, 0.0, 0.0
    for latent in latents:
        flat = latent.double().transpose(0, 1).flatten(1)
        count, total, square = count + flat.shape[1], total + flat.sum(1), square + flat.square().sum(1)
    mean = total / count
    return mean, (square / count - mean.square()).clamp_min(1e-12).sqrt()


@torch.no_grad()
def fold_statistics(vae: nn.Module, mean: Tensor, std: Tensor, target_mean: Tensor, target_std: Tensor) -> None:
    """Give the latents the statistics `target_*` [z] instead of `mean`, `std`; decoded videos stay the same.

    The affine map per channel goes into the mean rows of the encoder's last 1x1x1 convolution `conv1`, its inverse
    into the input of the decoder's first, `conv2`; the log-variance rows follow the scale. Both maps are exact, so
    decode(encode(x)) is unchanged up to rounding.
    """
    mean, std, target_mean, target_std = (v.double() for v in (mean, std, target_mean, target_std))
    scale = target_std / std
    offset = target_mean - mean * scale
    z = len(mean)
    weight, bias = vae.conv1.weight.double(), vae.conv1.bias.double()
    weight[:z] *= scale.view(-1, 1, 1, 1, 1)
    bias[:z] = bias[:z] * scale + offset
    bias[z:] += 2 * scale.log()
    vae.conv1.weight.copy_(weight)
    vae.conv1.bias.copy_(bias)
    weight, bias = vae.conv2.weight.double(), vae.conv2.bias.double()
    weight = weight / scale.view(1, -1, 1, 1, 1)
    bias = bias - torch.einsum("oi...,i->o", weight, offset)
    vae.conv2.weight.copy_(weight)
    vae.conv2.bias.copy_(bias)


@torch.no_grad()
def fold_principal_axes(
    vae: nn.Module,
    moments: Iterable[tuple[Tensor, Tensor]],
    kept: int,
    target_mean: Tensor,
    target_std: Tensor,
    evenness: float = 0.75,
) -> Tensor:
    """Turn latents to their principal axes, keep the first `kept` of them, and return the variances along all axes.

    moments: means and log-variances [B, z, T, h, w], from which the axes are computed. The means must already have the
    statistics `target_*` [z]. The variance v along a kept axis becomes v ** (1 - evenness), so that fine detail is not
    lost in a diffusion model's noise. The other channels become the constant `target_mean`, which `decode` ignores.
    The log-variances of kept channels become constants: noise that is independent along the old axes is not
    independent along the new ones.
    """
    target_mean, target_std = target_mean.double(), target_std.double()
    count, products, uncertainty = 0, 0.0, 0.0
    for mean, logvar in moments:
        mean, logvar = (part.double().transpose(0, 1).flatten(1) for part in (mean, logvar))
        mean = (mean - target_mean[:, None]) / target_std[:, None]
        count, products = count + mean.shape[1], products + mean @ mean.T
        uncertainty = uncertainty + logvar.exp().sum(1) / target_std.square()
    variances, axes = (part.flip(-1) for part in torch.linalg.eigh(products / count))
    scale = variances[:kept].clamp_min(1e-6).pow(-evenness / 2)
    down = torch.zeros_like(axes)
    down[:kept] = scale[:, None] * axes.T[:kept]
    up = torch.zeros_like(axes)
    up[:, :kept] = axes[:, :kept] / scale
    down, up = (target_std[:, None] * turn / target_std for turn in (down, up))

    z = len(target_mean)
    weight, bias = vae.conv1.weight.double(), vae.conv1.bias.double()
    weight[:z] = torch.einsum("oi,i...->o...", down, weight[:z])
    bias[:z] = down @ (bias[:z] - target_mean) + target_mean
    weight[z:] = 0
    noise = scale.square() * (axes.T[:kept].square() @ (uncertainty / count)) * target_std[:kept].square()
    bias[z : z + kept], bias[z + kept :] = noise.log(), -30
    vae.conv1.weight.copy_(weight)
    vae.conv1.bias.copy_(bias)
    weight, bias = vae.conv2.weight.double(), vae.conv2.bias.double()
    bias = bias + torch.einsum("oi...,i->o", weight, target_mean - up @ target_mean)
    vae.conv2.weight.copy_(torch.einsum("oi...,ij->oj...", weight, up))
    vae.conv2.bias.copy_(bias)
    return variances


@torch.no_grad()
def reconstruction_psnr(vae: nn.Module, videos: np.ndarray, batch: int = 8) -> float:
    """PSNR in dB of decode(encode(x)), clamped as the pipeline clamps, over all pixels of uint8 [N, F, H, W, 3]."""
    total, count = 0.0, 0
    for start in range(0, len(videos), batch):
        video = to_unit(videos[start : start + batch]).to(next(vae.parameters()).device)
        output = vae.decode(vae.encode(video)).clamp(-1, 1)
        total += F.mse_loss(output, video, reduction="sum").double().item()
        count += video.numel()
    return psnr(torch.tensor(total / count)).item()

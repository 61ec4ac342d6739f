"""Flow matching: the draw of noise levels, the target of the network, and the loss by noise level."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wan.training.config import FlowConfig
from wan.utils.flow import add_noise, shift_sigmas

# noisy latents [B, C, T, H, W], timesteps in 0..1000 ([B], or [B, T] by frame) -> velocity of the shape of the latents
VelocityModel = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Loss:
    """Loss of a batch: `total` is differentiated, `parts` are logged, `timesteps` and `errors` [B] go to the bins."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    timesteps: Tensor | None = None
    errors: Tensor | None = None


def flow_loss(model: VelocityModel, data: Tensor, config: FlowConfig, generator: torch.Generator) -> Loss:
    """Mean squared error of the predicted velocity `noise - data` at drawn noise levels; data [B, C, T, H, W] float32.

    A share `config.first_frame_share` of the samples has a clean first latent frame, at timestep 0 and without a loss;
    timesteps are then given by frame. The model sees zeros in all channels but the first `config.channels`.
    """
    sigma = draw_sigmas(data.shape[0], config, generator).to(data.device)
    noise = torch.randn(data.shape, generator=generator).to(data)
    levels = sigma[:, None]  # [B, 1], or [B, T] where frames differ
    if config.first_frame_share:
        given = torch.rand(data.shape[0], generator=generator) < config.first_frame_share
        levels = levels.repeat(1, data.shape[2])
        levels[given.to(data.device), 0] = 0
    noisy = add_noise(data, noise, levels[:, None, :, None, None])
    noisy[:, noisy.shape[1] if config.channels is None else config.channels :] = 0
    velocity = model(noisy, (levels if levels.shape[1] > 1 else sigma) * 1000)
    by_channel = (velocity.float() - (noise - data))[:, : config.channels]
    by_frame = by_channel.square().mean(dim=(1, 3, 4))  # [B, T]
    asked = (levels > 0).expand_as(by_frame)
    errors = (by_frame * asked).sum(1) / asked.sum(1).clamp_min(1)
    return Loss(errors.mean(), timesteps=sigma.detach() * 1000, errors=errors.detach())


def draw_sigmas(count: int, config: FlowConfig, generator: torch.Generator) -> Tensor:
    """Draw noise levels, float32 [count], of the shifted distribution within the range t_min..t_max.

    They are drawn by inverse transform from stratified uniforms: one per equal slice of probability, in random order.
    So every batch covers the range and the loss varies less; each sample alone has exactly the wanted distribution.
    """
    low, high = (
        _cdf(shift_sigmas(torch.tensor(t / 1000, dtype=torch.float64), 1 / config.shift).clamp(max=1), config)
        for t in (config.t_min, config.t_max)
    )
    slices = torch.randperm(count, generator=generator).double()
    uniform = (slices + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    base = _inverse_cdf(low + (high - low) * uniform, config)
    sigma = shift_sigmas(base, config.shift)
    return sigma.clamp(config.t_min / 1000, config.t_max / 1000).float()


def _cdf(base: Tensor, config: FlowConfig) -> Tensor:
    if config.sigma_distribution == "uniform":
        return base
    return torch.special.ndtr((torch.logit(base) - config.logit_mean) / config.logit_std)


def _inverse_cdf(probability: Tensor, config: FlowConfig) -> Tensor:
    if config.sigma_distribution == "uniform":
        return probability
    return torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(probability))


class LossBins:
    """Mean losses of equal slices of the timesteps 0..1000, over the samples added since the last reset."""

    def __init__(self, count: int):
        self.total = torch.zeros(count, dtype=torch.float64)
        self.count = torch.zeros(count, dtype=torch.float64)

    def add(self, timesteps: Tensor, errors: Tensor) -> None:
        """Add timesteps [B] in 0..1000 and errors [B]."""
        bins = len(self.count)
        index = (timesteps.detach().cpu().double() * bins / 1000).long().clamp(0, bins - 1)
        self.total.index_add_(0, index, errors.detach().cpu().double())
        self.count.index_add_(0, index, torch.ones_like(index, dtype=torch.float64))

    def means(self) -> dict[int, float]:
        """Map the lower edge of each bin that has a sample to its mean loss."""
        width = 1000 / len(self.count)
        return {round(i * width): (self.total[i] / n).item() for i, n in enumerate(self.count.tolist()) if n}

    def reset(self) -> None:
        self.total.zero_()
        self.count.zero_()

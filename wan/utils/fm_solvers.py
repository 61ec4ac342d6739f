"""DPM-Solver++ (arXiv:2211.01095) for flow matching, and upstream's helpers for schedules."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wan.utils.flow import FlowScheduler, shift_sigmas, to_data


class FlowDPMSolverMultistepScheduler(FlowScheduler):
    """DPM-Solver++ 2M, midpoint, deterministic; first order at both ends."""

    def _forget(self) -> None:
        self._previous: Tensor | None = None  # data estimate of the step before

    def _advance(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        estimate = to_data(x, self._sigmas[i], velocity)
        target = self._sigmas[i + 1]
        if target == 0:
            self._previous = None
            return estimate
        h = self._lambdas[i + 1] - self._lambdas[i]  # infinite at i = 0, where sigma is 1
        extrapolated = estimate
        if self._previous is not None:
            ratio = (self._lambdas[i] - self._lambdas[i - 1]) / h  # infinite at i = 1: then effectively first order
            extrapolated = estimate + (0.5 / ratio) * (estimate - self._previous)
        self._previous = estimate
        return (target / self._sigmas[i]) * x - ((1 - target) * math.expm1(-h)) * extrapolated


def get_sampling_sigmas(sampling_steps: int, shift: float) -> np.ndarray:
    """Shifted linear schedule from 1, float64 [sampling_steps], without the final 0."""
    return shift_sigmas(np.linspace(1, 0, sampling_steps + 1)[:-1], shift)


def retrieve_timesteps(
    scheduler: FlowScheduler,
    num_inference_steps: int | None = None,
    device: torch.device | str | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
) -> tuple[Tensor, int]:
    """Set a scheduler up by a number of steps or by sigmas; return its timesteps and their number."""
    scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
    return scheduler.timesteps, len(scheduler.timesteps)

"""Flow matching: straight paths between data and noise, their schedules, and the solver interface.

Convention: x_sigma = (1 - sigma) * data + sigma * noise, and the network predicts the velocity noise - data.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def add_noise(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the point at `sigma` of the path from data (0) to noise (1); a tensor `sigma` is broadcast."""
    return (1 - sigma) * data + sigma * noise


def to_data(x: Tensor, sigma: Tensor | float, velocity: Tensor) -> Tensor:
    """Return the data to which a velocity at x_sigma points; a tensor `sigma` is broadcast."""
    return x - sigma * velocity


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Move a schedule on [0, 1] towards high noise; the timestep shift of arXiv:2403.03206. Tensors or numpy arrays."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class FlowScheduler:
    """Base of all solvers: the schedule and the step counter. A solver adds its start and its `_advance`.

    `shift` is the default of `set_timesteps`. `use_dynamic_shifting` is for upstream's scripts, which pass False; this
    family has no schedule that depends on the image.
    """

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0, *, use_dynamic_shifting: bool = False):
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}")
        if use_dynamic_shifting:
            raise ValueError("use_dynamic_shifting is not supported; give the shift as a number")
        self.num_train_timesteps = num_train_timesteps
        self.shift = _checked_shift(shift)
        self.step_index = 0  # steps taken since set_timesteps: truncated timesteps may coincide
        self.timesteps = torch.empty(0, dtype=torch.int64)  # [N], for the network
        self.sigmas = torch.zeros(1)  # float32 [N + 1] on the CPU, the last one 0
        self._sigmas: list[float] = [0.0]
        self._lambdas: list[float] = []

    @property
    def start_sigma(self) -> float:
        """Start of the unshifted schedule."""
        return 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        shift: float | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """Start again with that many steps; `sigmas`, falling and without the final 0, replaces the linear schedule.

        Values are float64 until they are stored, and timesteps are truncated, not rounded: both decide the integers.
        """
        if sigmas is not None:
            base = checked_sigmas(sigmas)
        elif num_inference_steps is None or int(num_inference_steps) != num_inference_steps or num_inference_steps < 1:
            raise ValueError(
                f"the number of sampling steps must be a whole number from 1 up, got {num_inference_steps}"
            )
        else:
            base = np.linspace(self.start_sigma, 0, int(num_inference_steps) + 1)[:-1]
        shifted = shift_sigmas(base, _checked_shift(self.shift if shift is None else shift))
        timesteps = (shifted * self.num_train_timesteps).astype(np.int64)
        self._sigmas = [*shifted.tolist(), 0.0]
        self.sigmas = torch.tensor(self._sigmas, dtype=torch.float32)
        self.timesteps = torch.from_numpy(timesteps).to(device)
        self._lambdas = [log_snr(sigma) for sigma in self._sigmas]
        self.step_index = 0
        self._forget()

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        return_dict: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor]:
        """Take one step from `sample` with the velocity `model_output`, in float32 at least.

        The number of steps taken is the position; `timestep` is only there for callers of the usual interface. So are
        the last two: `return_dict=False` wraps the result in a tuple of one, and no solver here draws from `generator`.
        Raises RuntimeError after the last step.
        """
        if return_dict:
            raise ValueError("return_dict=True is not supported; leave it out for the tensor, or use False and [0]")
        if self.step_index >= len(self.timesteps):
            raise RuntimeError(f"all {len(self.timesteps)} steps are taken; call set_timesteps to start again")
        dtype = torch.promote_types(sample.dtype, torch.float32)
        velocity = model_output.to(sample.device, dtype)
        x = self._advance(self.step_index, velocity, sample.to(dtype))
        self.step_index += 1
        x = x.to(sample.dtype)
        return x if return_dict is None else (x,)

    def _forget(self) -> None:
        """Drop the history of earlier steps; `set_timesteps` calls it."""

    def _advance(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class FlowEulerScheduler(FlowScheduler):
    """Euler steps (first order): follow the velocity to the next sigma. For distilled models of few steps."""

    def _advance(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        return x + (self._sigmas[i + 1] - self._sigmas[i]) * velocity


def log_snr(sigma: float) -> float:
    """lambda = ln(1 - sigma) - ln(sigma): -inf at pure noise, +inf at data."""
    if sigma >= 1:
        return -math.inf
    return math.inf if sigma <= 0 else math.log1p(-sigma) - math.log(sigma)


def _checked_shift(shift: float) -> float:
    if not 0 < shift < math.inf:
        raise ValueError(f"the schedule shift must be a positive number, got {shift}; 1 leaves the schedule linear")
    return float(shift)


def checked_sigmas(sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return noise levels as float64. Raises ValueError unless they fall strictly within (0, 1]."""
    values = np.asarray(sigmas, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (values[0] <= 1 and values[-1] > 0 and np.all(np.diff(values) < 0)):
        raise ValueError(f"sigmas must fall strictly within (0, 1], without the final 0, got {values.tolist()}")
    return values

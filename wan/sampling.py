"""Sample any task in one loop; functions that are passed in make the difference between tasks."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor

from wan.utils.flow import FlowScheduler
from wan.utils.solvers import make_solver as make_solver

Condition = TypeVar("Condition")
Velocity = Callable[[Tensor, int], Tensor]  # latent, timestep 0..1000 -> velocity of the shape of latent
Keep = Callable[[Tensor], Tensor]  # latent -> latent with known content restored
Branch = Callable[[Condition], Tensor]
Pair = Callable[[Branch, Condition, Condition], tuple[Tensor, Tensor]]


def identity(latent: Tensor) -> Tensor:
    return latent


def denoise(latent: Tensor, solver: FlowScheduler, velocity: Velocity, keep: Keep = identity) -> Iterator[Tensor]:
    """Integrate from noise to data, yielding each latent; `keep` restores known content (a clean first frame).

    The caller may stop at any latent. The solver counts the steps, so a second call with the same solver and the last
    latent goes on where the first one stopped. Raises ValueError when no step is left.
    """
    if solver.step_index >= len(solver.timesteps):
        raise ValueError("the solver has no steps left; call its set_timesteps first")
    for t in solver.timesteps[solver.step_index :].tolist():
        latent = keep(solver.step(velocity(latent, t), t, latent))
        yield latent


def one_after_the_other(branch: Branch, cond: Condition, uncond: Condition) -> tuple[Tensor, Tensor]:
    return branch(cond), branch(uncond)


def in_one_call(branch: Branch, cond: Condition, uncond: Condition) -> tuple[Tensor, Tensor]:
    """Give the model both conditions at once, as a pair."""
    return branch((cond, uncond))


def guided(
    model: Callable[[Tensor, int, Condition], Tensor],
    cond: Condition,
    uncond: Condition,
    scale: float,
    pair: Pair = one_after_the_other,
) -> Velocity:
    """Make the velocity of classifier-free guidance, arXiv:2207.12598; one model call per step when `scale` is 1.

    `pair` makes the two calls of a step.
    """

    def plain(latent: Tensor, t: int) -> Tensor:
        return model(latent, t, cond)

    def with_guidance(latent: Tensor, t: int) -> Tensor:
        positive, negative = pair(lambda condition: model(latent, t, condition), cond, uncond)
        return negative + scale * (positive - negative)

    return plain if scale == 1 else with_guidance


def switch_at(boundary: float, high: Velocity, low: Velocity) -> Velocity:
    """Make the velocity of two experts: `high` for t >= boundary (in timesteps, 0..1000), `low` below."""
    return lambda latent, t: (high if t >= boundary else low)(latent, t)


def keep_first_frame(z0: Tensor, mask: Tensor) -> Keep:
    """Keep z0 [C, 1, H, W] wherever mask [C, F, H, W] is 0 (geometry.first_frame_mask)."""
    known = (1 - mask) * z0
    return lambda latent: known + mask * latent

"""Make a solver by its name."""

from collections.abc import Sequence

from wan import utils
from wan.choices import SOLVERS
from wan.utils.flow import FlowScheduler


def make_solver(
    name: str, num_steps: int, shift: float, num_train_timesteps: int = 1000, sigmas: Sequence[float] | None = None
) -> FlowScheduler:
    """Make the named solver and set its schedule, which stays on the host; `sigmas` are the noise levels of its steps
    before the shift."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(SOLVERS)}")
    solver = getattr(utils, SOLVERS[name])(num_train_timesteps)
    solver.set_timesteps(num_steps, shift=shift, sigmas=sigmas)
    return solver

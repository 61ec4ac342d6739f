"""UniPC: the history it keeps, and the schedule that upstream could not finish."""

import pytest
import torch

from wan.sampling import denoise, make_solver
from wan.utils.fm_solvers_unipc import FlowUniPCMultistepScheduler


@pytest.mark.parametrize(("steps", "shift"), [(92, 12.0), (144, 8.0), (251, 5.0), (501, 3.0)])
def test_coinciding_timesteps_do_not_confuse_the_position(steps, shift):
    """From these counts on, the first two truncated timesteps are equal; looking the position up would skip a step."""
    solver = make_solver("unipc", steps, shift)
    assert solver.timesteps[0] == solver.timesteps[1]
    data, noise = torch.randn(2, 6).unbind(0)
    start = solver.sigmas[0]
    states = list(denoise((1 - start) * data + start * noise, solver, lambda x, t: noise - data))
    assert len(states) == steps
    torch.testing.assert_close(states[-1], data, atol=1e-5, rtol=0)


def test_schedule_starts_below_pure_noise():
    solver = make_solver("unipc", 40, 12.0)
    assert solver.timesteps[0] == 999
    solver.set_timesteps(1, shift=1.0)
    assert solver._sigmas[0] == 0.9990000128746033, "the float32 rounding of 0.999 is part of the schedule"


def test_last_step_returns_the_last_estimate_and_frees_its_history():
    solver = FlowUniPCMultistepScheduler()
    solver.set_timesteps(3)
    x = torch.randn(4)
    for t in solver.timesteps[:-1]:
        x = solver.step(torch.cos(x), t, x)
    velocity = torch.cos(x)
    last = solver.step(velocity, solver.timesteps[-1], x)
    assert torch.equal(last, x - solver._sigmas[-2] * velocity)
    assert not solver._estimates and solver._start is None


def test_history_is_two_estimates():
    solver = FlowUniPCMultistepScheduler()
    solver.set_timesteps(6)
    x = torch.randn(4)
    for t in solver.timesteps[:-1]:
        x = solver.step(torch.cos(x), t, x)
        assert len(solver._estimates) <= 2

"""Both multistep solvers against the exact solution, their order of convergence, and the helpers around them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from wan.sampling import denoise, make_solver
from wan.utils.fm_solvers import FlowDPMSolverMultistepScheduler, get_sampling_sigmas, retrieve_timesteps

MULTISTEP = pytest.mark.parametrize("name", ["unipc", "dpm++"])
MEAN, SPREAD = 0.7, 0.5


def gaussian_flow_error(name: str, steps: int) -> float:
    """Distance from the exact end of the flow of a normal distribution N(MEAN, SPREAD^2), which is linear in x.

    The exact velocity is that of x_sigma = (1 - sigma) data + sigma noise; the end is MEAN + SPREAD * noise.
    """
    solver = make_solver(name, steps, shift=1.0)
    sigmas = iter(solver._sigmas)

    def velocity(x, _):
        sigma = next(sigmas)
        variance = ((1 - sigma) * SPREAD) ** 2 + sigma**2
        centred = x - (1 - sigma) * MEAN
        data = MEAN + (1 - sigma) * SPREAD**2 / variance * centred
        noise = sigma / variance * centred
        return noise - data

    start = solver._sigmas[0]
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    x = (1 - start) * MEAN + math.hypot((1 - start) * SPREAD, start) * noise
    *_, x = denoise(x, solver, velocity)
    return (x - (MEAN + SPREAD * noise)).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("unipc", 2), ("dpm++", 2)])
def test_error_falls_with_the_order_of_the_solver(name, order):
    errors = [gaussian_flow_error(name, steps) for steps in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 2 ** (order - 0.5)
    assert errors[-1] < 0.02


@MULTISTEP
def test_pure_noise_start_stays_finite(name):
    """sigma = 1 makes lambda infinite for two steps of history."""
    solver = make_solver(name, 4, shift=1.0)
    solver.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.1])
    states = list(denoise(torch.randn(5), solver, lambda x, t: torch.sin(x)))
    assert all(state.isfinite().all() for state in states)


@MULTISTEP
@pytest.mark.parametrize("steps", [1, 2, 3, 12, 30])
@pytest.mark.parametrize("shift", [1.0, 12.0])
def test_steps_equal_those_of_diffusers(name, steps, shift):
    """Their schedules differ from the published ones, so they are given ours."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: no second implementation")
    theirs = {"unipc": diffusers.UniPCMultistepScheduler, "dpm++": diffusers.DPMSolverMultistepScheduler}[name](
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
    ours = make_solver(name, steps, shift)
    theirs.set_timesteps(steps)
    theirs.sigmas, theirs.timesteps = ours.sigmas.clone(), ours.timesteps.clone()
    theirs.set_begin_index(0)

    def velocity(x, t):
        return torch.sin(3 * x) + 0.1 * x

    x = expected = torch.randn(1, 3, 20)
    for t in ours.timesteps:
        x, expected = ours.step(velocity(x, t), t, x), theirs.step(velocity(expected, t), t, expected).prev_sample
        torch.testing.assert_close(x, expected, atol=5e-5, rtol=0)


def test_explicit_shifted_sigmas_equal_the_built_in_schedule():
    built_in = make_solver("dpm++", 10, shift=5.0)
    explicit = FlowDPMSolverMultistepScheduler()
    timesteps, count = retrieve_timesteps(explicit, sigmas=get_sampling_sigmas(10, 5.0))
    assert count == 10 and torch.equal(timesteps, built_in.timesteps)
    assert torch.equal(explicit.sigmas, built_in.sigmas)


def test_retrieve_timesteps_by_count():
    scheduler = FlowDPMSolverMultistepScheduler(shift=3.0)
    timesteps, count = retrieve_timesteps(scheduler, 6, device="cpu")
    assert count == 6 and timesteps is scheduler.timesteps


def test_sampling_sigmas_start_at_pure_noise():
    sigmas = get_sampling_sigmas(4, 1.0)
    np.testing.assert_array_equal(sigmas, [1.0, 0.75, 0.5, 0.25])

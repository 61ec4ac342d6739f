"""The loop with every solver, and the functions that make up a velocity."""

import pytest
import torch

from wan.choices import SOLVERS
from wan.geometry import first_frame_mask
from wan.sampling import denoise, guided, keep_first_frame, make_solver, switch_at

SHAPE = (4, 3, 2, 2)
ALL = pytest.mark.parametrize("name", SOLVERS)


def straight_path(solver, dtype):
    """(start, data, constant velocity) of a path that every solver must follow exactly."""
    data, noise = torch.randn(2, *SHAPE, dtype=dtype).unbind(0)
    start = solver._sigmas[0]
    return (1 - start) * data + start * noise, data, noise - data


@ALL
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40, 120])
@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
def test_straight_path_is_recovered_exactly(name, steps, shift):
    solver = make_solver(name, steps, shift)
    start, data, direction = straight_path(solver, torch.float64)
    states = list(denoise(start, solver, lambda x, t: direction))
    assert len(states) == steps
    for sigma, state in zip(solver._sigmas[1:], states, strict=True):
        torch.testing.assert_close(state, data + sigma * direction, atol=1e-12, rtol=0)


@ALL
def test_straight_path_in_float32(name):
    solver = make_solver(name, 40, 12.0)
    start, data, direction = straight_path(solver, torch.float32)
    *_, end = denoise(start, solver, lambda x, t: direction)
    torch.testing.assert_close(end, data, atol=2e-6, rtol=0)


@ALL
def test_one_step_is_the_data_estimate(name):
    solver = make_solver(name, 1, 5.0)
    x = torch.randn(SHAPE)
    (end,) = denoise(x, solver, lambda x, t: torch.sin(x))
    torch.testing.assert_close(end, x - solver._sigmas[0] * torch.sin(x))


@ALL
def test_latents_are_not_changed_in_place(name):
    solver = make_solver(name, 5, 3.0)
    x = torch.randn(SHAPE)
    states = [x, *denoise(x, solver, lambda x, t: torch.sin(x))]
    copies = [state.clone() for state in states]
    solver.set_timesteps(5, shift=3.0)
    again = [x, *denoise(x, solver, lambda x, t: torch.sin(x))]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(states, copies, again, strict=True))


@ALL
def test_the_caller_may_stop_and_go_on(name):
    def velocity(x, t):
        calls.append(int(t))
        return torch.sin(x)

    calls = []
    solver, x = make_solver(name, 8, 5.0), torch.randn(SHAPE)
    *_, whole = denoise(x, solver, velocity)
    assert len(calls) == 8

    calls.clear()
    solver.set_timesteps(8, shift=5.0)
    run = denoise(x, solver, velocity)
    for _ in range(3):
        latent = next(run)
    run.close()
    assert len(calls) == 3, "nothing is computed beyond what was asked for"
    *_, resumed = denoise(latent, solver, velocity)
    assert len(calls) == 8
    assert torch.equal(resumed, whole)


def test_a_used_up_solver_is_an_error():
    solver = make_solver("euler", 1, 1.0)
    list(denoise(torch.zeros(2), solver, lambda x, t: x))
    with pytest.raises(ValueError, match="call its set_timesteps"):
        next(denoise(torch.zeros(2), solver, lambda x, t: x))


def test_guidance_goes_from_negative_to_positive():
    calls = []

    def model(latent, t, condition):
        calls.append(condition)
        return latent * condition

    velocity = guided(model, cond=2.0, uncond=-1.0, scale=3.0)
    assert velocity(torch.ones(1), torch.tensor(5)).item() == -1 + 3 * (2 - -1)
    assert calls == [2.0, -1.0], "the positive branch comes first"


@pytest.mark.parametrize("scale", [1, 1.0])
def test_guidance_of_one_costs_one_forward(scale):
    calls = []

    def model(latent, t, condition):
        calls.append(condition)
        return latent * condition

    assert guided(model, 2.0, -1.0, scale)(torch.ones(1), torch.tensor(5)).item() == 2
    assert calls == [2.0]


def test_guidance_of_zero_is_the_negative():
    assert guided(lambda x, t, c: x * c, 2.0, -1.0, 0.0)(torch.ones(1), torch.tensor(5)).item() == -1


def test_experts_switch_at_the_boundary():
    velocity = switch_at(875, high=lambda x, t: "high", low=lambda x, t: "low")
    used = [velocity(None, torch.tensor(t)) for t in (1000, 876, 875, 874, 0)]
    assert used == ["high", "high", "high", "low", "low"]


@pytest.mark.parametrize(("shift", "boundary", "steps"), [(12.0, 875, 26), (5.0, 900, 15)])
@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_the_high_noise_expert_serves_the_published_number_of_steps(name, shift, boundary, steps):
    assert int((make_solver(name, 40, shift).timesteps >= boundary).sum()) == steps


@ALL
def test_first_frame_stays_fixed(name):
    first = torch.randn(4, 1, 2, 2)
    keep = keep_first_frame(first, first_frame_mask(SHAPE))
    start = keep(torch.randn(SHAPE))
    for state in [start, *denoise(start, make_solver(name, 5, 5.0), lambda x, t: torch.sin(x), keep)]:
        assert torch.equal(state[:, :1], first)
        assert not torch.equal(state[:, 1:2], first)


def test_unknown_solver_names_the_choices():
    with pytest.raises(ValueError, match=r"'heun'; choose one of unipc, dpm\+\+, euler"):
        make_solver("heun", 4, 1.0)


def test_solver_steps_are_checked():
    with pytest.raises(ValueError, match="from 1 up, got 0"):
        make_solver("unipc", 0, 1.0)

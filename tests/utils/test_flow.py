"""The path between data and noise, its schedules, and the shared parts of all solvers."""

import numpy as np
import pytest
import torch

from wan import utils
from wan.choices import SOLVERS
from wan.utils.flow import add_noise, shift_sigmas, to_data

ALL = pytest.mark.parametrize("solver", [pytest.param(getattr(utils, cls), id=name) for name, cls in SOLVERS.items()])


def test_data_is_recovered_from_any_point_of_the_path():
    data, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64).unbind(0)
    for sigma in (0.0, 0.3, 1.0, torch.tensor(0.7), torch.tensor([0.1, 0.2, 0.9, 1.0])[:, None, None, None]):
        noisy = add_noise(data, noise, sigma)
        torch.testing.assert_close(to_data(noisy, sigma, noise - data), data)


def test_sigma_per_sample_equals_samples_alone():
    data, noise = torch.randn(2, 3, 16, 1, 2, 2).unbind(0)
    sigmas = torch.tensor([0.2, 0.5, 0.8])
    together = add_noise(data, noise, sigmas[:, None, None, None, None])
    for i, sigma in enumerate(sigmas.tolist()):
        torch.testing.assert_close(together[i], add_noise(data[i], noise[i], sigma))


def test_shift_keeps_the_ends_and_composes():
    sigmas = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(shift_sigmas(sigmas, 1.0), sigmas)
    shifted = shift_sigmas(sigmas, 5.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:-1] > sigmas[1:-1]).all()
    torch.testing.assert_close(shift_sigmas(shift_sigmas(sigmas, 2.0), 3.0), shift_sigmas(sigmas, 6.0))


@ALL
@pytest.mark.parametrize("steps", [1, 2, 40, 100, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 5.0, 12.0])
def test_schedule_falls_to_zero(solver, steps, shift):
    scheduler = solver(shift=shift)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.dtype == torch.int64 and len(scheduler.timesteps) == steps
    assert scheduler.sigmas.dtype == torch.float32 and len(scheduler.sigmas) == steps + 1
    assert scheduler.sigmas[-1] == 0 and (scheduler.sigmas.diff() < 0).all()
    assert (scheduler.timesteps.diff() <= 0).all() and 0 <= scheduler.timesteps.min()


@ALL
def test_timesteps_are_truncated(solver):
    scheduler = solver()
    scheduler.set_timesteps(sigmas=[0.9999, 0.5555])
    assert scheduler.timesteps.tolist() == [999, 555]


@ALL
def test_shift_of_the_call_replaces_that_of_the_solver(solver):
    called, built = solver(shift=3.0), solver(shift=8.0)
    called.set_timesteps(7, shift=8.0)
    built.set_timesteps(7)
    assert torch.equal(called.sigmas, built.sigmas)


@ALL
@pytest.mark.parametrize("steps", [0, -1, 2.5, None])
def test_steps_below_one_are_refused(solver, steps):
    with pytest.raises(ValueError, match=f"whole number from 1 up, got {steps}"):
        solver().set_timesteps(steps)


@ALL
@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_shift_must_be_positive(solver, shift):
    with pytest.raises(ValueError, match="shift must be a positive number"):
        solver().set_timesteps(4, shift=shift)
    with pytest.raises(ValueError, match="shift must be a positive number"):
        solver(shift=shift)


@ALL
@pytest.mark.parametrize("sigmas", [[], [0.5, 0.5], [0.2, 0.4], [1.1, 0.5], [1.0, 0.0], np.zeros((2, 2))])
def test_sigmas_that_do_not_fall_are_refused(solver, sigmas):
    with pytest.raises(ValueError, match="fall strictly"):
        solver().set_timesteps(sigmas=sigmas)


@ALL
def test_stepping_too_far_is_refused(solver):
    scheduler, x = solver(), torch.zeros(2)
    with pytest.raises(RuntimeError, match="call set_timesteps"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x)
    with pytest.raises(RuntimeError, match="all 2 steps are taken"):
        scheduler.step(x, 0, x)


@ALL
def test_a_solver_can_be_used_again(solver):
    def run():
        x = torch.linspace(-1, 1, 5)
        scheduler.set_timesteps(5, shift=3.0)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(x), t, x)
        return x

    scheduler = solver()
    assert torch.equal(run(), run())


@ALL
def test_latent_type_is_independent_of_the_model_type(solver):
    scheduler, x = solver(), torch.randn(3, 4)
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.sin(x).to(torch.bfloat16), t, x)
        assert x.dtype == torch.float32


@ALL
def test_scripts_written_for_upstream_run(solver):
    """Their constructor, set_timesteps and step arguments; the step is the one of the plain call."""
    theirs, ours = solver(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False), solver()
    theirs.set_timesteps(4, device="cpu", shift=5.0)
    ours.set_timesteps(4, shift=5.0)
    x = y = torch.randn(2, 3)
    for t in theirs.timesteps:
        x = theirs.step(torch.sin(x)[None], t, x[None], return_dict=False, generator=torch.Generator())[0].squeeze(0)
        y = ours.step(torch.sin(y), t, y)
    assert torch.equal(x, y)


@ALL
def test_upstream_options_that_do_not_exist_are_refused(solver):
    with pytest.raises(ValueError, match="use_dynamic_shifting is not supported"):
        solver(use_dynamic_shifting=True)
    scheduler, x = solver(), torch.zeros(2)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="return_dict=True is not supported"):
        scheduler.step(x, 999, x, return_dict=True)
    assert scheduler.step_index == 0

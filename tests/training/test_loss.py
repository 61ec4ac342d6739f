import pytest
import torch

from wan.training.config import FlowConfig
from wan.training.loss import LossBins, draw_sigmas, flow_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("t_min, t_max", [(0, 1000), (875, 1000), (0, 875), (900, 901)])
def test_sigmas_stay_in_the_expert_range_and_fill_it(distribution, t_min, t_max):
    config = FlowConfig(shift=5.0, sigma_distribution=distribution, t_min=t_min, t_max=t_max)
    timesteps = draw_sigmas(512, config, generator()) * 1000
    assert timesteps.min() >= t_min - 1e-3 and timesteps.max() <= t_max + 1e-3
    assert timesteps.max() - timesteps.min() > 0.7 * (t_max - t_min)


def test_a_range_has_the_distribution_of_the_whole_conditioned_on_it():
    whole = draw_sigmas(200_000, FlowConfig(shift=3.0), generator())
    part = draw_sigmas(50_000, FlowConfig(shift=3.0, t_min=875), generator(1))
    inside = whole[whole >= 0.875]
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(part.quantile(quantiles), inside.quantile(quantiles), atol=2e-3, rtol=0)


def test_uniform_sigmas_follow_the_shift_map():
    sigma = draw_sigmas(1000, FlowConfig(shift=3.0), generator()).double().sort().values
    base = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    torch.testing.assert_close(sigma, 3 * base / (1 + 2 * base), atol=2e-3, rtol=0)


def test_the_true_velocity_has_no_loss_and_timesteps_are_in_thousands():
    data = torch.randn(8, 4, 1, 2, 2, generator=generator())
    seen = {}

    def oracle(noisy, timesteps):
        seen["timesteps"] = timesteps
        sigma = (timesteps / 1000).view(-1, 1, 1, 1, 1)
        return (noisy - data) / sigma  # noisy = data + sigma * (noise - data)

    loss = flow_loss(oracle, data, FlowConfig(t_min=500), generator(1))
    assert loss.total < 1e-8
    assert seen["timesteps"].min() >= 500
    torch.testing.assert_close(loss.errors.mean(), loss.total)


def test_silent_channels_are_neither_seen_nor_asked_for():
    data = torch.randn(8, 4, 1, 2, 2, generator=generator())
    seen = {}

    def model(noisy, timesteps):
        seen["noisy"] = noisy
        sigma = (timesteps / 1000).view(-1, 1, 1, 1, 1)
        velocity = (noisy - data) / sigma
        return torch.cat([velocity[:, :3], torch.full_like(velocity[:, 3:], 7)], dim=1)

    assert flow_loss(model, data, FlowConfig(t_min=500, channels=3), generator(1)).total < 1e-8
    assert (seen["noisy"][:, 3:] == 0).all() and (seen["noisy"][:, :3] != 0).all()
    assert flow_loss(model, data, FlowConfig(t_min=500), generator(1)).total > 1


def test_a_given_first_frame_is_clean_and_has_no_loss():
    data = torch.randn(64, 4, 3, 2, 2, generator=generator())
    seen = {}

    def model(noisy, timesteps):
        seen.update(noisy=noisy, timesteps=timesteps)
        wrong = torch.zeros_like(noisy)
        wrong[:, :, 0] = 1e6
        return wrong

    loss = flow_loss(model, data, FlowConfig(first_frame_share=0.5), generator(1))
    given = seen["timesteps"][:, 0] == 0
    assert 16 < given.sum() < 48
    assert torch.equal(seen["noisy"][given, :, 0], data[given, :, 0])
    assert (seen["timesteps"][:, 1:] > 0).all()
    assert (seen["timesteps"][~given] == seen["timesteps"][~given, :1]).all()
    assert (loss.errors[given] < 100).all() and (loss.errors[~given] > 1e6).all()


def test_bins_average_by_timestep():
    bins = LossBins(10)
    bins.add(torch.tensor([0.0, 99.0, 500.0, 1000.0]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert bins.means() == {0: 2.0, 500: 5.0, 900: 7.0}
    bins.reset()
    assert bins.means() == {}

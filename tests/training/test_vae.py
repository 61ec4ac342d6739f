import numpy as np
import pytest
import torch

from wan.modules.vae import CausalVAE, VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1
from wan.modules.vae2_2 import LATENT_MEAN, LATENT_STD, CausalVAE2_2, VAE2_2Config
from wan.training.config import LoopConfig
from wan.training.loop import fit
from wan.training.vae import (
    VAELossConfig,
    contrast_weights,
    fold_principal_axes,
    fold_statistics,
    init_as_resampler,
    latent_statistics,
    motion,
    random_crops,
    reconstruction_psnr,
    to_unit,
    vae_objective,
)

NETWORKS = {
    "2.1": (CausalVAE2_1, VAEConfig(dim=8, z_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1)),
    "2.2": (CausalVAE2_2, VAE2_2Config(dim=8, z_dim=48, dim_mult=(1, 2, 2, 2), num_res_blocks=1, dec_dim=8)),
}
TARGETS = {
    "2.1": ((1.0, -2.0, 0.5, 0.0), (2.0, 0.5, 1.0, 3.0)),
    "2.2": (LATENT_MEAN, LATENT_STD),
}


def small_vae(kind: str) -> CausalVAE:
    network, config = NETWORKS[kind]
    vae = network(config)
    vae.init_weights(torch.Generator().manual_seed(0))
    return vae


@pytest.mark.parametrize("kind", NETWORKS)
def test_folding_standardises_latents_and_leaves_the_decoded_video_alone(kind):
    vae = small_vae(kind).eval()
    video = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    target_mean, target_std = map(torch.tensor, TARGETS[kind])
    with torch.no_grad():
        before, logvar = vae.encode_moments(video)
        decoded = vae.decode(before)
        mean, std = latent_statistics([before])
        fold_statistics(vae, mean, std, target_mean, target_std)
        after, logvar_after = vae.encode_moments(video)
        torch.testing.assert_close(vae.decode(after), decoded, atol=1e-4, rtol=1e-4)
    found_mean, found_std = latent_statistics([after])
    torch.testing.assert_close(found_mean, target_mean.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found_std, target_std.double(), atol=1e-4, rtol=1e-4)
    scale = (target_std.double() / std).view(1, -1, 1, 1, 1)  # the drawn latent scales as its mean does
    torch.testing.assert_close((logvar_after / 2).exp(), (logvar / 2).exp() * scale.float(), atol=1e-4, rtol=1e-4)


def smooth_video() -> torch.Tensor:
    """Make a smooth video, so that its latents lie near a subspace."""
    colors = torch.rand(8, 3, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ramp = torch.linspace(-1, 1, 32)
    return (colors + 0.3 * ramp[:, None] * colors.flip(0) - 0.2 * ramp).expand(8, 3, 5, 32, 32).contiguous()


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_few_axes_carry_the_latents_and_the_other_channels_are_silent(kind):
    vae, video = small_vae(kind).eval(), smooth_video()
    vae.conv1.bias[vae.z_dim :] = -6
    target_mean, target_std = (torch.tensor(values).double() for values in TARGETS[kind])
    fold_statistics(vae, *latent_statistics([vae.encode(video)]), target_mean, target_std)
    before, decoded = vae.encode(video), vae.decode(vae.encode(video))
    kept = vae.z_dim // 2
    variances = fold_principal_axes(vae, [vae.encode_moments(video)], kept, target_mean, target_std)

    assert variances.sum() == pytest.approx(vae.z_dim, rel=1e-3)  # of standardised channels
    assert (variances.diff() <= 0).all()
    latents, logvar = vae.encode_moments(video)
    normal = (latents.double() - target_mean.view(-1, 1, 1, 1)) / target_std.view(-1, 1, 1, 1)
    flat = normal.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.diag_embed(
        torch.cat([variances[:kept] ** 0.25, torch.zeros(vae.z_dim - kept)]).double()
    ), atol=1e-3, rtol=1e-3)  # fmt: skip
    spread = logvar.flatten(2).std(dim=2).max()
    assert spread == 0 and (logvar[:, kept:] == -30).all() and (logvar[:, :kept] > -30).all()

    lost = variances[kept:].sum() / variances.sum()
    close = (vae.decode(latents) - decoded).square().mean() / decoded.var()
    assert close < 10 * lost + 1e-6
    noisy = latents.clone()
    noisy[:, kept:] += torch.randn(noisy[:, kept:].shape, generator=torch.Generator().manual_seed(2))
    assert torch.equal(vae.decode(noisy), vae.decode(latents))
    assert not torch.equal(before, latents)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_with_all_axes_kept_the_decoded_video_stays(kind):
    vae = small_vae(kind).eval()
    video = torch.rand(8, 3, 9, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    target_mean, target_std = (torch.tensor(values).double() for values in TARGETS[kind])
    fold_statistics(vae, *latent_statistics([vae.encode(video)]), target_mean, target_std)
    decoded = vae.decode(vae.encode(video))
    fold_principal_axes(vae, [vae.encode_moments(video)], vae.z_dim, target_mean, target_std, evenness=0.5)
    torch.testing.assert_close(vae.decode(vae.encode(video)), decoded, atol=1e-3, rtol=1e-3)


def test_faint_clips_count_more_when_all_count_alike():
    pattern = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    video = torch.cat([pattern, pattern * 0.5, pattern * 0.01])
    weights = contrast_weights(video).flatten()
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(2.0))
    assert weights[2] == 4  # bounded


def test_without_noise_the_objective_is_the_error_of_the_mean():
    vae = small_vae("2.1")
    video = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    losses = [
        vae_objective(vae, VAELossConfig(l1=0, l2=1, edge=0, kl=0, noise=noise))(video, torch.Generator()).total
        for noise in (0, 0, 1)
    ]
    torch.testing.assert_close(losses[0], (vae.decode(vae.encode(video)) - video).square().mean())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("kind", "start"), [pytest.param("2.1", CausalVAE.init_weights, marks=pytest.mark.slow), ("2.2", init_as_resampler)]
)
def test_the_objective_lowers_the_error(tmp_path, kind, start):
    rng = np.random.default_rng(0)
    videos = np.broadcast_to(rng.integers(0, 256, (4, 1, 1, 1, 3), np.uint8), (4, 5, 16, 16, 3))
    vae = small_vae(kind)
    start(vae, torch.Generator().manual_seed(0))
    before = reconstruction_psnr(vae, videos)

    def draw(index: int) -> torch.Tensor:
        return random_crops(videos, 4, 5, 16, np.random.default_rng((0, index)))

    config = LoopConfig(steps=80, learning_rate=5e-3, ema_decay=0.5)
    fit(vae, vae_objective(vae, VAELossConfig()), draw, config, tmp_path)
    assert reconstruction_psnr(vae, videos) > before + 3


def test_crops_are_cut_from_the_videos():
    videos = np.arange(2 * 9 * 16 * 16 * 3, dtype=np.int64).reshape(2, 9, 16, 16, 3).astype(np.uint8)
    crops = random_crops(videos, 3, 5, 8, np.random.default_rng(0))
    assert crops.shape == (3, 3, 5, 8, 8)
    assert torch.equal(crops, random_crops(videos, 3, 5, 8, np.random.default_rng(0)))
    assert to_unit(videos).min() == -1 and to_unit(videos).max() == 1
    with pytest.raises(ValueError, match="does not fit"):
        random_crops(videos, 1, 4, 8, np.random.default_rng(0))


def test_weights_of_the_loss_are_checked():
    with pytest.raises(ValueError, match="l1 or l2"):
        VAELossConfig(l1=0, l2=0)


def test_pixels_that_move_may_count_more():
    video = torch.zeros(1, 3, 4, 8, 8)
    video[:, :, ::2, 2:4, 2:4] = 1.0
    weights = motion(video)
    assert weights.shape == (1, 1, 4, 8, 8) and weights[..., 2:4, 2:4].eq(0.5).all() and weights.sum() == 0.5 * 16
    vae, video = small_vae("2.1"), video.repeat_interleave(2, 2)[:, :, :5]

    def total(moving: float) -> torch.Tensor:
        config = VAELossConfig(l1=0, edge=0, kl=0, moving=moving)
        return vae_objective(vae, config)(video, torch.Generator().manual_seed(0)).total

    assert total(3.0) > total(0.0)


def test_plain_colours_may_count_more():
    vae, video = small_vae("2.1"), torch.full((1, 3, 5, 8, 8), 0.8)

    def total(tone: float) -> torch.Tensor:
        config = VAELossConfig(l1=0, edge=0, kl=0, tone=tone)
        return vae_objective(vae, config)(video, torch.Generator().manual_seed(0)).total

    assert total(2.0) > total(0.0)  # by twice the squared error of the means

"""VAE 2.1 as a network and as its public wrapper. Numbers against the reference are in tests/parity."""

import json
from pathlib import Path

import pytest
import torch

from wan.modules.vae import VAEConfig, tile_axis
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE

MANIFEST = json.loads((Path(__file__).parents[1] / "data" / "state_dict" / "wan2_1_vae.json").read_text())
SMALL = VAEConfig(dim=4, z_dim=16, dim_mult=(1, 2, 2, 2), num_res_blocks=1)


def random_model(config: VAEConfig = SMALL, seed: int = 0) -> CausalVAE2_1:
    """Every parameter random, so that no part is a no-op."""
    generator = torch.Generator().manual_seed(seed)
    model = CausalVAE2_1(config)
    model.init_weights(generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("gamma", "bias")):
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            elif "proj" in name or "time_conv" in name:
                weight.normal_(0, (1 / weight[0].numel()) ** 0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def vae() -> Wan2_1_VAE:
    return Wan2_1_VAE(model=random_model())


# ---- configuration and weights ----


def test_released_names_and_shapes():
    with torch.device("meta"):
        state = CausalVAE2_1(VAEConfig()).state_dict()
    assert {name: list(weight.shape) for name, weight in state.items()} == MANIFEST


@pytest.mark.parametrize(
    "config", [VAEConfig(), SMALL, VAEConfig(8, 3, (1, 3), 2, (True,)), VAEConfig(6, 4, (1, 2, 4, 4), 1, (True, 1, 0))]
)
def test_config_is_read_off_the_tensors(config):
    with torch.device("meta"):
        state = CausalVAE2_1(config).state_dict()
    assert VAEConfig.from_state({name: weight.shape for name, weight in state.items()}) == config


def test_other_tensors_are_refused():
    with pytest.raises(ValueError, match=r"not the tensors of a VAE 2\.1.*blocks\.0\.weight"):
        VAEConfig.from_state({"blocks.0.weight": (1, 2)})


def test_contradicting_config_is_refused():
    with pytest.raises(ValueError, match=r"one flag per transition.* 2 for dim_mult"):
        VAEConfig(dim_mult=(1, 2, 4))


@pytest.mark.parametrize("name", ["vae.pth", "vae.safetensors"])
def test_wrapper_loads_a_file_of_any_size_and_type(tmp_path, name):
    from safetensors.torch import save_file

    model = random_model().half()
    save = torch.save if name.endswith("pth") else save_file
    save(model.state_dict(), tmp_path / name)
    loaded = Wan2_1_VAE(vae_pth=tmp_path / name)
    latent = torch.randn(16, 2, 2, 2)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    expected = Wan2_1_VAE(model=model).decode([latent])[0]
    torch.testing.assert_close(loaded.decode([latent])[0], expected, atol=1e-5, rtol=1e-4)


def test_wrapper_needs_sixteen_channels_and_one_source():
    with pytest.raises(ValueError, match="16 latent channels, got z_dim 48"):
        Wan2_1_VAE(z_dim=48, model=random_model())
    with pytest.raises(ValueError, match="the VAE has 4 latent channels"):
        Wan2_1_VAE(model=CausalVAE2_1(VAEConfig(4, 4, (1, 1), 1, (True,))))
    with pytest.raises(ValueError, match="exactly one"):
        Wan2_1_VAE()


# ---- one path, however the video is cut ----


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_any_chunking_gives_the_same_result(frames):
    model, video = random_model(), torch.randn(1, 3, frames, 16, 24)
    z = torch.randn(1, 16, (frames - 1) // 4 + 1, 2, 3)
    for chunk in (4, 8, 12):
        torch.testing.assert_close(model.encode(video, chunk), model.encode(video), atol=1e-4, rtol=1e-4)
    for chunk in (1, 2, 3):
        torch.testing.assert_close(model.decode(z, chunk), model.decode(z), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_other_devices_than_a_cpu_take_every_chunk():
    """A meta tensor goes the way of a GPU, and a chunk of a video is not contiguous."""
    with torch.device("meta"):
        model = CausalVAE2_1(VAEConfig(dim=8, dim_mult=(1, 1, 1, 1), num_res_blocks=1))
        video, latent = torch.empty(1, 3, 9, 16, 16), torch.empty(1, 16, 3, 2, 2)
    assert model.encode(video, chunk=4).shape == latent.shape
    assert model.decode(latent, chunk=1).shape == video.shape


def test_tiles_give_the_same_result():
    config = VAEConfig(4, 16, (1, 2), 1, (True,))  # a small reach, so that tiles are truly cut
    assert (config.encoder_halo, config.decoder_halo) == (4, 7)
    model = random_model(config)
    z, video = torch.randn(1, 16, 3, 19, 25), torch.randn(1, 3, 5, 35, 42)
    whole, tiled = model.decode(z), model.decode(z, chunk=1, tile=5)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.encode(video, 2, 6), model.encode(video), atol=1e-4, rtol=1e-4)


def test_halo_of_the_released_vae():
    assert (VAEConfig().encoder_halo, VAEConfig().decoder_halo) == (9, 13)


def test_tiles_cover_the_axis_once():
    tiles = tile_axis(23, 8, 3)
    assert [(t.place.start, t.place.stop) for t in tiles] == [(0, 7), (7, 15), (15, 23)]
    assert [(t.read.start, t.read.stop) for t in tiles] == [(0, 10), (4, 18), (12, 23)]
    assert [(t.keep.start, t.keep.stop) for t in tiles] == [(0, 7), (3, 11), (3, 11)]


def test_gradients_reach_every_parameter_and_equal_those_of_single_frames():
    model, video = random_model().train(), torch.randn(2, 3, 5, 16, 16)
    mean, log_variance = model.encode_moments(video)
    (model.decode(mean).square().mean() + log_variance.square().mean()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@torch.no_grad()
def test_gradient_path_and_inference_path_agree():
    model, video = random_model(), torch.randn(1, 3, 9, 16, 24)
    with torch.enable_grad():
        mean = model.encode(video)
        decoded = model.decode(mean)
    torch.testing.assert_close(model.encode(video), mean.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(mean.detach()), decoded.detach(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_frame_sees_the_future():
    model, video = random_model(), torch.randn(1, 3, 9, 16, 16)
    later = video.clone()
    later[:, :, 5:] += 1
    torch.testing.assert_close(model.encode(later)[:, :, :2], model.encode(video)[:, :, :2], atol=1e-5, rtol=1e-4)


def test_init_weights_is_seeded():
    a, b, c = (CausalVAE2_1(SMALL) for _ in range(3))
    for model, seed in ((a, 1), (b, 1), (c, 2)):
        model.init_weights(torch.Generator().manual_seed(seed))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


# ---- the wrapper ----


def test_lists_may_mix_sizes_and_types_and_results_are_float32(vae):
    videos = [torch.rand(3, 5, 16, 24).bfloat16(), torch.rand(3, 1, 19, 30), torch.rand(3, 7, 8, 8).double()]
    latents = vae.encode(videos)
    assert [tuple(x.shape) for x in latents] == [(16, 2, 2, 3), (16, 1, 2, 3), (16, 2, 1, 1)]
    decoded = vae.decode(latents)
    assert [tuple(x.shape) for x in decoded] == [(3, 5, 16, 24), (3, 1, 16, 24), (3, 5, 8, 8)]
    assert {x.dtype for x in latents + decoded} == {torch.float32}
    assert all(x.abs().max() <= 1 and not x.requires_grad for x in decoded)


def test_a_stacked_batch_is_a_list(vae):
    batch = torch.rand(2, 3, 5, 16, 16)
    for latent, video in zip(vae.encode(batch), batch, strict=True):
        torch.testing.assert_close(latent, vae.encode([video])[0])


def test_stream_equals_decode_and_stays_out_of_the_callers_context(vae):
    latent = torch.randn(16, 4, 2, 3)
    sizes, parts = [], []
    for part in vae.decode_stream(latent):
        assert torch.is_grad_enabled()
        sizes.append(part.shape[1])
        parts.append(part)
    assert sizes == [1, 4, 4, 4]
    torch.testing.assert_close(torch.cat(parts, dim=1), vae.decode([latent])[0])


def test_the_callers_autocast_region_changes_nothing(vae):
    latent = torch.randn(16, 2, 2, 2)
    expected = vae.decode([latent])[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(vae.decode([latent])[0], expected)


def test_tiling_is_an_option_that_changes_nothing(vae):
    latent = torch.randn(16, 2, 20, 3)
    expected = vae.decode([latent])[0]
    tiled = Wan2_1_VAE(model=vae.model, tiling=64)
    torch.testing.assert_close(tiled.decode([latent])[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tiled.encode([expected])[0], vae.encode([expected])[0], atol=1e-4, rtol=1e-4)


def test_bfloat16_is_close():
    latent = torch.randn(16, 2, 2, 2)
    exact = Wan2_1_VAE(model=random_model()).decode([latent])[0]
    half = Wan2_1_VAE(model=random_model(), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    video = half.decode([latent])[0]
    assert video.dtype == torch.float32
    assert (video - exact).square().mean().sqrt() < 0.05


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 0, 16, 16), "at least 1 frame"),
        ((3, 5, 7, 16), "at least 8 pixels wide and 8 high, got 16x7"),
        ((3, 5, 16, 4), "got 4x16"),
        ((1, 5, 16, 16), r"\[B, 3, T, H, W\]"),
        ((3, 16, 16), r"list of videos \[3, T, H, W\]"),
    ],
)
def test_impossible_videos_are_refused(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        vae.encode([torch.zeros(shape)])


def test_impossible_options_are_refused(vae):
    with pytest.raises(ValueError, match=r"a latent must be \[16, T, h, w\], got \[4, 1, 2, 2\]"):
        vae.decode([torch.zeros(4, 1, 2, 2)])
    with pytest.raises(ValueError, match="with T, h, w >= 1"):
        vae.decode([torch.zeros(16, 0, 2, 2)])
    with pytest.raises(ValueError, match=r"a latent must be \[16, T, h, w\]"):
        vae.decode(torch.zeros(16, 1, 2, 2))
    with pytest.raises(ValueError, match="multiple of 4 frames, got 3"):
        vae.model.encode(torch.zeros(1, 3, 5, 8, 8), chunk=3)
    with pytest.raises(ValueError, match="at least 8 pixels, got 4"):
        Wan2_1_VAE(model=vae.model, tiling=4).decode([torch.zeros(16, 1, 1, 1)])

"""Both video autoencoders as networks and as public wrappers. Numbers against the reference are in tests/parity."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wan.modules.vae import CausalVAE, VAEConfig, fold, tile_axis, tiles, unfold
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config, Wan2_2_VAE
from wan.modules.vae_wrapper import VideoVAE

aten = torch.ops.aten
SMALL = VAEConfig(dim=4, z_dim=16, dim_mult=(1, 2, 2, 2), num_res_blocks=1)
SMALL_2_2 = VAE2_2Config(dim=4, z_dim=48, dim_mult=(1, 2, 2, 2), num_res_blocks=1, dec_dim=6)
NETWORKS = {VAEConfig: CausalVAE2_1, VAE2_2Config: CausalVAE2_2}
WRAPPERS = {VAEConfig: Wan2_1_VAE, VAE2_2Config: Wan2_2_VAE}
SHORT_REACH = [  # so that tiles of a few latent pixels are truly cut
    VAEConfig(4, 16, (1, 2), 1, (True,)),
    VAE2_2Config(4, 16, (2, 2), 1, (True,), dec_dim=6),
]


def random_model(config: VAEConfig, seed: int = 0) -> CausalVAE:
    """Make a model of random parameters, so that every part has an effect."""
    generator = torch.Generator().manual_seed(seed)
    model = NETWORKS[type(config)](config)
    model.init_weights(generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("gamma", "bias")):
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            elif "proj" in name or "time_conv" in name:
                weight.normal_(0, (1 / weight[0].numel()) ** 0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=[SMALL, SMALL_2_2], ids=["2.1", "2.2"])
def config(request) -> VAEConfig:
    return request.param


@pytest.fixture(scope="module")
def vae(config) -> VideoVAE:
    return WRAPPERS[type(config)](model=random_model(config))


def video_for(config: VAEConfig, frames: int, rows: int = 2, columns: int = 3, batch: int = 1) -> torch.Tensor:
    """Noise [B, 3, T, H, W] of that many rows and columns of latents."""
    return torch.randn(batch, 3, frames, rows * config.stride[1], columns * config.stride[2])


def latent_for(config: VAEConfig, frames: int, rows: int = 2, columns: int = 3) -> torch.Tensor:
    return torch.randn(config.z_dim, frames, rows, columns)


# ---- configuration and weights ----


@pytest.mark.parametrize(
    "config",
    [
        *(VAEConfig(), SMALL, VAEConfig(8, 3, (1, 3), 2, (True,)), VAEConfig(6, 4, (1, 2, 4, 4), 1, (True, 1, 0))),
        *(VAE2_2Config(), SMALL_2_2, VAE2_2Config(5, 3, (2, 4, 4), 2, (True, False), dec_dim=7)),
        *(VAEConfig(4, 3, (1,), 1, ()), VAE2_2Config(4, 3, (1,), 1, (), dec_dim=3)),
    ],
)
def test_config_is_read_off_the_tensors(config):
    with torch.device("meta"):
        state = NETWORKS[type(config)](config).state_dict()
    assert type(config).from_state({name: weight.shape for name, weight in state.items()}) == config


@pytest.mark.parametrize("kind", [VAEConfig, VAE2_2Config])
def test_other_tensors_are_refused(kind):
    with pytest.raises(ValueError, match=rf"not the tensors of {kind.title}.*blocks\.0\.weight"):
        kind.from_state({"blocks.0.weight": (1, 2)})


def test_contradicting_config_is_refused():
    with pytest.raises(ValueError, match=r"one flag per transition.* 2 for dim_mult"):
        VAEConfig(dim_mult=(1, 2, 4))
    with pytest.raises(ValueError, match="dec_dim must be at least 1 and at most 65536, got 0"):
        VAE2_2Config(dec_dim=0)


@pytest.mark.parametrize(
    ("dim_mult", "words"),
    [
        ((1, 2, 3, 3), "cut 2 x 8 channels, .* into 3 equal groups; try 2 or 4 instead of 3"),
        ((1, 2, 4, 3), "cut 4 x 1 channels, .* into 3 equal groups; try 2 or 4 instead of 3"),
        ((3, 1, 1, 1), "cut 1 x 4 channels, .* into 3 equal groups; try 2 or 4 instead of 3"),
        ((1, 1, 8, 8), "cut 1 x 4 channels, .* into 8 equal groups; try 2 or 4 instead of 8"),  # the decoder's
    ],
)
def test_widths_that_no_shortcut_can_group_are_refused(dim_mult, words):
    with pytest.raises(ValueError, match=words):
        VAE2_2Config(dim_mult=dim_mult)


@pytest.mark.parametrize("name", ["vae.pth", "vae.safetensors"])
def test_wrapper_loads_a_file_of_any_size_and_type(tmp_path, config, name):
    from safetensors.torch import save_file

    wrapper = WRAPPERS[type(config)]
    model = random_model(config).half()
    save = torch.save if name.endswith("pth") else save_file
    save(model.state_dict(), tmp_path / name)
    loaded = wrapper(vae_pth=tmp_path / name)
    latent = latent_for(config, 2)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    expected = wrapper(model=model).decode([latent])[0]
    torch.testing.assert_close(loaded.decode([latent])[0], expected, atol=1e-5, rtol=1e-4)


def test_the_file_of_the_other_vae_is_named(tmp_path):
    for name, config in (("Wan2.1_VAE.pth", SMALL), ("Wan2.2_VAE.pth", SMALL_2_2)):
        torch.save(random_model(config).state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=r"Wan2\.1_VAE\.pth: not the tensors of VAE 2\.2; they look like VAE 2\.1"):
        Wan2_2_VAE(vae_pth=tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match=r"Wan2\.2_VAE\.pth: not the tensors of VAE 2\.1; they look like VAE 2\.2"):
        Wan2_1_VAE(vae_pth=tmp_path / "Wan2.2_VAE.pth")


def test_wrapper_needs_the_published_channels_and_one_source():
    with pytest.raises(ValueError, match=r"VAE 2\.1 has 16 latent channels, got z_dim 48"):
        Wan2_1_VAE(z_dim=48, model=random_model(SMALL))
    with pytest.raises(ValueError, match=r"VAE 2\.2 has 48 latent channels, got z_dim 16"):
        Wan2_2_VAE(16, model=random_model(SMALL_2_2))
    with pytest.raises(ValueError, match="the VAE has 4 latent channels, the published statistics 16"):
        Wan2_1_VAE(model=CausalVAE2_1(VAEConfig(4, 4, (1, 1), 1, (True,))))
    with pytest.raises(ValueError, match=r"path of Wan2\.2_VAE\.pth, or a model; exactly one"):
        Wan2_2_VAE()


# ---- pixels folded into channels ----


def test_the_column_is_the_more_significant_half_of_a_fold():
    x = torch.arange(2 * 4 * 6).view(1, 2, 1, 4, 6)
    folded = fold(x, 2)
    for c, column, row in ((0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)):
        assert torch.equal(folded[0, (c * 2 + column) * 2 + row, 0], x[0, c, 0, row::2, column::2])
    assert torch.equal(unfold(folded, 2), x)
    assert fold(x, 1) is x is unfold(x, 1)


# ---- one path, however the video is cut ----


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_any_chunking_gives_the_same_result(config, frames):
    model, video = random_model(config), video_for(config, frames)
    z = latent_for(config, (frames - 1) // 4 + 1)[None]
    for chunk in (4, 8, 12):
        torch.testing.assert_close(model.encode(video, chunk), model.encode(video), atol=1e-4, rtol=1e-4)
    for chunk in (1, 2, 3):
        torch.testing.assert_close(model.decode(z, chunk), model.decode(z), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flags", [(True, True, False), (True, True, True), (False, False, False)])
@torch.no_grad()
def test_any_order_of_temporal_stages_gives_the_same_result(config, flags):
    model = random_model(replace(config, temporal_downsample=flags))
    stride = model.config.stride[0]
    video, z = video_for(config, 1 + 3 * stride, 1, 1), latent_for(config, 4, 1, 1)[None]
    for latents in (1, 2):
        chunked = model.encode(video, latents * stride)
        torch.testing.assert_close(chunked, model.encode(video), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.decode(z, latents), model.decode(z), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_video_starts_as_its_first_frame_alone(config):
    model, video, z = random_model(config), video_for(config, 9), latent_for(config, 3)[None]
    torch.testing.assert_close(model.encode(video)[:, :, :1], model.encode(video[:, :, :1]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.decode(z)[:, :, :1], model.decode(z[:, :, :1]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_frames_after_the_last_group_are_ignored(config):
    model, video = random_model(config), video_for(config, 8)
    torch.testing.assert_close(model.encode(video), model.encode(video[:, :, :5]))


@pytest.mark.parametrize("config", SHORT_REACH, ids=["2.1", "2.2"])
@torch.no_grad()
def test_tiles_give_the_same_result(config):
    assert (config.encoder_halo, config.decoder_halo) == (4, 7)
    model, z = random_model(config), torch.randn(1, 16, 3, 19, 25)
    whole, tiled = model.decode(z), model.decode(z, chunk=1, tile=5)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)
    h, w = (35, 42) if config.patch == 1 else (68, 84)
    video = torch.randn(1, 3, 5, h, w)
    torch.testing.assert_close(model.encode(video, 2, 6), model.encode(video), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [VAEConfig, VAE2_2Config])
def test_halo_of_the_released_vaes(kind):
    assert (kind().encoder_halo, kind().decoder_halo) == (9, 13)


@pytest.mark.parametrize("config", SHORT_REACH, ids=["2.1", "2.2"])
def test_a_latent_reaches_no_further_than_the_halo(config):
    model = random_model(config)
    z = torch.randn(1, 16, 3, 19, 1)
    changed = z.clone()
    with torch.no_grad():  # attention sees everything, so only what follows it
        features, other = model.decoder.context(z, None), model.decoder.context(changed, None)
        other[:, :, :, 9] += 1
        difference = (next(model.decoder.local(other, None)) - next(model.decoder.local(features, None))).abs()
    rows = difference.amax(dim=(0, 1, 2, 4)).nonzero().flatten()
    step = config.stride[1] // config.patch
    assert rows.min() >= (9 - config.decoder_halo) * step and rows.max() < (10 + config.decoder_halo) * step


def test_tiles_cover_the_axis_once():
    tiles = tile_axis(23, 3, 3)
    assert [(t.place.start, t.place.stop) for t in tiles] == [(0, 7), (7, 15), (15, 23)]
    assert [(t.read.start, t.read.stop) for t in tiles] == [(0, 10), (4, 18), (12, 23)]
    assert [(t.keep.start, t.keep.stop) for t in tiles] == [(0, 7), (3, 11), (3, 11)]


@pytest.mark.parametrize(
    ("size", "edge", "work", "squares"),  # work: positions that are computed, in those of the whole frame
    [((44, 80), 16, 2.92, 5.02), ((44, 80), 32, 2.11, 2.63), ((90, 160), 32, 2.34, 2.61), ((60, 8), 16, 2.3, 2.3)],
)
def test_strips_replace_squares_where_they_are_less_work(size, edge, work, squares):
    """Of VAE 2.2 at 1280x704 and of VAE 2.1 at 1280x720; no tile is larger than the largest square."""

    def lengths(axis):
        return [tile.read.stop - tile.read.start for tile in axis]

    chosen = [lengths(axis) for axis in tiles(*size, edge, 13)]
    square = [lengths(tile_axis(side, -(-side // edge), 13)) for side in size]
    computed = [math.prod(map(sum, axes)) / math.prod(size) for axes in (chosen, square)]
    assert computed == pytest.approx([work, squares], rel=0.01)
    assert math.prod(map(max, chosen)) <= math.prod(map(max, square))


def test_gradients_reach_every_parameter(config):
    model, video = random_model(config).train(), video_for(config, 5, batch=2)
    mean, log_variance = model.encode_moments(video)
    (model.decode(mean).square().mean() + log_variance.square().mean()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@torch.no_grad()
def test_gradient_path_and_inference_path_agree(config):
    model, video = random_model(config), video_for(config, 9)
    with torch.enable_grad():
        mean = model.encode(video)
        decoded = model.decode(mean)
    torch.testing.assert_close(model.encode(video), mean.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(mean.detach()), decoded.detach(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_frame_sees_the_future(config):
    model, video = random_model(config), video_for(config, 9)
    later = video.clone()
    later[:, :, 5:] += 1
    torch.testing.assert_close(model.encode(later)[:, :, :2], model.encode(video)[:, :, :2], atol=1e-5, rtol=1e-4)


def test_init_weights_is_seeded(config):
    a, b, c = (NETWORKS[type(config)](config) for _ in range(3))
    for model, seed in ((a, 1), (b, 1), (c, 2)):
        model.init_weights(torch.Generator().manual_seed(seed))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


# ---- the wrappers ----


def test_lists_may_mix_sizes_and_types_and_results_are_float32(vae, config):
    _, h, w = config.stride
    videos = [torch.rand(3, 5, 2 * h, 3 * w).bfloat16(), torch.rand(3, 1, h, 4 * w), torch.rand(3, 7, h, w).double()]
    latents = vae.encode(videos)
    assert [tuple(x.shape[1:]) for x in latents] == [(2, 2, 3), (1, 1, 4), (2, 1, 1)]
    decoded = vae.decode(latents)
    assert [tuple(x.shape) for x in decoded] == [(3, 5, 2 * h, 3 * w), (3, 1, h, 4 * w), (3, 5, h, w)]
    assert {x.dtype for x in latents + decoded} == {torch.float32}
    assert all(x.abs().max() <= 1 and not x.requires_grad for x in decoded)


def test_a_stacked_batch_is_a_list(vae, config):
    batch = video_for(config, 5, batch=2)
    for latent, video in zip(vae.encode(batch), batch, strict=True):
        torch.testing.assert_close(latent, vae.encode([video])[0])


def test_latents_are_scaled_by_the_published_statistics(vae, config):
    video = video_for(config, 5)
    with torch.no_grad():
        raw = vae.model.encode(video)[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.latent_mean, vae.latent_std))
    torch.testing.assert_close(vae.encode(video)[0], (raw - mean) / std, atol=1e-4, rtol=1e-4)


def test_stream_equals_decode_and_stays_out_of_the_callers_context(vae, config):
    latent = latent_for(config, 4)
    sizes, parts = [], []
    for part in vae.decode_stream(latent):
        assert torch.is_grad_enabled()
        sizes.append(part.shape[1])
        parts.append(part)
    assert sizes == [1, 4, 4, 4]
    torch.testing.assert_close(torch.cat(parts, dim=1), vae.decode([latent])[0])


def test_the_callers_autocast_region_changes_nothing(vae, config):
    latent = latent_for(config, 2)
    expected = vae.decode([latent])[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(vae.decode([latent])[0], expected)


def test_tiling_is_an_option_that_changes_nothing(vae, config):
    latent = latent_for(config, 2, 20, 3)
    expected = vae.decode([latent])[0]
    tiled = type(vae)(model=vae.model, tiling=8 * config.stride[1])
    torch.testing.assert_close(tiled.decode([latent])[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tiled.encode([expected])[0], vae.encode([expected])[0], atol=1e-4, rtol=1e-4)


def test_bfloat16_is_close(vae, config):
    latent = latent_for(config, 2)
    exact = vae.decode([latent])[0]
    half = type(vae)(model=random_model(config), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    video = half.decode([latent])[0]
    assert video.dtype == torch.float32
    assert (video - exact).square().mean().sqrt() < 0.05


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 0, 16, 16), "at least 1 frame"),
        ((3, 5, 7, 16), r"at least (8|16) pixels wide and (8|16) high, got 16x7"),
        ((3, 5, 16, 4), "got 4x16"),
        ((1, 5, 16, 16), r"\[B, 3, T, H, W\]"),
        ((3, 16, 16), r"list of videos \[3, T, H, W\]"),
    ],
)
def test_impossible_videos_are_refused(vae, shape, message):
    with pytest.raises(ValueError, match=message):
        vae.encode([torch.zeros(shape)])


def test_sizes_between_latents_round_down_or_are_refused():
    video = torch.zeros(3, 1, 41, 55)
    assert Wan2_1_VAE(model=random_model(SMALL)).encode([video])[0].shape == (16, 1, 5, 6)
    with pytest.raises(ValueError, match=r"multiples of 16 pixels, got 55x41; the nearest size is 48x48"):
        Wan2_2_VAE(model=random_model(SMALL_2_2)).encode([video])


def test_impossible_options_are_refused(vae, config):
    z, (_, h, _) = config.z_dim, config.stride
    with pytest.raises(ValueError, match=rf"a latent must be \[{z}, T, h, w\], got \[4, 1, 2, 2\]"):
        vae.decode([torch.zeros(4, 1, 2, 2)])
    with pytest.raises(ValueError, match="with T, h, w >= 1"):
        vae.decode([torch.zeros(z, 0, 2, 2)])
    with pytest.raises(ValueError, match=rf"a latent must be \[{z}, T, h, w\]"):
        vae.decode(torch.zeros(z, 1, 2, 2))
    with pytest.raises(ValueError, match="multiple of 4 frames, got 3"):
        vae.model.encode(torch.zeros(1, 3, 5, h, h), chunk=3)
    with pytest.raises(ValueError, match=f"at least {h} pixels, got 4"):
        type(vae)(model=vae.model, tiling=4).decode([torch.zeros(z, 1, 1, 1)])


class Copies(TorchDispatchMode):
    """Within the context the meta device is a pretended GPU: how many values went to the host and came from there."""

    def __init__(self) -> None:
        super().__init__()
        self.to_host = self.from_host = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in (aten.copy_.default, aten._to_copy.default):
            return func(*args, **kwargs or {})
        result, source = (args[0], args[1]) if func is aten.copy_.default else (None, args[0])
        target = (kwargs or {}).get("device", source.device) if result is None else result.device
        if (source.device.type, target.type) == ("meta", "cpu"):
            self.to_host += source.numel()
            return torch.empty(source.shape, device="cpu", dtype=source.dtype) if result is None else result
        self.from_host += source.numel() * ((source.device.type, target.type) == ("cpu", "meta"))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("tile", [None, 8])
@torch.no_grad()
def test_pixels_come_to_the_host_once(config, tile):
    """In tiles they come as the video is put together, and otherwise when the caller takes them."""
    model = NETWORKS[type(config)](config).to("meta")
    latent = torch.empty(1, config.z_dim, 2, 20, 12, device="meta")
    with Copies() as copies:
        parts = list(model.decode_chunks(latent, tile=tile))
    assert {part.device.type for part in parts} == {"cpu" if tile else "meta"}
    assert copies.to_host == (sum(part.numel() for part in parts) if tile else 0)
    assert copies.from_host == 0
    with Copies():
        assert model.decode(latent, tile=tile).device.type == "meta"


def test_half_precision_has_a_cure_of_its_own():
    model = random_model(SMALL)
    model.decoder.conv1.weight.data.fill_(6e4)
    vae = Wan2_1_VAE(model=model, conv_dtype=torch.float16)
    with pytest.raises(FloatingPointError, match=r"decoding gave values that are not finite.*; try --vae_dtype fp32$"):
        vae.decode([torch.ones(16, 1, 4, 4)])

"""Inference gives the values of the plain blocks in less memory; half precision is close, and needs half of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.counted.live import LiveMemory
from benchmarks.counted.pretend import DEVICE, empty, place, pretended
from tests.modules.test_vae import NETWORKS, SMALL, SMALL_2_2, WRAPPERS, latent_for, random_model, video_for
from wan.checkpoint.layout import part
from wan.configs import NANO_CONFIGS, nano_checkpoint
from wan.forecast import decode_bytes
from wan.media import from_uint8
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config, Wan2_2_VAE
from wan.modules.vae_inference import prepare
from wan.nano import worlds
from wan.training.vae import psnr

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("config", [SMALL, SMALL_2_2], ids=["2.1", "2.2"])
WHOLE = [(Wan2_1_VAE, CausalVAE2_1, VAEConfig(), (90, 160)), (Wan2_2_VAE, CausalVAE2_2, VAE2_2Config(), (44, 80))]


def prepared(config, conv_dtype=None):
    model = random_model(config)
    prepare(model, CPU, conv_dtype)
    return model


def close(found, expected):
    """The last bits are those of a kernel, which a CPU also chooses by the number of frames."""
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_values_are_those_of_the_plain_blocks_however_many_frames_are_at_once(config):
    plain, model = random_model(config), prepared(config)
    z, video = latent_for(config, 6, 3, 4)[None], video_for(config, 21)
    decoded, mean = plain.decode(z, 4), plain.encode(video, 16)
    for at_once in (4, 2, 1):
        close(model.decode(z, 4, at_once=at_once), decoded)
        close(model.encode(video, 16, at_once=at_once), mean)
    assert {part.shape[2] for part in model.decode_chunks(z, at_once=2)} == {1, 2}
    assert {part.shape[2] for part in model.decode_chunks(z, at_once=1)} == {1}
    with pytest.raises(ValueError, match="frames at once can be 1, 2, 4, got 3"):
        model.decode(z, 4, at_once=3)


@pytest.mark.parametrize("flags", [(True, True, False), (True, True, True), (False, False, False)])
@BOTH
@torch.no_grad()
def test_any_order_of_temporal_stages_takes_any_number_of_frames(config, flags):
    model = random_model(replace(config, temporal_downsample=flags))
    prepare(model, CPU)
    stride = model.config.stride[0]
    video, z = video_for(config, 1 + 4 * stride, 1, 1), latent_for(config, 5, 1, 1)[None]
    for at_once in (1, 2):
        close(model.decode(z, 4, at_once=at_once), model.decode(z, 4))
        close(model.encode(video, 4 * stride, at_once=at_once), model.encode(video, 4 * stride))


@BOTH
def test_a_wrapper_takes_fewer_frames_and_tiles_together(config):
    latent = latent_for(config, 3, 20, 3)
    usual = WRAPPERS[type(config)](model=random_model(config))
    few = WRAPPERS[type(config)](model=random_model(config), frames_at_once=1)
    assert [chunk.shape[1] for chunk in few.decode_stream(latent)] == [1] * 9
    video = usual.decode([latent])[0]
    close(few.decode([latent])[0], video)
    close(few.encode([video])[0], usual.encode([video])[0])
    few.tiling = 8 * config.stride[1]
    torch.testing.assert_close(few.decode([latent])[0], video, atol=1e-4, rtol=1e-4)


@BOTH
def test_half_precision_is_that_of_convolutions_alone(config):
    vae = WRAPPERS[type(config)](model=random_model(config), conv_dtype=torch.float16)
    types = {name: weight.dtype for name, weight in vae.model.named_parameters()}
    wide = {name for name, weight in vae.model.named_parameters() if weight.ndim > 3 and max(weight.shape[2:]) > 1}
    half = {
        name.removesuffix(".weight") for name, dtype in types.items() if dtype == torch.float16 and "weight" in name
    }
    assert half == {name.removesuffix(".weight") for name in wide}
    assert not any("shortcut" in name or "norm" in name or "gamma" in name for name in half)
    assert vae.decode([latent_for(config, 2)])[0].dtype == torch.float32


@pytest.mark.parametrize("task", ["t2v-A14B", "ti2v-5B"])
def test_half_precision_is_close_on_trained_weights(task):
    """TF32 products, which a GPU uses for float32, are 88 and 91 dB from exact ones."""
    config = NANO_CONFIGS[task]
    wrapper = Wan2_1_VAE if config.z_dim == 16 else Wan2_2_VAE
    file = part(nano_checkpoint(task), config.vae_checkpoint)
    exact, half = wrapper(vae_pth=file), wrapper(vae_pth=file, conv_dtype=torch.float16)
    scene = worlds.sample_scene(np.random.default_rng(0))
    video = from_uint8(torch.from_numpy(worlds.render(scene, 5, 32))).transpose(0, 1)
    [latent] = exact.encode([video])
    assert (half.encode([video])[0] - latent).norm() < 1e-3 * latent.norm()
    difference = half.decode([latent])[0] - exact.decode([latent])[0]
    assert 80 < float(psnr(difference.square().mean())) < 95


@pytest.mark.parametrize(
    ("wrapper", "network", "config", "size", "at_once", "dtype", "limit"),
    [
        (*vae, at_once, dtype, limit)
        for vae in WHOLE
        for at_once, dtype, limit in ((2, torch.float32, 14.0), (2, torch.float16, 10.0))
    ],
)
def test_peaks_at_720p_without_tiles(wrapper, network, config, size, at_once, dtype, limit, monkeypatch):
    """Counted on the released sizes, in GB with the weights; memory does not grow with later frames."""
    monkeypatch.setattr("wan.modules.vae_wrapper.require_finite", lambda *_: None)
    with pretended():
        model = place(network, lambda name: torch.float32)
        vae = wrapper(model=model, device=DEVICE, conv_dtype=dtype, frames_at_once=at_once)
        latent = empty(config.z_dim, 2, *size)
        with LiveMemory() as memory:
            for chunk in vae.decode_stream(latent):
                del chunk
        weights = sum(weight.nbytes for weight in vae.model.parameters())
    assert memory.peak < limit * 1e9
    pixels = size[1] * config.stride[2], size[0] * config.stride[1]
    forecast = decode_bytes(config, pixels, 5, None, at_once=at_once, conv_dtype=dtype)
    assert 0.97 * memory.peak < forecast + weights < 1.08 * memory.peak, "of five frames; longer videos need some more"


class Layouts(TorchDispatchMode):
    """Within the context: the orders in memory of the inputs and weights of 3x3x3 convolutions."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and args[1].shape[2:] == (3, 3, 3):
            self.found.update(x.stride(1) == 1 for x in tree_leaves(args[:2]))
        return func(*args, **kwargs or {})


@BOTH
def test_channels_are_neighbours_on_cuda(config, monkeypatch):
    monkeypatch.setattr("wan.modules.vae_wrapper.require_finite", lambda *_: None)
    with pretended():
        model = place(lambda: NETWORKS[type(config)](config), lambda name: torch.float32)
        vae = WRAPPERS[type(config)](model=model, device=DEVICE)
        with Layouts() as layouts:
            list(vae.decode_stream(empty(config.z_dim, 3, 4, 4)))
            vae.encode([empty(3, 9, 32, 32)])
    assert layouts.found == {True}

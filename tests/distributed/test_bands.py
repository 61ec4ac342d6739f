import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.launch import launch
from wan.distributed import bands
from wan.distributed.bands import decode_in_bands, exchanging_rows
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config, Wan2_2_VAE
from wan.modules.vae_blocks import AttentionBlock, CausalConv3d, Resample

VAES = {
    "2.1": (Wan2_1_VAE, CausalVAE2_1, VAEConfig(dim=8, dim_mult=(1, 2, 2, 2), num_res_blocks=1)),
    # wide enough for the fused kernels of the CPU
    "2.1, 64 channels": (
        Wan2_1_VAE,
        CausalVAE2_1,
        VAEConfig(dim=64, dim_mult=(1, 1, 1), num_res_blocks=1, temporal_downsample=(False, True)),
    ),
    "2.2": (Wan2_2_VAE, CausalVAE2_2, VAE2_2Config(dim=8, dec_dim=8, dim_mult=(1, 2, 2, 2), num_res_blocks=1)),
}


def make(kind):
    wrapper, network, config = VAES[kind]
    model = network(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    for module in model.modules():
        if isinstance(module, AttentionBlock):  # starts as a no-op
            nn.init.normal_(module.proj.weight, std=0.2, generator=generator)
    vae = wrapper(model=model.requires_grad_(False).eval())
    latent = torch.randn(vae.model.z_dim, 6, 7, 5, generator=generator)
    return vae, latent


def in_bands(kind):
    bands.SMALL = 0
    vae, latent = make(kind)
    return list(decode_in_bands(vae, latent, init_device_mesh("cpu", (dist.get_world_size(),))))


@pytest.mark.parametrize("size, kind", [(2, "2.1"), (4, "2.1"), (2, "2.1, 64 channels"), (2, "2.2"), (4, "2.2")])
def test_bands_decode_to_the_same_chunks_on_the_first_rank(size, kind):
    vae, latent = make(kind)
    expected = list(vae.decode_stream(latent))
    first, *others = launch(size, in_bands, kind)
    assert others == [[]] * (size - 1) and len(first) == len(expected) > 2
    for a, b in zip(first, expected, strict=True):
        assert (torch.from_numpy(a) - b).abs().max() <= 1e-5 * b.abs().max()


def calls_of_the_decoder(small, tiling, rows):
    bands.SMALL = small
    vae, latent = make("2.1")
    vae.tiling, calls = tiling, []
    vae.model.decoder.conv1.register_forward_hook(lambda *_: calls.append(1))
    chunks = list(decode_in_bands(vae, latent[:, :1, :rows], init_device_mesh("cpu", (4,))))
    return len(chunks), len(calls)


@pytest.mark.parametrize("small, tiling, rows", [(0, None, 3), (0, 64, 4), (20, None, 4)])
def test_small_frames_and_tiles_are_decoded_by_the_first_alone(small, tiling, rows):
    assert launch(4, calls_of_the_decoder, small, tiling, rows) == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_larger_frames_are_decoded_by_all():
    assert launch(4, calls_of_the_decoder, 19, None, 4) == [[1, 1], [0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("kind", VAES)
def test_every_layer_that_sees_other_rows_is_known(kind):
    known = (CausalConv3d, Resample, AttentionBlock)
    decoder = make(kind)[0].model.decoder
    inside = {m for module in decoder.modules() if isinstance(module, known) for m in module.modules()}
    wide = [m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and m.kernel_size[-1] > 1]
    assert wide and all(module in inside for module in wide)


def hooks_left():
    decoder = make("2.1")[0].model.decoder
    with exchanging_rows(decoder, dist.group.WORLD, [4, 3]):
        during = sum(len(module._forward_hooks) for module in decoder.modules())
    return during, sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in decoder.modules())


def test_a_decoder_is_left_as_it_was():
    assert all(during > 10 and after == 0 for during, after in launch(2, hooks_left))

"""The blocks of the autoencoders against plain PyTorch, and the memory of attention without computing anything."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.counted.live import LiveMemory
from tests.modules.test_vae import SMALL, SMALL_2_2, random_model
from wan.modules.vae2_1 import CausalVAE2_1
from wan.modules.vae2_2 import CausalVAE2_2
from wan.modules.vae_blocks import AttentionBlock, CausalConv3d, FrameCache, Resample

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_each_frame_attends_to_itself_alone(layout, frames, monkeypatch):
    monkeypatch.setattr("wan.modules.vae_blocks.QUERIES_AT_ONCE", 16)
    block, x = AttentionBlock(8), torch.randn(2, 8, frames, 5, 7)
    y = block(x.contiguous(memory_format=layout))
    for i, t in ((i, t) for i in range(2) for t in range(frames)):
        q, k, v = block.to_qkv(block.norm(x[i : i + 1, :, t]))[0].flatten(1).chunk(3)  # [C, H*W]
        mixed = v @ (q.T @ k / 8**0.5).softmax(-1).T
        expected = x[i, :, t] + F.conv2d(mixed.unflatten(1, (5, 7))[None], block.proj.weight, block.proj.bias)[0]
        torch.testing.assert_close(y[i, :, t], expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("dim", [384, 640, 1024])  # of VAE 2.1, and of the encoder and the decoder of VAE 2.2
@pytest.mark.parametrize(
    ("kernel", "copies"), [(nullcontext, 11), (lambda: sdpa_kernel(SDPBackend.MATH), 30)], ids=["fused", "plain"]
)
def test_memory_is_linear_in_the_pixels(layout, frames, dim, kernel, copies):
    """Up to 1280x720 it is that of some copies of the input; one matrix of all pairs alone would be 38 of dim 384."""

    def peak(h: int, w: int) -> float:
        with FakeTensorMode(), torch.no_grad():
            block, x = AttentionBlock(dim), torch.empty(1, dim, frames, h, w).contiguous(memory_format=layout)
            with LiveMemory() as memory, kernel():
                block(x)
            return memory.peak / x.nbytes

    small, large = peak(90, 80), peak(90, 160)
    assert large < copies and large < 1.05 * small


FRAMES = [(1,), (2,), (5,), (1, 4), (1, 1, 2), (1, 2, 2)]  # of consecutive chunks; one chunk has no cache
RESAMPLED = [
    (mode, frames)
    for mode in ("downsample2d", "downsample3d", "upsample2d", "upsample3d")
    for frames in FRAMES
    if mode != "downsample3d" or (sum(frames) % 2 and not any(n % 2 for n in frames[1:]))  # it halves pairs
]


def filled(module):
    for i, weight in enumerate(module.parameters()):
        nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(i))
    return module.eval()


@torch.no_grad()
def in_chunks(module, x, frames):
    """Run a module on x [B, C, T, H, W] in chunks of so many frames."""
    cache = FrameCache() if len(frames) > 1 else None
    return torch.cat([module(part, cache) for part in x.split(list(frames), dim=2)], dim=2)


@torch.no_grad()
def causal(conv, x):
    """Convolve with all padding in time before the first frame, as the layer declares it."""
    time, *space = conv.padding
    return F.conv3d(F.pad(x, (0, 0, 0, 0, 2 * time, 0)), conv.weight, conv.bias, conv.stride, (0, *space))


@pytest.mark.parametrize("network", [CausalVAE2_1, CausalVAE2_2])
def test_how_every_convolution_of_the_released_vaes_is_padded_and_steps(network):
    with torch.device("meta"):
        modules = dict(network().named_modules())
    convolutions = {name: conv for name, conv in modules.items() if isinstance(conv, nn.Conv2d | nn.Conv3d)}
    assert len(convolutions) > 60
    for name, conv in convolutions.items():
        resample = modules.get(name.rpartition(".")[0].removesuffix(".resample"))
        halves = isinstance(resample, Resample) and resample.mode.startswith("downsample")
        if name.endswith("time_conv"):
            expected = ((3, 1, 1), (0, 0, 0), (2, 1, 1)) if halves else ((3, 1, 1), (1, 0, 0), (1, 1, 1))
        elif name.endswith("resample.1"):
            expected = ((3, 3), (0, 0), (2, 2)) if halves else ((3, 3), (1, 1), (1, 1))
        else:
            pointwise = conv.kernel_size[0] == 1
            expected = tuple((n,) * len(conv.kernel_size) for n in ((1, 0, 1) if pointwise else (3, 1, 1)))
            assert pointwise == name.endswith(("to_qkv", "proj", "shortcut")) or name in ("conv1", "conv2"), name
        assert (conv.kernel_size, conv.padding, conv.stride) == expected, name
        assert (set(conv.dilation), conv.groups, conv.padding_mode) == ({1}, 1, "zeros"), name


@pytest.mark.parametrize("config", [SMALL, SMALL_2_2], ids=["2.1", "2.2"])
@pytest.mark.parametrize("frames", FRAMES)
def test_every_causal_convolution_computes_what_it_declares(config, frames):
    for name, conv in random_model(config).named_modules():
        if isinstance(conv, CausalConv3d) and conv.stride[0] == 1:
            x = torch.randn(2, conv.in_channels, sum(frames), 4, 3)
            expected = causal(conv, x)
            assert expected.shape[2:] == x.shape[2:], name
            torch.testing.assert_close(in_chunks(conv, x, frames), expected, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
@pytest.mark.parametrize("mode, frames", RESAMPLED)
def test_resampling(mode, frames, size):
    module = filled(Resample(4, mode, out_dim=3 if mode.startswith("up") else None))
    x = torch.randn(2, 4, sum(frames), *size)
    torch.testing.assert_close(in_chunks(module, x, frames), resampled(module, x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def resampled(module, x):
    """Resample frame by frame; no convolution over time sees the first frame."""
    conv = module.resample[1]
    first, rest = x[:, :, :1], x[:, :, 1:]
    if module.mode == "upsample3d" and rest.shape[2]:
        early, late = causal(module.time_conv, rest).chunk(2, dim=1)
        x = torch.cat([first, torch.stack([early, late], dim=3).flatten(2, 3)], dim=2)
    frames = []
    for frame in x.unbind(2):
        if module.mode.startswith("up"):
            frames.append(F.conv2d(F.interpolate(frame, scale_factor=2), conv.weight, conv.bias, padding=1))
        else:
            frames.append(F.conv2d(F.pad(frame, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2))
    x = torch.stack(frames, dim=2)
    if module.mode == "downsample3d" and rest.shape[2]:
        halved = F.conv3d(x, module.time_conv.weight, module.time_conv.bias, stride=(2, 1, 1))
        x = torch.cat([x[:, :, :1], halved], dim=2)
    return x

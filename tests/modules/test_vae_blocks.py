"""The attention block of the autoencoders: its numbers, and its memory without computing anything."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.live_memory import LiveMemory
from wan.modules.vae_blocks import AttentionBlock

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

import pytest
import torch
from torch import nn

from wan.modules.layers import Linear
from wan.modules.packed import PackedFeedForward, PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.bfloat16), reason="this processor or PyTorch has no packed bfloat16 product"
)


def mlp():
    module = nn.Sequential(Linear(64, 96), nn.GELU("tanh"), Linear(96, 32))
    for i, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
    return module.requires_grad_(False)


def test_packed_layers_are_as_close_to_float32_as_plain_bfloat16(monkeypatch):
    x = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(9))
    exact = mlp()(x)
    module = mlp().bfloat16()
    plain = module(x).float()
    parent = nn.Sequential(module)
    pack_linears(parent)
    packed = parent(x)
    assert isinstance(parent[0], PackedFeedForward)
    with monkeypatch.context() as patch:
        patch.setattr("wan.modules.packed.SLICE_ROWS", 16)
        torch.testing.assert_close(parent(x), packed)
    assert packed.dtype == torch.bfloat16
    error = (packed.float() - exact).square().mean().sqrt()
    assert error <= 1.2 * (plain - exact).square().mean().sqrt()


def test_float32_layers_and_exact_gelu_are_left_alone():
    module = nn.Sequential(Linear(8, 8), nn.GELU())
    pack_linears(module)
    assert type(module[0]) is Linear
    module = module.bfloat16()
    pack_linears(module)
    assert isinstance(module[0], PackedLinear) and isinstance(module[1], nn.GELU)


def test_only_a_cpu_in_bfloat16_packs():
    assert not can_pack(torch.device("cuda"), torch.bfloat16)
    assert not can_pack(torch.device("cpu"), torch.float32)

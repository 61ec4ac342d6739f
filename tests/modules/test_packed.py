"""Packed layers: the choice of layers is tested on any processor, their values where it has packed products."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wan.modules import packed
from wan.modules.layers import Linear
from wan.modules.packed import PackedFeedForward, PackedLinear, can_pack, pack_linears

CPU, HALF = torch.device("cpu"), torch.bfloat16


@pytest.fixture(params=["real", "written out"])
def products(request, monkeypatch):
    """Packed products of this processor, if it has them, and plain ones with the documented result."""
    if request.param == "real":
        if not can_pack(CPU, HALF):
            pytest.skip("this processor or PyTorch has no packed bfloat16 product")
        return

    def product(x, weight, bias, post, scalars, algorithm):
        assert x.dtype == weight.dtype == HALF and scalars == []
        assert (post, algorithm) in (("none", ""), ("gelu", "tanh"))
        exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return (F.gelu(exact, approximate="tanh") if post == "gelu" else exact).to(HALF)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", product)


def filled(module):
    for i, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
    return module.requires_grad_(False)


def mlp(activation=None, bias=True):
    return filled(nn.Sequential(Linear(64, 96, bias), activation or nn.GELU("tanh"), Linear(96, 32, bias)))


@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_are_as_close_to_float32_as_plain_bfloat16(products, monkeypatch, bias):
    x = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(9))
    exact = mlp(bias=bias)(x)
    module = mlp(bias=bias).bfloat16()
    plain = module(x).float()
    parent = nn.Sequential(module)
    pack_linears(parent)
    whole = parent(x)
    assert isinstance(parent[0], PackedFeedForward)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "SLICE_ROWS", 16)
        torch.testing.assert_close(parent(x), whole)
    assert whole.dtype == HALF
    error = (whole.float() - exact).square().mean().sqrt()
    assert error <= 1.2 * (plain - exact).square().mean().sqrt()


@pytest.mark.parametrize("activation", [nn.GELU("none"), nn.SiLU(), nn.Identity()], ids=str)
def test_another_activation_stays_and_the_layers_around_it_are_packed(products, activation):
    x = torch.randn(2, 5, 64)
    module = nn.Sequential(mlp(activation).bfloat16())
    plain = module(x)
    pack_linears(module)
    assert [type(layer) for layer in module[0]] == [PackedLinear, type(activation), PackedLinear]
    torch.testing.assert_close(module(x), plain, atol=0.02, rtol=0.02)


def chain(*dtypes, kind=Linear, extra=()):
    first, second = (kind(8, 8).to(dtype) for dtype in dtypes)
    return nn.Sequential(first, nn.GELU("tanh"), second, *extra)


@pytest.mark.parametrize(
    "layers, types",
    [
        (chain(HALF, torch.float32), [PackedLinear, nn.GELU, Linear]),
        (chain(torch.float32, HALF), [Linear, nn.GELU, PackedLinear]),
        (chain(torch.float32, torch.float32), [Linear, nn.GELU, Linear]),
        (chain(HALF, HALF, kind=nn.Linear), [nn.Linear, nn.GELU, nn.Linear]),  # computes in another dtype than its own
        (chain(HALF, HALF, extra=[nn.GELU("tanh")]), [PackedLinear, nn.GELU, PackedLinear, nn.GELU]),
        (chain(HALF, HALF)[:2], [PackedLinear, nn.GELU]),
    ],
)
def test_only_two_bfloat16_layers_of_ours_around_a_gelu_tanh_are_one(products, layers, types):
    parent = nn.Sequential(deepcopy(layers))
    pack_linears(parent)
    assert [type(layer) for layer in parent[0]] == types


def test_layers_are_found_at_any_depth_and_float32_is_left_alone(products):
    module = nn.ModuleDict({"a": nn.ModuleList([chain(HALF, HALF)]), "b": Linear(8, 8).bfloat16(), "c": Linear(8, 8)})
    pack_linears(module)
    kinds = type(module["a"][0]), type(module["b"]), type(module["c"])
    assert kinds == (PackedFeedForward, PackedLinear, Linear)


@pytest.mark.parametrize("rows, products_made", [(1, 1), (16, 1), (17, 2), (40, 3)])
def test_long_inputs_pass_in_slices(products, monkeypatch, rows, products_made):
    parent = nn.Sequential(mlp().bfloat16())
    pack_linears(parent)
    sizes = []
    parent[0].up.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    monkeypatch.setattr(packed, "SLICE_ROWS", 16)
    assert parent(torch.zeros(2, rows, 64)).shape == (2, rows, 32)
    assert len(sizes) == products_made and sum(sizes) == rows and max(sizes) <= 16


def test_only_a_cpu_with_the_products_packs_and_only_bfloat16(monkeypatch):
    monkeypatch.setattr(packed, "has_bfloat16_products", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", print)
    assert can_pack(CPU, HALF)
    assert not can_pack(torch.device("cuda"), HALF)
    assert not can_pack(CPU, torch.float32)
    monkeypatch.setattr(packed, "has_bfloat16_products", lambda: False)
    assert not can_pack(CPU, HALF)


@pytest.mark.parametrize("has_mkldnn, has_products", [(True, True), (True, False), (False, True)])
def test_products_need_the_library_and_the_processor(monkeypatch, has_mkldnn, has_products):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_mkldnn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_products)
    assert packed.has_bfloat16_products() == (has_mkldnn and has_products)

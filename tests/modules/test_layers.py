import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wan.modules import layers
from wan.modules.layers import (
    FeedForward,
    Float32Linear,
    Linear,
    WanLayerNorm,
    WanRMSNorm,
    fuses_gelu_tanh,
    norm_modulate,
    replace_linears,
    sinusoidal_embedding_1d,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_linear_computes_in_the_dtype_of_its_weights():
    layer = Linear(4, 3).bfloat16()
    assert layer(randn(2, 4)).dtype == torch.bfloat16


def test_linears_are_swapped_at_any_depth_and_several_as_one():
    pair = nn.Sequential(Linear(4, 4), nn.GELU(), Linear(4, 4))
    module = nn.ModuleDict({"deep": nn.ModuleList([nn.Sequential(Linear(4, 4), nn.SiLU())]), "pair": pair})

    def make(child):
        if child is pair:
            return nn.Identity()
        return Float32Linear(4, 4) if isinstance(child, Linear) else None

    replace_linears(module, make)
    assert [type(layer) for layer in module["deep"][0]] == [Float32Linear, nn.SiLU]
    assert isinstance(module["pair"], nn.Identity)


def test_a_float32_linear_stays_float32_with_half_weights_and_under_autocast():
    layer = Float32Linear(4, 3)
    x = randn(2, 4)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.float32


def test_rms_norm_is_its_formula_and_rounds_before_the_weight():
    norm = WanRMSNorm(6, eps=1e-6)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = randn(3, 6)
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(norm(x), expected * norm.weight)
    half = norm(x.bfloat16())
    assert half.dtype == torch.float32, "a float32 weight widens the rounded value"
    rounded = (x.bfloat16().float() * (x.bfloat16().float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()).bfloat16()
    torch.testing.assert_close(half, rounded * norm.weight)


def test_layer_norm_keeps_the_dtype_of_its_input():
    assert WanLayerNorm(6)(randn(2, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("as_vectors", [True, False])
def test_modulation_equals_its_formula_in_both_forms(as_vectors):
    x, shift, scale = randn(1, 5, 8), randn(8, seed=1), randn(8, seed=2)
    expected = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    if not as_vectors:
        shift, scale = shift[None, None], scale[None, None]
    torch.testing.assert_close(norm_modulate(x, shift, scale, 1e-6), expected)


def test_a_half_stream_is_rounded_between_norm_and_modulation():
    x = randn(1, 5, 8).bfloat16()
    shift, scale = randn(8, seed=1), randn(8, seed=2)
    expected = F.layer_norm(x.float(), (8,), eps=1e-6).bfloat16().float() * (1 + scale) + shift
    torch.testing.assert_close(norm_modulate(x, shift, scale, 1e-6), expected)


def test_the_embedding_has_cosines_first():
    features = sinusoidal_embedding_1d(4, torch.tensor([0, 100]))
    assert features.dtype == torch.float64
    assert features[0].tolist() == [1, 1, 0, 0]
    angles = torch.tensor([100.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(features[1], torch.cat([angles.cos(), angles.sin()]))
    with pytest.raises(ValueError, match="even"):
        sinusoidal_embedding_1d(3, torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_that_applies_another_gelu_is_found_out(monkeypatch, dtype):
    device = torch.device("cpu")
    assert not fuses_gelu_tanh(device, dtype), "on a CPU it computes erf"
    monkeypatch.setattr(layers, "product_with_gelu", lambda *operands: with_tanh(*operands))
    assert fuses_gelu_tanh.__wrapped__(device, dtype)
    monkeypatch.setattr(layers, "product_with_gelu", with_no_kernel)
    assert not fuses_gelu_tanh.__wrapped__(device, dtype)


def with_tanh(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias).float(), approximate="tanh").to(x.dtype)


def with_no_kernel(x, weight, bias):
    raise NotImplementedError("no such kernel")


def test_a_fused_gelu_is_used_for_inference_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(layers, "product_with_gelu", lambda *operands: calls.append(1) or with_tanh(*operands))
    feed_forward, x = FeedForward(6, 16), randn(2, 5, 6)
    expected = feed_forward(x).detach()
    feed_forward.has_fused_gelu = True
    assert feed_forward(x).requires_grad and not calls
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(x), expected)
    assert len(calls) == 1

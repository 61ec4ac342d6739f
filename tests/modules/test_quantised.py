"""Weights in 8 bits: the error of a layer and of a whole model, what is kept, and how it goes with other flags."""

import pytest
import torch
import torch.nn.functional as F

from wan.checking import expert_config
from wan.configs import NANO_CONFIGS, nano_checkpoint
from wan.experts import load_expert
from wan.forecast import dit_parts
from wan.modules import quantised
from wan.modules.layers import AdaptedLinear, Linear
from wan.modules.quantised import TYPES, QuantisedLinear, quantise
from wan.parallel import Parallel
from wan.runtime import Offload, Runtime

CONFIG = NANO_CONFIGS["t2v-A14B"]
KINDS = pytest.mark.parametrize("kind", TYPES)
ERROR = {"int8": 0.012, "fp8": 0.032}  # of a product with normal weights, relative; 2**-4 / sqrt(12) and some for fp8


def load(kind=None, dtype="bf16", beside=None, **options):
    runtime = Runtime.from_flags(device="cpu", dtype=dtype, quantize=kind, **options)
    return load_expert(nano_checkpoint("t2v-A14B"), CONFIG, CONFIG.experts[0], runtime, Offload.NONE, beside=beside)


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


@KINDS
def test_values_and_scales_of_every_channel(kind):
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 24)[:, None]
    weight[5] = 0
    values, scale = quantise(weight, TYPES[kind], torch.bfloat16)
    assert values.dtype == TYPES[kind] and torch.equal(scale, scale.bfloat16().float())
    restored = values.float() * scale
    assert torch.equal(restored[5], torch.zeros(64)) and restored.isfinite().all()
    for row, exact in zip(restored[weight.any(1)], weight[weight.any(1)], strict=True):
        assert relative(row, exact) < ERROR[kind]


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_of_a_layer_is_that_of_its_weights(kind, dtype):
    torch.manual_seed(0)
    linear, x = Linear(96, 160).to(dtype).requires_grad_(False), torch.randn(2, 33, 96, dtype=dtype)
    layer = QuantisedLinear(linear, TYPES[kind])
    restored = layer.weight.float() * layer.scale[:, None]
    expected = F.linear(x.float(), restored, linear.bias.float())
    assert layer(x).dtype == dtype
    assert relative(layer(x).float(), expected) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert relative(layer(x).float(), F.linear(x.float(), linear.weight.float(), linear.bias.float())) < ERROR[kind]
    assert layer.weight.nbytes == 96 * 160


def test_the_product_of_8_bits_is_close(monkeypatch):
    """A CPU has that of int8 too; with the types of a GPU the input is rounded as well."""
    torch.manual_seed(0)
    linear, x = Linear(96, 160).bfloat16().requires_grad_(False), torch.randn(2, 33, 96).bfloat16()
    layer = QuantisedLinear(linear, torch.int8)
    exact = F.linear(x.float(), linear.weight.float(), linear.bias.float())
    monkeypatch.setattr(quantised, "multiplies", lambda device, kind: True)
    found = layer(x)
    assert found.shape == (2, 33, 160) and found.dtype == torch.bfloat16
    assert relative(found.float(), exact) < 2 * ERROR["int8"]
    monkeypatch.setattr(quantised, "scaled_product", None)
    layer(x[:, :4])  # too few rows for that kernel


@KINDS
def test_the_trunk_is_quantised_and_what_is_sensitive_stays(kind):
    model, plain = load(kind), load(dtype="fp32")
    sources = dict(plain.named_modules())
    done = {name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    assert done == {name for name, m in sources.items() if type(m) is Linear and name.startswith("blocks.")}
    assert not any(name.startswith(("time", "head", "text", "patch")) or "norm" in name for name in done)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if model.keeps_float32(name) else torch.bfloat16), name
    for name in done:
        layer = model.get_submodule(name)
        restored = layer.weight.float() * layer.scale[:, None]
        assert relative(restored, sources[name].weight) < 1.3 * ERROR[kind], name


@KINDS
@torch.no_grad()
def test_a_velocity_of_trained_weights_is_close(kind):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 2, 8, 8, generator=generator)
    plain, model = load(dtype="fp32"), load(kind, dtype="fp32")
    text = torch.randn(9, plain.config.text_dim, generator=generator)
    t = torch.tensor([700.0])
    exact, found = (m([x], t, [text], 32)[0] for m in (plain, model))
    assert 0 < relative(found, exact) < {"int8": 0.03, "fp8": 0.08}[kind]


def test_a_lora_works_beside_it():
    dim, rank = 32, 2
    plain = Linear(dim, dim).bfloat16().requires_grad_(False)
    adapted = AdaptedLinear(plain, torch.ones(rank, dim), torch.ones(dim, rank), 0.5)
    model = torch.nn.Sequential(adapted)
    x = torch.randn(3, dim).bfloat16()
    before = adapted(x)
    quantised.quantise_linears(model, "int8")
    assert isinstance(adapted.linear, QuantisedLinear) and adapted.down.dtype == torch.bfloat16
    assert relative(model(x).float(), before.float()) < ERROR["int8"]


def test_what_cannot_work_is_refused_with_what_does():
    spread = Parallel(2, ulysses_size=2, dit_fsdp=True)
    with pytest.raises(ValueError, match="leave --dit_fsdp out: --quantize works with --ulysses_size and with --off"):
        Runtime(torch.device("cpu"), quantize="int8", parallel=spread)
    with pytest.raises(ValueError, match=r"--quantize fp8 does not run on Apple's GPU.*try --quantize int8"):
        Runtime(torch.device("mps"), quantize="fp8")
    with pytest.raises(ValueError, match="--quantize must be one of int8, fp8, got 'int4'"):
        Runtime(torch.device("cpu"), quantize="int4")


@KINDS
def test_the_forecast_knows_the_bytes(kind):
    folder, device = nano_checkpoint("t2v-A14B"), torch.device("cuda")
    plain, model = load(), load(kind)
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert weights < 0.8 * sum(t.nbytes for t in plain.parameters())
    runtime = Runtime(device, quantize=kind)
    parts = dit_parts(CONFIG, expert_config(folder, CONFIG, CONFIG.experts[0]), runtime)
    assert sum(parts.steps) + parts.rest == weights

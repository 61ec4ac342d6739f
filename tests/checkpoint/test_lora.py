"""Adapters from files of every dialect: used to the last tensor or refused, and the same merged or beside weights."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint.published import manifest
from wan.checkpoint.lora import PEFT_CONFIG, PEFT_WEIGHTS, Lora
from wan.modules.layers import AdaptedLinear, Linear

LAYERS = {"blocks.0.self_attn.q": (6, 4), "blocks.0.cross_attn.k_img": (4, 4), "blocks.1.ffn.0": (8, 4)}
WEIGHTS = {f"{layer}.weight": shape for layer, shape in LAYERS.items()} | {
    **{"blocks.0.norm3.weight": (4,), "blocks.0.ffn.0.bias": (8,), "head.head.weight": (4, 4)},
    **{"blocks.1.ffn.2.weight": (4, 8), "patch_embedding.weight": (4, 4, 1, 2, 2)},
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FACTORS = {
    layer: (randn(2 + number, into, seed=number), randn(out, 2 + number, seed=9 + number))  # ranks differ
    for number, (layer, (out, into)) in enumerate(LAYERS.items())
}


def peft(prefix=""):
    names = {layer: f"{prefix}{layer}" for layer in LAYERS}
    pairs = [
        (f"{names[layer]}.lora_{part}.weight", factor)
        for layer, fs in FACTORS.items()
        for part, factor in zip("AB", fs)
    ]
    return dict(pairs)


def kohya(alphas=()):
    state = {}
    for layer, factors in FACTORS.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        state |= {f"{name}.lora_{part}.weight": factor for part, factor in zip(("down", "up"), factors)}
        state |= {f"{name}.alpha": torch.tensor(float(alpha)) for alpha in alphas}
    return state


def saved(path, state):
    save_file(state, path)
    return path


def expected(scale_of=lambda rank: 1.0):
    return {layer: scale_of(len(down)) * up @ down for layer, (down, up) in FACTORS.items()}


def differences(lora):
    zeros = {name: lora.merge(name, torch.zeros(shape)) for name, shape in WEIGHTS.items()}
    changed = {name.removesuffix(".weight"): tensor for name, tensor in zeros.items() if tensor.any()}
    assert changed.keys() == LAYERS.keys()
    return changed


@pytest.mark.parametrize(
    ("state", "scale_of"),
    [
        (peft(), lambda rank: 1.0),
        (peft("base_model.model."), lambda rank: 1.0),
        (kohya(), lambda rank: 1.0),
        (kohya(alphas=[6]), lambda rank: 6 / rank),
    ],
)
def test_dialects_and_scales(tmp_path, state, scale_of):
    lora = Lora(saved(tmp_path / "x.safetensors", state), WEIGHTS)
    torch.testing.assert_close(differences(lora), expected(scale_of))
    assert str(lora) == "3 of 4 layers", "two-dimensional weights below blocks"


@pytest.mark.parametrize(
    ("more", "scale_of"), [({}, lambda rank: 6 / rank), ({"use_rslora": True}, lambda r: 6 / r**0.5)]
)
def test_a_folder_of_peft_says_its_scale(tmp_path, more, scale_of):
    saved(tmp_path / PEFT_WEIGHTS, peft("base_model.model."))
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"lora_alpha": 6, "r": 2, "rank_pattern": {}} | more))
    torch.testing.assert_close(differences(Lora(tmp_path, WEIGHTS)), expected(scale_of))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "must give lora_alpha as a number"),
        ({"lora_alpha": "6"}, "must give lora_alpha as a number"),
        ({"lora_alpha": 6, "use_dora": True}, "use_dora True, which this version does not know"),
        ({"lora_alpha": 6, "rank_pattern": {"q": 3}}, "rank_pattern"),
    ],
)
def test_a_config_of_another_kind_of_adapter_is_refused(tmp_path, config, words):
    saved(tmp_path / PEFT_WEIGHTS, peft())
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as caught:
        Lora(tmp_path, WEIGHTS)
    assert str(tmp_path / PEFT_CONFIG) in str(caught.value)


def test_the_released_file_adapts_480_of_480_layers(tmp_path, monkeypatch):
    """It is a pickled dict with other entries beside the tensors, which are those of the manifest."""
    names, model = manifest("wan_animate_relighting_lora"), manifest("wan_animate_14B")
    torch.save({"state_dict": {name: torch.zeros(0) for name in names}, "epoch": 1}, tmp_path / "relighting_lora.ckpt")
    monkeypatch.setattr("wan.checkpoint.source.TensorSource.shape", lambda self, name: names[name])
    lora = Lora(tmp_path / "relighting_lora.ckpt", model)
    assert str(lora) == "480 of 480 layers" and {pair.scale for pair in lora.pairs.values()} == {1.0}
    assert {pair.down for pair in lora.pairs.values()} | {pair.up for pair in lora.pairs.values()} == names.keys()


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


Q = "blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        (
            peft() | {f"blocks.{n}.attn1.to_q.lora_{part}.weight": randn(2, 2) for n in range(3) for part in "AB"},
            ["6 of layers that the model does not have", "blocks.{0..2}.attn1.to_q.lora_A.weight (3)"],
        ),
        (kohya() | {"lora_unet_blocks_7_q.alpha": torch.ones(())}, ["lora_unet_blocks_7_q.alpha"]),
        (peft() | {f"{Q}.diff_b": randn(2)}, ["1 of a form that this version does not know", f"{Q}.diff_b"]),
        (peft() | {f"{Q}.lora_A.default.weight": randn(2, 4)}, ["of a form", f"{Q}.lora_A.default.weight"]),
        (without(peft(), f"{Q}.lora_B.weight"), ["1 without their counterpart", f"{Q}.lora_A.weight"]),
        (peft() | {f"base_model.model.{Q}.lora_A.weight": randn(2, 4)}, ["1 of a layer that has another one"]),
        (
            peft() | {f"{Q}.lora_A.weight": randn(2, 5)},
            ["1 of another shape", "[6, 2] and the other factor [2, 5]:"],
        ),
        (peft() | {f"{Q}.lora_A.weight": randn(3, 4)}, ["1 of another shape"]),
        (peft() | {f"{Q}.alpha": randn(3)}, ["its alpha is not one number"]),
        (peft() | {f"{Q}.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)}, ["1 of a type", "torch.int8"]),
    ],
)
def test_a_tensor_that_cannot_be_used_refuses_the_file(tmp_path, state, lines):
    with pytest.raises(ValueError) as caught:
        Lora(saved(tmp_path / "x.safetensors", state), WEIGHTS)
    text = str(caught.value)
    assert f"{tmp_path / 'x.safetensors'} is refused: not all of its {len(state)} tensors can be used" in text
    assert all(line in text for line in lines), text


def test_a_missing_or_empty_file_and_numbers_that_are_none(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match=r"there is no LoRA .*relighting_lora\.ckpt"):
        Lora(tmp_path / "relighting_lora.ckpt", WEIGHTS)
    torch.save({}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="holds no LoRA"):
        Lora(tmp_path / "x.ckpt", WEIGHTS)
    with pytest.raises(ValueError, match=r"q.alpha is nan, not a number"):
        Lora(saved(tmp_path / "nan.safetensors", peft() | {f"{Q}.alpha": torch.tensor(torch.nan)}), WEIGHTS)
    caplog.set_level(logging.WARNING)
    lora = Lora(saved(tmp_path / "zero.safetensors", peft() | {f"{Q}.alpha": torch.tensor(0.0)}), WEIGHTS)
    assert lora.pairs[Q].scale == 0 and "its adapter has no effect" in caplog.text


def test_merging_adds_in_float32_and_leaves_other_tensors_alone(tmp_path):
    lora = Lora(saved(tmp_path / "x.safetensors", {name: f.bfloat16() for name, f in peft().items()}), WEIGHTS)
    weight, down, up = (tensor.bfloat16() for tensor in (randn(6, 4, seed=5), *FACTORS[Q]))
    merged = lora.merge(f"{Q}.weight", weight)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, weight.float() + up.float() @ down.float())
    bias = randn(8)
    assert lora.merge("blocks.0.ffn.0.bias", bias) is bias and lora.merge(f"{Q}.bias", bias) is bias


def test_an_adapter_beside_a_layer_equals_the_merged_one(tmp_path):
    lora = Lora(saved(tmp_path / "x.safetensors", kohya(alphas=[3])), WEIGHTS)
    linear, x = Linear(4, 6), randn(5, 4, seed=3)
    adapted = AdaptedLinear(linear, *lora.factors(Q))
    with torch.no_grad():
        found = adapted(x)
        linear.weight.copy_(lora.merge(f"{Q}.weight", linear.weight))
        torch.testing.assert_close(found, linear(x))

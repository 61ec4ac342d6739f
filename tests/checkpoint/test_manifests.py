"""Every name and shape of the released checkpoints, against the real configurations on the meta device."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from wan.checkpoint.formats import COMFYUI_PREFIX
from wan.checkpoint.loading import load_module, match_names
from wan.checkpoint.source import TensorSource
from wan.modules.animate import WanAnimateModel
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.t5 import T5Config, T5Encoder
from wan.modules.vae2_1 import CausalVAE2_1
from wan.modules.vae2_2 import CausalVAE2_2

DATA = Path(__file__).parents[1] / "data" / "state_dict"
TRANSFORMERS = ("wan_t2v_A14B", "wan_i2v_A14B", "wan_ti2v_5B")
AUTOENCODERS = {"wan2_1_vae": CausalVAE2_1, "wan2_2_vae": CausalVAE2_2}


def manifest(name: str) -> dict:
    content = json.loads((DATA / f"{name}.json").read_text())
    return content if "tensors" in content else {"tensors": content}


class ManifestSource(TensorSource):
    """Checkpoint that has only names and shapes."""

    def __init__(self, shapes: dict[str, list[int]], rename=lambda name: name):
        self.description = "a published checkpoint"
        self._shapes = {rename(name): tuple(shape) for name, shape in shapes.items()}

    def names(self):
        return list(self._shapes)

    def shape(self, name):
        return self._shapes[name]

    def dtype(self, name):
        return torch.float32

    def get(self, name):
        raise AssertionError("a manifest has no values")


def transformer(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "wan_animate_14B":
            return WanAnimateModel()
        return WanModel(WanModelConfig.from_dict(manifest(name)["about"]["config"]))


def text_encoder() -> nn.Module:
    with torch.device("meta"):
        return T5Encoder(T5Config.from_state(manifest("umt5_xxl_encoder")["tensors"]))


def autoencoder(name: str) -> nn.Module:
    with torch.device("meta"):
        return AUTOENCODERS[name]()


def build(name: str) -> nn.Module:
    if name in (*TRANSFORMERS, "wan_animate_14B"):
        return transformer(name)
    return autoencoder(name) if name in AUTOENCODERS else text_encoder()


@pytest.mark.parametrize("name", [*TRANSFORMERS, "wan_animate_14B", "umt5_xxl_encoder", *AUTOENCODERS])
def test_every_name_and_shape(name):
    published = {key: tuple(shape) for key, shape in manifest(name)["tensors"].items()}
    model = build(name)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == published
    assert match_names(model, ManifestSource(published)) == {key: key for key in published}


@pytest.mark.parametrize("name", [*TRANSFORMERS, "umt5_xxl_encoder"])
def test_counts(name):
    about = manifest(name)
    parameters = list(build(name).parameters())
    assert len(parameters) == about["tensor_count"]
    assert sum(parameter.numel() for parameter in parameters) == about["parameter_count"]


def test_configurations_are_inferred_from_the_tensors():
    t5 = T5Config.from_state(manifest("umt5_xxl_encoder")["tensors"])
    published = manifest("umt5_xxl_encoder")["about"]["config"]
    assert {name: getattr(t5, name) for name in vars(t5)} == {name: published[name] for name in vars(t5)}
    for name, network in AUTOENCODERS.items():
        assert network.config_class.from_state(manifest(name)["tensors"]) == network.config_class()


def test_comfyui_prefix_and_both_families_of_published_names_fit():
    shapes = manifest("wan_t2v_A14B")["tensors"]
    stored = match_names(transformer("wan_t2v_A14B"), ManifestSource(shapes, lambda name: COMFYUI_PREFIX + name))
    assert stored["blocks.39.ffn.2.bias"] == COMFYUI_PREFIX + "blocks.39.ffn.2.bias"
    for name, renames in json.loads((DATA / "vae_diffusers_keymap.json").read_text())["map"].items():
        stored = match_names(autoencoder(name), ManifestSource(manifest(name)["tensors"], renames.__getitem__))
        assert stored == renames


@pytest.mark.parametrize(
    ("wanted", "given", "lines"),
    [
        (
            "wan_t2v_A14B",
            "wan_i2v_A14B",
            ["patch_embedding.weight: [5120, 36, 1, 2, 2] in the file, [5120, 16, 1, 2, 2] needed", "I2V-A14B expert"],
        ),
        (
            "wan_t2v_A14B",
            "wan_ti2v_5B",
            [
                "blocks.{30..39}.self_attn.q.weight (10)",
                "blocks.{0..29}.self_attn.q.weight (30)",
                "the TI2V-5B transformer",
            ],
        ),
        ("wan_t2v_A14B", "umt5_xxl_encoder", ["1095 missing", "242 unexpected", "the umT5 text encoder"]),
        ("umt5_xxl_encoder", "wan_t2v_A14B", ["blocks.{0..23}.attn.q.weight (24)", "a T2V-A14B expert"]),
        ("wan2_1_vae", "wan_t2v_A14B", ["a T2V-A14B expert"]),
    ],
)
def test_a_file_of_another_model_is_refused_in_few_lines(wanted, given, lines):
    with pytest.raises(ValueError) as caught:
        load_module(lambda: build(wanted), ManifestSource(manifest(given)["tensors"]))
    message = str(caught.value)
    assert all(line in message for line in lines), message
    assert len(message.splitlines()) < 100, message


@pytest.mark.parametrize(
    ("wanted", "given", "words"),
    [
        ("wan2_1_vae", "wan2_2_vae", r"not the tensors of VAE 2\.1; they look like VAE 2\.2 \(Wan2\.2_VAE\.pth"),
        ("wan2_2_vae", "wan2_1_vae", r"not the tensors of VAE 2\.2; they look like VAE 2\.1 \(Wan2\.1_VAE\.pth"),
        ("wan2_2_vae", "wan_ti2v_5B", r"not the tensors of VAE 2\.2; they look like the TI2V-5B transformer"),
    ],
)
def test_an_autoencoder_is_told_from_other_models_in_one_line(wanted, given, words):
    shapes = {name: tuple(shape) for name, shape in manifest(given)["tensors"].items()}
    with pytest.raises(ValueError, match=words) as caught:
        AUTOENCODERS[wanted].config_class.from_state(shapes)
    assert "\n" not in str(caught.value)

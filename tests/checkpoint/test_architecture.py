import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.published import WEIGHTS, core_map, diffusers_config, make_diffusers, manifest, write_header
from wan.checkpoint.architecture import inferred_fields, released_fields
from wan.checkpoint.formats import COMFYUI_PREFIX
from wan.checkpoint.loading import read_config
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.modules.model import WanModel, WanModelConfig
from wan.nano.random import write_random_checkpoint

TRANSFORMERS = {"t2v-A14B": "wan_t2v_A14B", "i2v-A14B": "wan_i2v_A14B", "ti2v-5B": "wan_ti2v_5B"}


@pytest.fixture
def expert(tmp_path):
    return write_random_checkpoint(tmp_path / "nano") / "low_noise_model"


@pytest.mark.parametrize("task", TRANSFORMERS)
def test_diffusers_fields_say_what_released_ones_say(task):
    released = WAN_CONFIGS[task].architecture()
    known = WanModelConfig.from_dict(released)
    assert WanModelConfig.from_dict(released_fields(diffusers_config(released))) == known


@pytest.mark.parametrize("task", TRANSFORMERS)
def test_shapes_of_released_sizes_say_what_the_config_says(task):
    shapes = manifest(TRANSFORMERS[task])
    assert WanModelConfig.from_dict(inferred_fields(shapes)) == WanModelConfig.from_dict(
        WAN_CONFIGS[task].architecture()
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_dim": 1280, "added_kv_proj_dim": 5120}, "image_dim 1280, added_kv_proj_dim 5120"),
        ({"_class_name": "WanVACETransformer3DModel", "vace_layers": [0, 5]}, "WanVACETransformer3DModel"),
        ({"qk_norm": "layer_norm"}, "qk_norm 'layer_norm'"),
        ({"qk_norm": ["rms_norm"]}, "qk_norm"),
        ({"attention_head_dim": "128"}, "attention_head_dim '128'"),
        ({"num_attention_heads": None}, "num_attention_heads None"),
    ],
)
def test_other_models_of_diffusers_are_refused(expert, fields, words):
    make_diffusers(expert, **fields)
    with pytest.raises(ValueError, match=r"config\.json: ") as caught:
        WanModel.from_pretrained(expert)
    assert words in str(caught.value)


def test_a_diffusers_folder_loads_as_the_released_one(expert):
    before = WanModel.from_pretrained(expert)
    make_diffusers(expert)
    after = WanModel.from_pretrained(expert)
    same(before, after)
    assert before.config.num_heads == after.config.num_heads == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_single_file_with_its_config_beside_it(expert, suffix):
    file = expert / f"any name{suffix}"
    state = load_file(expert / WEIGHTS)
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    same(WanModel.from_pretrained(file), WanModel.from_pretrained(expert, dtype=None))
    same(WanModel.from_pretrained(str(expert), file.name), WanModel.from_pretrained(expert / WEIGHTS))


def test_a_single_file_of_a_size_that_was_never_published_needs_its_config(expert, tmp_path):
    shutil.copy(expert / WEIGHTS, tmp_path / "alone.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no config\.json, and no published model has dim 32.*number of att"):
        WanModel.from_pretrained(tmp_path / "alone.safetensors")


def test_a_file_of_something_else_says_what_it_looks_like(tmp_path):
    write_header(tmp_path / "a.safetensors", manifest("wan2_1_vae"))
    with pytest.raises(FileNotFoundError, match=r"they look like VAE 2\.1"):
        WanModel.from_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize("task", TRANSFORMERS)
@pytest.mark.parametrize("naming", ["released", "diffusers", "comfyui"])
def test_a_published_single_file_needs_no_config(task, naming, tmp_path):
    shapes, released = manifest(TRANSFORMERS[task]), WAN_CONFIGS[task].architecture()
    if naming == "diffusers":
        shapes = {core_map("dit", released["num_layers"])[name]: shape for name, shape in shapes.items()}
    elif naming == "comfyui":
        shapes = {COMFYUI_PREFIX + name: shape for name, shape in shapes.items()}
    write_header(tmp_path / "model.safetensors", shapes, "F16")
    known = WanModelConfig.from_dict(released)
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert WanModelConfig.from_dict(read_config(place)) == known


def test_a_config_beside_wins_over_what_shapes_tell(tmp_path):
    write_header(tmp_path / "model.safetensors", manifest("wan_ti2v_5B"))
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 12}))
    assert read_config(tmp_path / "model.safetensors") == {"num_heads": 12}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "has no config.json; it is a checkpoint of t2v-A14B, and a model folder is needed"),
        ("google", "google has no config.json; it is a part of the t2v-A14B checkpoint"),
        ("nowhere", "there is no model"),
        ("Wan2.1_VAE.pth", "has no config.json, and the tensors are not those of a Wan transformer"),
    ],
)
def test_another_path_is_called_what_it_is(expert, place, words):
    with pytest.raises(FileNotFoundError) as caught:
        WanModel.from_pretrained(expert.parent / place)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", {"blocks.0.self_attn.q.lora_A.weight": (4, 8)}])
def test_a_file_that_is_not_read_is_named_first(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else write_header(path, content)
    with pytest.raises(
        ValueError, match=r"model\.safetensors cannot be read by this version: it (is a GGUF|holds a LoRA)"
    ):
        WanModel.from_pretrained(path)


def test_the_text_length_of_a_diffusers_model_is_the_tasks(expert):
    make_diffusers(expert)
    assert WanModelConfig.read(expert).text_len == 512
    assert WanModelConfig.read(expert, NANO_CONFIGS["t2v-A14B"].architecture()).text_len == 64


def same(left, right):
    for (name, a), (other, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)

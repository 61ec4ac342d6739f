import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from wan.checkpoint import fingerprint as module
from wan.checkpoint.fingerprint import fingerprint
from wan.checkpoint.loading import save_safetensors_folder
from wan.configs import NANO_CONFIGS
from wan.nano.random import write_random_checkpoint

CONFIG = NANO_CONFIGS["t2v-A14B"]
EXPERT = "low_noise_model/diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["whole files", "samples"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "samples":
        for name, value in {"WHOLE_BYTES": 0, "EDGE_BYTES": 300, "PLACES": 4, "PLACE_BYTES": 16}.items():
            monkeypatch.setattr(module, name, value)
    return write_random_checkpoint(tmp_path / "checkpoint")


def test_a_copy_elsewhere_has_the_same(folder, tmp_path):
    known = fingerprint(folder, CONFIG)
    assert len(known) == 16
    shutil.copytree(folder, tmp_path / "elsewhere/other-name", copy_function=shutil.copyfile)
    assert fingerprint(str(tmp_path / "elsewhere/other-name"), CONFIG) == known


@pytest.mark.parametrize("expert", CONFIG.experts)
def test_every_tensor_of_both_experts_counts(folder, expert):
    known = {fingerprint(folder, CONFIG)}
    path = folder / expert / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for count, name in enumerate(state, start=2):
        save_file(state | {name: state[name] * 1.001 + 0.001}, path, {"format": "pt"})
        known.add(fingerprint(folder, CONFIG))
        assert len(known) == count, name


def test_two_files_that_change_places_have_another(folder):
    known = fingerprint(folder, CONFIG)
    low, high = (folder / expert for expert in CONFIG.experts)
    high.rename(folder / "aside"), low.rename(high), (folder / "aside").rename(low)
    assert fingerprint(folder, CONFIG) != known


@pytest.mark.parametrize("file", ["t5_checkpoint", "vae_checkpoint"])
def test_pickled_files_count(folder, file):
    known = fingerprint(folder, CONFIG)
    path = folder / getattr(CONFIG, file)
    state = torch.load(path)
    name = next(iter(state))
    torch.save(state | {name: state[name] * 1.001 + 0.001}, path)
    assert fingerprint(folder, CONFIG) != known


def test_the_tokenizer_counts(folder):
    known = fingerprint(folder, CONFIG)
    path = folder / CONFIG.t5_tokenizer / "tokenizer.json"
    path.write_text(path.read_text().replace("red", "der"))
    assert fingerprint(folder, CONFIG) != known


def test_shards_are_read(folder):
    state = load_file(folder / EXPERT)
    config = {"family": "nano"}
    save_safetensors_folder(state, folder / "low_noise_model", config, max_shard_bytes=20_000)
    known = fingerprint(folder, CONFIG)
    state["head.head.weight"] += 1
    save_safetensors_folder(state, folder / "low_noise_model", config, max_shard_bytes=20_000)
    assert fingerprint(folder, CONFIG) != known


def test_a_missing_file_is_named(folder):
    (folder / CONFIG.vae_checkpoint).unlink()
    with pytest.raises(FileNotFoundError, match=r"Wan2\.1_VAE\.pth"):
        fingerprint(folder, CONFIG)

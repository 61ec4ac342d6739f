import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from wan.checkpoint.layout import STAND_INS, check_folder, part, repository, stored_bytes
from wan.checkpoint.loading import save_safetensors_folder
from wan.configs import NANO_CONFIGS
from wan.modules.t5 import T5EncoderModel
from wan.modules.vae2_1 import Wan2_1_VAE
from wan.nano.random import write_random_checkpoint

NANO = NANO_CONFIGS["t2v-A14B"]

CONFIG = SimpleNamespace(
    name="t2v-A14B",
    family="wan2.2",
    experts=("high_noise_model", "low_noise_model"),
    t5_checkpoint="t5.pth",
    t5_tokenizer="google/umt5-xxl",
    vae_checkpoint="vae.pth",
)


@pytest.fixture
def folder(tmp_path):
    """Folder that is complete in its names and headers."""
    for expert in ("high_noise_model", "low_noise_model"):
        save_safetensors_folder({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / expert, {}, max_shard_bytes=16)
    (tmp_path / "google" / "umt5-xxl").mkdir(parents=True)
    (tmp_path / "google/umt5-xxl/tokenizer.json").touch()
    for file in ("t5.pth", "vae.pth"):
        torch.save({"a": torch.ones(4)}, tmp_path / file)
    return tmp_path


def refused(folder, config=CONFIG, error=FileNotFoundError) -> str:
    with pytest.raises(error) as caught:
        check_folder(folder, config)
    return str(caught.value)


def test_a_complete_folder_passes(folder):
    check_folder(folder, CONFIG)
    check_folder(str(folder), CONFIG)


def test_no_folder(tmp_path):
    message = refused(tmp_path / "absent")
    assert "there is no checkpoint folder" in message
    assert "hf download Wan-AI/Wan2.2-T2V-A14B --local-dir" in message


def test_everything_missing_is_listed_at_once(tmp_path):
    message = refused(tmp_path)
    for what in ("high_noise_model/", "low_noise_model/", "t5.pth", "google/umt5-xxl/tokenizer.json", "vae.pth"):
        assert f"missing: {what}" in message


def test_missing_shards_and_config_are_listed(folder):
    (folder / "low_noise_model" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    (folder / "high_noise_model" / "config.json").unlink()
    message = refused(folder)
    assert "diffusion_pytorch_model-00002-of-00002.safetensors" in message
    assert "missing: high_noise_model/config.json" in message
    assert message.count("missing:") == 2


def test_truncated_and_misleading_files_are_found_before_loading(folder):
    shard = folder / "low_noise_model" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    index = folder / "high_noise_model" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    vae = folder / "vae.pth"
    vae.write_bytes(vae.read_bytes()[:-100])
    (folder / "t5.pth").write_bytes(b"")
    message = refused(folder, error=ValueError)
    assert "vae.pth is damaged, truncated" in message
    assert "t5.pth is empty: it has 0 bytes" in message
    assert "is truncated: tensor b" in message
    assert "'../../secret.safetensors'" in message


def test_a_task_with_one_model_has_it_at_the_top(folder):
    config = SimpleNamespace(**{**vars(CONFIG), "name": "ti2v-5B", "experts": (".",)})
    message = refused(folder, config)
    assert "missing: config.json" in message
    assert "Wan-AI/Wan2.2-TI2V-5B" in message
    save_safetensors_folder({"a": torch.ones(4)}, folder, {})
    check_folder(folder, config)


def test_nothing_is_downloaded_into_a_folder_of_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    (tmp_path / "Wan2.2-T2V-A14B").mkdir()
    assert "hf download Wan-AI/Wan2.2-T2V-A14B --local-dir Wan2.2-T2V-A14B-2 (126 GB)" in refused(tmp_path / "other")


@pytest.mark.parametrize(
    ("task", "name"),
    [("i2v-A14B", "Wan2.2-I2V-A14B"), ("s2v-14B", "Wan2.2-S2V-14B"), ("animate-14B", "Wan2.2-Animate-14B")],
)
def test_repository(task, name):
    assert repository(SimpleNamespace(name=task)) == name


@pytest.fixture
def nano(tmp_path):
    return write_random_checkpoint(tmp_path / "nano")


@pytest.mark.parametrize("stand_in", ["Wan2.1_VAE.safetensors", "wan_2.1_vae.safetensors", "vae/model.safetensors"])
def test_the_vae_under_another_name(nano, stand_in):
    move(nano / "Wan2.1_VAE.pth", nano / stand_in)
    check_folder(nano, NANO)
    assert Wan2_1_VAE(vae_pth=part(nano, NANO.vae_checkpoint)).model.z_dim == 16


@pytest.mark.parametrize(
    "stand_in",
    ["models_t5_umt5-xxl-enc-bf16.safetensors", "umt5_xxl_fp16.safetensors", "text_encoder/model.safetensors"],
)
def test_text_encoder_and_tokenizer_under_another_name(nano, stand_in):
    move(nano / NANO.t5_checkpoint, nano / stand_in)
    (nano / "google/umt5-xxl").rename(nano / "tokenizer")
    check_folder(nano, NANO)
    files = {"checkpoint_path": part(nano, NANO.t5_checkpoint), "tokenizer_path": part(nano, NANO.t5_tokenizer)}
    assert T5EncoderModel(text_len=64, **files)(["a red circle"], "cpu")[0].shape == (4, 16)
    assert stored_bytes(files["checkpoint_path"]) == (nano / stand_in).stat().st_size


def test_the_page_lists_the_names_that_are_looked_for(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text("utf-8")
    rows = [re.findall(r"`([^`]+)`", row) for row in page.partition("| released name |")[2].splitlines()[2:7]]
    assert {row[0].rstrip("/") for row in rows} == STAND_INS.keys()
    for released, *others in rows:
        if others[0] == ".safetensors":
            others[0] = released.replace(".pth", ".safetensors")
        stem, _, kind = released.rpartition(".")
        same_stem = [f"{stem}.safetensors"] if kind in ("pth", "ckpt") else []
        assert [name.rstrip("/") for name in others] == [*same_stem, *STAND_INS[released.rstrip("/")]]
        for name in reversed(others):  # the first that is there is taken
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            assert part(tmp_path, released.rstrip("/")) == tmp_path / name


def test_a_released_name_goes_before_its_stand_ins(nano):
    (nano / "vae").mkdir()
    assert part(nano, "Wan2.1_VAE.pth") == nano / "Wan2.1_VAE.pth"


def test_a_stand_in_is_checked(nano):
    move(nano / "Wan2.1_VAE.pth", nano / "Wan2.1_VAE.safetensors")
    os.truncate(nano / "Wan2.1_VAE.safetensors", 5000)
    assert "Wan2.1_VAE.safetensors" in refused(nano, NANO, ValueError)


def move(pickled, path):
    path.parent.mkdir(exist_ok=True)
    save_file(torch.load(pickled), path)
    pickled.unlink()

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wan.configs.wan_s2v_14B import s2v_14B
from wan.media import write_video
from wan.modules.model import WanModel
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.nano.random import write_random_checkpoint
from wan.parser import exit_code
from wan.program import install_command
from wan.training.__main__ import build_caches, encode_videos, load_clip, main, read_captions, warn_about_range
from wan.training.config import DataConfig, FlowConfig, LoopConfig, TrainConfig
from wan.training.objective import StoredText

TOML = """
checkpoint = "{root}/checkpoint"
output = "{root}/out"
family = "nano"
task = "{task}"
expert = "{expert}"
preview_prompts = ["a red circle"]
[data]
videos = "{root}/clips"
cache = "{root}/cache"
size = [64, 32]
frame_num = 5
[flow]
t_min = 875
first_frame_share = {share}
[loop]
steps = 2
batch_size = 2
preview_every = 2
"""


VAE = Wan2_1_VAE(model=CausalVAE2_1(VAEConfig(dim=2, dim_mult=(1, 1, 1, 1), num_res_blocks=1)))


def write_clips(folder, frames: int = 6) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        write_video(rng.integers(0, 256, (frames, 32, 64, 3), np.uint8), folder / f"{name}.mp4", 8)
        (folder / f"{name}.txt").write_text("a red circle\na circle that is red\n")


@pytest.mark.parametrize(
    "task, expert, share",
    [("t2v-A14B", "high_noise_model", 0), ("i2v-A14B", "low_noise_model", 0), ("ti2v-5B", ".", 0.5)],
)
def test_a_folder_of_videos_becomes_a_trained_expert(tmp_path, task, expert, share):
    write_random_checkpoint(tmp_path / "checkpoint", task)
    write_clips(tmp_path / "clips")
    text = TOML.format(root=tmp_path.as_posix(), task=task, expert=expert, share=share)
    (tmp_path / "run.toml").write_text(text)
    main([str(tmp_path / "run.toml")])

    before = WanModel.from_pretrained(tmp_path / "checkpoint", expert, dtype=torch.float32)
    after = WanModel.from_pretrained(tmp_path / "out", expert)
    assert after.config == before.config
    assert not torch.equal(after.blocks[0].ffn[0].weight, before.blocks[0].ffn[0].weight)
    assert (tmp_path / "out" / "previews" / "0000002-0.png").exists()
    rows = [json.loads(row) for row in (tmp_path / "out" / "state" / "log.jsonl").read_text().splitlines()]
    assert set(rows[-1]["bins"]) <= {"800", "900"}


def test_a_cache_that_needs_more_than_videos_is_not_made(tmp_path):
    data = DataConfig(tmp_path / "clips", tmp_path / "cache", (64, 32))
    with pytest.raises(ValueError, match="videos are not enough for one of s2v-14B: write it by"):
        build_caches(TrainConfig(tmp_path, tmp_path, data, LoopConfig(steps=1), task="s2v-14B"), s2v_14B)


def test_a_cache_of_another_task_is_refused(tmp_path):
    write_random_checkpoint(tmp_path / "checkpoint", "i2v-A14B")
    write_clips(tmp_path / "clips")
    encode_videos(DataConfig(tmp_path / "clips", tmp_path / "cache", (64, 32), frame_num=5), VAE, tmp_path / "cache")
    text = TOML.format(root=tmp_path.as_posix(), task="i2v-A14B", expert="high_noise_model", share=0)
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match="was made for another task than i2v-A14B"):
        main([str(tmp_path / "run.toml")])


def test_videos_need_captions_and_enough_frames(tmp_path):
    write_clips(tmp_path / "clips")
    data = DataConfig(tmp_path / "clips", tmp_path / "cache", (32, 32), frame_num=9)
    with pytest.raises(ValueError, match=r"one.mp4 has 6 frames, frame_num asks for 9"):
        encode_videos(data, VAE, data.cache)
    (tmp_path / "clips" / "two.txt").unlink()
    with pytest.raises(ValueError, match=r"without a caption file .*two.mp4 \(needs two.txt\)"):
        encode_videos(data, VAE, data.cache)
    with pytest.raises(ValueError, match="holds no videos"):
        encode_videos(DataConfig(tmp_path, tmp_path, (32, 32)), VAE, tmp_path)


def test_clips_are_cropped_to_size_and_resampled_in_time(tmp_path):
    write_clips(tmp_path / "clips", frames=12)
    data = DataConfig(tmp_path / "clips", tmp_path / "cache", (32, 32), frame_num=5, fps=4)
    clip = load_clip(tmp_path / "clips" / "one.mp4", data)
    assert clip.shape == (3, 5, 32, 32) and clip.min() >= -1 and clip.max() <= 1
    every = load_clip(tmp_path / "clips" / "one.mp4", DataConfig("a", "b", (32, 32), frame_num=9))
    torch.testing.assert_close(clip, every[:, ::2])


@pytest.mark.parametrize(
    "expert, t_min, t_max, is_said",
    [
        ("high_noise_model", 875, 1000, False),
        ("high_noise_model", 874, 1000, True),
        ("low_noise_model", 0, 875, False),
        ("low_noise_model", 0, 876, True),
        (".", 0, 1000, False),
    ],
)
def test_an_expert_is_trained_on_its_own_timesteps(caplog, expert, t_min, t_max, is_said):
    data, flow = DataConfig("v", "c", (32, 32)), FlowConfig(t_min=t_min, t_max=t_max)
    warn_about_range(TrainConfig("c", "o", data, LoopConfig(steps=1), flow, expert=expert), 0.875)
    assert ("set [flow] t_min and t_max" in caplog.text) == is_said
    warn_about_range(TrainConfig("c", "o", data, LoopConfig(steps=1), expert=expert), None)


def test_timesteps_of_the_other_expert_are_pointed_out(caplog):
    config = TrainConfig("c", "o", DataConfig("v", "c", (32, 32)), LoopConfig(steps=1), expert="high_noise_model")
    with caplog.at_level(logging.WARNING):
        warn_about_range(config, 0.875)
    assert "high_noise_model is used for timesteps 875-1000" in caplog.text
    caplog.clear()
    fitting = TrainConfig("c", "o", config.data, config.loop, FlowConfig(t_min=875), expert="high_noise_model")
    warn_about_range(fitting, 0.875)
    assert not caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", "there is no folder .*clips; .data. videos names the folder of the clips"),
        ("[loop]", "[loop", "run.toml: "),
        ("steps = 2", "stepz = 2", r"unknown name in \[loop\]: stepz"),
        ('task = "t2v-A14B"', 'task = "t2v"', "unknown task 't2v'; the tasks are t2v-A14B"),
        ('task = "t2v-A14B"', 'task = "t2v-A14B"\ndevice = "tpu"', "device 'tpu' is not a device"),
        ("/out", "/run.toml/out", "run.toml/out: Not a directory"),
    ],
)
def test_what_the_user_can_cause_is_one_line(tmp_path, capsys, old, new, message):
    text = TOML.format(root=tmp_path.as_posix(), task="t2v-A14B", expert="high_noise_model", share=0)
    (tmp_path / "run.toml").write_text(text.replace(old, new))
    assert exit_code(lambda: main([str(tmp_path / "run.toml")])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_a_missing_file_and_a_missing_package_are_one_line(tmp_path, capsys, monkeypatch):
    assert exit_code(lambda: main([str(tmp_path / "gone.toml")])) == 2
    assert "gone.toml; python -m wan.training reads a TOML file" in capsys.readouterr().err
    (tmp_path / "run.toml").write_text("")
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    assert exit_code(lambda: main([str(tmp_path / "run.toml")])) == 2
    assert f"error: the package tomli is not installed; {install_command('train')}\n" in capsys.readouterr().err


def test_captions_are_utf8(tmp_path):
    path = tmp_path / "clip.txt"
    path.write_bytes("\ufeff\u7ea2\n\n two \n".encode())
    assert read_captions(path) == ["\u7ea2", "two"]
    path.write_bytes(b"\xba\xec")
    with pytest.raises(ValueError, match="is not UTF-8, perhaps GBK"):
        read_captions(path)


def _change_json(change):
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _change_state(change):
    def damage(path):
        state = torch.load(path)
        change(state)
        torch.save(state, path)

    return damage


@pytest.mark.parametrize(
    "name, damage",
    [
        ("cache/index.json", lambda path: path.write_text("{")),
        ("cache/index.json", _change_json(lambda index: [])),
        ("cache/index.json", _change_json(lambda index: {name: {**b, "shape": 5} for name, b in index.items()})),
        ("cache/index.json", _change_json(lambda index: {f"../{name}": b for name, b in index.items()})),
        ("cache/latents-16x2x4x8.bin", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("cache/latents-16x2x4x8.bin", lambda path: path.unlink()),
        ("cache/text.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("cache/text.safetensors", lambda path: save_file({"000000": torch.zeros(1, 16)}, path, {"000000": "other"})),
        ("cache/text.safetensors", lambda path: StoredText.write(path, CAPTIONS, lambda caption: torch.zeros(2, 8))),
        ("out/state/state.pt", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("out/state/state.pt", _change_state(lambda state: state.pop("ema"))),
        ("out/state/state.pt", _change_state(lambda state: state.update(step="2"))),
        ("out/state/state.pt", _change_state(lambda state: state["optimizer"]["AdamW"]["state"][0].pop("exp_avg"))),
        ("out/state/state.pt", _change_state(lambda state: state["ema"]["average"].update({NAME: torch.zeros(3)}))),
    ],
)
def test_damaged_files_of_a_run_are_one_line(trained, tmp_path, capsys, monkeypatch, name, damage):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    damage(Path(name))
    assert exit_code(lambda: main(["run.toml"])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    folder = "cache" if name.startswith("cache") else "state.pt"
    assert folder in error and error.startswith("generate.py: error: ")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make a finished run whose paths are relative."""
    folder = tmp_path_factory.mktemp("trained")
    write_random_checkpoint(folder / "checkpoint", "t2v-A14B")
    write_clips(folder / "clips")
    text = TOML.format(root=".", task="t2v-A14B", expert="high_noise_model", share=0)
    (folder / "run.toml").write_text(text.replace("preview_every = 2", ""))
    here = os.getcwd()
    os.chdir(folder)
    main(["run.toml"])
    os.chdir(here)
    return folder


CAPTIONS = ["a red circle", "a circle that is red"]
NAME = "patch_embedding.weight"

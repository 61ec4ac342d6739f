import json
import logging

import numpy as np
import pytest
import torch

from wan.media import write_video
from wan.modules.model import WanModel
from wan.nano.random import write_random_checkpoint
from wan.training.__main__ import encode_videos, load_clip, main, warn_about_range
from wan.training.config import DataConfig, FlowConfig, LoopConfig, TrainConfig

TOML = """
checkpoint = "{root}/checkpoint"
output = "{root}/out"
family = "nano"
expert = "high_noise_model"
preview_prompts = ["a red circle"]
[data]
videos = "{root}/clips"
cache = "{root}/cache"
size = [32, 16]
frame_num = 5
[flow]
t_min = 875
[loop]
steps = 2
batch_size = 2
preview_every = 2
"""


def write_clips(folder, frames: int = 6) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        write_video(rng.integers(0, 256, (frames, 32, 48, 3), np.uint8), folder / f"{name}.mp4", 8)
        (folder / f"{name}.txt").write_text("a red circle\na circle that is red\n")


def test_a_folder_of_videos_becomes_a_trained_expert(tmp_path):
    write_random_checkpoint(tmp_path / "checkpoint")
    write_clips(tmp_path / "clips")
    (tmp_path / "run.toml").write_text(TOML.format(root=tmp_path.as_posix()))
    main([str(tmp_path / "run.toml")])

    before = WanModel.from_pretrained(tmp_path / "checkpoint", "high_noise_model", dtype=torch.float32)
    after = WanModel.from_pretrained(tmp_path / "out", "high_noise_model")
    assert after.config == before.config
    assert not torch.equal(after.blocks[0].ffn[0].weight, before.blocks[0].ffn[0].weight)
    assert (tmp_path / "out" / "previews" / "0000002-0.png").exists()
    rows = [json.loads(row) for row in (tmp_path / "out" / "state" / "log.jsonl").read_text().splitlines()]
    assert set(rows[-1]["bins"]) <= {"800", "900"}


def test_videos_need_captions_and_enough_frames(tmp_path):
    write_clips(tmp_path / "clips")
    data = DataConfig(tmp_path / "clips", tmp_path / "cache", (32, 32), frame_num=9)
    with pytest.raises(ValueError, match=r"one.mp4 has 6 frames, frame_num asks for 9"):
        encode_videos(data, lambda videos: videos, data.cache)
    (tmp_path / "clips" / "two.txt").unlink()
    with pytest.raises(ValueError, match=r"without a caption file .*two.mp4"):
        encode_videos(data, lambda videos: videos, data.cache)
    with pytest.raises(ValueError, match="holds no videos"):
        encode_videos(DataConfig(tmp_path, tmp_path, (32, 32)), lambda videos: videos, tmp_path)


def test_clips_are_cropped_to_size_and_resampled_in_time(tmp_path):
    write_clips(tmp_path / "clips", frames=12)
    data = DataConfig(tmp_path / "clips", tmp_path / "cache", (32, 32), frame_num=5, fps=4)
    clip = load_clip(tmp_path / "clips" / "one.mp4", data)
    assert clip.shape == (3, 5, 32, 32) and clip.min() >= -1 and clip.max() <= 1
    every = load_clip(tmp_path / "clips" / "one.mp4", DataConfig("a", "b", (32, 32), frame_num=9))
    torch.testing.assert_close(clip, every[:, ::2])


def test_timesteps_of_the_other_expert_are_pointed_out(caplog):
    config = TrainConfig("c", "o", DataConfig("v", "c", (32, 32)), LoopConfig(steps=1), expert="high_noise_model")
    with caplog.at_level(logging.WARNING):
        warn_about_range(config, 0.875)
    assert "high_noise_model is used for timesteps 875-1000" in caplog.text
    caplog.clear()
    fitting = TrainConfig("c", "o", config.data, config.loop, FlowConfig(t_min=875), expert="high_noise_model")
    warn_about_range(fitting, 0.875)
    assert not caplog.text

"""The values every task fixes, and the tables users look them up in."""

# ruff: noqa: RUF001 - the full-width commas are data

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from wan.checkpoint.loading import read_config
from wan.configs import (
    IMPLEMENTED_TASKS,
    MAX_AREA_CONFIGS,
    NANO_CONFIGS,
    SIZE_CONFIGS,
    SUPPORTED_SIZES,
    WAN_CONFIGS,
    get_config,
    nano_checkpoint,
)
from wan.geometry import parse_size
from wan.modules.model import WanModelConfig

# task: VAE stride, shift, steps, guidance, boundary, frames, fps (the reference page)
VALUES = {
    "t2v-A14B": ((4, 8, 8), 12.0, 40, (3.0, 4.0), 0.875, 81, 16),
    "i2v-A14B": ((4, 8, 8), 5.0, 40, (3.5, 3.5), 0.900, 81, 16),
    "ti2v-5B": ((4, 16, 16), 5.0, 50, 5.0, None, 121, 24),
    "s2v-14B": ((4, 8, 8), 3, 40, 4.5, None, 81, 16),
    "animate-14B": ((4, 8, 8), 5.0, 20, 1.0, None, 77, 30),
}


@pytest.mark.parametrize("task", VALUES)
def test_sampling_values(task):
    c = WAN_CONFIGS[task]
    values = (c.vae_stride, c.sample_shift, c.sample_steps, c.sample_guide_scale, c.boundary, c.frame_num, c.sample_fps)
    assert values == VALUES[task]


def test_every_task_has_a_config_under_its_name():
    assert set(WAN_CONFIGS) == set(VALUES)
    assert all(task == config.name for task, config in (WAN_CONFIGS | NANO_CONFIGS).items())


def test_negative_prompts():
    shared = WAN_CONFIGS["t2v-A14B"].sample_neg_prompt
    assert (
        shared.startswith("色调艳丽，过曝，静态")
        and shared.endswith("三条腿，背景人很多，倒着走")
        and len(shared) == 137
    )
    assert {config.sample_neg_prompt for task, config in WAN_CONFIGS.items() if task != "s2v-14B"} == {shared}
    assert WAN_CONFIGS["s2v-14B"].sample_neg_prompt.startswith("画面模糊，最差质量")


def test_sizes():
    assert SIZE_CONFIGS["1280*720"] == (1280, 720) and len(SIZE_CONFIGS) == 8
    assert MAX_AREA_CONFIGS["832*480"] == 832 * 480
    assert set(SUPPORTED_SIZES["t2v-A14B"]) == {"720*1280", "1280*720", "480*832", "832*480"}
    assert set(SUPPORTED_SIZES["ti2v-5B"]) == {"704*1280", "1280*704"}
    assert set(SUPPORTED_SIZES["s2v-14B"]) == set(SIZE_CONFIGS)


@pytest.mark.parametrize(
    "config", [*WAN_CONFIGS.values(), *NANO_CONFIGS.values()], ids=lambda c: f"{c.family}-{c.name}"
)
def test_every_size_is_whole_tokens(config):
    for size in config.sizes:
        assert all(side % (s * p) == 0 for side, s, p in zip(parse_size(size), config.vae_stride[:0:-1], (2, 2)))


@pytest.mark.parametrize("task", ["t2v-A14B", "i2v-A14B", "ti2v-5B"])
def test_architecture_builds_the_released_model(task):
    config = WanModelConfig.from_dict(WAN_CONFIGS[task].architecture())
    assert config.head_dim == 128 and config.model_type == task.partition("-")[0]


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        WAN_CONFIGS["t2v-A14B"].frame_num = 5


@pytest.mark.parametrize(
    "change, text",
    [
        ({"frame_num": 80}, "4n\\+1"),
        ({"boundary": None}, "belong together"),
        ({"boundary": 875.0}, "0..1"),
        ({"size": "64*64"}, "none of"),
        ({"sample_guide_scale": (1.0, 2.0, 3.0)}, "low, high"),
    ],
)
def test_contradictions_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        replace(WAN_CONFIGS["t2v-A14B"], **change)


def test_guidance_is_always_a_pair():
    assert WAN_CONFIGS["ti2v-5B"].guidance == (5.0, 5.0)
    assert WAN_CONFIGS["t2v-A14B"].guidance == (3.0, 4.0)  # low-noise expert first


def test_lookup():
    assert get_config("t2v-A14B") is WAN_CONFIGS["t2v-A14B"]
    assert get_config("t2v-A14B", "nano") is NANO_CONFIGS["t2v-A14B"]
    with pytest.raises(ValueError, match="unknown task 't2v'; the tasks are t2v-A14B"):
        get_config("t2v")
    for task in set(WAN_CONFIGS) - set(IMPLEMENTED_TASKS):
        with pytest.raises(ValueError, match=f"{task} is not available yet, it comes later; now: t2v-A14B"):
            get_config(task)


def test_import_sets_no_environment_variable():
    code = "import os; before = dict(os.environ); import wan.configs; assert before == dict(os.environ)"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.parametrize("task", NANO_CONFIGS)
def test_nano_preset_describes_the_shipped_model(task):
    """Fails when a retrained checkpoint and its preset drift apart."""
    config, folder = NANO_CONFIGS[task], nano_checkpoint(task)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not in this copy")
    for expert in config.experts:
        assert WanModelConfig.from_dict(read_config(folder / expert)) == WanModelConfig.from_dict(config.architecture())

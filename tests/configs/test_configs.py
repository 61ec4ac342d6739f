"""The values of every task, and the tables in which users look them up."""

# ruff: noqa: RUF001 - the full-width commas are data

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from wan import WanT2V
from wan.checkpoint.loading import read_config
from wan.configs import (
    IMPLEMENTED_TASKS,
    MAX_AREA_CONFIGS,
    NANO_CONFIGS,
    SIZE_CONFIGS,
    SUPPORTED_SIZES,
    WAN_CONFIGS,
    get_config,
    is_embedded,
    nano_checkpoint,
    wan_shared_cfg,
)
from wan.configs.wan_t2v_A14B import t2v_A14B
from wan.geometry import parse_size
from wan.modules.model import WanModelConfig
from wan.request import Request

# task: VAE stride, shift, steps, guidance, boundary, frames, fps (the reference page)
VALUES = {
    "t2v-A14B": ((4, 8, 8), 12.0, 40, (3.0, 4.0), 0.875, 81, 16),
    "i2v-A14B": ((4, 8, 8), 5.0, 40, (3.5, 3.5), 0.900, 81, 16),
    "ti2v-5B": ((4, 16, 16), 5.0, 50, 5.0, None, 121, 24),
    "s2v-14B": ((4, 8, 8), 3, 40, 4.5, None, 80, 16),
    "animate-14B": ((4, 8, 8), 5.0, 20, 1.0, None, 77, 30),
}


@pytest.mark.parametrize("task", VALUES)
def test_sampling_values(task):
    c = WAN_CONFIGS[task]
    values = (c.vae_stride, c.sample_shift, c.sample_steps, c.sample_guide_scale, c.boundary, c.frame_num, c.sample_fps)
    assert values == VALUES[task]


def test_every_task_has_a_config_under_its_name():
    assert set(WAN_CONFIGS) == set(VALUES)
    assert all(task == config.name for configs in (WAN_CONFIGS, NANO_CONFIGS) for task, config in configs.items())


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


# task: model_type, in_dim, out_dim, dim, ffn_dim, num_heads, num_layers; latent channels; groups of inputs it needs
MODELS = {
    "t2v-A14B": ("t2v", 16, 16, 5120, 13824, 40, 40, 16, ()),
    "i2v-A14B": ("i2v", 36, 16, 5120, 13824, 40, 40, 16, (("image", "last_image"),)),
    "ti2v-5B": ("ti2v", 48, 48, 3072, 14336, 24, 30, 48, ()),
    "s2v-14B": ("s2v", 16, 16, 5120, 13824, 40, 40, 16, (("image",), ("audio", "enable_tts"))),
    "animate-14B": ("animate", 36, 16, 5120, 13824, 40, 40, 16, (("performance",),)),
}


@pytest.mark.parametrize("task", MODELS)
def test_models_and_what_they_take(task):
    c = WAN_CONFIGS[task]
    *fields, z_dim, needs = MODELS[task]
    shared = {"freq_dim": 256, "text_dim": 4096, "text_len": 512, "patch_size": (1, 2, 2), "eps": 1e-6}
    names = "model_type in_dim out_dim dim ffn_dim num_heads num_layers".split()
    assert c.architecture() == dict(zip(names, fields)) | shared
    assert (c.z_dim, c.needs) == (z_dim, needs)
    assert c.vae_checkpoint == ("Wan2.2_VAE.pth" if z_dim == 48 else "Wan2.1_VAE.pth")
    assert len(c.experts) == (2 if task.endswith("A14B") else 1) == (1 if c.boundary is None else 2)


def test_a_config_is_read_and_changed_as_attributes_and_as_items():
    cfg = WAN_CONFIGS["t2v-A14B"]
    assert cfg["dim"] == cfg.dim == cfg.get("dim") == dict(cfg)["dim"] == 5120
    assert "num_heads" in cfg and "nothing" not in cfg and cfg.get("nothing", 3) == 3
    assert len(cfg) == len(list(cfg)) == len({**cfg})
    cfg.sample_steps = 20
    cfg["sample_fps"] = 24
    cfg.update(frame_num=5, sample_guide_scale=[3.0, 5.0])
    assert (cfg["sample_steps"], cfg.sample_fps, cfg.frame_num, cfg.guidance) == (20, 24, 5, (3.0, 5.0))
    assert cfg.copy() == cfg != WAN_CONFIGS["t2v-A14B"]


@pytest.mark.parametrize("configs", [WAN_CONFIGS, NANO_CONFIGS])
def test_a_change_stays_in_its_copy(configs):
    taken = [configs["t2v-A14B"], get_config("t2v-A14B", configs["t2v-A14B"].family), *configs.values()]
    taken += [configs.get("t2v-A14B"), dict(configs)["t2v-A14B"], t2v_A14B]
    before = [config.sample_steps for config in configs.values()]
    for config in taken:
        config.sample_steps = 3
    t2v_A14B.sample_steps = 40
    assert [config.sample_steps for config in configs.values()] == before


def test_names_that_are_no_field_are_refused_with_the_nearest():
    cfg = WAN_CONFIGS["t2v-A14B"]
    for wrong in (
        lambda: cfg.sample_step,
        lambda: setattr(cfg, "sample_step", 3),
        lambda: cfg["sample_step"],
        lambda: cfg.update(sample_step=3),
    ):
        with pytest.raises((AttributeError, KeyError), match="no 'sample_step'; did you mean 'sample_steps'"):
            wrong()
    with pytest.raises(TypeError, match="not removed"):
        del cfg.dim
    with pytest.raises(KeyError, match="unknown task 't2v'; the tasks are t2v-A14B"):
        WAN_CONFIGS["t2v"]


def test_what_upstreams_scripts_read_is_there():
    shared = "t5_model t5_dtype text_len param_dtype num_train_timesteps sample_fps sample_neg_prompt frame_num".split()
    names = """t5_checkpoint t5_tokenizer vae_checkpoint vae_stride patch_size dim ffn_dim freq_dim num_heads num_layers
        window_size qk_norm cross_attn_norm eps low_noise_checkpoint high_noise_checkpoint sample_shift sample_steps
        boundary sample_guide_scale""".split()
    assert list(wan_shared_cfg) == shared
    for cfg in WAN_CONFIGS.values():
        assert all(name in cfg for name in [*shared, *names])
        cfg.check()
    assert (cfg.t5_model, cfg.t5_dtype, cfg.param_dtype) == ("umt5_xxl", torch.bfloat16, torch.bfloat16)
    assert (cfg.window_size, cfg.qk_norm, cfg.cross_attn_norm, cfg.eps) == ((-1, -1), True, True, 1e-6)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"frame_num": 80}, "4n\\+1"),
        ({"boundary": None}, "belong together"),
        ({"boundary": 875.0}, "0..1"),
        ({"boundary": 1.5}, "0..1"),
        ({"boundary": -0.5}, "0..1"),
        ({"size": "64*64"}, "none of"),
        ({"sample_guide_scale": (1.0, 2.0, 3.0)}, "a finite number or \\(a finite number, a finite number\\), got"),
        ({"sample_steps": "20"}, "sample_steps of the config must be a whole number, got '20'"),
        ({"sample_steps": 20.5}, "a whole number, got 20.5"),
        ({"sample_shift": True}, "a finite number, got True"),
        ({"sample_neg_prompt": None}, "sample_neg_prompt of the config must be text, got None"),
        ({"sample_shift": float("nan")}, "a finite number, got nan"),
        ({"vae_stride": (4, 8)}, "\\(a whole number, a whole number, a whole number\\)"),
        ({"patch_size": (1, 0, 2)}, "count from 1"),
        ({"t5_dtype": "bf16"}, "a torch.dtype"),
        ({"window_size": (7, 7)}, "window_size is \\(-1, -1\\) in every model"),
        ({"qk_norm": False}, "qk_norm is True in every model"),
    ],
)
def test_contradictions_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        replace(WAN_CONFIGS["t2v-A14B"], **change)
    cfg = WAN_CONFIGS["t2v-A14B"]
    cfg.update(change)  # refused where it is used, not here
    with pytest.raises(ValueError, match=text):
        Request.create(cfg, prompt="a cat")
    with pytest.raises(ValueError, match=text):
        WanT2V(cfg, "no folder")


def test_values_of_a_request_are_checked_by_it():
    cfg = WAN_CONFIGS["t2v-A14B"]
    cfg.sample_steps = np.int64(3)  # a number of numpy is a number
    assert Request.create(cfg, prompt="a cat").steps == 3
    for name, value in {"sample_steps": 0, "sample_shift": -1.0, "sample_fps": 0}.items():
        cfg = WAN_CONFIGS["t2v-A14B"]
        cfg[name] = value
        with pytest.raises(ValueError, match=name.removeprefix("sample_")):
            Request.create(cfg, prompt="a cat")


def test_something_else_is_no_config():
    with pytest.raises(ValueError, match=r"an entry of WAN_CONFIGS, .* got str"):
        WanT2V("t2v-A14B", "no folder")


def test_guidance_is_always_a_pair():
    assert WAN_CONFIGS["ti2v-5B"].guidance == (5.0, 5.0)
    assert WAN_CONFIGS["t2v-A14B"].guidance == (3.0, 4.0)  # low-noise expert first


def test_lookup():
    assert get_config("t2v-A14B") == WAN_CONFIGS["t2v-A14B"]
    assert get_config("t2v-A14B", "nano") == NANO_CONFIGS["t2v-A14B"]
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
    """It fails when a retrained checkpoint has other sizes than its preset."""
    config, folder = NANO_CONFIGS[task], nano_checkpoint(task)
    if not is_embedded(config, folder):
        pytest.skip(f"the model of {folder} is not in this copy")
    for expert in config.experts:
        assert WanModelConfig.from_dict(read_config(folder / expert)) == WanModelConfig.from_dict(config.architecture())


def test_how_many_frames_is_a_rule_of_the_task():
    t2v, s2v = WAN_CONFIGS["t2v-A14B"], WAN_CONFIGS["s2v-14B"]
    t2v.check_frame_num(1), t2v.check_frame_num(81), s2v.check_frame_num(80)
    for config, count, text in (
        (t2v, 80, "frame_num must be 4n+1, got 80; try 77 or 81"),
        (s2v, 81, "frame_num must be a multiple of 4 from 4 on, got 81; try 80 or 84"),
        (s2v, 0, "frame_num must be a multiple of 4 from 4 on, got 0; try 4"),
        (s2v, 3, "frame_num must be a multiple of 4 from 4 on, got 3; try 4 or 8"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            config.check_frame_num(count)

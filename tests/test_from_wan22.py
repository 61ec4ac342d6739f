"""docs/from_wan22.md is true: its flags, defaults, imports and script are tried."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import wan
import wan.configs
from wan import planning
from wan.arguments import build_parser
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS
from wan.configs.shared_config import Presets
from wan.media import read_video
from wan.nano.random import write_random_checkpoint
from wan.output import default_name
from wan.parallel import Parallel
from wan.runtime import Runtime

PAGE = (Path(__file__).parents[1] / "docs" / "from_wan22.md").read_text(encoding="utf-8")
# Flags of the original's command, from its documentation.
FLAGS = """task size frame_num ckpt_dir offload_model ulysses_size t5_fsdp t5_cpu dit_fsdp save_file prompt
    use_prompt_extend prompt_extend_method prompt_extend_model prompt_extend_target_lang base_seed image
    sample_solver sample_steps sample_shift sample_guide_scale convert_model_dtype src_root_path refert_num
    replace_flag use_relighting_lora num_clip audio enable_tts tts_prompt_audio tts_prompt_text tts_text
    pose_video start_from_ref infer_frames""".split()


def table(title: str) -> list[list[str]]:
    """Yield the rows of the table with that heading; cells have no marks of code."""
    lines = PAGE.split(f"| {title} |", 1)[1].splitlines()[2:]
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code(text: str) -> str:
    return re.search("`([^`]*)`", text)[1]


def block(title: str) -> str:
    return re.search(r"```python.*?\n(.*?)```", PAGE.split(f"## {title}\n", 1)[1], flags=re.S)[1]


def refusal(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        planning.plan(build_parser().parse_args([*arguments, "--prompt", "a red circle"]))
    return str(error.value)


@cache
def is_later(status: str) -> bool:
    """Tell whether the page says that something comes later; then it must not exist."""
    if not status.startswith("later: "):
        return False
    task = status.removeprefix("later: ")
    assert task in WAN_CONFIGS and task not in IMPLEMENTED_TASKS, f"{task} exists: move its rows"
    assert "not available yet" in refusal("--task", task, "--image", "a.png")
    return True


def test_every_flag_of_the_original_has_its_row():
    assert sorted(code(flag) for flag, _ in table("flag | here")) == sorted(f"--{flag}" for flag in FLAGS)


def test_flags_are_what_the_page_says():
    known = build_parser()._option_string_actions
    for flag, status in table("flag | here"):
        assert code(flag) in known, "known, also where it comes later"
        assert is_later(status) or re.match("(same|better)\\b", status), status


def test_the_flags_that_are_new_exist():
    new = PAGE.split("New flags:")[1].split("- Less memory")[0]
    named = re.findall("`(--[a-z_]+)`", new)
    assert len(named) > 10 and set(named) <= set(build_parser()._option_string_actions)
    assert set(re.findall("`(--[a-z_]+)`", PAGE)) <= set(build_parser()._option_string_actions)


@pytest.mark.parametrize("column, task", list(enumerate(IMPLEMENTED_TASKS, start=1)))
def test_values_of_the_tasks(column, task):
    rows = table("value | `t2v-A14B` | `i2v-A14B` | `ti2v-5B`")
    assert len(rows) == 6
    for row in rows:
        assert getattr(WAN_CONFIGS[task], code(row[0])) == ast.literal_eval(code(row[column])), row


def test_defaults_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_true = {
        "`--ulysses_size`": lambda: Parallel.from_flags(world_size=4).ulysses_size == 4,
        "`--size` of ti2v-5B": lambda: WAN_CONFIGS["ti2v-5B"].size == "1280*704",
        "`--image` of i2v-A14B": lambda: "--image" in refusal("--task", "i2v-A14B"),
        "`--task` with `--image`": lambda: (
            planning._task_of_images(build_parser().parse_args(["--image", "a.png"])) == "i2v-A14B"
        ),
        "weights": lambda: Runtime.from_flags(device="cpu").dtype_name == "bf16",
        "`--save_file`": lambda: (
            default_name("t2v-A14B", (64, 64), "a*b", 7, datetime(2026, 1, 31))
            == "t2v-A14B_64x64_a_b_7_20260131_000000.mp4"
        ),
    }
    rows = table("default of | original | here")
    assert [row[0] for row in rows] == list(is_true)
    assert [name for name, check in is_true.items() if not check()] == []


def test_arguments_and_defaults_of_the_methods(monkeypatch):
    """The original's arguments can be passed, by name and in their order; none of them has a default of its own."""
    monkeypatch.setattr(wan.pipeline.WanPipeline, "video", lambda self, request, **how: (request, how))
    image = Image.new("RGB", (96, 54))
    for method, text in table("method | the original's defaults"):
        name, function = code(method).split(".")
        pipeline = object.__new__(getattr(wan, name))
        pipeline.config = WAN_CONFIGS[pipeline.task]
        call = ast.parse(f"f({code(text)})").body[0].value
        stated = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        inputs = [image] if "img" not in stated and name != "WanT2V" and function != "t2v" else []
        bound = getattr(pipeline, function)
        assert all(p.default in (None, p.empty) for p in inspect.signature(bound).parameters.values())
        request, how = bound("a fox", *inputs, *stated.values())
        by_name, _ = bound("a fox", *inputs, **stated)
        assert replace(by_name, seed=0) == replace(request, seed=0), "positions count, too"
        assert (request.frame_num, request.steps) == (stated["frame_num"], stated["sampling_steps"])
        assert request.guidance == (5.0, 5.0) and request.shift == 5.0 and how["offload_model"] is True


@pytest.mark.parametrize("line", [ast.unparse(line) for line in ast.parse(block("Imports")).body])
def test_imports(line):
    exec(line, {})


def test_names_that_do_not_exist():
    for row, status in table("name | here"):
        module, _, name = code(row).rpartition(".")
        assert is_later(status) or status.startswith("gone: ")
        with pytest.raises((ImportError, AttributeError)):
            getattr(import_module(module), name)


def test_the_script_runs_as_it_stands(tmp_path, monkeypatch):
    """It runs on a random miniature in place of the released weights, at a tiny size."""
    write_random_checkpoint(tmp_path / "Wan2.2-T2V-A14B")
    small = Presets(*(replace(config, frame_num=5) for config in NANO_CONFIGS.values()))
    monkeypatch.setattr(wan.configs, "WAN_CONFIGS", small)
    monkeypatch.setitem(wan.configs.SIZE_CONFIGS, "1280*720", (48, 32))
    monkeypatch.chdir(tmp_path)
    script = block("A script")
    assert script.count("cfg.sample_steps = 30\n") == 1
    names: dict = {}
    exec(script.replace("cfg.sample_steps = 30", "cfg.sample_steps = 2"), names)
    assert names["video"].shape == (3, 5, 32, 48) and names["video"].dtype == torch.float32
    frames, fps = read_video(tmp_path / "video.mp4")
    assert frames.shape == (5, 32, 48, 3) and fps == 8
    assert small["t2v-A14B"].sample_steps == 20


@pytest.mark.parametrize("task", ["i2v-A14B", "ti2v-5B"])
def test_scripts_that_start_from_an_image(task, tmp_path):
    """The calls of the original's `generate.py`, with a picture in memory."""
    cfg, image = NANO_CONFIGS[task], Image.new("RGB", (64, 64), "navy")
    folder = write_random_checkpoint(tmp_path, task)
    settings = {
        "frame_num": 5,
        "shift": cfg.sample_shift,
        "sample_solver": "dpm++",
        "sampling_steps": 2,
        "guide_scale": cfg.sample_guide_scale,
        "seed": 3,
        "offload_model": True,
    }
    if task == "ti2v-5B":
        pipeline = wan.WanTI2V(config=cfg, checkpoint_dir=str(folder), device_id=0, rank=0, t5_cpu=True)
        video = pipeline.generate("a cat", img=image, size=(64, 64), max_area=64 * 64, **settings)
        assert pipeline.generate("a cat", img=None, size=(64, 32), max_area=64 * 64, **settings).shape == (3, 5, 32, 64)
    else:
        pipeline = wan.WanI2V(config=cfg, checkpoint_dir=str(folder), device_id=0, rank=0, convert_model_dtype=True)
        video = pipeline.generate("a cat", image, max_area=64 * 64, **settings)
    assert video.shape == (3, 5, 64, 64) and video.isfinite().all()


def test_a_loop_that_is_built_from_the_parts_gives_the_video_of_the_pipeline(tmp_path):
    """Some scripts sample by themselves, with text encoder, transformer, scheduler and autoencoder by their names."""
    cfg, folder = NANO_CONFIGS["t2v-A14B"], write_random_checkpoint(tmp_path)
    cfg.param_dtype = torch.float32
    whole = wan.WanT2V(cfg, folder)
    expected = whole.generate("a red circle", (32, 32), 5, 3.0, "unipc", 3, (2.0, 4.0), "blurred", 7)

    device = whole.device
    encoder = wan.modules.T5EncoderModel(
        text_len=cfg.text_len,
        dtype=cfg.t5_dtype,
        device=device,
        checkpoint_path=str(folder / cfg.t5_checkpoint),
        tokenizer_path=str(folder / cfg.t5_tokenizer),
    )
    vae = wan.modules.Wan2_1_VAE(vae_pth=str(folder / cfg.vae_checkpoint), device=device)
    experts = [
        wan.modules.WanModel.from_pretrained(str(folder), subfolder=name).eval().requires_grad_(False).to(device)
        for name in (cfg.low_noise_checkpoint, cfg.high_noise_checkpoint)
    ]
    context, context_null = (encoder([text], device) for text in ("a red circle", "blurred"))
    generator = torch.Generator(device=device).manual_seed(7)
    latent = torch.randn(vae.model.z_dim, 2, 4, 4, device=device, generator=generator)
    scheduler = wan.utils.FlowUniPCMultistepScheduler(
        num_train_timesteps=cfg.num_train_timesteps, shift=1, use_dynamic_shifting=False
    )
    scheduler.set_timesteps(3, device=device, shift=3.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            is_high = t.item() >= cfg.boundary * cfg.num_train_timesteps
            model, scale = experts[is_high], (2.0, 4.0)[is_high]
            arguments = {"t": torch.stack([t]), "seq_len": 8}
            cond = model([latent], context=context, **arguments)[0]
            uncond = model([latent], context=context_null, **arguments)[0]
            guided = uncond + scale * (cond - uncond)
            step = scheduler.step(guided[None], t, latent[None], return_dict=False, generator=generator)
            latent = step[0].squeeze(0)
    torch.testing.assert_close(vae.decode([latent])[0].cpu(), expected, atol=1e-4, rtol=0)

"""The command line: what is planned."""

import re
from pathlib import Path

import pytest
import torch

from tests.command_line import ROOT, planned
from tests.performances import write_performance
from wan import cli, planning
from wan.arguments import build_parser, flag_names, str2bool
from wan.configs import NANO_CONFIGS
from wan.framing import Framing
from wan.request import Request

# ---------------------------------------------------------------- what is planned


def test_nano_says_what_it_is(caplog):
    for flags in ([], ["--ckpt_dir", "nano"]):
        caplog.clear()
        job = planned(*flags)
        assert job.config.family == "nano" and (job.request.framing.saved, job.request.frame_num) == ((64, 64), 17)
        assert "the embedded nano model runs, a toy" in caplog.text
        assert "hf download Wan-AI/Wan2.2-T2V-A14B" in caplog.text


def test_a_nano_folder_is_recognised_by_its_config(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: tmp_path)
    assert planned("--ckpt_dir", str(checkpoint)).config.family == "nano"


@pytest.mark.parametrize("task, place", [(task, config.experts[-1]) for task, config in NANO_CONFIGS.items()])
@pytest.mark.parametrize(
    "content, family",
    [
        ('{"family": "nano"}', "nano"),
        ('{"family": "nano-2"}', "wan2.2"),
        ('{"family": "wan2.2"}', "wan2.2"),
        ("{}", "wan2.2"),
        ('["family", "nano"]', "wan2.2"),
        ('{"family": "nano"', "wan2.2"),
        (None, "wan2.2"),
    ],
)
def test_the_family_is_read_from_the_config_beside_the_weights(monkeypatch, tmp_path, task, place, content, family):
    """Whatever follows, the folder is checked as what its own words make it."""
    folder = tmp_path / "mine"
    (folder / place).mkdir(parents=True)
    if content is not None:
        (folder / place / "config.json").write_text(content)

    class Seen(Exception):
        pass

    def check(folder, config):
        raise Seen(config.family)

    monkeypatch.setattr(planning, "check_checkpoint", check)
    size = {"nano": [], "wan2.2": ["--size", "1280*704" if task == "ti2v-5B" else "1280*720"]}[family]
    files = {"image": "first_frame.png", "audio": "talk.wav"}
    needed = {name: ROOT / "examples" / file for name, file in files.items()}
    if task == "animate-14B":
        needed["performance"] = write_performance(tmp_path / "performance")
    names = (names[0] for names in NANO_CONFIGS[task].needs)
    given = [word for name in names for word in (flag_names(task)[name], str(needed[name]))]
    with pytest.raises(Seen, match=f"^{re.escape(family)}$"):
        planned("--task", task, "--ckpt_dir", str(folder), *size, *given)


def test_the_embedded_folder_is_nano_by_any_path(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("its config need not say so"))
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    monkeypatch.setattr(planning, "_warn_about_long_prompts", lambda *_: None)
    (tmp_path / "link").symlink_to(checkpoint)
    for path in (checkpoint, tmp_path / "link", Path("link"), checkpoint / "low_noise_model" / ".."):
        assert planned("--ckpt_dir", str(path)).config.family == "nano"


def test_a_released_folder_gets_the_released_config(checkpoint, monkeypatch):
    monkeypatch.setattr(planning, "_is_nano", lambda folder, config: False)
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)  # a miniature stands in for it
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    job = planned("--ckpt_dir", str(checkpoint), "--size", "832x480")
    assert job.request.framing.saved == (832, 480)
    assert (job.request.steps, job.request.shift, job.request.guidance) == (40, 12.0, (3.0, 4.0))


def test_a_released_model_without_a_gpu_is_said_to_be_slow(checkpoint, monkeypatch, caplog):
    monkeypatch.setattr(planning, "_is_nano", lambda folder, config: False)
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    flags = ["--ckpt_dir", str(checkpoint), "--size", "832x480", "--prompt", "a fox"]
    planning.plan(build_parser().parse_args([*flags, "--device", "cpu"]))
    assert "no GPU" not in caplog.text
    job = planning.plan(build_parser().parse_args(flags))
    assert ("no GPU is found" in caplog.text) == (job.runtime.device.type == "cpu")


@pytest.mark.parametrize(
    ("products", "dtype", "is_told"), [(False, "bf16", True), (False, "fp32", False), (True, "bf16", False)]
)
def test_a_cpu_without_bfloat16_products_is_told(products, dtype, is_told, checkpoint, monkeypatch, caplog):
    monkeypatch.setattr(planning, "_is_nano", lambda folder, config: False)
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    monkeypatch.setattr(planning, "has_bfloat16_products", lambda: products)
    flags = ["--ckpt_dir", str(checkpoint), "--size", "832x480", "--prompt", "a fox", "--device", "cpu"]
    planning.plan(build_parser().parse_args([*flags, "--dtype", dtype]))
    assert ("bfloat16 many times more slowly than float32: try --dtype fp32" in caplog.text) == is_told


def test_flags_reach_the_request_and_the_runtime():
    job = planned(
        *("--negative_prompt", "", "--size", "64x64", "--frame_num", "5", "--sample_steps", "3", "--base_seed", "7"),
        *("--sample_guide_scale", "2,1.5", "--sample_shift", "4", "--sample_solver", "dpm++", "--fps", "12"),
        *("--boundary", "0.5", "--noise_device", "cpu", "--dtype", "fp32", "--attention", "sdpa", "--compile"),
    )
    assert job.request == Request(
        task="t2v-A14B",
        prompt="a red circle",
        negative_prompt="",
        framing=Framing((64, 64), (64, 64), (64, 64)),
        frame_num=5,
        steps=3,
        shift=4.0,
        guidance=(2.0, 1.5),
        solver="dpm++",
        seed=7,
        fps=12,
        boundary=0.5,
        noise_device="cpu",
    )
    assert (job.runtime.dtype, job.runtime.attention, job.runtime.compile) == (torch.float32, "sdpa", True)


@pytest.mark.parametrize("flags", [["--offload_model"], ["--offload_model", "--overwrite"], ["--offload_model", "1"]])
def test_offload_model_needs_no_value(flags):
    assert build_parser().parse_args(flags).offload_model is True


def test_a_flag_given_twice_is_said(caplog):
    job = planned("--prompt", "a blue square", "--sample_steps", "3")
    assert job.request.prompt == "a blue square" and "--prompt is given 2 times; the last one counts" in caplog.text
    assert "--sample_steps" not in caplog.text


def test_every_upstream_flag_of_text_to_video_is_accepted():
    command = (
        "--task t2v-A14B --size 64*64 --frame_num 17 --ckpt_dir nano --offload_model True --ulysses_size 1 --t5_cpu "
        "--save_file a.mp4 --prompt_extend_method local_qwen --prompt_extend_target_lang zh --base_seed -1 "
        "--sample_solver unipc --sample_steps 2 --sample_shift 5.0 --sample_guide_scale 5.0 --convert_model_dtype"
    )
    job = planned(*command.split())
    assert job.runtime.convert_model_dtype and job.video == Path("a.mp4") and job.request.guidance == (5.0, 5.0)


def test_a_missing_prompt_is_announced(caplog):
    job = planning.plan(build_parser().parse_args(["--device", "cpu"]))
    assert f"no --prompt: using the example {job.request.prompt!r}" in caplog.text


def test_a_long_prompt_is_warned_about(caplog):
    planned("--prompt", "a red circle " * 30 + "on navy")
    assert "the text encoder reads 64 tokens and the prompt has 93; this part is cut off: " in caplog.text
    assert "circle on navy\n" in caplog.text


@pytest.mark.parametrize(
    "text, value",
    [("True", True), ("yes", True), ("T", True), ("1", True), ("false", False), ("N", False), ("0", False)],
)
def test_str2bool(text, value):
    assert str2bool(text) is value


def test_help_is_grouped(capsys):
    assert cli.main(["--help"]) == cli.DONE
    text = capsys.readouterr().out
    for group in (
        "what to make:",
        "output:",
        "how to run:",
        "from an image:",
        "speech-to-video:",
        "character animation and replacement:",
    ):
        assert group in text

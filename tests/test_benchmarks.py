"""The benchmarks as programs: one line for a mistake of the user, and no file without --save."""

import importlib
import sys
from argparse import Namespace
from importlib import metadata

import pytest
import torch

from benchmarks import clips, common
from benchmarks.gpu.runner import Outcome
from wan.jobs import PIPELINES
from wan.parser import exit_code
from wan.program import install_command

NAMES = ("all", "dit", "vae", "t5", "load", "parallel", "s2v", "animate", "preprocess", "counted")


def run(name, *arguments):
    """Run `python -m benchmarks.NAME` and return its exit code."""
    module = importlib.import_module(f"benchmarks.{name}")
    main = getattr(module, "main", None) or importlib.import_module(f"benchmarks.{name}.__main__").main
    try:
        return exit_code(lambda: main(arguments))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(autouse=True)
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_is_explained(name, capsys):
    assert run(name, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--save [FILE] write the table to benchmarks/results" in text and f"python -m benchmarks.{name}" in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["--round", "3"], "did you mean --rounds?"),
        (["--save", "/dev/null/a.md"], "leave --save out to print the table only"),
    ],
)
def test_wrong_arguments_are_one_line(name, wrong, text, capsys):
    assert run(name, *wrong) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and f"python -m benchmarks.{name}: error: " in error and text in error


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("all --rows foo", "--rows foo: there are t2v-A14B nano, "),
        ("dit --cases 1536 foo", "--cases foo: on cpu there are 1536, 3072, 5120"),
        ("dit --device tpu", "'tpu' is not a device"),
        ("vae --vae 2.3", "invalid choice: '2.3'"),
        ("t5 --prompts 20+x", "a whole number was expected, got 'x'"),
        ("t5 --dim 100", "--dim must be a multiple of 64, got 100; try 64"),
        ("load --dir nowhere", "there is no folder nowhere; --dir must exist"),
    ],
)
def test_wrong_values_are_one_line(typed, text, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(*typed.split()) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("dit", "diffusers", "dev"), ("vae", "diffusers", "dev"), ("t5", "transformers", "s2v")],
)
def test_a_missing_package_names_the_extra_before_anything_is_measured(name, package, extra, monkeypatch, capsys):
    def missing(asked):
        raise metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(metadata, "version", missing)
    assert run(name) == 2
    assert f"error: the package {package} is not installed; {install_command(extra)}" in capsys.readouterr().err


def test_a_missing_package_of_ours_is_a_defect():
    def broken():
        raise ModuleNotFoundError("No module named 'wan.gone'", name="wan.gone")

    with pytest.raises(ModuleNotFoundError):
        exit_code(broken)


def test_results_are_written_only_with_save(results, capsys, tmp_path):
    assert run("parallel", "--rounds", "1") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Several GPUs: predicted denoising steps") and not results.exists()
    assert run("parallel", "--rounds", "1", "--save") == 0
    assert (results / "parallel.md").read_text(encoding="utf-8") == capsys.readouterr().out.removesuffix("\n")
    assert run("parallel", "--rounds", "1", "--save", str(tmp_path / "mine.md")) == 0
    assert (tmp_path / "mine.md").exists() and [path.name for path in results.iterdir()] == ["parallel.md"]


def test_the_command_is_in_the_table(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["parallel.py", "--rounds", "3"])
    run("parallel", "--rounds", "3")
    assert "--rounds 3`" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["s2v", "animate"])
def test_the_cost_of_adapters_is_measured_beside_all_blocks(name, monkeypatch):
    tiny = importlib.import_module(f"tests.modules.{name}.tiny").tiny_model
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "LATENT", (2, 8, 8))
    args = Namespace(device=torch.device("cpu"), rounds=1)
    with torch.no_grad():
        what, value, most = clips.adapter_row(module.CASE._replace(model=tiny), args)
    blocks = len(tiny().blocks)
    assert what.endswith(f"adapters beside {blocks} blocks") and int(what.split()[0]) > 0
    assert value.endswith("s)") and most in ("8%", "10%")


def test_the_motion_encoder_is_timed(monkeypatch):
    from benchmarks import animate
    from tests.modules.animate.tiny import tiny_model

    tiny = tiny_model().config
    monkeypatch.setattr(animate, "AnimateModelConfig", lambda: tiny)
    with torch.no_grad():
        what, value, _ = animate.motion_row(Namespace(device=torch.device("cpu"), rounds=1))
    side = tiny.motion_encoder_size
    assert what.endswith(f"{side}x{side}") and float(value.split()[0]) > 0


@pytest.mark.parametrize("name", ["s2v", "animate"])
@pytest.mark.parametrize("count", [2, 5])
def test_requests_have_the_clips_that_were_asked_for(name, count, tmp_path):
    module = importlib.import_module(f"benchmarks.{name}")
    request = module.request(count, tmp_path)
    assert PIPELINES[request.task].num_clips(request) == count


def test_a_row_of_the_whole_table(capsys, tmp_path):
    """It is a process that makes a video; the table has its seconds."""
    assert run("all", "--device", "cpu", "--rows", "t2v-A14B nano", "--save", "a.md") == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| t2v-A14B nano"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == ["64x64, 17 frames, 20 steps", "bf16"] and all(float(cell) >= 0 for cell in cells[3:9])
    assert (tmp_path / "results" / "a.md").read_text() == out.rstrip() + "\n"


def test_a_row_that_fails_is_a_note(capsys, monkeypatch):
    from benchmarks import all as whole

    monkeypatch.setattr(whole, "run_apart", lambda name, *_: Outcome(name, "failed", lines=("killed by SIGKILL",)))
    assert run("all", "--device", "cpu", "--rows", "VAE 2.1") == 0
    assert "- VAE 2.1 failed: killed by SIGKILL" in capsys.readouterr().out

"""The code of docs/adding_a_task.md runs and adds a task, which the command line knows."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from wan import arguments, checking, cli, configs, jobs, media, request
from wan.checkpoint import formats
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime

PAGE = (Path(__file__).parents[1] / "docs/adding_a_task.md").read_text("utf-8")
LISTS = [arguments.FLAGS, configs.IMPLEMENTED_TASKS, formats.CONTENTS]
TABLES = [request.REQUESTS, checking.MODELS, jobs.PIPELINES, WAN_CONFIGS._configs, NANO_CONFIGS._configs]
ASKED = ["--task", "toy", "--prompt", "a red circle", "--frame_num", "5", "--sample_steps", "2", "--base_seed", "3"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Run the code of the page, and make a random checkpoint of its task. Afterwards the task is unknown again."""
    lists, tables = [list(values) for values in LISTS], [dict(values) for values in TABLES]
    module = ModuleType("toy")
    exec("\n".join(re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)), vars(module))
    module.folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), "toy")
    yield module
    for values, before in zip(LISTS, lists, strict=True):
        values[:] = before
    for values, before in zip(TABLES, tables, strict=True):
        values.clear()
        values.update(before)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)).save(name)


def run(toy, *flags):
    return cli.main(["--ckpt_dir", str(toy.folder), "--device", "cpu", "--progress", "none", *flags])


def frames(name):
    return media.read_video(name)[0].numpy()


def test_the_second_picture_goes_through_the_whole_program(toy, desk, capsys, caplog):
    caplog.set_level("INFO")
    for picture in ("one", "two"):
        assert run(toy, *ASKED, "--second", f"{picture}.png", "--save_file", f"{picture}.mp4") == cli.DONE
    assert frames("one.mp4").shape == (5, 64, 64, 3)
    assert not np.array_equal(frames("one.mp4"), frames("two.mp4")), "its tokens have an effect"
    assert "second: one.png, 60*40" in caplog.text
    assert run(toy, "--from_video", "one.mp4", "--save_file", "again.mp4") == cli.DONE
    assert np.array_equal(frames("again.mp4"), frames("one.mp4"))
    Path("two.png").rename("one.png")
    caplog.clear()
    assert run(toy, "--from_video", "one.mp4", "--save_file", "other.mp4") == cli.DONE
    assert "one.png has changed since the video was made" in caplog.text
    Path("one.png").unlink()
    assert run(toy, "--from_video", "one.mp4", "--save_file", "none.mp4") == cli.WRONG
    assert "say where it is: --second FILE" in capsys.readouterr().err


def test_its_row_makes_help_and_errors(toy, desk, capsys):
    assert cli.main(["--help"]) == cli.DONE
    assert "toy:\n  --second FILE" in capsys.readouterr().out
    for flags, text in (
        (ASKED, "--task toy needs --second FILE"),
        ([*ASKED, "--second", "gone.png"], "there is no image gone.png"),
        (
            [*ASKED, "--second", "one.png", "--image", "one.png"],
            "--image is not used by toy, only by i2v-A14B, ti2v-5B",
        ),
    ):
        assert run(toy, *flags) == cli.WRONG and text in capsys.readouterr().err
    assert cli.main(["--task", "t2v-A14B", "--second", "one.png"]) == cli.WRONG
    assert "--second is not used by t2v-A14B, only by toy; leave it out" in capsys.readouterr().err


def test_python_has_it_too(toy, desk):
    pipeline = toy.WanToy(NANO_CONFIGS["toy"], toy.folder, runtime=Runtime.from_flags(device="cpu"))
    assert pipeline.generate("a red circle", "one.png", frame_num=1).shape == (3, 1, 64, 64)
    with pytest.raises(ValueError, match=r"^task toy needs second$"):
        pipeline.generate("a red circle")
    stored = Request.create(NANO_CONFIGS["toy"], second="one.png").to_dict()
    assert stored["second"]["size"] == "60*40" and Request.from_dict(stored).second.pixels is None
    with pytest.raises(TypeError, match="a request has no second; it has task, prompt"):
        Request.create(NANO_CONFIGS["t2v-A14B"], prompt="a fox", second="one.png")

"""The command line: inputs of tasks, and what is advised when they do not belong together."""

import logging

import numpy as np
import pytest
from PIL import Image

import wan
from tests.command_line import NANO, ROOT
from wan import cli, media, planning
from wan.arguments import build_parser

ACTS = ["--src_root_path", str(ROOT / "examples" / "performance"), "--replace_flag"]


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    """Use the embedded models, not the random one of the other tests."""
    monkeypatch.setattr(planning, "nano_checkpoint", wan.nano_checkpoint)


@pytest.fixture
def files():
    """Write a picture, a video and an empty file."""
    Image.new("RGB", (64, 64)).save("a.png")
    media.write_video(np.zeros((9, 64, 64, 3), np.uint8), "a.mp4", 16)
    open("empty", "w").close()


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--task", "s2v-14B", "--image", "a.png"], "needs --audio FILE (or --enable_tts --tts_text TEXT)"),
        (["--task", "animate-14B"], "needs --src_root_path DIR (or --video FILE --image FILE)"),
        (["--task", "animate-14B", "--src_root_path", "a", "--audio", "b"], "only by s2v-14B; give --sound FILE"),
        (["--task", "animate-14B", "--src_root_path", "a", "--image", "b"], "give --video FILE as well, or leave"),
        (
            ["--task", "animate-14B", *ACTS, "--use_relighting_lora"],
            "have no relighting LoRA; leave use_",
        ),
        (["--task", "animate-14B", "--person", "left"], "a number from 1 up or X,Y was expected, got 'left'"),
        (["--image", "a.mp4"], "a.mp4 is a video or a sound, and a picture is wanted; of a video save a frame as PNG"),
        (["--image", "empty"], "empty is empty; copy it again, or name another file"),
        (["--from_video", "empty"], "empty is empty; copy it again, or name another file"),
        (["--image", "a.png", "--audio", "a.png"], "a.png is a picture, and a sound is wanted; name another file"),
        (["--video", "a.png", "--image", "a.mp4"], "a.png is a picture, and a video is wanted; name another file"),
    ],
)
def test_advice_names_what_belongs_there(flags, text, capsys, files):
    assert cli.main([*(NANO[2:] if "animate-14B" in flags else NANO), *flags]) == cli.WRONG
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


def test_a_setting_with_another_name_is_told(caplog):
    caplog.set_level(logging.WARNING)
    planning._check_flags(build_parser().parse_args(["--frame_num", "81"]), "s2v-14B")
    assert "--frame_num is not used by s2v-14B" in caplog.text and "give --infer_frames" in caplog.text


@pytest.mark.parametrize(
    "flags, task",
    [
        (["--audio", "a.wav", "--image", "a.png"], "s2v-14B"),
        (["--enable_tts"], "s2v-14B"),
        (["--video", "a.mp4", "--image", "a.png"], "animate-14B"),
        (["--src_root_path", "a", "--sound", "a.wav"], "animate-14B"),
        (["--last_image", "a.png"], "i2v-A14B"),
        ([], "t2v-A14B"),
    ],
)
def test_inputs_choose_the_task(flags, task):
    assert planning.task_of_inputs(build_parser().parse_args(flags)) == task

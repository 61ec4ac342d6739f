"""One command from a video and a picture to an animation, with stand-in networks and random weights."""

import json
import logging
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.recorded import write_wav
from wan import audio, cli, media, nano_checkpoint
from wan.modules.animate.preprocess import preprocess_data
from wan.nano import puppets
from wan.nano.puppet_videos import render
from wan.nano.random import write_random_checkpoint
from wan.performance import Performance

NETWORKS = nano_checkpoint("animate-14B") / "process_checkpoint"
COUNT, RATE = 8, Fraction(25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("animate"), "animate-14B")
    shutil.copytree(NETWORKS, folder / "process_checkpoint")
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A grey puppet with coloured joints that moves, with a sound; its masks; a coloured puppet that stands."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(4)
    driver = render(puppets.sample_puppet(rng, True), puppets.sample_motion(rng, COUNT), size=256, markers=0.022)
    media.write_video(driver.video, folder / "v.mp4", RATE)
    masks = np.repeat(driver.mask[..., None], 3, axis=-1).astype(np.uint8) * 255
    media.write_video(masks, folder / "m.mp4", RATE)
    write_wav(folder / "a.wav", 0.3 * np.sin(np.arange(8000) / 9))
    audio.add_audio(folder / "v.mp4", folder / "a.wav")
    standing = render(puppets.sample_puppet(rng), puppets.rest(rng), size=128)
    Image.fromarray(standing.video[0]).save(folder / "c.png")
    return folder


@pytest.fixture
def run(checkpoint, inputs, tmp_path, monkeypatch):
    """Run the command in an empty folder with a cache of its own; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*flags, out="out.mp4", given=("--video", str(inputs / "v.mp4"), "--image", str(inputs / "c.png"))):
        common = ["--ckpt_dir", str(checkpoint), "--save_file", out, "--sample_steps", "1", "--base_seed", "1"]
        return cli.main([*given, *common, *flags])

    return run


def cached():
    return sorted(Path("cache/wan/performances").iterdir())


def test_a_video_and_a_picture_become_an_animation_with_the_sound(run, caplog):
    caplog.set_level(logging.INFO)
    assert run() == 0
    assert media.written("out.mp4") == (COUNT, (64, 64)) and media.frame_rate("out.mp4") == RATE
    assert next(audio.sound_chunks("out.mp4", 16_000)).size
    [folder] = cached()
    drawn = Performance.of(folder).footage.pose.take(range(COUNT))
    assert (drawn.max(-1) > 60).mean((1, 2)).min() > 0.01, "a skeleton in each frame"
    assert [path.name for path in Path("cache").iterdir()] == ["wan"], "onnxruntime reports nothing"
    assert run(out="again.mp4") == 0 and "the performance is prepared already" in caplog.text and len(cached()) == 1
    assert run("--retarget_flag", out="other.mp4") == 0 and len(cached()) == 2
    assert run("--from_video", "out.mp4", out="repeated.mp4", given=()) == 0
    first, repeated = (media.read_video(name)[0] for name in ("out.mp4", "repeated.mp4"))
    assert (first == repeated).all()


def test_replacement_with_masks_of_ones_own(run, inputs):
    assert run("--replace_flag", "--masks", str(inputs / "m.mp4"), "--keep_inputs", "kept", "--fps", "12.5") == 0
    assert media.written("out.mp4") == (COUNT // 2, (64, 64)) and media.frame_rate("out.mp4") == RATE / 2
    kept = Performance.of("kept")
    kept.check(True, False)
    assert Path("kept/preview.mp4").is_file() and not Path("cache").exists()
    assert 0.1 < (kept.footage.mask.take([0]) > 128).mean() < 0.95


def test_other_masks_of_the_same_name_are_another_performance(run, inputs, tmp_path):
    shutil.copy(inputs / "m.mp4", "own.mp4")
    assert run("--replace_flag", "--masks", "own.mp4") == 0
    media.write_video(np.full((COUNT, 64, 64, 3), 255, np.uint8), "own.mp4", RATE, overwrite=True)
    assert run("--replace_flag", "--masks", "own.mp4", out="other.mp4") == 0
    assert len(cached()) == 2


def test_a_kept_performance_of_another_video_is_replaced_when_that_is_allowed(run, inputs, capsys):
    assert run("--keep_inputs", "kept") == 0
    media.write_video(media.read_video(inputs / "v.mp4")[0][:3], "short.mp4", RATE)
    other = ("--video", "short.mp4", "--image", str(inputs / "c.png"))
    assert run("--keep_inputs", "kept", given=other, out="other.mp4") == 2
    assert "choose another --keep_inputs, or replace it with --overwrite" in capsys.readouterr().err
    assert run("--keep_inputs", "kept", "--overwrite", given=other, out="other.mp4") == 0
    assert Performance.of("kept").frames == media.written("other.mp4")[0] == 3


def test_a_damaged_performance_in_the_cache_is_made_again(run, caplog):
    assert run() == 0
    [folder] = cached()
    (folder / "src_face.mp4").unlink()
    assert run("--overwrite", out="again.mp4") == 0
    assert "is damaged, and is made again" in caplog.text
    first, again = (media.read_video(name)[0] for name in ("out.mp4", "again.mp4"))
    assert (first == again).all()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--frame_num", "10"), "--frame_num must be 4n+1, got 10"),
        (("--src_root_path", "x"), "--video is preprocessed into a folder, and --src_root_path names one"),
        (
            ("--replace_flag",),
            "sam2_hiera_large.pt; it is in process_checkpoint of the released Wan2.2-Animate-14B; or give",
        ),
        (("--person", "0"), "--person: must be at least 1, got 0"),
        (("--pose_backend", "x"), "--pose_backend: invalid choice: 'x'"),
        (("--masks", "m.mp4", "--composite"), "--composite needs --replace_flag"),
        (("--use_relighting_lora",), "those have no relighting LoRA"),
        (("--task", "t2v-A14B"), "not of t2v-A14B"),
    ],
)
def test_what_cannot_work_is_refused_before_a_network_runs(run, capsys, monkeypatch, flags, text):
    monkeypatch.setattr("wan.modules.animate.preprocess.networks.Network.__call__", lambda *_: pytest.fail("it ran"))
    assert run(*flags) == 2
    assert text in capsys.readouterr().err
    assert not Path("cache").exists()


def test_inputs_that_are_missing(run, capsys, inputs):
    assert run(given=("--video", str(inputs / "v.mp4"))) == 2
    assert "--video needs --image FILE" in capsys.readouterr().err
    assert run(given=("--video", "gone.mp4", "--image", str(inputs / "c.png"))) == 2
    assert "gone.mp4" in capsys.readouterr().err
    assert run(given=("--video", str(inputs / "v.mp4"), "--image", "gone.png")) == 2
    assert "gone.png" in capsys.readouterr().err


def test_flags_of_preprocessing_without_a_video_are_named(run, inputs, tmp_path, caplog):
    assert run("--keep_inputs", "kept") == 0
    assert run("--src_root_path", "kept", "--retarget_flag", "--person", "1", out="b.mp4", given=()) == 0
    assert "--person, --retarget_flag has no effect without --video" in caplog.text


# ---- the command of preprocessing alone ----


def preprocess(inputs, *flags, out="out"):
    files = ["--video_path", str(inputs / "v.mp4"), "--refer_path", str(inputs / "c.png"), "--save_path", out]
    return preprocess_data.exit_code(lambda: preprocess_data.main(["--ckpt_path", str(NETWORKS), *files, *flags]))


def test_the_originals_two_commands(run, inputs, capsys):
    """With its flags; --fps is 30 as there, and -1 the rate of the video."""
    assert preprocess(inputs, "--resolution_area", "64", "64", "--retarget_flag") == 0
    assert capsys.readouterr().out == "written: out\n"
    assert Performance.of("out").rate == 30
    assert run("--src_root_path", "out", "--refert_num", "1", given=("--task", "animate-14B")) == 0
    assert preprocess(inputs, "--resolution_area", "64", "64", "--fps", "-1", out="own") == 0
    assert Performance.of("own").rate == RATE and json.loads(Path("own/meta.json").read_text())["sound"]["start"] == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--use_flux",), "--use_flux needs --retarget_flag"),
        (("--use_flux", "--retarget_flag"), "--use_flux"),  # its package or its weights are missing
        (("--k", "0", "--replace_flag"), "--k must be at least 1"),
        (("--fps", "-3"), "--fps must be above 0, or -1 for the rate of the video"),
        (("--start", "9"), "--start must lie in the video, which has 0.32 s, got 9"),
        (("--resolution_area", "0", "5"), "--resolution_area is two whole numbers from 1"),
        (
            ("--ckpt_path", "gone", "--pose_backend", "onnx"),
            "there is no gone/det/yolov10m.onnx; it is in process_check",
        ),
        (("--detector", str(NETWORKS / "pose2d/vitpose_h_wholebody.onnx")), "is no person detector"),
        (("--replace_flag", "--masks", str(NETWORKS / "det/yolov10m.onnx")), "is not a video that can be read"),
    ],
)
def test_errors_of_preprocessing(inputs, tmp_path, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(tmp_path)
    assert preprocess(inputs, *flags) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.mp4"))

"""Videos made from images on the command line: sizes asked, used and saved, and repeated runs."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan import cli, media, output, planning
from wan.arguments import build_parser
from wan.forecast import expected_bytes
from wan.framing import Framing
from wan.nano.random import write_random_checkpoint

TASKS = ("i2v-A14B", "ti2v-5B")
COMMON = ["--device", "cpu", "--attention", "sdpa", "--progress", "none", "--base_seed", "3"]
QUICK = ["--frame_num", "5", "--sample_steps", "2", *COMMON]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return {task: write_random_checkpoint(tmp_path_factory.mktemp(task), task) for task in TASKS}


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoints, caplog):
    """A current folder with one photo, random miniatures as the embedded checkpoints, and no torchrun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoints[task])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    caplog.set_level(logging.INFO)
    save_photo("photo.png")


def save_photo(name, size=(60, 40), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(name, **options)


def run(task, *flags):
    return cli.main(["--task", task, "--prompt", "a red circle", *QUICK, "--save_file", "a.mp4", *flags])


def planned(task, *flags):
    return planning.plan(build_parser().parse_args(["--task", task, "--prompt", "a red circle", *COMMON, *flags]))


def files():
    return sorted(path.name for path in Path().iterdir())


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("flags", "sizes", "shape"),
    [
        ([], "asked {default} -> used {area} -> saved {area} (fit area)", None),
        (["--fit", "crop", "--size", "50*70"], "asked 50*70 -> used 64*{high} -> saved 50*70 (fit crop)", (70, 50)),
        (["--fit", "pad", "--size", "100x90"], "asked 100*90 -> used 96*64 -> saved 100*90 (fit pad)", (90, 100)),
        (["--fit", "exact", "--size", "33*61"], "asked 33*61 -> used {wide}*64 -> saved 34*62 (fit exact)", (62, 34)),
    ],
    ids=["area", "crop", "pad", "exact"],
)
def test_the_file_has_the_size_that_was_announced(task, flags, sizes, shape, caplog):
    known = {
        "i2v-A14B": {"default": "64*64", "area": "64*48", "high": 80, "wide": 48},
        "ti2v-5B": {"default": "128*128", "area": "160*96", "high": 96, "wide": 64},
    }[task]
    assert run(task, "--image", "photo.png", *flags) == cli.DONE
    assert "size: " + sizes.format(**known) in caplog.text
    assert "image: photo.png, 60*40" in caplog.text
    frames = media.read_video("a.mp4")[0]
    width, height = map(int, known["area"].split("*"))
    assert frames.shape == (5, *(shape or (height, width)), 3)
    assert files() == ["a.mp4", "photo.png"]
    if "pad" in flags:
        assert frames[:, :8].max() < 20, "the upper border is black"


def test_a_photo_is_turned_upright_before_its_shape_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    save_photo("turned.jpg", exif=exif)
    assert planned("i2v-A14B", "--image", "photo.png").request.framing.used == (64, 48)
    assert planned("i2v-A14B", "--image", "turned.jpg").request.framing.used == (48, 64)


@pytest.mark.parametrize("flag", ["--image", "--last_image"])
def test_an_image_alone_is_a_task(flag, caplog):
    job = planning.plan(build_parser().parse_args([flag, "photo.png", *COMMON]))
    assert job.request.task == "i2v-A14B"
    assert f"{flag} without --task: taken as --task i2v-A14B" in caplog.text


def test_the_name_tells_the_size_of_the_file():
    job = planned("i2v-A14B", "--image", "photo.png")
    assert re.fullmatch(r"i2v-A14B_64x48_a_red_circle_3_\d{8}_\d{6}\.mp4", job.video.name)


def test_tiny_images_are_enlarged():
    save_photo("tiny.png", size=(3, 2))
    assert planned("i2v-A14B", "--image", "tiny.png").request.framing.used == (64, 48)


@pytest.mark.parametrize(
    ("command", "used", "guidance"),
    [
        ("--task i2v-A14B --size 1280*720 --offload_model True --convert_model_dtype", (1168, 768), (3.5, 3.5)),
        ("--task i2v-A14B --size 832*480 --sample_guide_scale 5 --ulysses_size 1", (768, 512), (5.0, 5.0)),
        ("--task ti2v-5B --size 1280*704 --offload_model True --convert_model_dtype --t5_cpu", (1152, 768), (5.0, 5.0)),
    ],
)
def test_commands_written_for_upstream(checkpoints, monkeypatch, command, used, guidance):
    monkeypatch.setattr(planning, "_is_nano", lambda folder, config: False)
    monkeypatch.setattr(planning, "check_checkpoint", lambda folder, config: None)  # miniatures stand in for it
    monkeypatch.setattr(planning, "with_plan", lambda job: job)
    flags = [*command.split(), "--image", "photo.png", "--prompt", "A cat.", "--base_seed", "1", "--save_file", "a.mp4"]
    folder = checkpoints[flags[1]]
    job = planning.plan(build_parser().parse_args([*flags, "--ckpt_dir", str(folder), "--device", "cpu"]))
    assert job.request.framing == Framing(job.request.framing.asked, used, used)
    assert job.request.guidance == guidance and job.config.family == "wan2.2"
    miniature = replace(job.config, family="nano", text_len=1)
    needed = expected_bytes(miniature, job.checkpoint, job.request, job.runtime)
    assert needed > used[0] * used[1] * 8 * 4 * 20, "decoding with a miniature of width 8 alone takes that much"


# ---------------------------------------------------------------- first and last image


@pytest.mark.parametrize("flags", [["--last_image", "b.png"], ["--image", "photo.png", "--last_image", "b.png"]])
def test_a_last_image_with_or_without_a_first(flags):
    save_photo("b.png", size=(40, 60), seed=1)
    assert run("i2v-A14B", *flags) == cli.DONE
    stored = json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])
    assert stored["last_image"]["path"] == "b.png" and bool(stored["image"]) == ("--image" in flags)
    assert media.read_video("a.mp4")[0].shape[1:3] == ((48, 64) if stored["image"] else (64, 48))


def test_the_prompt_may_be_empty_or_missing(caplog):
    assert run("i2v-A14B", "--image", "photo.png", "--prompt", "") == cli.DONE
    parsed = build_parser().parse_args(["--task", "i2v-A14B", "--image", "photo.png", *COMMON])
    assert planning.plan(parsed).request.prompt == ""
    assert "no --prompt: the image decides" in caplog.text


# ---------------------------------------------------------------- again


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("flags", [[], ["--fit", "pad", "--size", "100*90"]], ids=["area", "pad"])
def test_a_video_is_repeated_exactly(task, flags, caplog):
    assert run(task, "--image", "photo.png", *flags) == cli.DONE
    assert cli.main(["--from_video", "a.mp4", *COMMON[:-2], "--save_file", "b.mp4"]) == cli.DONE
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    assert "has changed" not in caplog.text


def test_repeating_without_the_image_says_what_is_missing(capsys):
    assert run("i2v-A14B", "--image", "photo.png", "--last_image", "photo.png") == cli.DONE
    Path("photo.png").rename("moved.png")
    again = ["--from_video", "a.mp4", *COMMON[:-2]]
    assert cli.main(again) == cli.WRONG
    error = capsys.readouterr().err
    assert "the video was made from the image photo.png, which is not there; say where it is: --image FILE" in error
    assert cli.main([*again, "--image", "moved.png"]) == cli.WRONG
    assert "which is not there; say where it is: --last_image FILE" in capsys.readouterr().err
    repeated = [*again, "--image", "moved.png", "--last_image", "moved.png", "--save_file", "b.mp4"]
    assert cli.main(repeated) == cli.DONE
    assert (media.read_video("a.mp4")[0] == media.read_video("b.mp4")[0]).all()


def test_repeating_with_a_changed_image_is_warned_about(caplog):
    assert run("i2v-A14B", "--image", "photo.png") == cli.DONE
    save_photo("photo.png", seed=1)
    planning.plan(build_parser().parse_args(["--from_video", "a.mp4", *COMMON]))
    assert "photo.png has changed since the video was made: expect another video" in caplog.text


def test_repeating_from_another_folder_finds_the_image_beside_the_video(monkeypatch, caplog):
    assert run("i2v-A14B", "--image", "photo.png") == cli.DONE
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert cli.main(["--from_video", "../a.mp4", *COMMON[:-2], "--save_file", "b.mp4"]) == cli.DONE
    assert (media.read_video("../a.mp4")[0] == media.read_video("b.mp4")[0]).all()
    save_photo("../photo.png", seed=1)
    planning.plan(build_parser().parse_args(["--from_video", "../a.mp4", *COMMON]))
    assert "photo.png has changed since the video was made" in caplog.text


def test_repeating_with_the_aspect_of_the_image_leaves_the_stored_size():
    assert run("i2v-A14B", "--image", "photo.png", "--fit", "pad", "--size", "100*90") == cli.DONE
    again = planning.plan(build_parser().parse_args(["--from_video", "a.mp4", "--fit", "area", *COMMON]))
    assert again.request.framing == Framing((64, 64), (64, 48), (64, 48))


def test_another_tasks_checkpoint_is_refused_as_an_argument(tmp_path, capsys):
    other = write_random_checkpoint(tmp_path / "other")
    assert run("i2v-A14B", "--image", "photo.png", "--ckpt_dir", str(other)) == cli.WRONG
    error = capsys.readouterr().err
    assert "other is a checkpoint of t2v-A14B, not of i2v-A14B; give --task t2v-A14B" in error


def test_a_failed_decode_is_resumed_without_the_image(monkeypatch, capsys):
    flags = ["--image", "photo.png", "--fit", "pad", "--size", "100*90"]
    assert run("i2v-A14B", *flags) == cli.DONE

    def broken(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(media, "_to_yuv", broken)
        assert run("i2v-A14B", *flags, "--save_file", "b.mp4") == cli.FAILED
    assert "finish it with: python generate.py --resume b.latent.safetensors" in capsys.readouterr().err
    Path("photo.png").unlink()
    assert cli.main(["--resume", "b.latent.safetensors", *COMMON[:-2]]) == cli.DONE
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()


def test_resuming_takes_no_other_image(capsys):
    assert cli.main(["--resume", "b.latent.safetensors", "--image", "photo.png", "--fit", "crop"]) == cli.WRONG
    assert "--resume only decodes what was sampled already; --image, --fit cannot" in capsys.readouterr().err


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--task i2v-A14B needs --image FILE (or --last_image FILE)"),
        (["--image", "gone.png"], "there is no image gone.png"),
        (["--image", "text.png"], "text.png is not an image that can be read; save it as PNG or JPEG"),
        (["--image", "cut.png"], "cut.png is damaged or incomplete"),
        (
            ["--image", "line.png"],
            "an image of 1000x1 pixels is too elongated for a video of 4096 pixels; crop the image",
        ),
        (["--image", "photo.png", "--size", "50*40"], "the nano model of i2v-A14B makes; try 64*64"),
        (["--image", "photo.png", "--size", "50*40", "--fit", "area"], "the nano model of i2v-A14B makes; try 64*64"),
        (
            ["--image", "photo.png", "--size", "8*40", "--fit", "crop"],
            "size 8*40 is not possible: the width must be 16",
        ),
        (["--image", "photo.png", "--fit", "zoom"], "invalid choice: 'zoom'"),
        (["--image", "photo.png", "--last_image", "photo.png", "--frame_num", "1"], "frame_num 1 has no room for both"),
        (["--image", "photo.png", "--audio", "talk.wav"], "--audio is not used by i2v-A14B"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(flags, text, capsys):
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:3000])
    save_photo("line.png", size=(1000, 1))
    assert run("i2v-A14B", *flags) == cli.WRONG
    error = capsys.readouterr().err
    assert text in error and error.startswith("generate.py: error: ") and "Traceback" not in error
    assert not Path("a.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--last_image", "photo.png"], "--last_image is not used by ti2v-5B, only by i2v-A14B; leave it out"),
        (["--fit", "crop"], "fit crop is about an image, and none was given; leave it out"),
        (["--sample_guide_scale", "3,4"], "is for two experts, and ti2v-5B has one model; try 3"),
        (["--boundary", "0.5"], "boundary divides the work of two experts, and ti2v-5B has one model; leave it out"),
        (["--size", "64*64"], "the nano model of ti2v-5B makes; try 128*128"),
        (["--prompt", ""], "the prompt is empty"),
    ],
)
def test_what_one_model_does_not_take(flags, text, capsys):
    assert run("ti2v-5B", *flags) == cli.WRONG
    assert text in capsys.readouterr().err


def test_text_alone_gives_exactly_the_size_that_was_asked(caplog):
    assert run("ti2v-5B", "--size", "128*128") == cli.DONE
    assert media.read_video("a.mp4")[0].shape == (5, 128, 128, 3)
    assert "size: asked" not in caplog.text
    stored = json.loads(media.read_metadata("a.mp4")[output.REQUEST_KEY])
    assert (stored["size"], stored["used"], stored["saved"]) == ("128*128",) * 3
    assert cli.main(["--from_video", "a.mp4", *COMMON[:-2], "--save_file", "b.mp4"]) == cli.DONE
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()

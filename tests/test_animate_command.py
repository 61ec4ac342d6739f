"""Character animation by the command and the library, with random weights: files in, files out, and what is refused."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch

from tests.performances import COUNT, RATE, SIZE, write_film, write_performance
from tests.recorded import write_wav
from wan import WanAnimate, audio, cli, media
from wan.colours import Colours, composited, lab, matched
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.nano.faces import lab as pixel_lab
from wan.nano.random import write_random_checkpoint
from wan.performance import Performance
from wan.request import Request
from wan.runtime import Runtime

RELEASED, NANO = WAN_CONFIGS["animate-14B"], NANO_CONFIGS["animate-14B"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("animate"), "animate-14B")
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    names = {f"blocks.0.self_attn.q.lora_{half}.weight": factor for half, factor in (("A", down), ("B", up))}
    torch.save({"state_dict": names, "epoch": 3}, folder / "relighting_lora.ckpt")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_performance(tmp_path_factory.mktemp("performance") / "p")


@pytest.fixture
def run(checkpoint, folder, tmp_path, monkeypatch):
    """Run the command in an empty folder; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, src=folder, out="out.mp4"):
        given = [] if src is None else ["--task", "animate-14B", "--src_root_path", str(src), "--base_seed", "1"]
        given += ["--sample_steps", "1", "--frame_num", "9"] if src is not None else []
        return cli.main([*given, "--ckpt_dir", str(checkpoint), "--save_file", out, "--dtype", "fp32", *flags])

    return run


# ---- what is made ----


def test_the_video_has_the_frames_size_and_rate_of_the_pose_and_is_repeated(run, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    assert run() == 0
    assert media.written("out.mp4") == (COUNT, SIZE) and media.frame_rate("out.mp4") == RATE
    assert "2 clips; against a drift of colours from clip to clip: --match_color" in caplog.text
    assert "clip 2 of 2: its mean colour is" in caplog.text
    stored = json.loads(media.read_metadata("out.mp4")["wan_request"])
    assert (
        stored["fps"] == [30000, 1001] and stored["prompt"] == NANO.prompt and stored["performance"]["frames"] == COUNT
    )
    assert run("--from_video", "out.mp4", src=None, out="again.mp4") == 0
    first, again = media.read_video("out.mp4")[0], media.read_video("again.mp4")[0]
    assert torch.equal(first, again)


def test_a_run_that_lacks_clips_goes_on(run, monkeypatch, caplog):
    assert run("--replace_flag", "--composite", out="whole.mp4") == 0
    calls, clip = [], WanAnimate.clip

    def stops(self, request, index, tail):
        calls.append(index)
        if len(calls) == 2:
            raise OSError("the lights went out")
        return clip(self, request, index, tail)

    monkeypatch.setattr(WanAnimate, "clip", stops)
    assert run("--replace_flag", "--composite") == 1
    [kept] = [path for path in media.Path().iterdir() if "latent" in path.name or path.is_dir()]
    assert run("--resume", str(kept), src=None) == 0
    assert torch.equal(media.read_video("out.mp4")[0], media.read_video("whole.mp4")[0])


def test_sound_is_that_of_the_flag_or_of_the_description(run, folder, tmp_path):
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(np.arange(16_000) / 20))
    assert run("--sound", "a.wav") == 0
    heard = sum(len(chunk) for chunk in audio.sound_chunks("out.mp4", 16_000)) / 16_000
    assert abs(heard - COUNT / RATE) < 0.07, "cut to the length of the video, up to a frame of AAC"

    described = write_performance(tmp_path / "described")
    (described / "meta.json").write_text(json.dumps({"sound": {"path": "../a.wav", "start": 0.9, "length": None}}))
    assert run(src=described, out="described.mp4") == 0
    heard = sum(len(chunk) for chunk in audio.sound_chunks("described.mp4", 16_000)) / 16_000
    assert 0.05 < heard < 0.2, "from 0.9 s on, of one second"
    assert media.written("described.mp4")[0] == COUNT, "a short sound cuts no frame off"


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ("{", "meta.json is not valid JSON"),
        ("[]", "meta.json"),
        ('{"sound": 5}', "sound of"),
        ('{"sound": {"path": 5}}', "the path of the sound of"),
        ('{"sound": {"path": "a\\u0000b"}}', "the path of the sound of"),
        ('{"sound": {"path": "../a.wav", "start": 1e999}}', "meta.json must be a finite number, got inf"),
        ('{"sound": {"path": "../a.wav", "start": NaN}}', "NaN is no number of JSON"),
        ('{"sound": {"path": "../a.wav", "start": -1}}', "meta.json must be 0 or more"),
        ('{"sound": {"path": "../a.wav", "start": 9}}', "meta.json 9 is beyond the end"),
        ('{"sound": {"path": "../a.wav", "length": "x"}}', "meta.json must be a finite number"),
    ],
)
def test_a_wrong_description_is_named(run, tmp_path, folder, capsys, description, text):
    shutil.copytree(folder, tmp_path / "p")
    write_wav(tmp_path / "a.wav", np.zeros(1600))
    (tmp_path / "p" / "meta.json").write_text(description)
    assert run(src="p") == 2
    error = capsys.readouterr().err
    assert text in error and "p/meta.json" in error


def test_a_wrong_description_does_not_count_where_a_sound_is_given(run, tmp_path, folder, capsys):
    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "meta.json").write_text('{"sound": 5}')
    write_wav(tmp_path / "a.wav", np.zeros(1600))
    assert run("--sound", str(tmp_path / "a.wav"), src="p") == 0


def test_background_and_mask_in_each_others_place_are_noticed(run, tmp_path, folder, capsys):
    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "src_mask.mp4").rename(tmp_path / "p" / "x.mp4")
    (tmp_path / "p" / "src_bg.mp4").rename(tmp_path / "p" / "src_mask.mp4")
    (tmp_path / "p" / "x.mp4").rename(tmp_path / "p" / "src_bg.mp4")
    assert run("--replace_flag", src="p") == 2
    assert "is it the file of something else, for example src_bg.mp4?" in capsys.readouterr().err


def test_the_name_of_a_picture_is_refused_with_the_number_of_frames(run, capsys):
    assert run("--save_file", "w.webp") == 2
    assert "w.webp is the name of a picture, and the video has 12 frames; try w.mp4\n" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["gone.wav", "/dev/zero", "x" * 3000])
def test_a_sound_that_is_not_there_is_missed(folder, tmp_path, caplog, path):
    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "meta.json").write_text(json.dumps({"sound": {"path": path}}))
    assert Performance.of(tmp_path / "p").sound is None
    assert "which is not there; the video has none without --sound" in caplog.text


def test_composite_keeps_the_pixels_of_the_background(run, folder):
    assert run("--replace_flag", "--composite") == 0
    made, background = (media.read_video(path)[0].float() for path in ("out.mp4", folder / "src_bg.mp4"))
    right, left = (slice(None), slice(None), slice(30, None)), (slice(None), slice(None), slice(0, 20))
    assert (made[right] - background[right]).abs().mean() < 12, "coded twice"
    assert (made[left] - background[left]).abs().mean() > 30


def test_the_relighting_adapter_is_merged_and_named(run, checkpoint, caplog):
    caplog.set_level(logging.INFO)
    assert run() == 0 and run("--use_relighting_lora", out="lit.mp4") == 0
    assert "relighting: 1 of 60 layers" in caplog.text
    assert not torch.equal(media.read_video("out.mp4")[0], media.read_video("lit.mp4")[0])
    assert run("--from_video", "lit.mp4", src=None, out="again.mp4") == 0
    assert torch.equal(media.read_video("again.mp4")[0], media.read_video("lit.mp4")[0])


def test_the_library_makes_the_same_video(run, checkpoint, folder):
    assert run("--prompt", "a circle") == 0
    pipeline = WanAnimate(NANO, checkpoint, runtime=Runtime.from_flags(device="cpu", dtype="fp32"))
    video = pipeline.generate(str(folder), clip_len=9, sampling_steps=1, input_prompt="a circle", seed=1)
    assert video.shape == (3, COUNT, *SIZE[::-1])
    made = media.read_video("out.mp4")[0].float()
    assert (media.to_uint8(video).float() - made).abs().mean() < 20, "the file is compressed"
    lit = WanAnimate(NANO, checkpoint, 0, 0, False, False, False, False, True, False, True)
    assert lit.config.uses_lora and not pipeline.config.uses_lora


# ---- what is refused ----

OTHERS = {
    "lengths": (
        {"face": {"size": (16, 16), "count": 9}},
        (),
        r"src_face\.mp4 has 9 frames, and src_pose\.mp4 12; preproc",
    ),
    "mask length": ({"mask": {"count": 9}}, ("--replace_flag",), r"src_mask\.mp4 has 9 frames, and src_pose\.mp4 12"),
    "sides": ({"pose": {"size": (50, 32)}}, (), r"has 50\*32 pixels, and both sides must be multiples of 16;.* 48\*32"),
    "face": ({"face": {"size": (16, 32)}}, (), r"src_face\.mp4 has 16\*32 pixels, and a face must be square"),
    "background": (
        {"bg": {"size": (64, 32)}},
        ("--replace_flag",),
        r"src_bg\.mp4 has 64\*32 pixels, and src_pose\.mp4 48",
    ),
    "black mask": (
        {"mask": {"level": 0}},
        ("--replace_flag",),
        r"src_mask\.mp4 is black in all 12 frames: nobody would",
    ),
    "no mask": ({"mask": None}, ("--replace_flag",), r"has no src_mask\.mp4, which --replace_flag needs"),
    "no pose": (
        {"pose": None, "face": None},
        (),
        r"has no src_pose\.mp4 and no src_face\.mp4; --src_root_path is the fol",
    ),
    "clip": ({}, ("--frame_num", "10"), r"--frame_num must be 4n\+1"),
    "overlap": ({}, ("--refert_num", "77"), r"unknown --refert_num 77; choose one of 1, 5"),
    "short clips": ({}, ("--refert_num", "5"), r"--frame_num 9 is too short to share 5 frames .* try 13"),
    "composite": ({}, ("--composite",), r"--composite needs --replace_flag"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_fit_is_refused_before_weights_load(run, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("wan.cli.run", lambda job: pytest.fail("weights would load"))
    changes, flags, text = OTHERS[name]
    assert run(*flags, src=write_performance(tmp_path / "p", **changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("generate.py: error: ") or ": error: " in error
    assert re.search(text, error), error
    assert not list(tmp_path.glob("*.mp4"))


def test_videos_of_other_lengths_run_back_and_forth_as_upstream(run, tmp_path):
    short = write_performance(tmp_path / "p", face={"size": (16, 16), "count": 5})
    assert run("--as_upstream", src=short) == 0
    assert media.written("out.mp4") == (COUNT, SIZE)


@pytest.mark.parametrize("what", ["nothing", "file", "text", "truncated"])
def test_paths_that_are_no_performance(run, tmp_path, capsys, what):
    place = write_performance(tmp_path / "p")
    if what == "nothing":
        place = tmp_path / "nothing"
    elif what == "file":
        place = place / "src_ref.png"
    elif what == "text":
        (place / "src_face.mp4").write_text("no video")
    else:
        data = (place / "src_pose.mp4").read_bytes()
        (place / "src_pose.mp4").write_bytes(data[: len(data) // 2])
    assert run(src=place) == 2
    assert "error" in capsys.readouterr().err


def test_the_inputs_are_needed(run, capsys):
    assert run(src=None) == 2
    assert "--task animate-14B needs --src_root_path DIR" in capsys.readouterr().err


def test_a_lora_of_which_not_every_tensor_is_used_is_refused(run, checkpoint, capsys):
    path = checkpoint / "relighting_lora.ckpt"
    kept = path.read_bytes()
    try:
        path.unlink()
        assert run("--use_relighting_lora") == 2
        assert "those have no relighting LoRA" in capsys.readouterr().err
        torch.save({"state_dict": {"blocks.9.ffn.0.lora_A.weight": torch.ones(2, 2)}}, path)
        assert run("--use_relighting_lora") == 2
        assert "not all of its 1 tensors can be used" in capsys.readouterr().err
    finally:
        path.write_bytes(kept)


def test_a_clip_of_a_single_colour_ends_the_run(run, monkeypatch, capsys):
    flat = lambda self, latent: iter([torch.full((3, 4 * latent.shape[1] - 3, *SIZE[::-1]), -1.0)])  # noqa: E731
    monkeypatch.setattr(WanAnimate, "decode", flat)
    assert run() == 1
    assert "clip 1 of 2 is of a single colour" in capsys.readouterr().err


def test_a_clip_that_is_not_finite_ends_the_run_with_its_number(run, monkeypatch, capsys):
    noise = WanAnimate.noise
    bad = lambda self, request, clip: noise(self, request, clip) * (torch.nan if clip.index else 1)  # noqa: E731
    monkeypatch.setattr(WanAnimate, "noise", bad)
    assert run() == 1
    assert "clip 2 of 2: denoising step 1 of 1 gave values that are not finite" in capsys.readouterr().err


# ---- values ----


def test_a_stored_performance_is_read_again(folder):
    given = Performance.of(folder)
    assert (given.size, given.frames, given.rate) == (SIZE, COUNT, RATE) and str(
        given
    ) == "48*32, 12 frames at 29.97 fps"
    assert Performance.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    request = Request.create(NANO, performance=folder, seed=1)
    assert Request.from_dict(json.loads(request.to_json())) == request
    for change in ({"frames": 0}, {"rate": "1/0"}, {"size": "5"}, {"path": 3}):
        with pytest.raises(ValueError):
            Performance.from_dict(given.to_dict() | change)
    assert Request.create(RELEASED, performance=folder).prompt == RELEASED.prompt


def test_a_performance_that_changed_has_another_hash(tmp_path):
    first = Performance.of(write_performance(tmp_path / "p"))
    write_film(tmp_path / "p" / "src_mask.mp4", level=200)
    assert Performance.of(tmp_path / "p").sha256 != first.sha256


def test_matched_colours_are_those_of_the_first_clip():
    first, later = torch.rand(3, 4, 8, 8) - 0.5, 0.7 * (torch.rand(3, 4, 8, 8) - 0.5) + 0.2
    wanted, found = Colours(), Colours()
    wanted.add(first)
    for half in later.split(2, dim=1):
        found.add(half)
    after = Colours()
    after.add(matched(later, found, wanted))
    assert found.drift_from(wanted) > 5 > 0.5 > after.drift_from(wanted)
    torch.testing.assert_close(after.deviation, wanted.deviation, atol=0.02, rtol=0)


def test_colours_outside_a_weight_do_not_count():
    frames, weight = torch.zeros(3, 1, 4, 4), torch.zeros(1, 4, 4)
    frames[:, :, :2], weight[:, 2:] = 1, 1
    colours = Colours()
    colours.add(frames, weight)
    assert colours.mean.tolist() == [0, 0, 0] and colours.count == 8


def test_lab_is_that_of_pixels():
    for colour in ([0, 0, 0], [255, 255, 255], [200, 30, 90], [3, 4, 2]):
        ours = lab(torch.tensor(colour) / 127.5 - 1)
        np.testing.assert_allclose(ours.numpy(), pixel_lab(np.array(colour)), atol=0.05)


def test_a_composite_is_whole_inside_the_mask_and_soft_outside():
    frames, background = torch.ones(3, 1, 128, 128), -torch.ones(3, 1, 128, 128)
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:80, 40:80] = 1
    made = composited(frames, background, mask)
    assert bool((made[:, mask.bool()] == 1).all()), "the background is painted over there"
    assert bool((made[:, :, :34] == -1).all()) and bool((made[:, :, :, 86:] == -1).all())
    edge = made[0, 0, 60, 80:86]
    assert bool((edge.diff() <= 0).all()) and -1 < edge[1] < 1

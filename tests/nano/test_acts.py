"""Videos of puppets that perform, and their evaluation, with random weights."""

import json

import numpy as np
import pytest
from PIL import Image

from wan.animate import WanAnimate
from wan.configs.nano import NANO_CONFIGS
from wan.media import write_video
from wan.nano import acting, acts, evaluate, puppet_videos, puppets
from wan.nano.random import write_random_checkpoint
from wan.performance import MASK, Performance
from wan.runtime import Runtime

pytest.importorskip("transformers")
FRAMES = 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("random"), "animate-14B")


@pytest.fixture(scope="module")
def drawn() -> list[acts.Act]:
    return list(acts.draw_acts(4, 3, FRAMES))


def test_acts_are_the_same_for_the_same_seed_and_every_second_one_replaces(drawn):
    again, other = list(acts.draw_acts(4, 3, FRAMES)), list(acts.draw_acts(4, 4, FRAMES))
    assert [act.is_replaced for act in drawn] == [False, True, False, True]
    for a, b, c in zip(drawn, again, other, strict=True):
        assert a.puppet == b.puppet != c.puppet and np.array_equal(a.motion.knees, b.motion.knees)
        assert a.driver == b.driver and len(a.motion) == FRAMES


def test_what_is_given_belongs_together(drawn):
    for act in drawn:
        given = acts.footage_of(act)
        truth = puppet_videos.render(act.puppet, act.wanted)
        assert given.pose.take([2, 0]).shape == (2, 64, 64, 3) and len(given.face) == FRAMES
        if act.is_replaced:
            keep = given.mask.video == 0
            assert (given.background.video[~keep] == 0).all() and not (truth.mask & keep[..., 0]).any()
            assert np.abs(truth.video.astype(int) - given.background.video)[keep].max() <= 60  # the softest edges
            assert not np.array_equal(given.reference, given.background.video[0])
        else:
            assert given.mask is None and given.background is None


def test_a_swapped_act_has_the_mouth_of_another_and_its_own_joints(drawn):
    swapped = drawn[0].swapped(drawn[1])
    assert np.array_equal(swapped.wanted.mouth, drawn[1].motion.mouth)
    assert np.array_equal(swapped.wanted.shoulders, drawn[0].motion.shoulders)
    faces = acts.footage_of(swapped).face.video, acts.footage_of(drawn[1]).face.video
    assert np.array_equal(*faces)
    assert np.array_equal(acts.footage_of(swapped).pose.video, acts.footage_of(drawn[0]).pose.video)


def test_a_folder_holds_the_same_performance(drawn, tmp_path):
    given = Performance.of(acts.write_folder(drawn[1], tmp_path / "driver"))
    given.check(replaces=True, may_differ=False)
    assert (given.size, given.frames, given.rate) == ((64, 64), FRAMES, puppets.FPS)
    footage = acts.footage_of(drawn[1])
    assert np.array_equal(given.footage.reference, footage.reference)
    for name in ("pose", "face", "background", "mask"):
        read, wanted = (getattr(of, name).take(range(FRAMES)).astype(float) for of in (given.footage, footage))
        assert np.abs(read - wanted).mean() < 8
    assert not (acts.write_folder(drawn[0], tmp_path / "plain") / MASK).exists()


def test_a_video_of_several_clips_is_made_of_an_act(checkpoint, drawn):
    runtime = Runtime.from_flags(device="cpu", dtype="fp32", offload_model=False)
    pipeline = WanAnimate(NANO_CONFIGS["animate-14B"], checkpoint, runtime=runtime)
    take = acts.perform(pipeline, drawn[1], 0, steps=1, frame_num=5)
    assert take.frames.shape == (FRAMES, 64, 64, 3) and take.borders == (5,)
    assert take.mask.any() and not take.is_swapped
    assert acting.off_joints(take) > 0.1


def test_the_command_writes_a_table_of_the_measures(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "ACT_FRAMES", FRAMES)
    options = ["--ckpt_dir", str(checkpoint), "--out", str(tmp_path), "--videos", "2", "--steps", "1"]
    assert evaluate.main(["animate", *options, "--progress", "none"]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["measures"].keys() == results["autoencoder"].keys() == acting.MEASURES.keys()
    assert len(results["samples"]) == 3, "the first one is made with another face video too"
    assert (tmp_path / "samples.png").stat().st_size > 1000
    table = capsys.readouterr().out
    assert "missed" in table and all(name in table for name in acting.MEASURES)


def test_a_strip_shows_what_was_given_above_what_was_made(drawn, tmp_path):
    for act in drawn[:2]:
        folder = acts.write_folder(act, tmp_path / f"p{act.is_replaced}")
        made = puppet_videos.render(act.puppet, act.wanted).video
        write_video(made, tmp_path / "made.mp4", puppets.FPS, overwrite=True)
        acts.draw_strip(tmp_path / "made.mp4", folder, tmp_path / "strip.png")
        strip = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB")).astype(int)
        rows = 4 if act.is_replaced else 3
        assert strip.shape == (132 * rows - 4, 132 * 10 + 8, 3)
        left, right = strip[-128:, :128], strip[-128:, -128:]
        assert np.abs(left - act.reference.repeat(2, 0).repeat(2, 1)).mean() < 12
        assert np.abs(right - made[-1].repeat(2, 0).repeat(2, 1)).mean() < 12
        assert strip[:128, 144:272].mean() < 60, "the skeleton, on black"
        assert (strip[:128, :128] == 255).all()

"""The embedded model of speech-to-video: a small version of its evaluation."""

import json

import numpy as np
import pytest
import torch

from wan.audio import add_audio
from wan.configs.nano import NANO_CONFIGS, nano_checkpoint
from wan.media import write_video
from wan.nano import evaluate, faces, talking
from wan.nano.random import write_random_checkpoint
from wan.nano.talks import draw_strip, draw_talks, perform, write_wav
from wan.runtime import Runtime
from wan.speech2video import WanS2V

pytest.importorskip("transformers")
FRAMES = 61  # one clip, with the three frames that are left out


@pytest.fixture(scope="module")
def pipeline():
    runtime = Runtime.from_flags(device="cpu", dtype="fp32", offload_model=False)
    return WanS2V(NANO_CONFIGS["s2v-14B"], nano_checkpoint("s2v-14B"), runtime=runtime)


def made(pipeline, count: int = 2):
    talks = draw_talks(count + 1, 900, FRAMES)[1:]  # of the first one the head moves
    return [perform(pipeline, talk, seed, steps=8, guidance=1.0) for seed, talk in enumerate(talks)]


def test_mouths_follow_their_own_voice_and_faces_stay(pipeline):
    takes = made(pipeline)
    assert all(len(take.frames) == FRAMES and take.borders == () for take in takes)
    assert np.mean([talking.sync(take) for take in takes]) > 0.7
    assert abs(talking.lag(takes)) <= 1
    assert talking.sync(takes[0], takes[1].loudness) < 0.6
    assert talking.kept(takes) > 0.6


def test_without_the_sound_mouths_do_not_follow(pipeline, monkeypatch):
    speech = pipeline.speech

    class Silenced:
        def __init__(self, request):
            self.features = speech(request)

        def clip(self, first, count):
            return torch.zeros_like(self.features.clip(first, count))

    monkeypatch.setattr(pipeline, "speech", Silenced)
    takes = made(pipeline)
    assert np.mean([talking.sync(take) for take in takes]) < 0.5


def test_talks_are_the_same_for_the_same_seed_and_some_move():
    first, again, other = draw_talks(4, 3, 20), draw_talks(4, 3, 20), draw_talks(4, 4, 20)
    assert [talk.moves for talk in first] == [True, False, False, True]
    for a, b, c in zip(first, again, other, strict=True):
        assert a.face == b.face != c.face and np.array_equal(a.samples, b.samples)
        assert len(a.path) == 20 and len(a.samples) == 20_000


def test_a_strip_is_drawn_of_a_video_with_sound(tmp_path):
    from PIL import Image

    (talk,) = draw_talks(1, 3, 20)
    write_video(faces.render(talk.face, np.linspace(0, 1, 20), talk.path), tmp_path / "a.mp4", 16)
    add_audio(tmp_path / "a.mp4", write_wav(talk.samples, tmp_path / "a.wav"))
    draw_strip(tmp_path / "a.mp4", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as strip:
        assert strip.width > 500 and strip.height == 64 + 4 + 90


def test_the_command_writes_a_table_of_the_measures(tmp_path, monkeypatch, capsys):
    checkpoint = write_random_checkpoint(tmp_path / "random", "s2v-14B")
    monkeypatch.setattr(evaluate, "TALK_FRAMES", 13)
    options = ["--ckpt_dir", str(checkpoint), "--out", str(tmp_path / "out"), "--videos", "2", "--steps", "1"]
    assert evaluate.main(["s2v", *options, "--progress", "none"]) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["measures"]) == set(talking.MEASURES) and results["settings"]["videos"] == 2
    text = (tmp_path / "out" / "results.md").read_text()
    assert "mouth follows the voice" in text and "missed" in text and text in capsys.readouterr().out
    assert (tmp_path / "out" / "samples.png").exists()

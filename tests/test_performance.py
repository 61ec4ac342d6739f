"""Frames of a driving video: read forwards, each decoded once where clips overlap, and backwards where it must be."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from wan.inputs import Film
from wan.media import write_video
from wan.performance import MOST_FRAMES, FileFrames, Performance


@pytest.fixture
def film(monkeypatch):
    """A file of 20 frames of one grey level each; `decoded` counts the frames that are read."""
    decoded = []

    def frames(path):
        for number in range(20):
            decoded.append(number)
            yield Fraction(number, 25), np.full((4, 6, 3), number, np.uint8)

    monkeypatch.setattr("wan.performance.media.upright_frames", frames)
    monkeypatch.setattr("wan.performance.Film.of", lambda path: Film(path, (6, 4), 20, ""))
    film = FileFrames("film.mp4")
    film.decoded = decoded
    return film


def levels(frames) -> list[int]:
    assert frames.shape[1:] == (4, 6, 3) and frames.dtype == np.uint8
    return frames[:, 0, 0, 0].tolist()


def test_clips_that_share_frames_decode_each_frame_once(film):
    for start in (0, 4, 8):
        assert levels(film.take(range(start, start + 5))) == list(range(start, start + 5))
    assert film.decoded == list(range(13)) and len(film._kept) == 5


def test_a_video_that_runs_back_and_forth_is_read_again(film):
    assert levels(film.take([18, 19, 18, 17, 16])) == [18, 19, 18, 17, 16]
    assert levels(film.take([16, 15, 14])) == [16, 15, 14]
    assert film.decoded == [*range(20), *range(16)]


def test_a_file_that_ends_early_is_named(film):
    film.film = replace(film.film, frames=30)
    with pytest.raises(ValueError, match=r"film\.mp4 ends after 20 frames, and 30 were counted"):
        film.take([19, 20])


def test_a_file_that_changes_its_size_is_named(film, monkeypatch):
    frames = [(Fraction(0), np.zeros((4, 6, 3), np.uint8)), (Fraction(1), np.zeros((6, 4, 3), np.uint8))]
    monkeypatch.setattr("wan.performance.media.upright_frames", lambda path: iter(frames))
    film._restart()
    with pytest.raises(ValueError, match=r"film\.mp4 changes its size at frame 1"):
        film.take([0, 1])


def test_frames_of_a_real_file(tmp_path):
    video = np.zeros((9, 32, 32, 3), np.uint8) + np.arange(0, 180, 20, dtype=np.uint8)[:, None, None, None]
    write_video(video, tmp_path / "x.mp4", 25)
    found = FileFrames(tmp_path / "x.mp4").take([2, 3, 8, 2])
    assert np.abs(found[:, 16, 16, 1].astype(int) - [40, 60, 160, 40]).max() <= 4


@pytest.mark.parametrize("frames", [0, -1, MOST_FRAMES + 1, 10**18, "5", None])
def test_a_stored_number_of_frames_is_bounded(frames):
    values = Performance("p", (32, 32), 5, Fraction(25), "").to_dict()
    assert Performance.from_dict(values).frames == 5
    with pytest.raises(ValueError, match="frames"):
        Performance.from_dict(values | {"frames": frames})


def test_a_performance_of_too_many_frames_is_refused():
    with pytest.raises(ValueError, match=r"has 1000001 frames, and at most 1000000 are taken; cut it"):
        Performance(None, (32, 32), MOST_FRAMES + 1, Fraction(25), "").check(False, False)

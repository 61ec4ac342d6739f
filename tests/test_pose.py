"""Frames that guide a video are chosen by their time, upright, and read once."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from wan import media
from wan.inputs import Film
from wan.media import upright_frames, write_video
from wan.pose import GuidingFrames, whole_stride


def numbered(count, height=32, width=48):
    """Frames whose brightness is their number, times 4; the left upper quarter is white."""
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None] * 4
    frames = np.broadcast_to(frames, (count, height, width, 3)).copy()
    frames[:, : height // 2, : width // 2] = 255
    return frames


def write_film(path, times, rotation=0, size=(32, 48)):
    """Write one numbered frame for each time, in milliseconds; players turn it counter-clockwise."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=1000)
        stream.height, stream.width = size
        stream.pix_fmt, stream.options, stream.time_base = "yuv444p", {"crf": "1", "bf": "0"}, Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for pixels, time in zip(numbered(len(times), *size), times):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbers(frames):
    """Read the numbers of frames [3, F, H, W]; -1 for black that no frame has."""
    values = (frames[:, :, -1, -1].mean(0) + 1) / 2 * 255
    black = (frames == -1).flatten(2).all(2).all(0)
    return torch.where(black, -1, (values / 4).round()).int().tolist()


def nearest(times, count, first=0):
    wanted = [max(0, n) * 62.5 for n in range(first, first + count)]
    gap = times[-1] - times[-2]
    return [
        -1 if time >= times[-1] + gap else min(range(len(times)), key=lambda k: (abs(times[k] - time), k))
        for time in wanted
    ]


@pytest.mark.parametrize(
    "times",
    [
        [round(n * 1000 / 24) for n in range(40)],
        [n * 40 for n in range(40)],
        [n * 20 for n in range(60)],
        [n * 100 for n in range(12)],
        [0, 10, 20, 300, 310, 320, 330, 900, 950, 1000],
    ],
    ids=["24", "25", "50", "10", "variable"],
)
def test_frames_are_the_nearest_in_time_over_the_whole_length(tmp_path, times):
    film = GuidingFrames(write_film(tmp_path / "a.mp4", times), (48, 32))
    wanted = nearest(times, 40)
    assert wanted[0] == 0 and len(times) - 1 in wanted and wanted[-1] == -1
    assert numbers(film.clip(0, 40)) == wanted
    assert numbers(film.clip(8, 8)) == wanted[8:16], "earlier frames can be asked for again"


def test_a_file_that_begins_later_begins_at_its_first_frame(tmp_path):
    path = write_film(tmp_path / "a.mp4", [500 + n * 62 for n in range(10)])
    assert numbers(GuidingFrames(path, (48, 32)).clip(0, 8)) == list(range(8))


def test_clips_together_are_the_whole_and_read_the_file_once(tmp_path, monkeypatch):
    times = [n * 40 for n in range(50)]
    path = write_film(tmp_path / "a.mp4", times)
    read = []
    frames = media.upright_frames

    def listen(path):
        for frame in frames(path):
            read.append(frame[0])
            yield frame

    monkeypatch.setattr(media, "upright_frames", listen)
    film = GuidingFrames(path, (48, 32))
    assert len(read) == 2, "frames are read when they are asked for"
    found = numbers(film.clip(-3, 8))
    assert found == [0, 0, 0, *nearest(times, 5)] and len(read) < 12
    for first in range(5, 40, 8):
        found += numbers(film.clip(first, 8))
    assert found == nearest(times, 48, -3)
    assert len(read) == len(times)


def test_upstream_steps_by_whole_frames(tmp_path):
    path = write_film(tmp_path / "a.mp4", [n * 20 for n in range(40)])
    assert media.frame_rate(path) == pytest.approx(50, rel=0.05)
    film = GuidingFrames(path, (48, 32), as_upstream=True)
    assert numbers(film.clip(0, 16)) == [*range(0, 40, 3), -1, -1]
    assert [whole_stride(fps, 16) for fps in (8, 16, 24, 25, 30, 40, 50, 60)] == [1, 1, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_rotated_files_are_read_upright(tmp_path, rotation):
    path = write_film(tmp_path / "a.mp4", [0, 100], rotation)
    expected = np.rot90(numbered(2)[0], rotation // 90)
    _, pixels = next(upright_frames(path))
    assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).max() < 6
    assert Film.of(path).size == pixels.shape[1::-1]


def test_frames_cover_the_size_and_upstream_has_grey_borders(tmp_path):
    path = write_film(tmp_path / "a.mp4", [0, 100], size=(64, 64))
    ours, theirs = (GuidingFrames(path, (128, 64), as_upstream=upstream).clip(0, 1)[:, 0] for upstream in (0, 1))
    assert ours.shape == theirs.shape == (3, 64, 128)
    assert not (ours == 0).any(), "the frame is scaled to the width, and cut above and below"
    assert (theirs[:, :, :32] == 0).all() and (theirs[:, :, 96:] == 0).all() and theirs[:, 0, 32].min() > 0.9
    small = GuidingFrames(path, (32, 32)).clip(0, 1)[:, 0]
    assert small.shape == (3, 32, 32) and small[:, 2:14, 2:14].min() > 0.9


# ---------------------------------------------------------------- the input


def test_a_film_is_stored_by_its_header_and_hash(tmp_path):
    path = write_film(tmp_path / "a.mp4", [n * 40 for n in range(9)])
    film = Film.of(path)
    assert str(film) == "48*32, 9 frames" and film.path == str(path)
    assert Film.from_dict(film.to_dict()) == film
    write_film(path, [n * 50 for n in range(9)])
    assert Film.of(path).sha256 != film.sha256


def test_what_is_no_film_is_refused_by_name(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "none.mp4").touch()
    write_film(tmp_path / "cut.mp4", [n * 40 for n in range(9)])
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:300])
    from tests.test_audio import write_sound

    write_sound(tmp_path / "sound.mp4", "aac")
    for name, text in {
        "text.mp4": "is not a video that can be read; convert it to mp4",
        "none.mp4": "is empty",
        "cut.mp4": "cut.mp4",
        "sound.mp4": "has no video in it; name a file that has",
    }.items():
        with pytest.raises(ValueError) as error:
            Film.of(tmp_path / name)
        assert name in str(error.value) and text in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.mp4"):
        Film.of(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="pose_video is the path of a file, got 3"):
        Film.of(3)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"path": None, "size": "4*4", "frames": 1, "sha256": ""},
        {"path": "a", "size": "4", "frames": 1, "sha256": ""},
        {"path": "a", "size": "4*4", "frames": 0, "sha256": ""},
        {"path": "a", "size": "4*4", "frames": 1, "sha256": None},
    ],
)
def test_stored_films_are_checked(values):
    with pytest.raises(ValueError):
        Film.from_dict(values)


def test_a_film_without_frames_is_refused(tmp_path, monkeypatch):
    write_video(np.zeros((1, 32, 32, 3), np.uint8), tmp_path / "a.mp4", 8)
    monkeypatch.setattr(media, "upright_frames", lambda path: iter(()))
    with pytest.raises(ValueError, match=r"a\.mp4 has no frames, or is cut off before the first"):
        Film.of(tmp_path / "a.mp4")

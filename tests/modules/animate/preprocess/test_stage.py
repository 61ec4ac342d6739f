"""The stage, with networks that see coloured squares: what it writes, keeps and refuses."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.modules.animate.preprocess.fake import GREEN, RED, ByColour, Squares, film, picture, scene, walk
from tests.recorded import write_lossless, write_wav
from wan import audio, media
from wan.inputs import file_digest
from wan.modules.animate.preprocess import source
from wan.modules.animate.preprocess.people import Follower
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.source import Driving
from wan.modules.animate.preprocess.stage import Stage
from wan.modules.animate.preprocess.track import Track, between, estimate
from wan.performance import Performance
from wan.version import VERSION

AREA = 80 * 64


@pytest.fixture
def inputs(tmp_path):
    return {"video": str(walk(tmp_path / "v.mp4")), "picture": str(picture(tmp_path / "p.png"))}


def run(inputs, folder, **changes):
    settings = Settings(**inputs, folder=Path(folder), area=AREA, **changes)
    settings.check()
    estimator = Squares()
    stage = Stage(settings, estimator, "squares", ByColour() if settings.replaces else None)
    stage.run()
    return estimator, stage


# ---- what is written ----


@pytest.mark.parametrize(
    "flags", [{}, {"replaces": True}, {"retargets": True}, {"as_upstream": True, "replaces": True}]
)
def test_the_folder_is_a_performance_of_the_length_and_rate(inputs, tmp_path, flags):
    run(inputs, tmp_path / "out", preview=True, **flags)
    made = Performance.of(tmp_path / "out")
    made.check(bool(flags.get("replaces")), False)
    assert (made.frames, made.rate) == (12, 30)
    assert made.footage.face.film.size == (512, 512)
    assert made.size == ((80, 48) if flags.get("replaces") else (80, 64)) or made.size[0] % 16 == made.size[1] % 16 == 0
    assert media.written(tmp_path / "out" / "preview.mp4")[0] == 12
    found = described(tmp_path / "out")
    assert found["missing"] == [] and found["rate"] == "30" and len(found["faces"]) == 12
    assert (tmp_path / "out" / "src_ref.png").read_bytes()[:4] == b"\x89PNG"


def described(folder):
    return json.loads((folder / "meta.json").read_text())


def test_the_description_tells_how_the_folder_was_made(tmp_path, inputs, monkeypatch):
    """Rate, source, sizes, numbers, boxes, confidences and warnings of the run, and the versions of what ran."""
    import safetensors
    import torch

    monkeypatch.setattr(Squares, "packages", ("torch",))
    monkeypatch.setattr(ByColour, "packages", ("safetensors", "torch"))
    inputs["video"] = str(walk(tmp_path / "gaps.mp4", 10, absent=(4,), rate=25))
    run(inputs, tmp_path / "out", replaces=True, fps=Fraction(50, 3), start=0.08)
    found = described(tmp_path / "out")
    assert found["rate"] == "50/3" == str(Performance.of(tmp_path / "out").rate)
    assert found["frames"] == [2, 4, 5, 6, 8] and found["missing"] == [1] and len(found["boxes"]) == 5
    assert found["source"] == {"path": "../gaps.mp4", "sha256": file_digest(inputs["video"]), "size": "96*64"}
    assert found["picture"] == {"path": "../p.png", "sha256": file_digest(inputs["picture"])}
    assert found["sizes"] == {"pose": "80*48", "frame": "80*48", "face": "512*512"}
    assert all(0.89 < share <= 0.9 for share in found["confidence"])
    assert found["settings"]["fps"] == "50/3" and found["settings"]["smooth"] == 0
    of_torch, of_tensors = str(torch.__version__), safetensors.__version__
    assert found["versions"] == {"wan": VERSION, "torch": of_torch, "safetensors": of_tensors}
    lost, masked = found["warnings"]
    assert lost.startswith("in 1 frames the person was not found") and masked.startswith(
        "in 1 frames the person had no"
    )
    run(inputs, tmp_path / "out", replaces=True, fps=Fraction(50, 3), start=0.08)
    assert described(tmp_path / "out") == found, "also when the points are those of an earlier run"


def test_masks_come_back_as_they_were_and_the_background_is_black_there(inputs, tmp_path):
    run(inputs, tmp_path / "out", replaces=True, iterations=1, k=3)
    footage = Performance.of(tmp_path / "out").footage
    masks, background = footage.mask.take(range(12)), footage.background.take(range(12))
    assert set(np.unique(masks)) == {0, 255}
    inside = masks[..., 0] == 255
    assert background[inside].mean() < 12 and 60 < background[~inside].mean() < 120
    shares = inside.mean((1, 2))
    assert (shares > 0.15).all() and (shares < 0.5).all()


def test_the_sound_of_the_video_is_named(tmp_path, inputs):
    write_wav(tmp_path / "a.wav", 0.3 * np.sin(np.arange(8000) / 9))
    audio.add_audio(inputs["video"], tmp_path / "a.wav")
    run(inputs, tmp_path / "out", start=0.1, length=0.2)
    made = Performance.of(tmp_path / "out")
    assert made.frames == 6 and made.sound.start == 0.1 and made.sound.seconds == pytest.approx(0.2, abs=0.01)


def test_points_are_estimated_once(inputs, tmp_path):
    first, _ = run(inputs, tmp_path / "out", replaces=True)
    assert first.calls == 12
    again, _ = run(inputs, tmp_path / "out", replaces=True, iterations=1)
    assert again.calls == 0, "another mask needs no network"
    other, _ = run(inputs, tmp_path / "out", replaces=True, fps=15)
    assert other.calls == 6


class Slow(ByColour):
    """Masks that a network finds, which is counted."""

    identity, calls = "slow", 0

    def masks(self, frames, clicks):
        for mask in super().masks(frames, clicks):
            self.calls += 1
            yield mask


def test_other_options_of_masks_run_no_network_again(inputs, tmp_path):
    def run_with(folder="out", **changes):
        settings, estimator, slow = (
            Settings(**inputs, folder=tmp_path / folder, area=AREA, replaces=True, **changes),
            Squares(),
            Slow(),
        )
        Stage(settings, estimator, "squares", slow).run()
        return slow.calls, estimator.calls

    assert run_with() == (12, 12)
    assert run_with(iterations=1, w_len=3) == (0, 0)
    again = (tmp_path / "out" / "src_mask.mp4").read_bytes()
    run_with("fresh", iterations=1, w_len=3)
    assert again == (tmp_path / "fresh" / "src_mask.mp4").read_bytes()
    assert run_with(fps=15) == (6, 6), "of other frames there are other masks"
    kept = tmp_path / "out" / "person.mp4"
    kept.write_bytes(kept.read_bytes()[:-300])
    assert run_with(fps=15) == (6, 0)


def test_other_options_of_retargeting_run_no_network_again(inputs, tmp_path):
    first, _ = run(inputs, tmp_path / "out", retargets=True)
    again, _ = run(inputs, tmp_path / "out", retargets=True, preview=True)
    assert (first.calls, again.calls) == (13, 0)
    picture(tmp_path / "q.png", (90, 60))
    other, _ = run(inputs | {"picture": str(tmp_path / "q.png")}, tmp_path / "out", retargets=True, overwrite=True)
    assert other.calls == 1


def test_files_of_an_earlier_run_of_another_kind_do_not_stay(inputs, tmp_path):
    run(inputs, tmp_path / "out", replaces=True, preview=True)
    (tmp_path / "out" / "own.txt").write_text("mine")
    run(inputs, tmp_path / "out")
    names = {"src_pose.mp4", "src_face.mp4", "src_ref.png", "meta.json", "keypoints.safetensors", "own.txt"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(("field", "name"), [("video", "src_pose.mp4"), ("picture", "src_ref.png")])
def test_an_input_that_would_be_overwritten_is_refused(inputs, tmp_path, field, name):
    (tmp_path / "out").mkdir()
    own = Path(inputs[field]).rename(tmp_path / "out" / name)
    before = own.read_bytes()
    with pytest.raises(ValueError, match=rf"{name} is one of the files that are written; copy it elsewhere, or choose"):
        run(inputs | {field: str(own)}, tmp_path / "out", overwrite=True)
    assert own.read_bytes() == before


def test_a_run_that_fails_leaves_nothing_that_looks_finished(inputs, tmp_path, monkeypatch):
    run(inputs, tmp_path / "whole")
    monkeypatch.setattr("wan.modules.animate.preprocess.stage.face_picture", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(inputs, tmp_path / "out")
    assert not {"src_pose.mp4", "meta.json"} & {path.name for path in (tmp_path / "out").iterdir()}
    monkeypatch.undo()
    estimator, _ = run(inputs, tmp_path / "out")
    assert estimator.calls == 0, "it goes on with the points that it has"
    for name in ("src_pose.mp4", "src_face.mp4"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---- people ----


def test_frames_without_the_person_are_interpolated_and_listed(tmp_path, inputs):
    inputs["video"] = str(walk(tmp_path / "gaps.mp4", absent=(0, 4, 5, 11)))
    run(inputs, tmp_path / "out")
    assert described(tmp_path / "out")["missing"] == [0, 4, 5, 11]


def test_a_video_without_people_is_refused(tmp_path, inputs):
    inputs["video"] = str(walk(tmp_path / "empty.mp4", absent=range(12)))
    with pytest.raises(ValueError, match=r"there is nobody in any of the 12 frames of .*that were tried"):
        run(inputs, tmp_path / "out")


def test_the_mask_of_the_frame_before_serves_where_one_vanishes(tmp_path, inputs):
    inputs["video"] = str(walk(tmp_path / "gaps.mp4", absent=(6,)))
    run(inputs, tmp_path / "out", replaces=True)
    masks = Performance.of(tmp_path / "out").footage.mask.take(range(12))
    assert np.array_equal(masks[6], masks[5])
    assert any("1 frames the person had no mask" in text for text in described(tmp_path / "out")["warnings"])


def test_frames_before_the_first_mask_get_it(tmp_path, inputs):
    inputs["video"] = str(walk(tmp_path / "late.mp4", absent=(0, 1)))
    run(inputs, tmp_path / "out", replaces=True)
    masks = Performance.of(tmp_path / "out").footage.mask.take(range(12))
    assert masks[2].any() and np.array_equal(masks[0], masks[2]) and np.array_equal(masks[1], masks[2])


def two_people(count=10):
    """A green and a red person pass each other; the red one comes nearer, and is the larger one in the end."""
    return [scene((6 + 4 * n, 10, 24, GREEN), (60 - 4 * n, 8, 22 + 2 * (n // 2), RED)) for n in range(count)]


def colour_at(frame, box):
    x, y = (box[:2] + box[2:4]).astype(int) // 2
    return frame[y, x]


@pytest.mark.parametrize(
    ("choice", "colour"), [(None, GREEN), (1, GREEN), (2, RED), ((70, 20), RED), ((10, 15), GREEN)]
)
def test_one_person_is_followed(choice, colour):
    follower, estimator = Follower(choice), Squares()
    for frame in two_people():
        box = follower.find(frame, estimator.boxes(frame))
        if box is not None and not (frame == RED).all(-1).sum() < 100:
            assert np.abs(colour_at(frame, box).astype(int) - colour).sum() < 300 or len(estimator.boxes(frame)) < 2
    assert follower.look[0] < 1


def test_a_person_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="not the person who was chosen in any"):
        estimate([scene((10, 10, 30, RED))], Squares(), 2)


def test_points_between_frames_lie_on_a_line():
    points = np.full((5, 2, 3), np.nan)
    points[1], points[3] = 10, 20
    points[1, :, 2], points[3, :, 2] = 0.9, 0.5
    found = between(points)
    assert found[:, 0, 0].tolist() == [10, 10, 15, 20, 20] and found[2, 0, 2] == 0.5


# ---- values ----


def test_a_track_is_kept_and_recognised(tmp_path):
    track = estimate([scene((10, 10, 30, RED), (60, 10, 20, GREEN))] * 2, Squares())
    track.save(tmp_path / "t.safetensors", "key")
    again = Track.load(tmp_path / "t.safetensors", "key", 2)
    assert np.array_equal(again.points, track.points) and [len(boxes) for boxes in again.others] == [1, 1]
    assert Track.load(tmp_path / "t.safetensors", "other", 2) is None
    assert Track.load(tmp_path / "t.safetensors", "key", 3) is None
    (tmp_path / "t.safetensors").write_bytes(b"no")
    assert Track.load(tmp_path / "t.safetensors", "key", 2) is None


@pytest.mark.parametrize(
    ("rate", "fps", "numbers"),
    [(30, 30, [*range(12)]), (25, 50, [*range(12)]), (30, 15, [0, 2, 4, 6, 8, 10]), (30, -1, [*range(12)])],
)
def test_frames_are_taken_by_time(tmp_path, rate, fps, numbers):
    driving = Driving.of(str(walk(tmp_path / "v.mp4", rate=rate)), fps)
    assert sorted(set(driving.numbers)) == numbers and driving.rate == (rate if fps == -1 else fps)
    frames = list(driving.frames())
    assert len(frames) == len(driving)


def test_one_frame_is_enough(tmp_path, inputs):
    inputs["video"] = str(walk(tmp_path / "one.mp4", 1))
    run(inputs, tmp_path / "out")
    assert Performance.of(tmp_path / "out").frames == 1


def test_a_part_of_the_video(tmp_path):
    path = write_lossless(tmp_path / "v.mkv", np.stack([scene((n, 5, 20, RED)) for n in range(20)]), 10)
    driving = Driving.of(str(path), -1, start=0.5, length=1.0)
    assert driving.numbers == tuple(range(5, 15))
    assert all(
        np.abs(frame.astype(int) - scene((n, 5, 20, RED))).max() < 6
        for n, frame in zip(driving.numbers, driving.frames())
    )
    for values, text in (
        ({"start": 9}, "start must lie in the video, which has 2 s, got 9"),
        ({"start": -1}, "start must lie in the video"),
        ({"length": 0}, "len must be above 0 seconds"),
        ({"fps": Fraction(-2)}, "fps must be above 0, or -1"),
    ):
        with pytest.raises(ValueError, match=text):
            Driving.of(str(path), **values)


def test_a_folder_of_another_performance_is_refused(tmp_path, inputs):
    run(inputs, tmp_path / "out")
    other = inputs | {"video": str(film(tmp_path / "w.mp4", two_people()))}
    with pytest.raises(
        FileExistsError, match="holds the performance of another video or picture; choose another save_pa"
    ):
        run(other, tmp_path / "out")
    run(other, tmp_path / "out", overwrite=True)
    assert Performance.of(tmp_path / "out").frames == 10
    (tmp_path / "out" / "meta.json").unlink()
    with pytest.raises(FileExistsError):
        run(inputs, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is a file"):
        run(inputs, inputs["video"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": 0}, "k must be at least 1, got 0; try 7"),
        ({"h_len": -1}, "h_len must be at least 1"),
        ({"iterations": -1}, "iterations must be 0 or more"),
        ({"edits": True}, "use_flux needs retarget_flag"),
        ({"person": 0}, "person counts from 1"),
        ({"smooth": -0.1}, "smooth must be 0 to 1 second, got -0.1; try 0.1"),
        ({"smooth": float("nan")}, "smooth must be a finite number"),
    ],
)
def test_values_that_cannot_be(inputs, tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        Settings(**inputs, folder=tmp_path, **changes).check()


def test_settings_without_effect_are_named(inputs, tmp_path, caplog):
    Settings(**inputs, folder=tmp_path, iterations=1, k=5).check()
    Settings(**inputs, folder=tmp_path, retargets=True, replaces=True).check()
    assert caplog.messages == [
        "iterations, k has no effect without replace_flag",
        "retarget_flag has no effect with replace_flag: the character stands where the person stands",
    ]


# ---- sounds, sizes and folders that cannot be ----


def test_a_part_of_the_video_after_its_sound_has_none(tmp_path, inputs):
    write_wav(tmp_path / "a.wav", 0.3 * np.sin(np.arange(3200) / 9))
    audio.add_audio(inputs["video"], tmp_path / "a.wav", keeps_frames=True)
    run(inputs, tmp_path / "out", start=0.3)
    assert Performance.of(tmp_path / "out").sound is None


def test_a_damaged_sound_is_named_and_left_out(tmp_path, inputs, monkeypatch, caplog):
    write_wav(tmp_path / "a.wav", 0.3 * np.sin(np.arange(3200) / 9))
    audio.add_audio(inputs["video"], tmp_path / "a.wav", keeps_frames=True)

    def damaged(path, rate):
        yield np.zeros(100, np.float32)
        raise ValueError(f"{path} is not a sound that can be read")

    monkeypatch.setattr(audio, "sound_chunks", damaged)
    run(inputs, tmp_path / "out")
    found = described(tmp_path / "out")
    assert found["sound"] is None and "v.mp4 is not a sound that can be read" in found["warnings"][0]
    assert "the sound of the video cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("size", "changes", "text"),
    [
        (
            (60000, 1),
            {},
            r"a video of 17520\*16 cannot be written.* smaller resolution_area, or crop refer_path",
        ),
        ((80, 60), {"area": 10**10}, "cannot be written: H.264 has at most 16384 pixels in a side"),
        ((80, 60), {"fps": Fraction(1_000_000)}, "fps can be at most 999999"),
        ((80, 60), {"fps": 20, "start": 0.1}, r"v\.mp4 has 6 frames at 20 a second.* choose a smaller fps, or a part"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_anything_is_written(
    inputs, tmp_path, monkeypatch, size, changes, text
):
    monkeypatch.setattr(source, "MOST_FRAMES", 5 if changes.get("fps") == 20 else source.MOST_FRAMES)
    picture(tmp_path / "p.png", size)
    settings = Settings(**inputs, folder=tmp_path / "out", **{"area": AREA} | changes)
    with pytest.raises(ValueError, match=text):
        Stage(settings, None).run()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_a_network_runs(inputs, tmp_path):
    (tmp_path / "file").write_text("")
    settings = Settings(**inputs, folder=tmp_path / "file" / "out", area=AREA)
    with pytest.raises(ValueError, match=r"cannot write to .*file/out.* choose another save_path"):
        Stage(settings, None).run()


def test_files_that_a_killed_run_left_are_removed(inputs, tmp_path):
    (tmp_path / "out").mkdir()
    code = "import sys; from wan.files import _partial; from pathlib import Path; _partial(Path(sys.argv[1])).touch()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True)
    assert list((tmp_path / "out").iterdir())
    run(inputs, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_video_whose_name_has_bytes_of_no_letter(inputs, tmp_path):
    name = Path(inputs["video"]).rename(os.fsdecode(os.fsencode(tmp_path / "v") + b"\xff.mp4"))
    write_wav(tmp_path / "a.wav", 0.3 * np.sin(np.arange(8000) / 9))
    audio.add_audio(name, tmp_path / "a.wav")
    run({**inputs, "video": str(name)}, tmp_path / "out")
    assert Performance.of(tmp_path / "out").sound is not None


@pytest.mark.parametrize("replaces", [False, True])
def test_a_person_is_chosen_by_a_point_of_the_video_whatever_size_is_made(inputs, tmp_path, replaces):
    frames = [scene((20, 40, 60, RED), (200, 40, 60, GREEN), size=(288, 192))] * 2
    inputs["video"] = str(film(tmp_path / "two.mp4", frames))
    run(inputs, tmp_path / "out", replaces=replaces, person=(230.0, 70.0))
    x1, _, x2, _, _ = np.array(described(tmp_path / "out")["boxes"][0])
    width = 80 if replaces else 288  # the frames of a replacement have the size that is made
    assert (x1 + x2) / 2 / width == pytest.approx(230 / 288, abs=0.05)


def test_a_person_outside_the_video_is_refused(inputs, tmp_path):
    settings = Settings(**inputs, folder=tmp_path / "out", area=AREA, person=(96.0, 3.0))
    with pytest.raises(ValueError, match=r"person is a point of the first frame, which has 96\*64 pixels, got 96,3"):
        Stage(settings, None).run()

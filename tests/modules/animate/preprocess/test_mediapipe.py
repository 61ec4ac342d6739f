"""MediaPipe as estimator and segmenter: its points among the 133, its import, and real clips where it is installed."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.modules.animate.preprocess.fake import picture, walk
from wan import media
from wan.inputs import Film
from wan.modules.animate.preprocess import mediapipe_points as module
from wan.modules.animate.preprocess.keypoints import around_head, face_part, figure_of
from wan.modules.animate.preprocess.mediapipe_points import (
    MediaPipe,
    MediaPipeMasks,
    Seen,
    Watcher,
    box_of,
    cause,
    whole_body,
)
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.source import Driving
from wan.modules.animate.preprocess.stage import Stage
from wan.modules.animate.preprocess.track import estimate
from wan.performance import Performance

SIZE = (200, 100)
# names of COCO-WholeBody, and of MediaPipe's pose, as both document them
NAMES = """
    nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist
    right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle left_foot_index left_foot_index left_heel
    right_foot_index right_foot_index right_heel
""".split()
POSE = """
    nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear mouth_left
    mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky right_pinky
    left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle right_ankle
    left_heel right_heel left_foot_index right_foot_index
""".split()


def points(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3)) * (*SIZE, 1)


BODY, MESH, LEFT, RIGHT = points(33, 1), points(468, 2), points(21, 3), points(21, 4)


# ---- the table ----


def test_body_and_feet_come_by_name():
    found = whole_body(Seen(BODY, MESH, LEFT, RIGHT), SIZE)
    assert found.shape == (133, 3) and found.dtype == np.float32
    for number, name in enumerate(NAMES):
        assert found[number] == pytest.approx(BODY[POSE.index(name)], rel=1e-5), name


def test_hands_keep_their_side_and_order_and_are_certain():
    found = whole_body(Seen(BODY, MESH, LEFT, RIGHT), SIZE)
    for start, hand in ((91, LEFT), (112, RIGHT)):
        assert found[start : start + 21, :2] == pytest.approx(hand[:, :2], rel=1e-5)
        assert (found[start : start + 21, 2] == 1).all()


def test_the_face_is_68_different_points_of_the_mesh():
    found = whole_body(Seen(BODY, MESH, LEFT, RIGHT), SIZE)[23:91]
    assert found[:, :2] == pytest.approx(MESH[list(module.FACE), :2], rel=1e-5) and (found[:, 2] == 1).all()
    assert len(set(module.FACE)) == 68


def test_what_was_not_seen_has_no_confidence_and_a_place():
    found = whole_body(Seen(BODY, right=RIGHT), SIZE)
    assert (found[91:112] == [*found[9, :2], 0]).all() and (found[112:, 2] == 1).all()
    assert (found[23:91, 2] == 0).all() and np.isfinite(found).all()
    assert (whole_body(Seen(), SIZE) == (-1, -1, 0)).all()


def test_without_a_face_its_part_is_a_square_around_the_head():
    size, body = (640, 480), np.ones((33, 3))
    body[[0, 2, 5, 7, 8], :2] = [(300, 200), (310, 190), (290, 190), (325, 195), (275, 195)]
    body[[0, 2, 5, 7, 8], 2] = 1
    figure = figure_of(whole_body(Seen(body), size), size)
    wanted = around_head(figure.body, size)
    for as_upstream in (False, True):
        part = face_part(figure, size, before=(0, 0, 40, 40), as_upstream=as_upstream)
        assert np.abs(np.subtract(part, wanted)).max() <= 1, "not where the face was before"


def test_the_box_frames_the_visible_body():
    found = np.full((133, 3), 50, np.float32)
    found[:, 2] = 0
    found[[0, 5, 10]] = [(20, 10, 1), (60, 40, 0.6), (30, 90, 0.8)]
    found[16] = (150, 20, 0.4)  # not seen
    found[15] = (30, 120, 0.9)  # below the frame
    found[91:] = (199, 99, 1)  # no body
    assert box_of(found, SIZE)[0] == pytest.approx([20, 10, 60, 90, 0.8])
    found[:, 2] = 0
    assert box_of(found, SIZE).shape == (0, 5)
    found[3, 2] = 1
    (x1, y1, x2, y2, _), *_ = box_of(found, SIZE)
    assert x1 < x2 and y1 < y2, "never empty"


# ---- a closer look ----


@pytest.mark.parametrize(
    ("nose", "shoulders", "hips", "upright"),
    [
        ((50, 20), (30, 70), 80, True),
        ((50, 20), (45, 55), 60, True),  # from the side
        ((50, 20), (30, 70), 15, False),  # hips at the head
        ((50, 25), (30, 70), 34, False),  # no trunk
        ((50, 80), (40, 60), 10, False),  # upside down
    ],
)
def test_a_figure_is_upright_with_its_hips_below_shoulders_and_nose(nose, shoulders, hips, upright):
    body = np.ones((33, 3))
    body[[0, 11, 12, 23, 24], :2] = nose, (shoulders[1], 35), (shoulders[0], 35), (55, hips), (45, hips)
    assert module.is_upright(body) == upright
    assert not module.is_upright(None)


class Landmarks:
    """Networks that see a figure upside down in whole frames of 200 x 100, in black ones none, and upright in parts."""

    parts: ClassVar[list[tuple[int, int]]] = []
    nobody_closer = False

    def __init__(self, static_image_mode, **options):
        self.static = static_image_mode

    def process(self, picture):
        self.parts.append(picture.shape[1::-1])
        if (self.static and self.nobody_closer) or (not self.static and not picture.any()):
            return SimpleNamespace(pose_landmarks=None, segmentation_mask=None)
        places = np.full((33, 3), 0.5)
        places[[0, 11, 12, 23, 24], :2] = (0.5, 0.3), (0.6, 0.4), (0.4, 0.4), (0.55, 0.7), (0.45, 0.7)
        if not self.static:
            places[[23, 24], 1] = 0.2
        points = SimpleNamespace(landmark=[SimpleNamespace(x=x, y=y, visibility=v) for x, y, v in places])
        return SimpleNamespace(pose_landmarks=points, segmentation_mask=np.ones(picture.shape[:2], np.float32))


@pytest.mark.parametrize("nobody_closer", [False, True])
def test_a_figure_that_is_not_upright_is_looked_at_closer(monkeypatch, nobody_closer):
    monkeypatch.setattr(Landmarks, "parts", [])
    monkeypatch.setattr(Landmarks, "nobody_closer", nobody_closer)
    seen = Watcher(Landmarks).see(np.ones((100, 200, 3), np.uint8))
    whole, part = Landmarks.parts
    assert whole == (200, 100) and 40 < part[0] < 100 and 16 <= part[1] < 100
    upright = seen.body[23, 1] > seen.body[11, 1] > seen.body[0, 1]
    assert upright != nobody_closer, "what was seen first is kept when a closer look finds nobody"
    assert seen.body[[23, 24], 0].mean() == pytest.approx(100, abs=1), "in pixels of the frame"
    assert seen.mask.shape == (100, 200) and seen.mask.sum() == (20_000 if nobody_closer else part[0] * part[1])


def test_a_figure_that_is_lost_is_looked_for_where_it_was():
    watcher, frames = Watcher(Landmarks), np.ones((3, 100, 200, 3), np.uint8)
    frames[[0, 2]] = 0
    bodies = [watcher.see(frame).body for frame in frames]
    assert bodies[0] is None and np.array_equal(bodies[1], bodies[2])


# ---- the import ----


@pytest.mark.parametrize(
    ("error", "python", "numpy", "text"),
    [
        (
            ModuleNotFoundError("no", name="mediapipe"),
            (3, 13),
            "2.4.6",
            "needs Python 3.12 or older, and this is Py.* 3.13",
        ),
        (ModuleNotFoundError("no", name="mediapipe"), (3, 12), "2.4.6", "is not installed; pip install .*[animate-med"),
        (
            ModuleNotFoundError("no", name="mediapipe.python"),
            (3, 12),
            "1.26.4",
            "has no networks in it, which 0.10.21 h",
        ),
        (
            ImportError("libGL.so.1: cannot open"),
            (3, 12),
            "1.26.4",
            r"library .* missing \(libGL.so.1.*apt install libgl1",
        ),
        (AttributeError("_ARRAY_API not found"), (3, 12), "2.4.6", "needs numpy below 2, and this is numpy 2.4.6"),
        (TypeError("Descriptors"), (3, 12), "1.26.4", r"its import fails \(Descriptors\)"),
    ],
)
def test_a_failed_import_names_its_cause(error, python, numpy, text):
    with pytest.raises(ValueError, match=text.replace("[", r"\[")):
        raise ValueError(cause(error, python, numpy))


@pytest.mark.parametrize("kind", [MediaPipe, MediaPipeMasks])
def test_without_the_package_it_is_refused(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ValueError, match=r"MediaPipe cannot be used: it .*animate-mediapipe"):
        kind()


# ---- with the package ----

CLIPS = Path(__file__).parents[5] / "shared" / "examples" / "animate"
COCO = {name: number for number, name in enumerate(NAMES[:17])}
NEAR = {"nose": 8, "left_wrist": 8, "right_wrist": 8, "left_shoulder": 14, "right_shoulder": 14}  # pixels of 320 x 180
installed = pytest.mark.skipif(find_spec("mediapipe") is None, reason="mediapipe is not installed")
with_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the clips of shared/examples are not beside the checkout")


def run(name: str, folder: Path, **changes) -> Stage:
    files = {"video": str(CLIPS / f"{name}_driving.mp4"), "picture": str(CLIPS / f"{name}_character.jpg")}
    settings = Settings(**files, folder=folder, area=320 * 180, fps=-1, **changes)
    stage = Stage(settings, MediaPipe(), "mediapipe", MediaPipeMasks() if settings.replaces else None)
    stage.run()
    return stage


@pytest.mark.mediapipe
@installed
@with_clips
@pytest.mark.parametrize("replaces", [False, True], ids=["animation", "replacement"])
@pytest.mark.parametrize("name", ["animate", "replace"])
def test_clips_become_performances_with_the_marked_joints(tmp_path, name, replaces):
    run(name, tmp_path, replaces=replaces, preview=True)
    made = Performance.of(tmp_path)
    made.check(replaces, False)
    count = Film.of(str(CLIPS / f"{name}_driving.mp4"), "video").frames
    assert made.frames == count == media.written(tmp_path / "preview.mp4")[0]
    described = json.loads((tmp_path / "meta.json").read_text())
    assert len(described["missing"]) <= (2 if replaces else 0)
    width, height = map(int, described["sizes"]["frame"].split("*"))
    found = load_file(tmp_path / "keypoints.safetensors")["points"] * (320 / width, 180 / height, 1)
    middles = found[:, [5, 6], 1].mean(1), found[:, [11, 12], 1].mean(1)
    assert (found[:, 0, 1] < middles[0]).all() and (middles[0] + 20 < middles[1]).all(), "nobody stands on the head"
    marked = json.loads((CLIPS / "joints.json").read_text())[f"{name}_driving.mp4"]
    for number, joints in marked.items():
        for joint, place in joints.items():
            away = np.linalg.norm(found[int(number), COCO[joint], :2] - place)
            assert away <= NEAR[joint], (number, joint)
        if replaces:
            mask = made.footage.mask.take([int(number)])[0, ..., 0] > 127
            x, y = (np.array(joints["nose"]) * (width / 320, height / 180)).astype(int)
            assert mask[y, x] and not mask[:, :32].any() and 0.1 < mask.mean() < 0.7


@pytest.mark.mediapipe
@installed
@with_clips
def test_the_same_frames_give_the_same_points_whatever_was_seen_before():
    driving = Driving.of(str(CLIPS / "animate_driving.mp4"), -1, length=0.4)
    estimator = MediaPipe()
    first, again = (estimate(driving.frames(), estimator) for _ in range(2))
    assert len(first.points) == 12 and np.array_equal(first.points, again.points)
    assert np.array_equal(first.points, estimate(driving.frames(), MediaPipe()).points)


@pytest.mark.mediapipe
@installed
def test_a_video_without_people_is_refused(tmp_path):
    video, image = str(walk(tmp_path / "v.mp4")), str(picture(tmp_path / "p.png"))
    with pytest.raises(ValueError, match="there is nobody in any of the 12 frames"):
        Stage(Settings(video, image, tmp_path / "out", area=80 * 64), MediaPipe()).run()
    frames = [np.zeros((48, 64, 3), np.uint8)] * 2
    assert [mask.sum() for mask in MediaPipeMasks().masks(iter(frames), None)] == [0, 0]

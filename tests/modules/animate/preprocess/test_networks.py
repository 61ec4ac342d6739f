"""Networks in ONNX files: forms of files, batches, providers and errors, with the stand-ins of the repository."""

import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from wan.configs.nano import CHECKPOINTS
from wan.media import read_video, write_video
from wan.modules.animate.preprocess import pose
from wan.modules.animate.preprocess.networks import CPU, GPU, Network
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.stage import Stage
from wan.modules.animate.preprocess.whole_body import DETECTOR, POSE, WholeBody
from wan.nano.puppets import MARKERS
from wan.nano.standins import all_points, write_pose_estimator

FOLDER = CHECKPOINTS / "animate-14B" / "process_checkpoint"
SHAPES = (None, 3, 256, 192), (None, 133, 64, 48)


def network(path=FOLDER / POSE, device="auto") -> Network:
    return Network(path, "pose estimator", *SHAPES, device)


def crops(count: int) -> np.ndarray:
    """Make inputs of the pose estimator with a red nose in different places."""
    frames = np.full((count, 256, 192, 3), 128, np.uint8)
    for number, frame in enumerate(frames):
        frame[50:60, 40 + 5 * number : 50 + 5 * number] = (255, 0, 0)
    crop = pose.crop_around(np.array((0, 0, 192, 256, -1.0)), (192, 256))
    return np.concatenate([pose.network_input(frame, crop) for frame in frames])


def test_batches_are_divided_unless_the_graph_takes_them(tmp_path):
    pytest.importorskip("onnx")
    write_pose_estimator(tmp_path / "any.onnx", batch="batch")
    one, many = network(), network(tmp_path / "any.onnx")
    assert not one.batches and many.batches
    given = crops(3)
    np.testing.assert_allclose(one(given), many(given), atol=1e-6)
    assert one(given)[0, 0].max() > 0.9 and one(given).dtype == np.float32


def test_a_folder_stands_for_a_large_file(tmp_path):
    folder = tmp_path / "vitpose_h_wholebody.onnx"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"without end2end.onnx, the pose estimator; it is in"):
        network(folder)
    shutil.copy(FOLDER / POSE, folder / "end2end.onnx")
    np.testing.assert_array_equal(network(folder)(crops(1)), network()(crops(1)))


def test_either_file_may_be_another_one(tmp_path):
    shutil.copy(FOLDER / DETECTOR, tmp_path / "other.onnx")
    shutil.copy(FOLDER / POSE, tmp_path / "pose.onnx")
    found = WholeBody(tmp_path, tmp_path / "other.onnx", tmp_path / "pose.onnx")
    assert f"{tmp_path}/other.onnx (CPUExecutionProvider); points: {tmp_path}/pose.onnx (CPUExecut" in found.describe()
    assert found.identity != WholeBody(FOLDER).identity != WholeBody(FOLDER, order="rgb").identity


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x08\x07\x12\x04"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "pose.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"pose.onnx, the pose estimator, cannot be read: .*; download it again"):
        network(tmp_path / "pose.onnx")


def test_a_missing_or_wrong_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no pose estimator .*pose.onnx; it is in the folder"):
        network(tmp_path / "pose.onnx")
    with pytest.raises(ValueError, match=r"yolov10m.onnx is no pose estimator: its input is .*any x 3 x 256 x 192"):
        network(FOLDER / DETECTOR)


def test_a_gpu_that_does_not_start_is_a_warning_or_an_error(monkeypatch, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [GPU, CPU])
    with pytest.warns(UserWarning, match="not in available provider names"):
        assert network().provider == CPU
    assert "the pose estimator does not run on the GPU" in caplog.text
    caplog.clear()
    assert network(device="cpu").provider == CPU and not caplog.text
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="does not run on the GPU"):
        network(device="cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(ValueError, match="install onnxruntime-gpu"):
        network(device="cuda")


def test_without_onnxruntime_the_error_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs the package onnxruntime .*pip install '\.\[animate\]'"):
        network()


def test_people_and_points_of_a_puppet():
    markers = np.random.default_rng(3).uniform((60, 40), (240, 340), (19, 2))
    markers[:3] = (150, 60), (165, 50), (135, 50)
    frame = np.full((384, 320, 3), 128, np.uint8)
    y, x = np.mgrid[:384, :320]
    for (right, down), colour in zip(markers, MARKERS.values(), strict=True):
        frame[(x - right) ** 2 + (y - down) ** 2 <= 64] = colour
    markers = np.array([[x[area].mean(), y[area].mean()] for area in ((frame == c).all(-1) for c in MARKERS.values())])
    found = WholeBody(FOLDER)
    (people,) = found.people([frame])
    assert people[0, 4] == pytest.approx(0.9) and len(people) == 2  # and the decoy
    expected = all_points(markers)
    (points,) = found.points([frame], [people[0]])
    assert (points[:17, 2] > 0.5).all() and np.abs(points[:17, :2] - expected[:17]).max() < 2
    assert not found.people([np.full_like(frame, 128)])[0].size


def test_the_stage_runs_with_them(tmp_path):
    """Drawings are those of the recorded run, but for the coding of both videos."""
    golden = Path(__file__).parents[3] / "data" / "golden" / "preprocess"
    strip, expected = (np.asarray(Image.open(golden / f"e2e_{name}.png")) for name in ("driving", "animate_pose"))
    write_video(strip.reshape(-1, 272, 208, 3), tmp_path / "v.mp4", Fraction(30))
    networks = WholeBody(FOLDER, as_upstream=True)
    picture = str(golden / "e2e_reference.png")
    settings = Settings(str(tmp_path / "v.mp4"), picture, tmp_path / "out", area=224 * 256, fps=16, as_upstream=True)
    Stage(settings, networks, networks.identity).run()
    drawn = read_video(tmp_path / "out" / "src_pose.mp4")[0].numpy().astype(int)
    gap = np.abs(drawn - expected.reshape(-1, 272, 192, 3)).mean()
    assert gap < 2 < np.abs(np.roll(drawn, 8, axis=2) - expected.reshape(-1, 272, 192, 3)).mean()

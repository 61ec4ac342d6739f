"""Smoothing of key points: trembling goes, motion stays, and points that are not seen take no part."""

import numpy as np
import pytest

from tests.modules.animate.preprocess.fake import Squares, picture, walk
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.smoothing import averaged
from wan.modules.animate.preprocess.stage import Stage

COUNT = 41


def track(places: np.ndarray, confidence: float = 0.9) -> np.ndarray:
    """Points [T, 1, 3] at x = y = places [T]."""
    return np.stack([places, places, np.full(len(places), confidence)], axis=-1)[:, None].astype(np.float32)


def test_trembling_goes_and_even_motion_stays():
    even, tremble = np.linspace(0, 1, COUNT), 0.02 * (-1.0) ** np.arange(COUNT)
    found = averaged(track(even + tremble), 2.0)
    inside = slice(7, -7)
    assert np.abs(found[inside, 0, 0] - even[inside]).max() < 1e-3
    assert (found[..., 2] == np.float32(0.9)).all()


def test_a_step_becomes_the_integral_of_the_gaussian():
    found = averaged(track((np.arange(COUNT) >= 20).astype(float)), 2.0)[:, 0, 0]
    assert (np.diff(found) >= -1e-6).all() and found[19] == pytest.approx(0.4005, abs=0.01) == 1 - found[20]


def test_points_count_by_their_confidence_and_uncertain_ones_do_not():
    points = track(np.full(COUNT, 0.5))
    points[20] = 0.9, 0.9, 0.3  # not certain
    found = averaged(points, 1.0)
    assert np.allclose(found[np.arange(COUNT) != 20, 0, :2], 0.5) and np.array_equal(found[20], points[20])
    points[20, 0] = np.nan
    assert np.allclose(averaged(points, 1.0)[19, 0], (0.5, 0.5, 0.9))
    weak, strong = (track(np.full(COUNT, 0.5)) for _ in range(2))
    weak[20], strong[20] = (0.9, 0.9, 0.5), (0.9, 0.9, 1.0)
    assert 0.5 < averaged(weak, 1.0)[19, 0, 0] < averaged(strong, 1.0)[19, 0, 0]


def test_one_frame_stays_as_it_is():
    assert np.array_equal(averaged(track(np.array([0.3])), 3.0), track(np.array([0.3])))


class Trembling(Squares):
    """Points that tremble by two pixels."""

    def points(self, frames, boxes):
        found = super().points(frames, boxes)
        found[::2, :, 0] += 2
        return found


def test_the_option_smooths_what_is_drawn_and_keeps_the_points(tmp_path):
    inputs = {"video": str(walk(tmp_path / "v.mp4")), "picture": str(picture(tmp_path / "p.png"))}

    def made(folder, **changes):
        settings, estimator = Settings(**inputs, folder=tmp_path / folder, area=80 * 64, **changes), Trembling()
        Stage(settings, estimator, "trembling").run()
        return estimator.calls, (tmp_path / folder / "src_pose.mp4").read_bytes()

    (_, plain), (_, off) = made("plain"), made("off", smooth=0.0)
    assert plain == off
    calls, smooth = made("plain", smooth=0.1)
    assert calls == 0 and smooth != plain
    assert smooth == made("fresh", smooth=0.1)[1]

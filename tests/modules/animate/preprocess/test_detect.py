"""Choice of a person; the golden cases have upstream's, and here are boxes of every kind."""

import numpy as np
import pytest

from wan.modules.animate.preprocess import detect, pose

SIZE = (1280, 640)  # x counts twice, y once


def rows(*found: tuple) -> np.ndarray:
    """Make the rows of a detector, of which most are empty."""
    return np.array([*found, *[(0, 0, 0, 0, 0, 0)] * 5], np.float32)


def test_a_better_object_hides_a_person_only_as_upstream():
    given = rows((10, 10, 100, 200, 0.9, 16), (10, 10, 100, 190, 0.8, 0))
    np.testing.assert_array_equal(detect.person(given, SIZE)[:4], (20, 10, 200, 190))
    np.testing.assert_array_equal(detect.person(given, SIZE, as_upstream=True), (0, 0, *SIZE, -1))


def test_a_huge_faint_box_is_chosen_only_as_upstream():
    given = rows((10, 10, 100, 200, 0.9, 0), (0, 0, 640, 640, 0.06, 0))
    assert detect.person(given, SIZE)[4] == pytest.approx(0.9)
    assert detect.person(given, SIZE, as_upstream=True)[4] == pytest.approx(0.06)
    faint = rows((10, 10, 100, 200, 0.06, 0))
    assert detect.person(faint, SIZE)[4] == pytest.approx(0.06)  # better than nobody


def test_boxes_end_at_the_border_but_not_as_upstream():
    given = rows((-50, -20, 700, 650, 0.9, 0))
    np.testing.assert_array_equal(detect.person(given, SIZE)[:4], (0, 0, *SIZE))
    np.testing.assert_array_equal(detect.person(given, SIZE, as_upstream=True)[:4], (-100, -20, 1400, 650))


@pytest.mark.parametrize("size", [(1, 1), (16, 900), (3840, 2160)])
@pytest.mark.parametrize("seed", range(5))
def test_any_rows_give_a_legal_crop(size, seed):
    random = np.random.default_rng(seed)
    given = random.normal(320, 10.0 ** random.integers(0, 9), (40, 6)).astype(np.float32)
    given[:, 4], given[:, 5] = random.random(40), random.integers(0, 3, 40)
    given.flat[random.integers(0, given.size, 20)] = random.choice([np.nan, np.inf, -np.inf, 1e30], 20)
    box = detect.person(given, size)
    assert np.isfinite(box).all() and (box[:2] >= 0).all() and (box[2:4] <= size).all() and (box[:2] < box[2:4]).all()
    frame = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
    made = pose.network_input(frame, pose.crop_around(box, size))
    assert made.shape == (1, 3, 256, 192) and made.dtype == np.float32 and np.isfinite(made).all()
    assert detect.network_input(frame).shape == (1, 3, 640, 640)


@pytest.mark.parametrize("box", [(0, 0, 9, 100, 0.9), (5, 5, 5, 5, 0.9), (0, 0, 50, 50, -1), (np.nan, 0, 50, 50, 0.9)])
def test_without_a_person_the_crop_is_the_whole_frame(box):
    crop = pose.crop_around(np.array(box, float), (300, 200))
    assert crop.centre == (150, 100) and crop.size == (375, 500)


def test_order_of_the_channels():
    frame = np.zeros((20, 20, 3), np.uint8)
    frame[..., 0] = 255  # red
    crop = pose.crop_around(np.array((0, 0, 20, 20, -1.0)), (20, 20))
    bgr, rgb = (pose.network_input(frame, crop, order)[0, :, 128, 96] for order in ("bgr", "rgb"))
    np.testing.assert_allclose(rgb, [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)
    np.testing.assert_allclose(bgr, [-0.485 / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225], rtol=1e-5)


def test_a_gaussian_is_found_between_pixels_and_nothing_is_nothing():
    y, x = np.mgrid[:64, :48]
    bump = np.exp(-((x - 20.3) ** 2 + (y - 40.8) ** 2) / 8).astype(np.float32)
    odd = np.stack([bump, 0 * bump, -bump, np.full_like(bump, np.nan), np.full_like(bump, 0.5)])
    found = pose.peaks(odd)
    np.testing.assert_allclose(found[0], (20.3, 40.8, bump.max()), atol=0.02)
    assert (found[1:4, :2] == -1).all() and np.isfinite(found).all()

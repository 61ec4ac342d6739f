"""Sizes and frames; the golden cases have upstream's, and here are videos of every kind."""

import numpy as np
import pytest

from wan.modules.animate.preprocess import frames
from wan.modules.animate.preprocess.scaling import cut_out, resize_area


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 4000), (4000, 37), (3840, 2160), (1080, 1920), (641, 479)])
@pytest.mark.parametrize("area", [1, 64 * 64, 832 * 480, 1280 * 720])
def test_sizes_are_multiples_of_16_near_the_area(size, area):
    width, height = frames.size_of_area(size, area)
    assert width % 16 == height % 16 == 0 and width >= 16 and height >= 16
    if min(width, height) > 16:
        assert width * height <= area < (width + 16) * (height + 16)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 70), (400, 20), (160, 96)])
@pytest.mark.parametrize("area", [256, 9216, 40000])
def test_any_picture_is_resized_without_changing_an_even_colour(size, area):
    picture = np.full((size[1], size[0], 3), (10, 200, 255), np.uint8)
    resized = frames.resize_to_area(picture, area)
    assert resized.shape[:2] == frames.size_of_area(size, area)[::-1] and resized.dtype == np.uint8
    assert set(map(tuple, resized.reshape(-1, 3).tolist())) <= {(10, 200, 255), (0, 0, 0)}


def test_averages_keep_the_mean_and_the_picture_of_equal_size():
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    np.testing.assert_array_equal(resize_area(picture, 90, 70), picture)
    for height, width in ((45, 35), (30, 70), (41, 33), (1, 1)):
        assert abs(resize_area(picture, height, width).mean() - picture.mean()) < 0.5


def test_parts_are_black_outside_and_of_any_size():
    picture = np.full((40, 30, 3), 200, np.uint8)
    assert not cut_out(picture, (1000, 0, 1100, 50), 16, 12).any()
    part = cut_out(picture, (-30, 0, 30, 40), 40, 60)
    assert not part[:, :29].any() and (part[:, 31:] == 200).all()
    far = cut_out(picture, (-(10**6), -(10**6), 10**6, 10**6), 16, 12)
    assert far.shape == (16, 12, 3) and far.max() <= 200
    assert (cut_out(picture, (5, 5, 5, 5), 16, 12) == 200).all()


@pytest.mark.parametrize("rate", [12, 23.976, 24, 25, 29.97, 30, 50, 59.94])
@pytest.mark.parametrize("fps", [8, 16, 24, 25, 30, 60])
@pytest.mark.parametrize("count", [2, 7, 100])
def test_frames_by_time_are_those_of_upstream_at_a_constant_rate(rate, fps, count):
    upstream = frames.select(count, rate, fps, count / rate)
    taken = frames.select_by_time(np.arange(count) / rate, count / rate, fps)
    assert len(taken) == max(1, len(upstream))
    for number, (one, other) in enumerate(zip(taken, upstream, strict=False)):
        is_tie = abs(number / fps * rate % 1 - 0.5) < 1e-6  # upstream's float decides these
        assert one == other or (is_tie and abs(one - other) == 1)


def test_frames_of_a_variable_rate_are_the_nearest_in_time():
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.9]
    assert frames.select_by_time(times, 2.0, 10) == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5]
    assert frames.select_by_time([5.0, 5.5], 6.0, 2) == [0, 1]  # times may begin anywhere
    assert frames.select_by_time([0.0], 0.04, 16) == [0]


def test_a_wrong_count_of_frames_is_reported_and_frames_exist(caplog):
    taken = frames.select(100, 30.0, 30, 5.0)
    assert max(taken) == 99 and len(taken) == 150
    assert "the video has 100 frames, and its duration and rate tell 150" in caplog.text

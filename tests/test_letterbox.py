"""Pictures between black bars: the golden cases have the exact bytes, and here are sizes of every kind."""

import numpy as np
import pytest
import torch

from wan.letterbox import letterbox, resize_linear


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    "sizes", [(40, 60, 48, 64), (7, 5, 64, 32), (300, 201, 32, 48), (1, 1, 16, 16), (1, 500, 16, 32)]
)
def test_integers_are_near_the_interpolation_in_floats(sizes):
    rows, columns, height, width = sizes
    image = picture(rows, columns)
    exact = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(exact, (height, width), mode="bilinear", align_corners=False)
    found = torch.from_numpy(resize_linear(image, height, width)).permute(2, 0, 1)[None].double()
    assert found.shape == exact.shape and (found - exact).abs().max() <= 1


def test_one_size_is_copied_and_one_colour_stays():
    image = picture(20, 30)
    same = resize_linear(image, 20, 30)
    assert np.array_equal(same, image) and same is not image
    assert (resize_linear(np.full((9, 14, 3), 201, np.uint8), 48, 32) == 201).all()


def test_bars_are_black_on_the_sides_that_are_left():
    tall, wide = (letterbox(np.full(shape, 200, np.uint8), 32, 48) for shape in ((80, 40, 3), (10, 60, 3)))
    assert [bool(column.any()) for column in tall.transpose(1, 0, 2)] == [16 <= x < 32 for x in range(48)]
    assert [bool(row.any()) for row in wide] == [12 <= y < 20 for y in range(32)]


@pytest.mark.parametrize("shape", [(2000, 1), (1, 2000)])
def test_a_line_of_pixels_stays_visible(shape):
    assert letterbox(np.full((*shape, 3), 200, np.uint8), 32, 48).any()

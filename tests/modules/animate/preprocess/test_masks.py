"""Masks and clicks; the golden cases have upstream's, and here are masks of every kind."""

import numpy as np
import pytest

from wan.modules.animate.preprocess import masks


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (48, 64)])
@pytest.mark.parametrize("seed", range(6))
def test_growth_and_blocks_only_add(shape, seed):
    random = np.random.default_rng(seed)
    mask = (random.random(shape) < random.choice([0, 0.003, 0.1, 1])).astype(np.uint8)
    iterations, k, w_len, h_len = random.integers(0, 5), *random.integers(1, 60, 3)
    grown, final = masks.grown(mask, k, iterations), masks.shaped(mask, iterations, k, w_len, h_len)
    for result in (grown, final, masks.filled(mask, w_len, h_len)):
        assert result.shape == shape and result.dtype == np.uint8 and result.max() <= 1
        assert (result >= mask).all() and result.any() == mask.any()
    assert (final >= (grown if iterations else mask)).all()


def test_growth_is_a_square_that_is_farther_right_and_down_where_it_is_even():
    mask = np.zeros((20, 20), np.uint8)
    mask[10, 10] = 1
    assert np.argwhere(masks.grown(mask, 3, 2)).tolist() == [[y, x] for y in range(8, 13) for x in range(8, 13)]
    (rows,) = np.nonzero(masks.grown(mask, 4, 1).any(1))
    assert (rows[0], rows[-1]) == (9, 12)


def test_blocks_fill_the_box_but_its_last_row_and_column():
    mask = np.zeros((20, 20), np.uint8)
    mask[[4, 9], [3, 12]] = 1
    filled = masks.filled(mask, 1, 1)
    assert filled[4:9, 3:12].all() and filled.sum() == 5 * 9 + 1 and filled[9, 12]


def test_without_a_mask_the_frame_is_untouched():
    frame = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    empty = masks.shaped(np.zeros((8, 9), np.uint8))
    np.testing.assert_array_equal(masks.without(frame, empty), frame)
    assert not masks.without(frame, np.ones((8, 9), np.uint8)).any()


@pytest.mark.parametrize("count", [*range(1, 12), 399, 400, 401, 1003])
def test_chunks_hold_every_frame_once_and_begin_with_a_key_frame(count):
    chunks = masks.chunks(count)
    assert [frame for chunk in chunks for frame in chunk] == list(range(count))
    for chunk in chunks:
        keys = masks.key_frames(len(chunk))
        assert keys[0] == 0 and keys[-1] < len(chunk) and len(keys) <= 7


def test_clicks_are_inside_the_frame_and_certain():
    random = np.random.default_rng(0)
    for spread in (0.1, 1, 1e9):
        body = random.normal(0.5, spread, (20, 3))
        body[random.integers(0, 20, 4)] = random.choice([np.nan, np.inf, -np.inf], (4, 1))
        places, labels = masks.clicks(body, (64, 48), others=[random.normal(30, 20, 5)] * 2)
        assert len(places) == len(labels) and places.dtype == labels.dtype == np.int32
        assert ((places >= 0) & (places < (64, 48))).all()
    assert masks.clicks(np.zeros((20, 3)), (64, 48))[0].shape == (0, 2)


def test_other_people_are_clicked_away_unless_they_cover_the_person():
    body = np.tile((0.5, 0.5, 0.9), (20, 1))
    places, labels = masks.clicks(
        body, (100, 100), others=[np.array((0, 20, 20, 80, 0.9)), np.array((40, 40, 60, 60, 0.9))]
    )
    assert labels.tolist() == [1] * 8 + [0]
    assert places[-1].tolist() == [10, 38]

"""Drawings of figures; the golden cases have the exact pixels, and here are figures and canvases of every kind."""

import numpy as np
import pytest

from wan.modules.animate.preprocess.joints import COLOURS, HAND_POINT_COLOUR, JOINT, LIMB_COLOURS
from wan.modules.animate.preprocess.skeleton import draw

NO_HANDS = [np.zeros((21, 3))] * 2
ODD = (np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.5, 63.999, 64.0)


def body(**places: tuple[float, float, float]) -> np.ndarray:
    """Make a body of which only the named joints (x, y, confidence) are seen."""
    points = np.zeros((20, 3))
    for name, place in places.items():
        points[JOINT[name]] = place
    return points


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (17, 33), (64, 64), (1279, 1081)])
@pytest.mark.parametrize("seed", range(3))
def test_any_points_on_any_canvas_give_a_legal_drawing(size, seed):
    random = np.random.default_rng(seed)
    spread = 10.0 ** random.integers(0, 12)
    figure = [
        random.normal(size=(count, 3)) * (spread, spread, 1) + (*np.divide(size, 2), 0.5) for count in (20, 21, 21)
    ]
    for points in figure:
        points.flat[random.integers(0, points.size, 6)] = random.choice(ODD, 6)
    drawn = draw(figure[0], figure[1:], size)
    assert drawn.shape == (size[1], size[0], 3) and drawn.dtype == np.uint8
    palette = {(0, 0, 0), HAND_POINT_COLOUR, *map(tuple, COLOURS.tolist()), *map(tuple, LIMB_COLOURS.tolist())}
    assert set(map(tuple, draw(figure[0], NO_HANDS, size).reshape(-1, 3).tolist())) <= palette


def test_nothing_seen_is_black():
    assert not draw(body(), NO_HANDS, (50, 40)).any()
    assert not draw(np.full((20, 3), np.nan), [np.full((21, 3), np.nan)] * 2, (50, 40)).any()


def test_equal_points_are_one_dot():
    drawn = draw(np.tile((20.0, 10.0, 1.0), (20, 1)), NO_HANDS, (50, 40))
    lit = np.argwhere(drawn.any(-1))
    assert len(lit) and np.abs(lit - (10, 20)).max() == 1
    assert tuple(drawn[10, 20]) == tuple(COLOURS[19])  # the last joint lies on top


def test_a_limb_needs_both_ends_and_joints_lie_on_it():
    neck, shoulder = (10.0, 20.0, 0.5), (30.0, 20.0, 0.9)
    drawn = draw(body(neck=neck, right_shoulder=shoulder), NO_HANDS, (50, 40))
    assert tuple(drawn[20, 20]) == tuple(LIMB_COLOURS[0])
    assert [tuple(drawn[20, x]) for x in (10, 30)] == [tuple(COLOURS[1]), tuple(COLOURS[2])]
    assert not draw(body(neck=neck, right_shoulder=(30, 20, 0.499)), NO_HANDS, (50, 40))[20, 20].any()


def test_points_far_outside_draw_the_part_inside():
    drawn = draw(body(neck=(-5000.0, 20.0, 1), right_shoulder=(5000.0, 20.0, 1)), NO_HANDS, (50, 40))
    assert (drawn[20] == LIMB_COLOURS[0]).all()


def test_hands_are_cut_at_the_left_and_upper_border():
    hand = np.tile((0.9, 20.0, 1.0), (21, 1))
    assert not draw(body(), [hand], (50, 40)).any()
    hand[:, 0] = 1
    assert tuple(draw(body(), [hand], (50, 40))[20, 1]) == HAND_POINT_COLOUR


@pytest.mark.parametrize("side, width", [(599, 3), (600, 5), (1000, 9)])
def test_limbs_grow_with_the_canvas(side, width):
    shoulder = (side - 10.0, side / 2, 1)
    drawn = draw(body(neck=(10.0, side / 2, 1), right_shoulder=shoulder), NO_HANDS, (side, side))
    assert drawn[:, side // 2].any(-1).sum() == width


@pytest.mark.parametrize("side, width", [(999, 1), (1000, 3), (1600, 5)])
def test_edges_of_hands_grow_with_the_canvas(side, width):
    hand = np.zeros((21, 3))
    hand[:2] = (10, side / 2, 1), (side + 500, side / 2, 1)
    drawn = draw(body(), [hand], (side, side))
    assert drawn[:, side // 2].any(-1).sum() == drawn[:, -1].any(-1).sum() == width

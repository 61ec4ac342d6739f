"""Figures and faces; the golden cases have upstream's, and here are points of every kind."""

import numpy as np
import pytest

from wan.modules.animate.preprocess import keypoints
from wan.modules.animate.preprocess.keypoints import Figure, face_part, figure_of

SIZES = [(1, 1), (9, 400), (320, 180), (1280, 720)]


def figure(face: np.ndarray, body: np.ndarray | None = None) -> Figure:
    """Make a figure of 68 face points [68, 2], and of body joints that are not seen."""
    points = np.concatenate([np.zeros((1, 2)), face])
    hand = np.zeros((21, 3))
    body = np.zeros((20, 3)) if body is None else body
    return Figure(body, hand, hand, np.concatenate([points, np.ones((69, 1))], axis=1))


def assert_legal(part: tuple[int, ...], size: tuple[int, int]) -> None:
    left, top, right, bottom = part
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    face = keypoints.face_picture(np.zeros((size[1], size[0], 3), np.uint8), part)
    assert face.shape == (512, 512, 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("as_upstream", [False, True])
def test_any_points_give_a_part_inside_the_frame(size, seed, as_upstream):
    random = np.random.default_rng(seed)
    face = random.normal(0.5, 10.0 ** random.integers(-6, 8), (68, 2))
    body = random.normal(0.5, 10.0 ** random.integers(-3, 8), (20, 3))
    if seed % 2:
        face[random.integers(0, 68, 3)] = random.choice([np.nan, np.inf, -np.inf], (3, 1))
        body[random.integers(0, 20, 9)] = random.choice([np.nan, np.inf, -np.inf], (9, 1))
    part = face_part(figure(face, body), size, as_upstream=as_upstream)
    assert_legal(part, size)
    if not as_upstream:
        assert part[2] - part[0] == part[3] - part[1]


@pytest.mark.parametrize("place", [(0.5, 0.5), (-3.0, 0.5), (0.5, 7.0)])
def test_equal_points_and_faces_outside(place):
    assert_legal(face_part(figure(np.tile(place, (68, 1))), (320, 180)), (320, 180))


def test_a_square_holds_the_face_and_is_moved_into_the_frame():
    face = np.array([(0.9, 0.1), (0.99, 0.3)] * 34)
    left, top, right, bottom = face_part(figure(face), (400, 200))
    assert right == 400 and left <= 360 and top <= 20 and bottom >= 60 and right - left == bottom - top


def test_without_a_face_it_is_that_of_the_frame_before_or_at_the_head():
    lost = figure(np.full((68, 2), np.nan))
    assert face_part(lost, (320, 180), before=(1, 2, 30, 31)) == (1, 2, 30, 31)
    body = np.zeros((20, 3))
    body[[0, 14, 15]] = (0.5, 0.3, 0.9), (0.48, 0.28, 0.9), (0.52, 0.28, 0.9)
    left, top, right, bottom = face_part(figure(np.full((68, 2), np.nan), body), (320, 180))
    assert left < 154 and right > 166 and top < 50 < 54 < bottom
    assert face_part(lost, (320, 180))[1] < 90


def test_the_body_is_carried_over_only_where_all_of_it_is_lost():
    points = np.full((133, 3), 10.0)
    first = figure_of(points, (20, 40))
    lost = points.copy()
    lost[:, 0] = -1
    assert (figure_of(lost, (20, 40), first).body == first.body).all()
    assert (figure_of(lost, (20, 40), first).face[:, 0] < 0).all()
    assert (figure_of(lost, (20, 40)).body[:, 0] < 0).all()  # there is none before the first one
    lost[0, 0] = 10
    assert (figure_of(lost, (20, 40), first).body[1:, 0] < 0).all()


def test_shares_and_pixels():
    body = figure_of(np.full((133, 3), 10.0), (20, 40))
    np.testing.assert_allclose(body.body[3], (0.5, 0.25, 10))
    np.testing.assert_allclose(body.scaled((100, 60)).face[3], (50, 15, 10))

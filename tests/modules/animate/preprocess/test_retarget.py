"""Retargeting; the golden cases have upstream's, and here are figures of every kind."""

import numpy as np
import pytest

from wan.modules.animate.preprocess import retarget
from wan.modules.animate.preprocess.joints import JOINT, LIMBS
from wan.modules.animate.preprocess.keypoints import Figure
from wan.modules.animate.preprocess.retarget import Pair, Retargeting
from wan.modules.animate.preprocess.skeleton import draw

# A person who faces the camera, in pixels of 100 x 200
PLACES = {
    **{"nose": (50, 20), "neck": (50, 40), "right_eye": (47, 17), "left_eye": (53, 17)},
    **{"right_ear": (43, 20), "left_ear": (57, 20), "right_shoulder": (35, 40), "left_shoulder": (65, 40)},
    **{"right_elbow": (28, 65), "left_elbow": (72, 65), "right_wrist": (25, 90), "left_wrist": (75, 90)},
    **{"right_hip": (42, 95), "left_hip": (58, 95), "right_knee": (40, 135), "left_knee": (60, 135)},
    **{"right_ankle": (40, 175), "left_ankle": (60, 175), "right_toe": (34, 185), "left_toe": (66, 185)},
}
SIZE = (100, 200)


def person(**moved: tuple[float, float]) -> np.ndarray:
    """Make a body in shares of its frame; joints may be moved."""
    body = np.ones((20, 3))
    for name, place in (PLACES | moved).items():
        body[JOINT[name], :2] = np.divide(place, SIZE)
    return body


def figure(body: np.ndarray) -> Figure:
    """Add hands around the wrists."""
    random = np.random.default_rng(0)
    hands = (
        np.concatenate([body[JOINT[name], :2] + random.normal(0, 0.02, (21, 2)), np.ones((21, 1))], axis=1)
        for name in ("left_wrist", "right_wrist")
    )
    return Figure(body, *hands, np.zeros((69, 3)))


def lengths(body: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(body[a, :2] - body[b, :2]) for a, b in LIMBS])


@pytest.mark.parametrize("seed", range(12))
def test_a_figure_retargeted_to_itself_stays(seed):
    random = np.random.default_rng(seed)
    body = person() if seed == 0 else random.uniform(-0.5, 1.5, (20, 3))
    if seed < 6:
        body[:, 2] = 1
    elif seed < 9:
        body[:, :2] = body[0, :2]  # all joints in one place
    size = (640, 352) if seed % 2 else SIZE
    given = figure(body)
    found = next(Retargeting(Pair(body, size, body, size)).figures([given]))
    np.testing.assert_allclose(found.body, body * (*size, 1), atol=1)
    hands = np.stack([found.left_hand, found.right_hand])
    expected = [given.left_hand * (*size, 1), given.right_hand * (*size, 1)]
    assert min(np.abs(hands - order).max() for order in (expected, expected[::-1])) <= 1


def test_bones_get_the_lengths_of_the_character_and_the_directions_of_the_driver():
    longer = person(right_elbow=(24, 77), right_wrist=(20, 110), left_elbow=(76, 77), left_wrist=(80, 110))
    raised = person(right_elbow=(15, 30), right_wrist=(5, 10))
    found = next(Retargeting(Pair(person(), SIZE, longer, SIZE)).figures([figure(raised)])).body
    np.testing.assert_allclose(lengths(found)[2:4] / lengths(person() * (*SIZE, 1))[2:4], [1.5, 1.4], atol=0.5)
    arm, expected = (
        body[JOINT["right_wrist"], :2] - body[JOINT["right_elbow"], :2] for body in (found, raised * (*SIZE, 1))
    )
    assert np.arctan2(*arm) == pytest.approx(np.arctan2(*expected))


def test_a_character_elsewhere_and_of_another_size_is_met():
    smaller = person()
    smaller[:, :2] = smaller[:, :2] * 0.5 + (0.4, 0.3)
    found = next(Retargeting(Pair(person(), SIZE, smaller, (300, 600))).figures([figure(person())]))
    np.testing.assert_allclose(found.body[:, :2], smaller[:, :2] * (300, 600), atol=2)


def test_ratios_are_limited_and_equal_on_both_sides():
    odd = person(right_elbow=(30, 199), left_knee=(59, 96))
    pair = Pair(person(), SIZE, odd, SIZE)
    ratios = retarget.limb_ratios(pair)
    assert ratios.max() <= 2 and ratios.min() >= 0.5
    assert retarget.limb_ratios(pair, limits=None).max() > 2
    for one, other in (*retarget.EQUAL_BY_MOST, *retarget.EQUAL_BY_MEAN):
        assert ratios[one] == ratios[other]


def test_a_foot_does_not_outgrow_its_calf():
    flat = person(left_toe=(95, 185), right_toe=(5, 185))
    found = next(Retargeting(Pair(person(), SIZE, flat, SIZE)).figures([figure(person())])).body
    assert lengths(found)[17] <= 0.5 * lengths(found)[11] + 1e-6


@pytest.mark.parametrize("as_upstream", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_any_figures_give_a_legal_drawing(seed, as_upstream):
    random = np.random.default_rng(seed)

    def any_points(count: int) -> np.ndarray:
        points = random.normal(0.5, 10.0 ** random.integers(-3, 9), (count, 3))
        points.flat[random.integers(0, points.size, 8)] = random.choice([np.nan, np.inf, -np.inf, 0, 1], 8)
        return points

    bodies = [any_points(20) for _ in range(3)]
    if seed == 0:
        bodies = [np.zeros((20, 3)) for _ in range(3)]
    sizes = [tuple(random.integers(16, 400, 2).tolist()) for _ in range(2)]
    made = Retargeting(Pair(bodies[0], sizes[0], bodies[1], sizes[1]), as_upstream=as_upstream)
    assert np.isfinite(made.ratios).all() and made.pair.scale > 0
    found = made.figure(Figure(bodies[2], any_points(21), any_points(21), any_points(69)))
    assert draw(found.body, [found.left_hand, found.right_hand], sizes[1]).shape == (sizes[1][1], sizes[1][0], 3)


def test_a_first_frame_from_the_side_is_told():
    assert retarget.is_frontal(person(), SIZE)
    assert not retarget.is_frontal(person(right_shoulder=(48, 40), left_shoulder=(52, 40)), SIZE)
    assert not retarget.is_frontal(person(right_shoulder=(65, 40), left_shoulder=(35, 40)), SIZE)


def test_edited_pictures_give_the_lengths():
    bent = person(right_elbow=(33, 45), left_elbow=(67, 45))
    plain = retarget.limb_ratios(Pair(bent, SIZE, person(), SIZE))
    edited = retarget.limb_ratios(Pair(bent, SIZE, person(), SIZE), Pair(person(), SIZE, person(), SIZE))
    assert plain[2] == 2 and edited[2] == pytest.approx(1)


def retargeted(driving: np.ndarray, character: np.ndarray, as_upstream: bool) -> Retargeting:
    return Retargeting(Pair(driving, SIZE, character, SIZE), as_upstream=as_upstream)


def test_a_lying_figure_tells_the_scale_as_upstream_alone():
    lying = person(right_ankle=(40, 23), left_ankle=(60, 23))
    assert retargeted(lying, person(), as_upstream=True).pair.scale == pytest.approx(3 / 155)
    assert retargeted(lying, person(), as_upstream=False).pair.scale == pytest.approx(1)  # by the hips


def test_a_limb_that_the_character_has_not_vanishes_as_upstream_alone():
    character = person(right_ear=(47, 17), left_ear=(53, 17))  # in the places of the eyes
    ears = [number for number, ends in enumerate(LIMBS) if JOINT["right_ear"] in ends or JOINT["left_ear"] in ends]
    assert (retargeted(person(), character, as_upstream=True).ratios[ears] == 0).all()
    assert (retargeted(person(), character, as_upstream=False).ratios[ears] == 1).all()


@pytest.mark.parametrize(("as_upstream", "is_exchanged"), [(True, True), (False, False)])
def test_a_weak_root_exchanges_hands_as_upstream_alone(as_upstream, is_exchanged):
    body = person(right_wrist=(90, 190), left_wrist=(10, 10))
    given = figure(body)
    given.right_hand[0, 2] = 0.1  # upstream puts it at (-1, -1), nearer to the left wrist
    given.left_hand[1:, 2] = 0.1
    found = next(Retargeting(Pair(body, SIZE, body, SIZE), as_upstream=as_upstream).figures([given]))
    first = found.left_hand  # the slot of the right wrist
    assert np.isnan(first[1:, 0]).all() == is_exchanged

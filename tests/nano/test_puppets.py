"""Puppets: what is drawn is where the joints and masks say."""

from dataclasses import replace

import numpy as np
import pytest

from wan.nano import puppet_videos, puppets
from wan.nano.puppets import PARTS

FRAMES = 24


@pytest.fixture(scope="module")
def scenes() -> list[tuple[puppets.Puppet, puppets.Motion]]:
    rng = np.random.default_rng(1)
    return [(puppets.sample_puppet(rng), puppets.sample_motion(rng, FRAMES)) for _ in range(4)]


def middle(place: np.ndarray) -> np.ndarray:
    """Centre of bool [H, W], as (x, y)."""
    return (np.argwhere(place).mean(0)[::-1] + 0.5) / len(place)


def test_colours_of_a_figure_are_far_from_each_other_and_from_the_ground(scenes):
    for puppet, _ in scenes:
        assert puppets.least_distance([*puppet.colours, puppet.ground]) >= puppets.APART
    grey = puppets.sample_puppet(np.random.default_rng(2), is_grey=True)
    video = puppet_videos.render(grey, scenes[0][1]).video
    assert (video == video[..., :1]).all()
    assert puppets.least_distance([*grey.colours, grey.ground]) > 15


def test_motions_are_smooth_and_within_limits():
    motion = puppets.sample_motion(np.random.default_rng(3), 200)
    for name, (low, high) in puppets.LIMITS.items():
        values = getattr(motion, name)
        assert low <= values.min() and values.max() <= high
        assert np.abs(np.diff(values, axis=0)).max() < 0.22 * (high - low)
    for name in ("mouth", "eyes"):
        assert {0.0, 1.0} <= set(getattr(motion, name).tolist())
    assert len(motion[10:30]) == 20 and np.array_equal(motion[10:30].knees, motion.knees[10:30])


def test_limbs_keep_their_length_and_feet_stand_on_the_floor(scenes):
    for puppet, motion in scenes:
        points = puppets.joints(puppet, motion)
        for name, length in (("SHOULDER ELBOW", puppet.arm), ("ELBOW WRIST", puppet.arm), ("HIP KNEE", puppet.leg)):
            start, end = (getattr(puppets, part) for part in name.split())
            for side in (0, 1):
                apart = np.linalg.norm(points[:, start[side]] - points[:, end[side]], axis=-1)
                assert np.allclose(apart, length, atol=1e-5)
        soles = points[:, list(puppets.ANKLE), 1].max(1) + puppets.SHOE * puppet.limb
        assert np.allclose(soles, puppets.FLOOR, atol=1e-5)


def test_right_is_that_of_the_figure_and_markers_name_the_same_joints(scenes):
    puppet, _ = scenes[0]
    points = puppets.joints(puppet, puppets.rest(np.random.default_rng(0)))[0]
    for pair in (puppets.EYE, puppets.EAR, puppets.SHOULDER, puppets.WRIST, puppets.HIP, puppets.ANKLE, puppets.TOE):
        right, left = points[list(pair)]
        assert right[0] < left[0], "the right side of a figure that looks at us is on the left of the picture"
    assert set(puppets.MARKERS) == set(range(puppets.NUM_JOINTS)) - {puppets.NECK}


def test_labels_are_where_joints_say(scenes):
    for puppet, motion in scenes:
        drawn, points = puppet_videos.render(puppet, motion), puppets.joints(puppet, motion)
        places = {"gloves": puppets.gloves(puppet, points), "shoes": points[:, list(puppets.TOE)]}
        for name, pair in places.items():
            seen = drawn.labels == PARTS.index(name) + 1
            for frame, two in zip(seen, pair, strict=True):
                grid = (np.argwhere(frame)[:, ::-1] + 0.5) / puppets.SIZE
                assert np.linalg.norm(grid[:, None] - two[None], axis=-1).min(1).max() < 0.13
        head = np.isin(drawn.labels, [PARTS.index("head") + 1, puppets.EYES, puppets.MOUTH, PARTS.index("hair") + 1])
        wanted = puppets.head_place(puppet, motion, points)
        assert max(np.linalg.norm(middle(a) - b) for a, b in zip(head, wanted, strict=True)) < 0.06


def test_masks_are_exact(scenes):
    for puppet, motion in scenes:
        drawn, ground = puppet_videos.render(puppet, motion), puppet_videos.without_figure(puppet).astype(int)
        changed = np.abs(drawn.video - ground).max(-1)
        assert not changed[~puppet_videos.grown(drawn.mask, 1, "grown")].any()
        assert (changed > 20)[drawn.mask].mean() > 0.97


def test_mouths_and_eyes_change_in_the_face_alone(scenes):
    for puppet, motion in scenes:
        still = replace(motion, mouth=np.zeros(FRAMES), eyes=np.ones(FRAMES))
        wide = replace(still, mouth=np.ones(FRAMES))
        box = puppets.face_box(puppet, still, puppets.joints(puppet, still))
        shut, opened = (puppet_videos.render(puppet, m, puppets.FACE_SIZE, box) for m in (still, wide))
        areas = [(drawn.labels == puppets.MOUTH).sum((1, 2)) for drawn in (shut, opened)]
        assert (areas[1] > 3 * areas[0]).all() and (areas[0] > 5).all()
        frames = puppet_videos.render(puppet, still), puppet_videos.render(puppet, wide)
        changed = (frames[0].video != frames[1].video).any(-1)
        assert changed.any((1, 2)).all() and changed.mean() < 0.04
        blink = puppet_videos.render(puppet, replace(still, eyes=np.zeros(FRAMES)), puppets.FACE_SIZE, box)
        assert ((blink.labels == puppets.EYES).sum((1, 2)) < (shut.labels == puppets.EYES).sum((1, 2))).all()


def test_a_face_is_what_its_square_shows(scenes):
    puppet, motion = scenes[0]
    points = puppets.joints(puppet, motion)
    face = puppet_videos.render(puppet, motion, puppets.FACE_SIZE, puppets.face_box(puppet, motion, points))
    head = np.isin(face.labels, [PARTS.index("head") + 1, puppets.EYES, puppets.MOUTH])
    assert 0.3 < head.mean() < 0.6
    assert max(np.abs(middle(frame) - 0.5).max() for frame in head) < 0.12


def test_pictures_that_are_drawn_larger_look_the_same(scenes):
    puppet, motion = scenes[0]
    plain, larger = (puppet_videos.render(puppet, motion, larger=n).video.astype(int) for n in (1, 2))
    assert np.abs(plain - larger).mean() < 3
    pose, thin = (puppet_videos.pose_video(puppet, motion, larger=n) for n in (1, 4))
    assert (pose > 100).any(-1).mean() > (thin > 100).any(-1).mean()


def test_pose_videos_show_every_joint(scenes):
    for puppet, motion in scenes:
        video, points = puppet_videos.pose_video(puppet, motion), puppets.joints(puppet, motion)
        for frame, body in zip(video, points, strict=True):
            x, y = (body * puppets.SIZE).astype(int).clip(0, puppets.SIZE - 1).T
            assert frame[y, x].any(-1).all()
            assert not frame[:2].any()


def test_markers_are_coloured_joints(scenes):
    puppet = puppets.sample_puppet(np.random.default_rng(5), is_grey=True)
    _, motion = scenes[1]
    drawn = puppet_videos.render(puppet, motion[:1], 256, markers=0.015)
    points = (puppets.joints(puppet, motion) * 256).astype(int)
    nose = points[0, puppets.NOSE]
    assert drawn.video[0, nose[1], nose[0]].tolist() == list(puppets.MARKERS[puppets.NOSE])


def test_masks_grow_to_cells_and_boxes(scenes):
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 20, 30] = mask[0, 40, 33] = True
    assert puppet_videos.grown(mask, 2, "grown").sum() == 50
    cells = puppet_videos.grown(mask, 0, "cells")
    assert cells.sum() == 128 and cells[0, 16:24, 24:32].all() and cells[0, 40:48, 32:40].all()
    box = puppet_videos.grown(mask, 1, "box")
    assert box.sum() == 23 * 6 and box[0, 19:42, 29:35].all()


def test_a_figure_takes_proportions_and_ground_of_another(scenes):
    (one, motion), (two, _) = scenes[:2]
    shaped = puppets.shaped_as(one, two)
    assert shaped.colours == one.colours and np.allclose(puppets.joints(shaped, motion), puppets.joints(two, motion))
    ground = puppet_videos.without_figure(puppets.in_front_of(one, two))
    assert np.array_equal(ground, puppet_videos.without_figure(two))

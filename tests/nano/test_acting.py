"""Scores of puppets that perform: what is drawn right passes, and each fault is seen."""

from dataclasses import replace

import numpy as np
import pytest

from wan.nano import acting, puppet_videos, puppets

FRAMES = 12


def drawn(puppet: puppets.Puppet, motion: puppets.Motion, **changes) -> acting.Take:
    made = puppet_videos.render(puppet, motion)
    return acting.Take(puppet, motion, made.video, (4, 8), **changes)


@pytest.fixture(scope="module")
def takes() -> list[acting.Take]:
    rng, made = np.random.default_rng(9), []
    for index in range(4):
        puppet, motion = puppets.sample_puppet(rng), puppets.sample_motion(rng, 6 * FRAMES)[::6]
        mask = puppet_videos.grown(puppet_videos.render(puppet, motion).mask, 3, "cells") if index % 2 else None
        made.append(drawn(puppet, motion, mask=mask, is_swapped=index == 3))
    return made


def test_videos_as_asked_reach_every_target_and_controls_fail(takes):
    values = acting.table(takes)
    missed = [name for name, value in values.items() if not acting.MEASURES[name].reached(value)]
    assert missed == []
    assert values["hands, feet and head off their places"] < 0.015
    assert "missed" not in acting.markdown(values, values)


def misses(takes: list[acting.Take], name: str) -> bool:
    measure = acting.MEASURES[name]
    return not measure.reached(measure.value(takes))


def test_another_drivers_joints_are_seen(takes):
    others = [takes[(n + 1) % 4].motion for n in range(4)]
    made = [
        replace(take, frames=drawn(take.puppet, replace(other, mouth=take.motion.mouth)).frames)
        for take, other in zip(takes, others, strict=True)
    ]
    assert misses(made, "hands, feet and head off their places") and misses(made, "... joints off while it does")


def test_a_single_hand_that_is_elsewhere_is_seen(takes):
    take = takes[0]
    wrong = take.motion.shoulders.copy()
    wrong[:, 0] = 2.7 - wrong[:, 0]
    made = replace(take, frames=drawn(take.puppet, replace(take.motion, shoulders=wrong)).frames)
    assert acting.off_joints(made) > acting.off_joints(take) + 0.03


def test_single_pixels_of_a_colour_elsewhere_change_nothing(takes):
    for take in takes:
        frames = take.frames.copy()
        for label in (2, 5, 7):  # head, gloves, shoes
            frames[:, 2:4, 4 * label : 4 * label + 2] = take.puppet.colours[label - 1]
        stained = replace(take, frames=frames)
        assert acting.off_joints(stained) < acting.off_joints(take) + 0.005


def test_a_figure_that_is_not_there_is_half_a_body_off(takes):
    ground = puppet_videos.without_figure(takes[0].puppet)
    empty = replace(takes[0], frames=np.repeat(ground[None], FRAMES, 0))
    assert acting.off_joints(empty) == pytest.approx(acting.MISSING, abs=0.01)


def test_other_colours_are_seen(takes):
    made = [
        replace(take, frames=drawn(replace(take.puppet, colours=takes[(n + 1) % 4].puppet.colours), take.motion).frames)
        for n, take in enumerate(takes)
    ]
    assert misses(made, "colours of parts are the reference's")
    colours = list(takes[0].puppet.colours)
    colours[4] = takes[0].puppet.colours[2]
    one = drawn(replace(takes[0].puppet, colours=tuple(colours)), takes[0].motion)
    assert acting.right_colours(replace(takes[0], frames=one.frames)).tolist() == [True] * 4 + [False] + [True] * 2


def test_mouths_that_rest_or_follow_another_are_seen(takes):
    for mouth in (np.zeros(FRAMES), np.ones(FRAMES)):
        made = [replace(take, frames=drawn(take.puppet, replace(take.motion, mouth=mouth)).frames) for take in takes]
        assert misses(made, "mouth follows the face video") and misses(made, "mouth follows a swapped face video")


def test_a_mouth_is_read_without_knowing_its_state(takes):
    for take in takes:
        assert np.abs(acting.opening(take) - take.motion.mouth).max() < 0.25


def test_a_wrong_ground_is_seen_outside_the_mask_alone(takes):
    take = takes[1]
    inside = replace(take, frames=np.where(take.mask[..., None], 0, take.frames))
    outside = replace(take, frames=np.where(take.mask[..., None], take.frames, take.frames // 2))
    assert acting.ground_psnr(inside) > 40 and acting.ground_psnr(outside) < 15
    assert np.isnan(acting.ground_psnr(takes[0])), "in animation nothing is replaced"


def test_colours_that_drift_are_seen(takes):
    made = []
    for take in takes:
        frames = take.frames.astype(int)
        frames[8:] += 12
        made.append(replace(take, frames=frames.clip(0, 255).astype(np.uint8)))
    assert misses(made, "colours drift from first to last clip (Lab)")


def test_a_jump_between_clips_is_seen(takes):
    made = []
    for take in takes:
        frames = take.frames.astype(int)
        frames[4:8] += 25
        made.append(replace(take, frames=frames.clip(0, 255).astype(np.uint8)))
    assert misses(made, "change at borders of clips")


def test_a_take_needs_as_much_motion_as_frames(takes):
    with pytest.raises(ValueError, match="12 frames need a motion of as many, got 11"):
        replace(takes[0], motion=takes[0].motion[:11])


def test_the_autoencoder_alone_is_scored_as_the_videos_are(takes):
    same = acting.through(lambda video: video, takes)
    assert all(np.allclose(a.frames, b.frames, atol=1) for a, b in zip(same, takes, strict=True))
    grey = acting.through(lambda video: 0 * video, takes)
    assert misses(grey, "colours of parts are the reference's")

"""The embedded model of character animation: a small version of its evaluation."""

from dataclasses import replace

import numpy as np
import pytest

from wan.animate import WanAnimate
from wan.configs.nano import NANO_CONFIGS, nano_checkpoint
from wan.nano import acting, acts
from wan.runtime import Runtime

pytest.importorskip("transformers")
FRAMES = 33


@pytest.fixture(scope="module")
def pipeline():
    runtime = Runtime.from_flags(device="cpu", dtype="fp32", offload_model=False)
    return WanAnimate(NANO_CONFIGS["animate-14B"], nano_checkpoint("animate-14B"), runtime=runtime)


@pytest.fixture(scope="module")
def drawn() -> list[acts.Act]:
    return list(acts.draw_acts(2, 900, FRAMES))  # animation and replacement


@pytest.fixture(scope="module")
def takes(pipeline, drawn) -> list[acting.Take]:
    return [acts.perform(pipeline, act, 1, steps=6) for act in drawn]


def remade(pipeline, drawn, monkeypatch, change) -> list[acting.Take]:
    """Make the videos of footage that `change(footage, act)` has changed; scores still ask for the act."""
    footage = acts.footage_of
    monkeypatch.setattr(acts, "footage_of", lambda act: change(footage(act), act))
    return [acts.perform(pipeline, act, 1, steps=6) for act in drawn]


def test_figures_perform_what_pose_and_face_say(takes):
    assert np.mean([acting.off_joints(take) for take in takes]) < 0.08
    assert np.mean([acting.right_colours(take).mean() for take in takes]) > 0.7
    assert np.mean(np.concatenate([acting.right_mouths(take) for take in takes])) > 0.8
    assert acting.ground_psnr(takes[1]) > 23


def test_without_the_pose_joints_are_elsewhere(pipeline, drawn, monkeypatch):
    def still(footage, act):
        return replace(footage, pose=acts.Still(np.zeros_like(footage.pose.video)))

    made = remade(pipeline, drawn[:1], monkeypatch, still)
    assert acting.off_joints(made[0]) > 0.12


def test_without_the_face_mouths_do_not_follow(pipeline, drawn, monkeypatch):
    def frozen(footage, act):
        return replace(footage, face=acts.Still(np.repeat(footage.face.video[:1], FRAMES, axis=0)))

    made = remade(pipeline, drawn[:1], monkeypatch, frozen)
    assert acting.right_mouths(made[0]).mean() < 0.75


def test_another_reference_gives_other_colours(pipeline, drawn, monkeypatch):
    def swapped(footage, act):
        return replace(footage, reference=drawn[1].reference)

    made = remade(pipeline, drawn[:1], monkeypatch, swapped)
    assert acting.right_colours(made[0]).mean() < 0.5

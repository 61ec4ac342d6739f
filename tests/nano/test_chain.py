"""The way from a video and a picture to an animation: key points of the stage, and limits of what it may cost."""

from dataclasses import replace

import pytest

from wan.configs.nano import nano_checkpoint
from wan.modules.animate.preprocess.whole_body import WholeBody
from wan.nano import acting, chain, evaluate, puppet_videos
from wan.performance import Performance

FRAMES = 3


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("onnxruntime")
    return WholeBody(nano_checkpoint("animate-14B") / "process_checkpoint")


@pytest.mark.parametrize("number", [0, 1], ids=["animation", "replacement"])
def test_key_points_of_a_filmed_driver_are_near_the_truth(networks, tmp_path, number):
    act, other = list(chain.draw_acts(2, 0, FRAMES))[number], list(chain.draw_acts(2, 1, FRAMES))[number]
    made = chain.preprocessed(act, tmp_path, networks)
    assert chain.off_points(act, made) < (0.03 if act.is_replaced else 0.01)  # it is found in frames of 64 pixels
    assert chain.off_points(replace(act, motion=other.motion), made) > 0.06, "control: another driver's joints"
    Performance.of(made).check(act.is_replaced, False)


def test_a_figure_as_it_is_drawn_reaches_all_and_another_motion_does_not():
    pairs, wrong = [], []
    drawn = list(chain.draw_acts(2, 0, 12))
    for act, other in zip(drawn, [*drawn[1:], drawn[0]], strict=True):
        mask = puppet_videos.render(act.puppet, act.wanted).mask if act.is_replaced else None
        take = acting.Take(act.puppet, act.wanted, puppet_videos.render(act.puppet, act.wanted).video, (6,), mask)
        motion = replace(other.motion, mouth=1 - act.wanted.mouth)
        moved = replace(take, frames=puppet_videos.render(act.puppet, motion).video)
        pairs.append(chain.Pair(take, take, 0.01))
        wrong.append(chain.Pair(moved, take, 0.03))
    values, others = chain.table(pairs), chain.table(wrong)
    limits = [name for name in values if "control" not in name]
    assert all(chain.reached(name, *values[name]) for name in limits)
    missed = {name for name in limits if not chain.reached(name, *others[name])}
    assert {chain.JOINTS, "mouth follows the face video", "key points off the truth"} <= missed
    assert "missed" in chain.markdown(others)


def test_only_animation_has_a_chain(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["t2v", "--chain"])
    assert "--chain preprocesses videos of the family animate, not of t2v" in capsys.readouterr().err

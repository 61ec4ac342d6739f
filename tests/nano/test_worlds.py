"""The small world: rendered scenes are read back, empty ones are empty, and the held-out set is fair."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter

from wan.nano.worlds import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    NONE,
    SHAPES,
    UNKNOWN,
    Scene,
    caption,
    contrast,
    held_out,
    measure,
    render,
    sample_scene,
)

ATTRIBUTES = ("shape", "color", "background", "motion")
COMBINATIONS = [Scene(*values, 0.15, 0.5, 0.5, 0.0) for values in product(SHAPES, COLORS, BACKGROUNDS, MOTIONS)]


@pytest.fixture(scope="module")
def videos():
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng, "all") for _ in range(300)]
    return scenes, [render(scene) for scene in scenes]


def spoil(video, blur, noise, rng):
    """Spoil a video as a small autoencoder does: softer edges, and noise of `noise` grey levels."""
    soft = np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur))) for frame in video])
    return np.clip(soft + rng.normal(0, noise, soft.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def seen(videos):
    return [measure(video) for video in videos[1]]


def assert_read_back(scenes, seen):
    wrong = Counter(name for a, b in zip(scenes, seen) for name in ATTRIBUTES if getattr(a, name) != getattr(b, name))
    assert max(wrong.values(), default=0) <= 0.005 * len(scenes), wrong


def test_measures_read_back_what_was_rendered(videos, seen):
    assert_read_back(videos[0], seen)


def test_measures_survive_blur_and_noise(videos):
    rng = np.random.default_rng(5)
    assert_read_back(videos[0], [measure(spoil(video, 1.3, 12, rng)) for video in videos[1]])


def test_shuffled_scenes_agree_only_by_chance(videos, seen):
    scenes = videos[0]
    for name, values in zip(ATTRIBUTES, (SHAPES, COLORS, BACKGROUNDS, MOTIONS)):
        hits = np.mean([getattr(a, name) == getattr(b, name) for a, b in zip(scenes, seen[7:] + seen[:7])])
        assert abs(hits - 1 / len(values)) < 0.09, name


@pytest.mark.parametrize("color", [*BACKGROUNDS.values(), (90, 160, 30)])
def test_an_empty_video_has_no_object(color):
    seen = measure(np.broadcast_to(np.array(color, np.uint8), (17, 64, 64, 3)))
    assert (seen.shape, seen.color, seen.motion) == (NONE, NONE, NONE)
    assert seen.background == next((name for name, rgb in BACKGROUNDS.items() if rgb == color), UNKNOWN)


def test_noise_has_no_object():
    seen = measure(np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3)).astype(np.uint8))
    assert (seen.shape, seen.color, seen.motion) == (NONE, NONE, NONE)


def test_an_object_that_comes_late_is_not_counted():
    video = render(Scene("circle", "red", "white", "left", 0.16, 0.7, 0.5, 0.4))
    video[:9] = np.array(BACKGROUNDS["white"], np.uint8)
    assert measure(video).shape == NONE


def test_wrong_things_are_unknown():
    still = render(Scene("circle", "red", "white", "still", 0.16, 0.3, 0.3, 0.0))
    jumping = still.copy()
    jumping[::2] = np.roll(still[::2], 30, axis=2)
    assert measure(jumping).motion == UNKNOWN
    diagonal = np.stack([np.roll(frame, (2 * k, 2 * k), axis=(0, 1)) for k, frame in enumerate(still)])
    assert measure(diagonal).motion == UNKNOWN
    bar = np.broadcast_to(np.array(BACKGROUNDS["white"], np.uint8), still.shape).copy()
    bar[:, 30:35, 10:50] = (120, 90, 20)
    assert (measure(bar).shape, measure(bar).color) == (UNKNOWN, UNKNOWN)


def test_the_held_out_set_is_fair():
    out = [scene for scene in COMBINATIONS if held_out(scene)]
    assert 0.12 < len(out) / len(COMBINATIONS) < 0.18
    for name in ATTRIBUTES:
        total = Counter(getattr(scene, name) for scene in COMBINATIONS)
        lost = Counter(getattr(scene, name) for scene in out)
        assert max(lost[value] / total[value] for value in total) < 0.2, name
    for pair in product(ATTRIBUTES, repeat=2):
        kept = Counter(tuple(getattr(s, name) for name in pair) for s in COMBINATIONS if not held_out(s))
        assert len(kept) == len({tuple(getattr(s, name) for name in pair) for s in COMBINATIONS})


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_splits_stay_in_the_frame_and_move_clearly(split):
    rng = np.random.default_rng(2)
    for _ in range(60):
        scene = sample_scene(rng, split)
        assert split == "all" or held_out(scene) == (split == "heldout")
        video = render(scene, frame_num=5)
        paper = np.array(BACKGROUNDS[scene.background], np.uint8)
        for border in (video[:, 0], video[:, -1], video[:, :, 0], video[:, :, -1]):
            assert (border == paper).all()
        assert scene.motion == "still" or scene.travel >= 0.3


def test_contrast_orders_scenes_by_how_hard_they_are_to_see():
    rng = np.random.default_rng(5)
    by_pair = {f"{s.color} on {s.background}": contrast(s) for s in (sample_scene(rng, "all") for _ in range(1000))}
    pairs = sorted(by_pair, key=by_pair.__getitem__)
    assert (pairs[0], pairs[-1]) == ("green on grey", "yellow on black")
    assert (round(by_pair[pairs[0]]), round(by_pair[pairs[-1]])) == (113, 296)


def test_sampling_is_reproducible_and_sized():
    a, b = (sample_scene(np.random.default_rng(3)) for _ in range(2))
    assert a == b and (render(a) == render(b)).all()
    assert render(a, frame_num=1, size=96).shape == (1, 96, 96, 3)
    assert (render(a, frame_num=1) == render(a)[:1]).all()
    assert measure(render(a, frame_num=33, size=128)) == measure(render(a))


def test_captions_vary_and_name_everything():
    rng = np.random.default_rng(4)
    scene = Scene("circle", "red", "grey", "left", 0.13, 0.7, 0.5, 0.4)
    texts = {caption(scene, rng).lower().rstrip(".") for _ in range(400)}
    assert len(texts) > 200
    for text in texts:
        assert "red" in text and "left" in text and ("grey" in text or "gray" in text)
        assert not any(color in text for color in COLORS if color != "red")


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="choose one of circle"):
        Scene("star", "red", "white", "left", 0.15, 0.5, 0.5, 0.3)
    with pytest.raises(ValueError, match="train, heldout or all"):
        sample_scene(np.random.default_rng(0), "test")

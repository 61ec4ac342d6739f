"""Cartoon faces: what is drawn is what the measures read."""

from dataclasses import replace

import numpy as np
import pytest

from wan.nano import faces, worlds

FRAMES = 24


@pytest.fixture(scope="module")
def scenes() -> list[faces.Face]:
    rng = np.random.default_rng(1)
    return [faces.sample_face(rng) for _ in range(12)]


@pytest.fixture(scope="module")
def mouth() -> np.ndarray:
    return (0.5 - 0.5 * np.cos(np.arange(FRAMES) / 3)).astype(np.float32)


def test_the_opening_is_read_from_pixels(scenes, mouth):
    for face in scenes:
        read = faces.opening(faces.render(face, mouth, faces.still(face, FRAMES)))
        assert np.corrcoef(read, mouth)[0, 1] > 0.99
        assert np.abs(read - mouth).max() < 0.2


def test_mouths_are_at_least_16_pixels_wide_and_show_when_closed(scenes):
    for face in scenes:
        wide, shut = (faces.render(face, np.full(1, m), faces.still(face, 1)) for m in (1.0, 0.0))
        assert 16 <= (faces.redness(wide)[0] > 0.5).any(0).sum() <= 22
        assert faces.redness(shut)[0].sum() > 4
        assert faces.opening(shut)[0] < faces.SHUT


def test_the_head_is_read_where_it_is(scenes, mouth):
    rng = np.random.default_rng(2)
    for face in scenes:
        path = faces.wander(face, FRAMES, rng)
        apart = faces.head(faces.render(face, mouth, path)) - path
        assert np.abs(apart - apart.mean(0)).max() < 0.02


def test_heads_that_wander_begin_at_their_place_and_stay_in_the_picture(scenes):
    rng = np.random.default_rng(3)
    for face in scenes:
        path = faces.wander(face, 160, rng)
        assert np.allclose(path[0], [face.x, face.y], atol=1e-6)
        assert (path > 0.25).all() and (path < 0.75).all() and np.abs(np.diff(path, axis=0)).max() < 0.06


def test_colours_are_read_and_other_colours_are_told_apart(scenes, mouth):
    for face, other in zip(scenes[1:], scenes[:-1], strict=True):
        path = faces.still(face, FRAMES)
        rgb, others = (np.array([f.hair, f.skin, f.ground], float) for f in (face, other))
        seen = faces.colours(faces.render(face, mouth, path), face, path)
        assert np.linalg.norm(seen - faces.lab(rgb), axis=-1).max() < 0.5
        painted = faces.render(replace(face, hair=other.hair, skin=other.skin, ground=other.ground), mouth, path)
        changed = np.linalg.norm(rgb - others, axis=-1) > 60
        apart = np.linalg.norm(faces.colours(painted, face, path) - seen, axis=-1)
        assert (apart[changed] > 8).all()


def test_a_blurred_video_is_less_sharp(scenes, mouth):
    video = faces.render(scenes[0], mouth, faces.still(scenes[0], FRAMES))
    blurred = (video[:, 1:] // 2 + video[:, :-1] // 2).astype(np.uint8)
    assert (faces.sharpness(blurred) < 0.9 * faces.sharpness(video)).all()


def test_a_pose_video_shows_the_path_alone(scenes):
    path = faces.wander(scenes[0], FRAMES, np.random.default_rng(4))
    video = faces.pose_video(scenes[0], path)
    green = (video[..., 1] > 128).astype(float)
    grid = (np.arange(faces.SIZE) + 0.5) / faces.SIZE
    seen = np.stack([green.sum(1) @ grid, green.sum(2) @ grid], axis=1) / green.sum((1, 2))[:, None]
    assert np.abs(seen - path).max() < 0.02
    other = replace(scenes[1], half_width=scenes[0].half_width, aspect=scenes[0].aspect)
    assert np.array_equal(video, faces.pose_video(other, path))


def test_captions_keep_to_words_of_the_small_world(scenes):
    rng = np.random.default_rng(5)
    words = {word for face in scenes for _ in range(8) for word in worlds.words_of(faces.caption(face, rng))}
    assert words <= worlds.WORDS


def test_lab_of_known_colours():
    assert np.allclose(faces.lab(np.array([255, 255, 255])), [100, 0, 0], atol=0.1)
    assert np.allclose(faces.lab(np.array([255, 0, 0])), [53.2, 80.1, 67.2], atol=0.2)

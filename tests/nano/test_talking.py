"""Scores of faces that talk: what is drawn right passes, and each fault is seen."""

from dataclasses import replace

import numpy as np
import pytest

from wan.nano import faces, speech, talking

FRAMES = 112


@pytest.fixture(scope="module")
def takes() -> list[talking.Take]:
    rng = np.random.default_rng(8)
    made = []
    for seed in range(4):
        face = faces.sample_face(rng)
        loudness = speech.envelope(speech.speak(FRAMES / 16, 40 + seed).samples, frames=FRAMES)
        moves = seed > 1
        path = faces.wander(face, FRAMES, rng) if moves else faces.still(face, FRAMES)
        frames = faces.render(face, loudness, path)
        made.append(talking.Take(face, loudness, path, moves, frames, borders=(56,)))
    return made


def remade(takes, **changes):
    """Draw the videos again with other mouths or paths, while the voice and what was asked stay."""
    return [
        replace(take, frames=faces.render(take.face, changes.get("mouth", lambda t: t.loudness)(take),
                                          changes.get("path", lambda t: t.path)(take)))
        for take in takes
    ]  # fmt: skip


def test_videos_as_asked_reach_every_target(takes):
    values = talking.table(takes)
    missed = [name for name, value in values.items() if not talking.MEASURES[name].reached(value)]
    assert missed == []
    assert "missed" not in talking.markdown(values)


def test_a_mouth_that_ignores_the_voice_is_seen(takes):
    rng = np.random.default_rng(3)
    noise = remade(takes, mouth=lambda take: rng.permutation(take.loudness))
    still = remade(takes, mouth=lambda take: np.zeros(FRAMES))
    for videos in (noise, still):
        values = talking.table(videos)
        assert values["mouth follows the voice (correlation)"] < 0.4
        assert "missed" in talking.markdown(values)
    assert talking.closed(noise) < 0.95


@pytest.mark.parametrize("late", [-3, 0, 3])
def test_the_lag_of_a_mouth_is_measured(takes, late):
    assert talking.lag(remade(takes, mouth=lambda take: np.roll(take.loudness, late))) == late


def test_pictures_ahead_of_the_sound_are_right_as_upstream_alone(takes):
    early = remade(takes, mouth=lambda take: np.roll(take.loudness, -3))
    (name,) = (n for n in talking.MEASURES if talking.AS_UPSTREAM[n] is not talking.MEASURES[n])
    value = talking.table(early, talking.AS_UPSTREAM)[name]
    assert value == -3 and talking.AS_UPSTREAM[name].reached(value) and not talking.MEASURES[name].reached(value)


def test_colours_that_drift_are_seen(takes):
    tinted = [
        replace(take, frames=np.r_[take.frames[:56], (take.frames[56:] * 0.7).astype(np.uint8)]) for take in takes
    ]
    assert talking.kept(tinted) < 0.7 and talking.kept(takes) == 1
    assert talking.drift(tinted[0]).mean() > 3


def test_a_head_that_stays_does_not_follow_its_path(takes):
    moving = [take for take in takes if take.moves]
    rest = remade(moving, path=lambda take: faces.still(take.face, FRAMES))
    assert max(talking.off_path(take) for take in moving) < 0.02
    assert min(talking.off_path(take) for take in rest) > 0.05


def test_jumps_at_borders_and_blurred_starts_are_seen(takes):
    calm = takes[:2]
    jumps = [replace(take, frames=np.r_[take.frames[:56], np.roll(take.frames[56:], 4, axis=2)]) for take in calm]
    assert talking.border_change(jumps) > 3 and talking.border_change(calm) < 1.5
    blurred = take = calm[0]
    soft = (take.frames[:4] // 2 + np.roll(take.frames[:4], 1, axis=2) // 2).astype(np.uint8)
    blurred = replace(take, frames=np.r_[soft, take.frames[4:]])
    assert talking.first_sharpness([blurred]) < 0.9 < talking.first_sharpness([take])


def test_silences_are_long_enough():
    loudness = np.r_[np.ones(5), np.zeros(6), np.ones(5), np.zeros(7), np.ones(3), np.zeros(9)]
    assert talking.silences(loudness, fps=16) == [(16, 23), (26, 35)]

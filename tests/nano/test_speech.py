"""Synthetic speech, and the loudness of a voice that is read from samples."""

import numpy as np
import pytest

from wan.nano import speech


@pytest.fixture(scope="module")
def told() -> speech.Speech:
    return speech.speak(6.0, seed=3)


def test_the_same_seed_says_the_same(told):
    assert np.array_equal(told.samples, speech.speak(6.0, seed=3).samples)
    assert not np.array_equal(told.samples, speech.speak(6.0, seed=4).samples)
    assert len(told.samples) == 6 * speech.RATE and np.abs(told.samples).max() <= 1


def test_it_has_vowels_consonants_and_pauses(told):
    silent = ~told.voiced
    assert len(set(told.vowel[told.voiced].tolist())) >= 4
    assert (told.vowel[silent] == -1).mean() > 0.9
    runs = np.diff(np.flatnonzero(np.diff(np.r_[0, silent, 0])))[::2]
    assert runs.max() >= 40  # a pause of 0.4 seconds


def test_voices_differ_in_pitch():
    def share_below(frequency: float, voice: speech.Voice) -> float:
        power = np.abs(np.fft.rfft(speech.speak(3.0, 5, voice).samples)) ** 2
        return power[: int(3 * frequency)].sum() / power.sum()

    assert share_below(160, speech.Voice(110, 1.0, 0.0, 3.0)) > 0.004
    assert share_below(160, speech.Voice(250, 1.2, 0.0, 3.0)) < 0.0002


def test_the_envelope_is_the_smoothed_loudness_of_the_voice(told):
    read = speech.envelope(told.samples)
    smooth = speech._smooth_rows(told.loudness[:, None], 8.0)[:, 0]
    meant = np.interp((np.arange(len(read)) + 0.5) / 16 * 100 - 0.5, np.arange(len(smooth)), smooth)
    assert len(read) == 96 and np.corrcoef(read, meant)[0, 1] > 0.98
    assert read.min() >= 0 and read.max() <= 1


def test_the_envelope_has_nothing_above_four_hertz(told):
    power = np.abs(np.fft.rfft(speech.envelope(told.samples, fps=50))) ** 2
    frequency = np.fft.rfftfreq(300, 1 / 50)
    assert power[frequency > 4].sum() < 0.01 * power[1:].sum()


def test_noise_of_consonants_does_not_open_a_mouth():
    rng = np.random.default_rng(0)
    hiss = speech._band(np.fft.rfft(rng.normal(size=32000)), speech.CONSONANTS["s"], 32000)
    assert speech.envelope(hiss).max() < 0.02


def test_the_volume_and_rate_of_a_file_change_nothing(told):
    read = speech.envelope(told.samples)
    assert np.allclose(speech.envelope(told.samples * 0.1), read, atol=1e-5)
    double = np.interp(np.arange(2 * len(told.samples)) / 2, np.arange(len(told.samples)), told.samples)
    assert np.allclose(speech.envelope(double, rate=2 * speech.RATE), read, atol=0.03)


@pytest.mark.parametrize("samples", [0, 1, 160, 16000])
def test_silence_and_short_files_have_an_envelope(samples):
    assert not speech.envelope(np.zeros(samples, np.float32)).any()
    assert len(speech.envelope(np.zeros(samples, np.float32), frames=7)) == 7

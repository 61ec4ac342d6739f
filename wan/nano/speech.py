"""Speech from a seed by source and filter, and the loudness of the voice in any sound. There are no recordings.

A voice hums at a pitch (the source), and the mouth lets some frequencies pass (the filter): each vowel has three such
formants. Consonants are bands of noise. Phrases of a few syllables follow each other, with pauses between them.
`envelope` reads the loudness of the voice from samples alone, so that it also works for other sounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RATE = 16_000  # samples a second
STEP = 160  # samples of a row of the tables that drive a voice: 10 ms
VIDEO_FPS = 16

# Formants in Hz of a vowel of a grown man; other voices multiply them (G. E. Peterson, H. L. Barney, 1952).
VOWELS: dict[str, tuple[int, int, int]] = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
CONSONANTS: dict[str, tuple[int, int]] = {"s": (4000, 7500), "sh": (2000, 5000), "f": (1600, 7500)}  # bands in Hz
WIDTH = (70, 100, 150)  # of the formants, Hz
VOICED_BAND = (90, 1000)  # Hz; noise of consonants is above it
FULL = 1.6  # loudness of the voice, in root mean squares of the file, at which a mouth is wide open
FLOOR = 0.12  # and the loudness below which it is closed
SMOOTHING = 0.08  # seconds, deviation of a Gaussian: passes 88 % at 1 Hz, 13 % at 4 Hz


@dataclass(frozen=True)
class Voice:
    """Speaker: pitch in Hz, length of the mouth (factor of the formants), share of breath, syllables a second."""

    pitch: float
    formants: float
    breath: float
    pace: float


@dataclass(frozen=True)
class Speech:
    """Sound and what was said; the tables have a row for every 10 ms."""

    samples: np.ndarray  # float32 [n] in [-1, 1]
    loudness: np.ndarray  # of the voice, 0..1
    voiced: np.ndarray  # bool
    vowel: np.ndarray  # index in VOWELS, -1 where there is none


def sample_voice(rng: np.random.Generator) -> Voice:
    """Draw a speaker, from a deep to a child's voice: high ones have a short mouth."""
    height = rng.uniform(0, 1)
    pitch = 85 * 3.2**height * rng.uniform(0.9, 1.1)
    return Voice(pitch, 0.92 + 0.3 * height + rng.uniform(-0.05, 0.05), rng.uniform(0.0, 0.06), rng.uniform(2.2, 4.2))


def speak(seconds: float, seed: int, voice: Voice | None = None) -> Speech:
    """Speak for `seconds`; the same for the same seed."""
    rng = np.random.default_rng([seed, 15])
    voice = voice or sample_voice(rng)
    count = round(seconds * RATE)
    rows = count // STEP + 2
    tables = {name: np.zeros(rows) for name in ("loudness", *CONSONANTS)}
    formants, vowel = np.tile(np.array(VOWELS["a"], float), (rows, 1)), np.full(rows, -1)
    for start, end, sound, loud in _script(rows, voice, rng):
        if sound in VOWELS:
            tables["loudness"][start:end] = loud * _rise(end - start)
            formants[start:] = VOWELS[sound]
            vowel[start:end] = list(VOWELS).index(sound)
        else:
            tables[sound][start:end] = 0.5 * loud * _rise(end - start)
    formants = _smooth_rows(formants, 3.0) * voice.formants
    samples = _hum(tables["loudness"], formants, voice, count, rng)
    white = np.fft.rfft(rng.normal(size=count + 1))
    for name, band in CONSONANTS.items():
        breath = voice.breath * tables["loudness"] if name == "f" else 0
        noise = _band(white, band, count + 1)[:count]
        samples += _at_samples(tables[name] + breath, count) * noise / max(noise.std(), 1e-9) * 0.6
    samples += 2e-4 * rng.normal(size=count)  # a room is never quite silent
    samples *= rng.uniform(0.2, 0.9) / max(np.abs(samples).max(initial=0), 1e-9)
    voiced = tables["loudness"] > 0.02
    return Speech(samples.astype(np.float32), tables["loudness"], voiced, vowel)


def envelope(samples: np.ndarray, rate: int = RATE, frames: int | None = None, fps: float = VIDEO_FPS) -> np.ndarray:
    """Read the loudness of the voice at video frames from samples [n]: float32 [frames] in 0..1, without delay.

    It is the level between 90 and 1000 Hz against that of the whole file, so the volume does not matter. Changes
    faster than 4 Hz are smoothed away, because one latent frame of a video spans four frames.
    """
    frames = -(-len(samples) * fps // rate) if frames is None else frames
    signal = samples.astype(np.float64) - (samples.mean() if len(samples) else 0)
    whole = np.sqrt(np.mean(signal**2)) if len(signal) else 0.0
    if whole < 1e-6:
        return np.zeros(int(frames), np.float32)
    voice = _band(np.fft.rfft(signal), VOICED_BAND, len(signal), rate)
    row = max(1, round(rate * STEP / RATE))
    power = np.add.reduceat(voice**2, np.arange(0, len(voice), row)) / row
    level = np.sqrt(np.convolve(power, np.ones(3) / 3, mode="same")) / whole
    opening = np.clip((level - FLOOR) / (FULL - FLOOR), 0, 1)
    opening = _smooth_rows(opening[:, None], SMOOTHING * rate / row)[:, 0]
    times = (np.arange(int(frames)) + 0.5) / fps * rate / row - 0.5  # a frame shows the middle of its time
    return np.interp(times, np.arange(len(opening)), opening, right=0.0).astype(np.float32)


def _script(rows: int, voice: Voice, rng: np.random.Generator) -> Iterator[tuple[int, int, str, float]]:
    """Yield (first row, end row, sound, loudness): phrases of syllables with pauses, of which some are long."""
    at = int(rng.integers(0, 60))
    while at < rows:
        stress = rng.uniform(0.45, 1.0)
        for _ in range(int(rng.integers(2, 8))):
            if rng.random() < 0.6:
                length = int(rng.integers(5, 13))
                yield at, min(at + length, rows), str(rng.choice(list(CONSONANTS))), rng.uniform(0.4, 1)
                at += length
            length = max(8, round(100 / voice.pace * rng.uniform(0.5, 1.3)))
            yield at, min(at + length, rows), str(rng.choice(list(VOWELS))), stress * rng.uniform(0.4, 1.0)
            at += length + int(rng.integers(0, 8))
        at += int(rng.integers(20, 40) if rng.random() < 0.4 else rng.integers(60, 140))


def _rise(rows: int) -> np.ndarray:
    """Rise and fall of one sound, [rows] in 0..1."""
    edge = np.minimum(np.arange(1, rows + 1), np.arange(rows, 0, -1)) / min(4, rows / 2 + 0.5)
    return np.clip(edge, 0, 1)


def _hum(loudness: np.ndarray, formants: np.ndarray, voice: Voice, count: int, rng: np.random.Generator) -> np.ndarray:
    """Add the harmonics of the pitch, each as loud as the formants let it through: float64 [count]."""
    rows = len(loudness)
    drift = _smooth_rows(rng.normal(size=(rows, 1)), 12.0)[:, 0]
    pitch = voice.pitch * 2 ** (0.12 * drift / max(drift.std(), 1e-9))
    phase = np.cumsum(_at_samples(pitch, count)) * (2 * np.pi / RATE)
    harmonics = np.arange(1, max(2, int(4500 / voice.pitch)))
    frequency = harmonics[None] * pitch[:, None]  # [rows, harmonics]
    passed = 1 / (1 + (frequency / 500) ** 1.2)  # the vocal folds themselves
    for n, width in enumerate(WIDTH):
        centre = formants[:, n : n + 1]
        passed = passed * (0.06 + 1 / (1 + ((frequency - centre) / width) ** 2)) * 1.5
    heard = (frequency > VOICED_BAND[0]) & (frequency < VOICED_BAND[1])
    passed /= np.sqrt((passed**2 * heard).sum(1, keepdims=True)) + 1e-9  # vowels of one loudness are equally loud
    samples = np.zeros(count)
    for n, harmonic in enumerate(harmonics):
        samples += _at_samples(passed[:, n] * loudness, count) * np.sin(harmonic * phase)
    return samples


def _at_samples(rows: np.ndarray, count: int) -> np.ndarray:
    return np.interp(np.arange(count) / STEP, np.arange(len(rows)), rows)


def _smooth_rows(rows: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian filter over the rows of [n, columns]; the ends are continued."""
    reach = int(np.ceil(3.5 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    padded = np.pad(rows, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(c, kernel / kernel.sum(), mode="valid") for c in padded.T], axis=1)


def _band(spectrum: np.ndarray, band: tuple[int, int], count: int, rate: int = RATE) -> np.ndarray:
    """Keep a band of frequencies of a real signal of `count` samples, with soft edges of 15 %."""
    frequency = np.fft.rfftfreq(count, 1 / rate)
    low, high = band
    keep = np.clip((frequency - 0.85 * low) / (0.15 * low), 0, 1) * np.clip(
        (1.15 * high - frequency) / (0.15 * high), 0, 1
    )
    return np.fft.irfft(spectrum * keep, n=count)

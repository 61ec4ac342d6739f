"""Score videos of faces that talk: mouth, head, colours and borders of clips are read from pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wan.media import from_uint8, to_uint8
from wan.nano import faces
from wan.nano.faces import Face

KEPT = 10.0  # CIE Lab difference up to which a colour is that of the reference
SILENT, PAUSE = 0.03, 0.4  # loudness that is silence, and seconds of it that close a mouth
ALONE = 0.97  # correlation of mouths before and after the autoencoder that is asked for
LAGS = 8  # frames in which the best lag is searched
SHARP = 4  # first frames, whose sharpness is compared with all


@dataclass(frozen=True)
class Take:
    """Generated video of a face, and what it was made from."""

    face: Face
    loudness: np.ndarray  # [F] of the voice, 0..1
    path: np.ndarray  # [F, 2] of the head: of the pose video, or of rest
    moves: bool  # a pose video was given
    frames: np.ndarray  # uint8 [F, H, W, 3]
    borders: tuple[int, ...]  # first frames of the clips but the first
    fps: float = 16

    def __post_init__(self):
        if not len(self.loudness) == len(self.path) == len(self.frames):
            raise ValueError(f"{len(self.frames)} frames need as much loudness and path, got {len(self.loudness)}")


def sync(take: Take, other: np.ndarray | None = None) -> float:
    """Correlation of the mouth with the loudness at the same frame; `other` is another voice, for control."""
    loudness = take.loudness if other is None else other
    count = min(len(loudness), len(take.frames))
    mouth = faces.opening(take.frames[:count])
    return _correlation(mouth, loudness[:count])


def lag(takes: Sequence[Take]) -> int:
    """Frames that mouths are behind the voices: the peak of the mean cross-correlation."""
    shifts = range(-LAGS, LAGS + 1)
    means = [np.mean([_shifted(take, shift) for take in takes]) for shift in shifts]
    return shifts[int(np.argmax(means))]


def closed(takes: Sequence[Take]) -> float:
    """Share of closed mouths in silences of 0.4 seconds or more; NaN without silence."""
    shut = [
        faces.opening(take.frames)[start:end] < faces.SHUT
        for take in takes
        for start, end in silences(take.loudness, take.fps)
    ]
    return float(np.concatenate(shut).mean()) if shut else float("nan")


def silences(loudness: np.ndarray, fps: float) -> list[tuple[int, int]]:
    """List the (first frame, end) of silences that are long enough."""
    quiet = np.r_[0, loudness < SILENT, 0]
    edges = np.flatnonzero(np.diff(quiet))
    return [(a, b) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True) if b - a >= PAUSE * fps]


def drift(take: Take) -> np.ndarray:
    """CIE Lab differences of hair, skin and background of the last clip from those of the reference: [3]."""
    last = slice(max(take.borders, default=0), None)
    seen = faces.colours(take.frames[last], take.face, place(take.face, take.frames[last]))
    given = faces.lab(np.array([take.face.hair, take.face.skin, take.face.ground]))
    return np.linalg.norm(seen - given, axis=-1)


def kept(takes: Sequence[Take]) -> float:
    """Share of hair, skin and backgrounds that are those of the reference in the last clip."""
    return float(np.mean([drift(take) <= KEPT for take in takes]))


def place(face: Face, frames: np.ndarray) -> np.ndarray:
    """Place [F, 2] of the head in frames, as `render` takes it."""
    rest = faces.still(face, 1)
    return faces.head(frames) + rest - faces.head(faces.render(face, np.zeros(1, np.float32), rest))


def off_path(take: Take, other: np.ndarray | None = None) -> float:
    """Mean distance of the head from its path in shares of the width; `other` is another path, for control."""
    path = take.path if other is None else other
    count = min(len(path), len(take.frames))
    return float(np.linalg.norm(place(take.face, take.frames[:count]) - path[:count], axis=1).mean())


def border_change(takes: Sequence[Take]) -> float:
    """Mean change of pixels at borders of clips, against that between other frames."""
    at, inside = [], []
    for take in takes:
        change = np.abs(np.diff(take.frames.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
        border = np.zeros(len(change), bool)
        border[np.array(take.borders, int) - 1] = True
        at.extend(change[border])
        inside.extend(change[~border])
    return float(np.mean(at) / max(np.mean(inside), 1e-6)) if at else float("nan")


def first_sharpness(takes: Sequence[Take]) -> float:
    """Sharpness of the first four frames, against the median of all."""
    values = [faces.sharpness(take.frames) for take in takes]
    return float(np.mean([sharp[:SHARP].mean() / np.median(sharp) for sharp in values]))


def through(reconstruct: Callable[[Tensor], Tensor], takes: Sequence[Take]) -> float:
    """Mean correlation of drawn mouths before and after `reconstruct`, [3, F, H, W] in [-1, 1] to the same."""
    values = []
    for take in takes:
        video = faces.render(take.face, take.loudness, take.path)
        again = to_uint8(reconstruct(from_uint8(torch.from_numpy(video)).transpose(0, 1))).numpy()
        values.append(_correlation(faces.opening(again), faces.opening(video)))
    return float(np.mean(values))


@dataclass(frozen=True)
class Measure:
    """Measure of all videos of a run, its target as text, and the test of it."""

    value: Callable[[Sequence[Take]], float]
    target: str
    reached: Callable[[float], bool]
    unit: str = "{:.2f}"


def _others(takes: Sequence[Take], score: Callable[[Take, Take], float]) -> float:
    """Mean of a score of every video with what belongs to the next one."""
    return float(np.mean([score(take, takes[(n + 1) % len(takes)]) for n, take in enumerate(takes)]))


def _moving(takes: Sequence[Take]) -> list[Take]:
    return [take for take in takes if take.moves]


PERCENT = "{:.1%}"
MEASURES: dict[str, Measure] = {
    "mouth follows the voice (correlation)": Measure(
        lambda takes: float(np.mean([sync(take) for take in takes])), ">= 0.80", lambda v: v >= 0.8
    ),
    "... lag of the best one (frames)": Measure(lag, "0 +- 1", lambda v: abs(v) <= 1, "{:+.0f}"),
    "... another file's voice (control)": Measure(
        lambda takes: _others(takes, lambda a, b: sync(a, b.loudness)), "below 0.30", lambda v: abs(v) < 0.3
    ),
    "closed in silence": Measure(closed, ">= 95 %", lambda v: v >= 0.95, PERCENT),
    "hair, skin, background kept": Measure(kept, ">= 95 %", lambda v: v >= 0.95, PERCENT),
    "... drift in the last clip (Lab)": Measure(
        lambda takes: float(np.mean([drift(take).mean() for take in takes])), "<= 3", lambda v: v <= 3
    ),
    "head off the pose video": Measure(
        lambda takes: float(np.mean([off_path(take) for take in _moving(takes)])),
        "<= 5 %",
        lambda v: v <= 0.05,
        PERCENT,
    ),
    "... off another's (control)": Measure(
        lambda takes: _others(_moving(takes), lambda a, b: off_path(a, b.path)),
        "above 10 %",
        lambda v: v > 0.1,
        PERCENT,
    ),
    "change at borders of clips": Measure(border_change, "<= 1.5 x", lambda v: v <= 1.5, "{:.2f} x"),
    "sharpness of the first frames": Measure(first_sharpness, ">= 0.90 x", lambda v: v >= 0.9, "{:.2f} x"),
}


# Upstream's choices put the pictures three frames before the sound.
AS_UPSTREAM = MEASURES | {
    "... lag of the best one (frames)": Measure(lag, "-3 +- 1", lambda v: abs(v + 3) <= 1, "{:+.0f}")
}


def table(takes: Sequence[Take], measures: Mapping[str, Measure] = MEASURES) -> dict[str, float]:
    """Compute every measure."""
    return {name: measure.value(takes) for name, measure in measures.items()}


def markdown(values: Mapping[str, float], measures: Mapping[str, Measure] = MEASURES) -> str:
    """Make a table of measures, targets, and the values of a run."""
    lines = ["| measure | target | measured | |", "| --- | ---: | ---: | --- |"]
    for name, value in values.items():
        measure = measures[name]
        verdict = "" if measure.reached(value) else "missed"
        lines.append(f"| {name} | {measure.target} | {measure.unit.format(value)} | {verdict} |")
    return "\n".join(lines) + "\n"


def _shifted(take: Take, shift: int) -> float:
    """Correlation of the mouth with the voice `shift` frames earlier."""
    mouth, loudness = faces.opening(take.frames), take.loudness
    if shift >= 0:
        return _correlation(mouth[shift:], loudness[: len(loudness) - shift])
    return _correlation(mouth[:shift], loudness[-shift:])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two signals; 0 when one is constant."""
    if len(a) < 2 or min(a.std(), b.std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])

"""Score generated videos: their pixels are measured and compared with the scene that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan.media import from_uint8, to_uint8
from wan.nano import worlds
from wan.nano.worlds import Measured, Scene
from wan.training.vae import psnr as psnr_of_error

# (prompt, seed, first frame uint8 [H, W, 3] or None) -> frames uint8 [F, H, W, 3]; the model is told no more of a scene
Generate = Callable[[str, int, "np.ndarray | None"], np.ndarray]

END = 3  # number of last frames in which colours and shape must be as asked


def _shows(name: str) -> Callable[[Scene, Measured, Measured], bool]:
    return lambda scene, seen, end: getattr(scene, name) == getattr(seen, name)


def _identity(scene: Scene, seen: Measured, end: Measured) -> bool:
    """Tell whether both colours and the shape are still there in the last frames."""
    return all(getattr(scene, name) == getattr(end, name) for name in ("color", "background", "shape"))


@dataclass(frozen=True)
class Measure:
    """Comparison of a scene with what is seen in all frames and in the last ones; `chance` is the rate of guessing."""

    agrees: Callable[[Scene, Measured, Measured], bool]
    chance: float


_COLOR, _GROUND, _SHAPE = 1 / len(worlds.COLORS), 1 / len(worlds.BACKGROUNDS), 1 / len(worlds.SHAPES)
MEASURES: dict[str, Measure] = {
    "shape colour": Measure(_shows("color"), _COLOR),
    "background colour": Measure(_shows("background"), _GROUND),
    "motion direction": Measure(_shows("motion"), 1 / len(worlds.MOTIONS)),
    "shape": Measure(_shows("shape"), _SHAPE),
    "identity to the end": Measure(_identity, _COLOR * _GROUND * _SHAPE),
}


@dataclass(frozen=True)
class Sample:
    """One generated video, its scene and prompt, and what is seen in all its frames and in the last ones (`end`)."""

    scene: Scene
    prompt: str
    seed: int
    seen: Measured
    end: Measured
    frames: np.ndarray = field(repr=False, compare=False)  # uint8 [F, H, W, 3]
    first_frame_psnr: float | None = None  # dB, against the frame that was given

    @classmethod
    def of(cls, scene: Scene, prompt: str, seed: int, frames: np.ndarray, given: np.ndarray | None = None) -> Sample:
        likeness = None if given is None else psnr(given, frames[0])
        return cls(scene, prompt, seed, worlds.measure(frames), worlds.measure(frames[-END:]), frames, likeness)

    def correct(self, measure: str) -> bool:
        return MEASURES[measure].agrees(self.scene, self.seen, self.end)


@dataclass(frozen=True)
class Report:
    """Samples of one run, scored by `measures`."""

    samples: tuple[Sample, ...]
    measures: tuple[str, ...]

    def count(self, measure: str) -> int:
        """Videos for which `measure`, a key of `MEASURES`, is correct."""
        return sum(sample.correct(measure) for sample in self.samples)

    def rates(self) -> dict[str, float]:
        """Share of correct videos per measure, 0..1."""
        return {measure: self.count(measure) / len(self.samples) for measure in self.measures}

    def wrong(self, sample: Sample) -> list[str]:
        """Names of the measures that failed."""
        return [measure for measure in self.measures if not sample.correct(measure)]

    def all_correct(self) -> float:
        """Share of videos with nothing wrong, 0..1."""
        return sum(not self.wrong(sample) for sample in self.samples) / len(self.samples)

    def shuffled(self) -> dict[str, float]:
        """Negative control: score every video against the prompts of all others. The rates should be near chance."""
        pairs = [(a, b) for a in self.samples for b in self.samples if a is not b]
        return {
            name: sum(MEASURES[name].agrees(a.scene, b.seen, b.end) for a, b in pairs) / max(len(pairs), 1)
            for name in self.measures
        }

    @property
    def first_frame_psnr(self) -> float | None:
        """Mean PSNR in dB of first frames against given ones; None when none was given."""
        values = [sample.first_frame_psnr for sample in self.samples if sample.first_frame_psnr is not None]
        return float(np.mean(values)) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON."""
        return {
            "videos": len(self.samples),
            "correct": {measure: self.count(measure) for measure in self.measures},
            "rates": self.rates(),
            "all_correct": self.all_correct(),
            "first_frame_psnr": self.first_frame_psnr,
            "shuffled_prompts": self.shuffled(),
            "samples": [
                {"prompt": s.prompt, "seed": s.seed, "asked": asdict(s.scene), "seen": asdict(s.seen)}
                | {"end": asdict(s.end), "first_frame_psnr": s.first_frame_psnr}
                for s in self.samples
            ],
        }


def evaluate(
    generate: Generate,
    scenes: Sequence[Scene],
    measures: Sequence[str],
    seed: int = 0,
    image_size: int | None = None,
    on_sample: Callable[[Sample], None] | None = None,
) -> Report:
    """Generate one video per scene and measure it.

    With `image_size` the model is also given the first frame, rendered at that many pixels. Prompts and seeds follow
    from `seed`, so two models see the same ones.
    """
    if not scenes:
        raise ValueError("there is nothing to evaluate: give at least one scene")
    rng = np.random.default_rng(seed)
    samples = []
    for index, scene in enumerate(scenes):
        prompt = worlds.caption(scene, rng)
        given = None if image_size is None else worlds.render(scene, size=image_size)[0]
        frames = np.asarray(generate(prompt, seed + index, given))
        samples.append(Sample.of(scene, prompt, seed + index, frames, given))
        if on_sample is not None:
            on_sample(samples[-1])
    return Report(tuple(samples), tuple(measures))


def heldout_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes whose combination of shape, colours and motion was never trained on."""
    rng = np.random.default_rng([seed, 1])
    return [worlds.sample_scene(rng, "heldout") for _ in range(count)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays in dB; infinite when they are equal."""
    difference = (a.astype(np.float64) - b.astype(np.float64)) / 127.5
    return psnr_of_error(torch.tensor(np.mean(difference**2))).item()


@dataclass(frozen=True)
class Reconstruction:
    """Scores of rendered videos that were encoded and decoded: PSNR in dB, and the rates of `MEASURES`."""

    videos: int
    mean_psnr: float
    worst_psnr: float
    rates: Mapping[str, float]


def reconstruction(reconstruct: Callable[[Tensor], Tensor], scenes: Sequence[Scene], size: int = 64) -> Reconstruction:
    """Score `reconstruct`, [3, F, H, W] in [-1, 1] to the same, on the scenes rendered at `size` pixels."""
    values, samples = [], []
    for scene in scenes:
        video = worlds.render(scene, size=size)
        again = to_uint8(reconstruct(from_uint8(torch.from_numpy(video)).transpose(0, 1))).numpy()
        values.append(psnr(video, again))
        samples.append(Sample.of(scene, "", 0, again))
    rates = Report(tuple(samples), tuple(MEASURES)).rates()
    return Reconstruction(len(scenes), float(np.mean(values)), min(values), rates)

"""Do the nano models make what was asked? Generates videos from held-out prompts and measures their pixels.

    python -m wan.nano.evaluate t2v --videos 120 --expert compare --out outputs/evaluate_t2v

writes results.json, results.md, table.png, samples.png and failures.png into the output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan.configs.nano import NANO_CONFIGS, nano_checkpoint
from wan.media import from_uint8, to_uint8
from wan.nano import worlds
from wan.nano.pictures import bar_chart, contact_strip
from wan.nano.worlds import Measured, Scene
from wan.request import Request
from wan.runtime import Runtime
from wan.text2video import WanT2V

Generate = Callable[[str, int], np.ndarray]  # prompt, seed -> frames uint8 [F, H, W, 3]

# What is reported: the field of a scene and of a measurement, and the share that has to be reached.
MEASURES = {"shape colour": "color", "background colour": "background", "motion direction": "motion", "shape": "shape"}
TARGETS = {"shape colour": 0.98, "background colour": 0.98, "motion direction": 0.97, "shape": 0.90}
CHANCE = {
    "shape colour": 1 / len(worlds.COLORS),
    "background colour": 1 / len(worlds.BACKGROUNDS),
    "motion direction": 1 / len(worlds.MOTIONS),
    "shape": 1 / len(worlds.SHAPES),
}
PSNR_TARGET = 30.0  # dB, autoencoder alone

# Which expert works from which share of the timesteps on: at 0 the high-noise one always does, above 1 it never would.
EXPERTS = {"both": None, "high": 0.0, "low": 1.0}


# ---------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Sample:
    """One generated video: what was asked, in attributes and words, and what its pixels show."""

    scene: Scene
    prompt: str
    seed: int
    seen: Measured
    frames: np.ndarray = field(repr=False, compare=False)  # uint8 [F, H, W, 3]

    def correct(self, measure: str) -> bool:
        return _agrees(self.scene, self.seen, measure)

    @property
    def wrong(self) -> list[str]:
        """Names of the measures that failed."""
        return [measure for measure in MEASURES if not self.correct(measure)]


@dataclass(frozen=True)
class Report:
    """The samples of one run; every figure is computed from them."""

    samples: tuple[Sample, ...]

    def count(self, measure: str) -> int:
        """Videos for which `measure`, a key of `MEASURES`, is correct."""
        return sum(sample.correct(measure) for sample in self.samples)

    def rates(self) -> dict[str, float]:
        """Share of correct videos per measure, 0..1."""
        return {measure: self.count(measure) / len(self.samples) for measure in MEASURES}

    def all_correct(self) -> float:
        """Share of videos with nothing wrong, 0..1."""
        return sum(not sample.wrong for sample in self.samples) / len(self.samples)

    def shuffled(self) -> dict[str, float]:
        """Negative control: every video scored against the prompts of all the others; should be near `CHANCE`."""
        pairs = [(a.scene, b.seen) for a in self.samples for b in self.samples if a is not b]
        return {m: sum(_agrees(scene, seen, m) for scene, seen in pairs) / max(len(pairs), 1) for m in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON."""
        return {
            "videos": len(self.samples),
            "correct": {measure: self.count(measure) for measure in MEASURES},
            "rates": self.rates(),
            "all_correct": self.all_correct(),
            "shuffled_prompts": self.shuffled(),
            "samples": [
                {"prompt": s.prompt, "seed": s.seed, "asked": asdict(s.scene), "seen": asdict(s.seen)}
                for s in self.samples
            ],
        }


def evaluate(
    generate: Generate,
    scenes: Sequence[Scene],
    seed: int = 0,
    on_sample: Callable[[Sample], None] | None = None,
) -> Report:
    """Generate one video per scene and measure it.

    generate: (prompt, seed) -> uint8 [F, H, W, 3]; it learns about a scene from the prompt alone. Prompts and seeds
    follow from `seed`, so two models see the same ones.
    """
    if not scenes:
        raise ValueError("there is nothing to evaluate: give at least one scene")
    rng = np.random.default_rng(seed)
    samples = []
    for index, scene in enumerate(scenes):
        prompt = worlds.caption(scene, rng)
        frames = np.asarray(generate(prompt, seed + index))
        samples.append(Sample(scene, prompt, seed + index, worlds.measure(frames), frames))
        if on_sample is not None:
            on_sample(samples[-1])
    return Report(tuple(samples))


def heldout_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes whose combination of shape, colours and motion was never trained on."""
    rng = np.random.default_rng([seed, 1])
    return [worlds.sample_scene(rng, "heldout") for _ in range(count)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays in dB; infinite when they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@dataclass(frozen=True)
class Reconstruction:
    """Rendered videos through the autoencoder and back: mean and worst PSNR in dB, and what the measures still read."""

    videos: int
    mean_psnr: float
    worst_psnr: float
    rates: dict[str, float]


def reconstruction(reconstruct: Callable[[Tensor], Tensor], scenes: Sequence[Scene]) -> Reconstruction:
    """Score `reconstruct`, [3, F, H, W] in [-1, 1] to the same, on the rendered scenes."""
    values, hits = [], dict.fromkeys(MEASURES, 0)
    for scene in scenes:
        video = worlds.render(scene)
        again = to_uint8(reconstruct(from_uint8(torch.from_numpy(video)).transpose(0, 1))).numpy()
        values.append(psnr(video, again))
        seen = worlds.measure(again)
        for measure in MEASURES:
            hits[measure] += _agrees(scene, seen, measure)
    rates = {measure: count / len(scenes) for measure, count in hits.items()}
    return Reconstruction(len(scenes), float(np.mean(values)), min(values), rates)


def _agrees(scene: Scene, seen: Measured, measure: str) -> bool:
    return getattr(scene, MEASURES[measure]) == getattr(seen, MEASURES[measure])


# ---------------------------------------------------------------- the table


def markdown(reports: Mapping[str, Report], vae: Reconstruction | None = None) -> str:
    """The table of the README: one column per run, the shuffled control of the first one, and the targets."""
    first = next(iter(reports.values()))
    control = first.shuffled()
    head = ["measure", "target", *reports, "shuffled prompts", "chance"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for measure in MEASURES:
        row = [measure, f">= {100 * TARGETS[measure]:.0f} %"]
        row += [f"{100 * r.rates()[measure]:.1f} % ({r.count(measure)}/{len(r.samples)})" for r in reports.values()]
        lines.append([*row, f"{100 * control[measure]:.1f} %", f"{100 * CHANCE[measure]:.1f} %"])
    lines.append(["all four", "", *(f"{100 * r.all_correct():.1f} %" for r in reports.values()), "", ""])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if vae is not None:
        text += (
            f"\nAutoencoder alone, {vae.videos} rendered held-out videos: PSNR {vae.mean_psnr:.1f} dB on average, "
            f"{vae.worst_psnr:.1f} dB at worst (target >= {PSNR_TARGET:.0f} dB).\n"
        )
    return text


def write_results(
    folder: Path, reports: Mapping[str, Report], vae: Reconstruction | None, settings: dict[str, Any]
) -> None:
    """Write results.json, results.md, table.png, samples.png and, when something is wrong, failures.png."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"settings": settings, "autoencoder": vae and asdict(vae), "targets": TARGETS, "chance": CHANCE}
    results["runs"] = {name: report.to_dict() for name, report in reports.items()}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(reports, vae), encoding="utf-8")
    first = next(iter(reports.values()))
    note = "full line: target, dotted line: guessing"
    note += f"; autoencoder PSNR {vae.mean_psnr:.1f} dB" if vae else ""
    title = f"{len(first.samples)} videos, combinations never seen in training"
    bar_chart({n: r.rates() for n, r in reports.items()}, folder / "table.png", title, TARGETS, CHANCE, note)
    _sheet(first.samples[:18], folder / "samples.png")
    failures = [sample for sample in first.samples if sample.wrong][:18]
    (folder / "failures.png").unlink(missing_ok=True)
    if failures:
        _sheet(failures, folder / "failures.png")


def _sheet(samples: Sequence[Sample], path: Path) -> None:
    marks = [_verdict(sample) for sample in samples]
    contact_strip([s.frames for s in samples], [s.prompt for s in samples], path, columns=3, marks=marks)


def _verdict(sample: Sample) -> str:
    if not sample.wrong:
        return "as asked"
    seen = sample.seen
    return f"seen: {seen.color} {seen.shape}, {seen.motion}, on {seen.background}"


# ---------------------------------------------------------------- the command


def text_to_video(pipeline: WanT2V, **settings: Any) -> Generate:
    """A `Generate` from a pipeline; `settings` are those of a request (steps, guidance, boundary ...)."""

    def generate(prompt: str, seed: int) -> np.ndarray:
        request = Request.create(pipeline.config, prompt=prompt, seed=seed, noise_device="cpu", **settings)
        video = torch.cat(list(pipeline.decode(pipeline.sample(request))), dim=1)  # [3, F, H, W]
        return to_uint8(video).numpy()

    return generate


def vae_round_trip(pipeline: WanT2V) -> Callable[[Tensor], Tensor]:
    """The autoencoder of a pipeline as a function of one video [3, F, H, W] in [-1, 1]."""

    def reconstruct(video: Tensor) -> Tensor:
        with torch.no_grad():
            latent = pipeline.vae.encode([video.to(pipeline.runtime.device)])[0]
            return torch.cat([chunk.float().cpu() for chunk in pipeline.vae.decode_stream(latent)], dim=1)

    return reconstruct


def run_t2v(args: argparse.Namespace) -> int:
    """Evaluate a text-to-video checkpoint; returns 1 when a target is missed."""
    config = NANO_CONFIGS["t2v-A14B"]
    folder = args.ckpt_dir or nano_checkpoint("t2v-A14B")
    runtime = Runtime.from_flags(device=args.device, dtype=args.dtype, offload_model=False)
    settings = {"steps": args.steps, "solver": args.solver, "guidance": args.guidance}
    settings = {name: value for name, value in settings.items() if value is not None}
    facts = Request.create(config, seed=args.seed, noise_device="cpu", **settings).to_dict()
    facts["first_seed"] = facts.pop("seed")
    del facts["prompt"]
    pipeline = WanT2V(config, folder, runtime=runtime)
    args.out.mkdir(parents=True, exist_ok=True)

    scenes = heldout_scenes(args.videos, args.seed)
    vae = reconstruction(vae_round_trip(pipeline), scenes[:60])
    reports, seconds = {}, {}
    for name in EXPERTS if args.expert == "compare" else [args.expert]:
        boundary = {} if EXPERTS[name] is None else {"boundary": EXPERTS[name]}
        start = time.perf_counter()
        progress = _progress(name, len(scenes), args.progress == "bar")
        reports[name] = evaluate(text_to_video(pipeline, **settings, **boundary), scenes, args.seed, progress)
        seconds[name] = round((time.perf_counter() - start) / len(scenes), 2)
    facts |= {"device": str(runtime.device), "dtype": runtime.dtype_name, "seconds_per_video": seconds}
    write_results(args.out, reports, vae, facts)
    print(markdown(reports, vae))
    print(f"{args.out}: results.json, results.md, table.png, samples.png")
    return 0 if reached(next(iter(reports.values())), vae) else 1


def reached(report: Report, vae: Reconstruction) -> bool:
    """Whether every target is met."""
    rates = report.rates()
    return vae.mean_psnr >= PSNR_TARGET and all(rates[measure] >= TARGETS[measure] for measure in MEASURES)


def _progress(name: str, total: int, visible: bool) -> Callable[[Sample], None]:
    done, failed = 0, 0

    def show(sample: Sample) -> None:
        nonlocal done, failed
        done, failed = done + 1, failed + bool(sample.wrong)
        if visible:
            end = "\n" if done == total else ""
            print(f"\rexpert {name}: {done}/{total} videos, {failed} with something wrong", end=end, file=sys.stderr)

    return show


TASKS = {"t2v": run_t2v}


def main(argv: Iterable[str] | None = None) -> int:
    """Entry of `python -m wan.nano.evaluate`; 0 when every target is reached, 1 when one is missed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m wan.nano.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--videos", type=int, default=120, help="how many held-out scenes")
    parser.add_argument("--expert", choices=[*EXPERTS, "compare"], default="both", help="compare runs all three")
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluate_t2v"), help="folder for the results")
    parser.add_argument("--ckpt_dir", type=Path, default=None, help="checkpoint folder; the embedded one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="sampling steps; the preset's by default")
    parser.add_argument("--solver", default=None, help="unipc, dpm++ or euler; the preset's by default")
    parser.add_argument("--guidance", type=float, default=None, help="guidance scale; the preset's by default")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bf16", help="bf16 or fp32")
    parser.add_argument("--progress", choices=["bar", "none"], default="bar")
    args = parser.parse_args(None if argv is None else list(argv))
    if args.videos < 1:
        parser.error(f"--videos must be at least 1, got {args.videos}")
    try:
        return TASKS[args.task](args)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())

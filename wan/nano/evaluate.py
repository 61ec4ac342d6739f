"""Evaluate the nano models: generate videos from held-out prompts and measure their pixels.

    python -m wan.nano.evaluate t2v --videos 120 --expert compare
    python -m wan.nano.evaluate i2v
    python -m wan.nano.evaluate ti2v
    python -m wan.nano.evaluate s2v
    python -m wan.nano.evaluate animate [--chain]

writes results.json, results.md, table.png, samples.png and failures.png into the output folder. Of s2v and animate
there is neither table.png nor failures.png.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before torch is imported
    from wan.program import share_cores

    share_cores()

import numpy as np
import torch
from torch import Tensor

from wan.animate import WanAnimate
from wan.choices import DTYPES, QUANTIZED, SOLVERS
from wan.configs.nano import NANO_CONFIGS, nano_checkpoint
from wan.files import check_writable
from wan.geometry import parse_size
from wan.image2video import WanI2V
from wan.media import to_uint8
from wan.nano import acting, acts, chain, talking
from wan.nano.pictures import bar_chart, contact_strip
from wan.nano.scores import MEASURES, Generate, Reconstruction, Report, Sample, evaluate, heldout_scenes, reconstruction
from wan.nano.talks import draw_talks, perform
from wan.parser import Parser, exit_code
from wan.pipeline import WanPipeline
from wan.request import Request
from wan.runtime import Runtime
from wan.speech2video import WanS2V
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.typed import at_least, number, one_of, path


@dataclass(frozen=True)
class Goal:
    """Goal of a run: shares of correct videos, and the likeness of the first frame to an image that is given."""

    targets: dict[str, float]
    first_frame: float | None = None  # dB

    def reached(self, report: Report) -> bool:
        rates = report.rates()
        alike = self.first_frame is None or (report.first_frame_psnr or 0) >= self.first_frame
        return alike and all(rates[measure] >= target for measure, target in self.targets.items())


@dataclass(frozen=True)
class Family:
    """Task of the embedded family, and the goals of its modes; those without goals are in `WITHOUT_GOALS`."""

    task: str
    pipeline: type[WanPipeline]
    goals: dict[str, Goal]  # mode -> goal
    psnr: float = 0.0  # dB, the autoencoder alone
    videos: int = 120


TEXT = ("shape colour", "background colour", "motion direction", "shape")
IMAGE = {"motion direction": 0.95, "identity to the end": 0.95}
FAMILIES = {
    "t2v": Family("t2v-A14B", WanT2V, {"text": Goal(dict(zip(TEXT, (0.98, 0.98, 0.97, 0.90))))}, psnr=30.0),
    "i2v": Family("i2v-A14B", WanI2V, {"image": Goal(IMAGE, first_frame=25.0)}, psnr=30.0),
    "ti2v": Family(
        "ti2v-5B",
        WanTI2V,
        {"text": Goal(dict(zip(TEXT, (0.95, 0.95, 0.92, 0.85)))), "image": Goal(IMAGE, first_frame=28.0)},
        psnr=30.0,
    ),
    "s2v": Family("s2v-14B", WanS2V, {}, videos=60),
    "animate": Family("animate-14B", WanAnimate, {}, videos=60),
}
TALK_FRAMES = 237  # three clips
ACT_FRAMES = 97  # three clips that share one frame
CHAIN_FRAMES, CHAIN_VIDEOS = 65, 30  # two clips
SWAPPED = 3  # one of so many acts is also made with another face video

# The boundary that a request gets: from this share of the timesteps on, the high-noise expert works.
EXPERTS = {"both": None, "high": 0.0, "low": 1.0}


def markdown(reports: Mapping[str, Report], goal: Goal, vae: Reconstruction | None = None, psnr: float = 30.0) -> str:
    """Make the table of one mode: targets, a column per run, and the shuffled control of the first one."""
    first = next(iter(reports.values()))
    control = first.shuffled()
    head = ["measure", "target", *reports, "shuffled prompts", "chance"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for measure, target in goal.targets.items():
        row = [measure, f">= {100 * target:.0f} %"]
        row += [f"{100 * r.rates()[measure]:.1f} % ({r.count(measure)}/{len(r.samples)})" for r in reports.values()]
        lines.append([*row, f"{100 * control[measure]:.1f} %", f"{100 * MEASURES[measure].chance:.1f} %"])
    lines.append(["all of them", "", *(f"{100 * r.all_correct():.1f} %" for r in reports.values()), "", ""])
    if goal.first_frame is not None:
        likeness = (f"{report.first_frame_psnr:.1f} dB" for report in reports.values())
        lines.append(["first frame", f">= {goal.first_frame:.0f} dB", *likeness, "", ""])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if vae is not None:
        text += (
            f"\nAutoencoder alone, {vae.videos} rendered held-out videos: PSNR {vae.mean_psnr:.1f} dB on average, "
            f"{vae.worst_psnr:.1f} dB at worst (target >= {psnr:.0f} dB); shape still recognised in "
            f"{100 * vae.rates['shape']:.1f} %.\n"
        )
    return text


def write_results(
    folder: Path, reports: Mapping[str, Report], goal: Goal, vae: Reconstruction | None, settings: dict[str, Any]
) -> None:
    """Write results.json, results.md, table.png, samples.png and, when something is wrong, failures.png."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = {measure: MEASURES[measure].chance for measure in goal.targets}
    results = {"settings": settings, "autoencoder": vae and asdict(vae), "targets": goal.targets, "chance": chance}
    results["runs"] = {name: report.to_dict() for name, report in reports.items()}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(reports, goal, vae), encoding="utf-8")
    first = next(iter(reports.values()))
    note = "full line: target, dotted line: guessing"
    note += f"; first frame {first.first_frame_psnr:.1f} dB" if first.first_frame_psnr else ""
    note += f"; autoencoder PSNR {vae.mean_psnr:.1f} dB" if vae else ""
    title = f"{len(first.samples)} videos, combinations never seen in training"
    bar_chart({n: r.rates() for n, r in reports.items()}, folder / "table.png", title, note, goal.targets, chance)
    _sheet(first, first.samples[:18], folder / "samples.png")
    failures = [sample for sample in first.samples if first.wrong(sample)][:18]
    (folder / "failures.png").unlink(missing_ok=True)
    if failures:
        _sheet(first, failures, folder / "failures.png")


def _sheet(report: Report, samples: Sequence[Sample], path: Path) -> None:
    marks = [_verdict(report, sample) for sample in samples]
    contact_strip([s.frames for s in samples], [s.prompt for s in samples], marks, path)


def _verdict(report: Report, sample: Sample) -> str:
    if not report.wrong(sample):
        return "as asked"
    seen, end = sample.seen, sample.end
    text = f"seen: {seen.color} {seen.shape}, {seen.motion}, on {seen.background}"
    same = (seen.color, seen.shape, seen.background) == (end.color, end.shape, end.background)
    return text if same else f"{text}; at the end {end.color} {end.shape} on {end.background}"


def generator(pipeline: WanPipeline, **settings: Any) -> Generate:
    """Make a `Generate` of a pipeline; `settings` are those of a request (steps, guidance, boundary ...)."""

    def generate(prompt: str, seed: int, given: np.ndarray | None) -> np.ndarray:
        from PIL import Image

        image = {} if given is None else {"image": Image.fromarray(given)}
        request = Request.create(pipeline.config, prompt=prompt, seed=seed, noise_device="cpu", **image, **settings)
        return to_uint8(pipeline.video(request)).numpy()  # [3, F, H, W] -> [F, H, W, 3]

    return generate


def vae_round_trip(pipeline: WanPipeline) -> Callable[[Tensor], Tensor]:
    """Make a function that encodes and decodes one video [3, F, H, W] in [-1, 1]."""

    def reconstruct(video: Tensor) -> Tensor:
        with torch.no_grad():
            latent = pipeline.vae.encode([video.to(pipeline.runtime.device)])[0]
            return torch.cat([chunk.float().cpu() for chunk in pipeline.vae.decode_stream(latent)], dim=1)

    return reconstruct


def run_family(args: Namespace, family: Family) -> int:
    """Evaluate a checkpoint in every mode of its task; returns 1 when a target is missed."""
    config = NANO_CONFIGS[family.task]
    runtime = Runtime.from_flags(device=args.device, dtype=args.dtype, offload_model=False, quantize=args.quantize)
    settings = {"steps": args.steps, "solver": args.solver, "guidance": args.guidance}
    settings |= {"guidance_until": args.cfg_until, "reuse": args.block_cache}
    settings = {name: value for name, value in settings.items() if value is not None}
    pipeline = family.pipeline(config, args.ckpt_dir or nano_checkpoint(family.task), runtime=runtime)
    try:
        check_writable(args.out / "results.json", overwrite=True)
    except ValueError as error:
        raise ValueError(f"{str(error).partition(';')[0]}; choose another --out") from None
    if not family.goals:
        settings |= {"as_upstream": True} if args.as_upstream else {}
        return (run_chain if args.chain else WITHOUT_GOALS[family.task])(args, pipeline, settings)
    size = parse_size(config.size)[0]
    scenes = heldout_scenes(args.videos, args.seed)
    vae = reconstruction(vae_round_trip(pipeline), scenes[:60], size)
    reached = vae.mean_psnr >= family.psnr
    for mode, goal in family.goals.items():
        reports, seconds = {}, {}
        for name in EXPERTS if args.expert == "compare" else [args.expert]:
            boundary = {} if EXPERTS[name] is None else {"boundary": EXPERTS[name]}
            start = time.perf_counter()
            generate = generator(pipeline, **settings, **boundary)
            image_size = size if mode == "image" else None
            progress = _progress(name, len(scenes), goal, args.progress == "bar")
            reports[name] = evaluate(generate, scenes, tuple(goal.targets), args.seed, image_size, progress)
            seconds[name] = round((time.perf_counter() - start) / len(scenes), 2)
        facts = {"task": family.task, "mode": mode, "size": config.size, "frame_num": config.frame_num}
        facts |= {"first_seed": args.seed, "device": str(runtime.device), "dtype": runtime.dtype_name}
        facts |= {"quantize": runtime.quantize, **settings}
        folder = args.out / mode if len(family.goals) > 1 else args.out
        write_results(folder, reports, goal, vae, facts | {"seconds_per_video": seconds})
        print(f"{family.task}, {mode}\n\n{markdown(reports, goal, vae, family.psnr)}")
        print(f"{folder}: results.json, results.md, table.png, samples.png")
        reached &= goal.reached(next(iter(reports.values())))
    return 0 if reached else 1


def run_talks(args: Namespace, pipeline: WanS2V, settings: dict[str, Any]) -> int:
    """Evaluate faces that talk; returns 1 when a target is missed."""
    takes, start = [], time.perf_counter()
    for index, talk in enumerate(draw_talks(args.videos, args.seed, TALK_FRAMES)):
        takes.append(perform(pipeline, talk, args.seed + index, **settings))
        _count(args, len(takes), args.videos, f"mouth {np.mean([talking.sync(take) for take in takes]):.2f}")
    measures = talking.AS_UPSTREAM if settings.get("as_upstream") else talking.MEASURES
    values, alone = talking.table(takes, measures), talking.through(vae_round_trip(pipeline), takes[:12])
    each = [{"mouth": talking.sync(take), "drift": talking.drift(take).tolist()} for take in takes]
    text = f"{talking.markdown(values, measures)}\nMouth through the autoencoder alone: correlation {alone:.3f}"
    text += f" (target >= {talking.ALONE}).\n"
    results = {"settings": _facts(args, pipeline, TALK_FRAMES, settings, start), "measures": values}
    heads = ["the head follows a pose video" if take.moves else "no pose video" for take in takes]
    marks = [f"mouth and voice: {talking.sync(take):.2f}" for take in takes]
    _write_takes(args, pipeline, text, results | {"autoencoder": alone, "samples": each}, takes, heads, marks)
    reached = all(measures[name].reached(value) for name, value in values.items())
    return 0 if reached and alone >= talking.ALONE else 1


def run_acts(args: Namespace, pipeline: WanAnimate, settings: dict[str, Any]) -> int:
    """Evaluate puppets that perform; returns 1 when a target is missed."""
    drawn = list(acts.draw_acts(args.videos, args.seed, ACT_FRAMES))
    drawn += [act.swapped(drawn[(n + 1) % len(drawn)]) for n, act in enumerate(drawn[::SWAPPED])]
    takes, start = [], time.perf_counter()
    for index, act in enumerate(drawn):
        takes.append(acts.perform(pipeline, act, args.seed + index, **settings))
        _count(args, len(takes), len(drawn), f"joints off {np.mean([acting.off_joints(t) for t in takes]):.1%}")
    values, alone = acting.table(takes), acting.table(acting.through(vae_round_trip(pipeline), takes))
    each = [{"joints": acting.off_joints(t), "mouth": float(acting.right_mouths(t).mean())} for t in takes]
    results = {"settings": _facts(args, pipeline, ACT_FRAMES, settings, start), "measures": values}
    heads = ["animation" if take.mask is None else "replacement" for take in takes]
    marks = [f"joints off {one['joints']:.1%}, mouth {one['mouth']:.0%}" for one in each]
    results |= {"autoencoder": alone, "samples": each}
    _write_takes(args, pipeline, acting.markdown(values, alone), results, takes, heads, marks)
    return 0 if all(acting.MEASURES[name].reached(value) for name, value in values.items()) else 1


def run_chain(args: Namespace, pipeline: WanAnimate, settings: dict[str, Any]) -> int:
    """Evaluate the way from a video and a picture to an animation; returns 1 when a measure is worse than allowed."""
    pairs, start = [], time.perf_counter()
    for index, act in enumerate(chain.draw_acts(args.videos, args.seed, CHAIN_FRAMES)):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append(chain.perform(pipeline, act, args.seed + index, Path(folder), **settings))
        _count(args, len(pairs), args.videos, f"key points off {chain.off(pairs):.2%}")
    values, takes = chain.table(pairs), [take for pair in pairs for take in (pair.chained, pair.perfect)]
    each = [{"key points": pair.off_points, "joints": acting.off_joints(pair.chained)} for pair in pairs]
    results = {"settings": _facts(args, pipeline, CHAIN_FRAMES, settings, start), "measures": values, "samples": each}
    heads = ["from a video and a picture", "from perfect inputs"] * len(pairs)
    marks = [f"joints off {acting.off_joints(take):.1%}" for take in takes]
    _write_takes(args, pipeline, chain.markdown(values), results, takes, heads, marks)
    return 0 if all(chain.reached(name, *both) for name, both in values.items()) else 1


WITHOUT_GOALS = {"s2v-14B": run_talks, "animate-14B": run_acts}


def _count(args: Namespace, done: int, total: int, note: str) -> None:
    if args.progress == "bar":
        print(f"\r{done}/{total} videos, {note}", end="\n" if done == total else "", file=sys.stderr)


def _facts(
    args: Namespace, pipeline: WanPipeline, frames: int, settings: dict[str, Any], start: float
) -> dict[str, Any]:
    facts = {"task": pipeline.config.name, "videos": args.videos, "frame_num": frames, "first_seed": args.seed}
    facts |= {"device": str(pipeline.runtime.device), "dtype": pipeline.runtime.dtype_name, **settings}
    return facts | {"seconds_per_video": round((time.perf_counter() - start) / args.videos, 2)}


def _write_takes(
    args: Namespace,
    pipeline: WanPipeline,
    text: str,
    results: dict[str, Any],
    takes: Sequence[Any],
    heads: Sequence[str],
    marks: Sequence[str],
) -> None:
    """Write results.json, results.md and samples.png of videos with several clips."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "results.md").write_text(text, encoding="utf-8")
    contact_strip([take.frames for take in takes[:12]], heads[:12], marks[:12], args.out / "samples.png")
    print(f"{pipeline.config.name}\n\n{text}\n{args.out}: results.json, results.md, samples.png")


def _progress(name: str, total: int, goal: Goal, visible: bool) -> Callable[[Sample], None]:
    done, failed = 0, 0

    def show(sample: Sample) -> None:
        nonlocal done, failed
        done, failed = done + 1, failed + (not all(map(sample.correct, goal.targets)))
        if visible:
            end = "\n" if done == total else ""
            print(f"\rexpert {name}: {done}/{total} videos, {failed} with something wrong", end=end, file=sys.stderr)

    return show


def main(argv: Iterable[str] | None = None) -> int:
    """Entry of `python -m wan.nano.evaluate`; 0 when every target is reached, 1 when one is missed, 2 for bad input."""
    parser = Parser(prog="python -m wan.nano.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument(
        "family", type=one_of(FAMILIES), metavar="{t2v,i2v,ti2v,s2v,animate}", help="which task's model"
    )
    parser.add_argument(
        "--videos", type=at_least(1), help="how many held-out scenes; default: 120, of s2v and animate 60"
    )
    parser.add_argument(
        "--expert",
        type=one_of([*EXPERTS, "compare"]),
        default="both",
        metavar="NAME",
        help="both, high or low; compare runs all three; default: both",
    )
    parser.add_argument("--out", type=path, help="folder for the results; default: outputs/evaluate_FAMILY")
    parser.add_argument("--ckpt_dir", type=path, help="checkpoint folder; default: the embedded one")
    parser.add_argument("--seed", type=at_least(0), default=0, help="the first seed; default: 0")
    parser.add_argument("--steps", type=at_least(1), help="sampling steps; default: the preset's")
    parser.add_argument(
        "--solver", type=one_of(SOLVERS), metavar="NAME", help=f"of {', '.join(SOLVERS)}; default: the preset's"
    )
    parser.add_argument("--guidance", type=number, help="guidance scale; default: the preset's")
    parser.add_argument("--cfg_until", type=number, help="share of the steps that have guidance; default: 1")
    parser.add_argument("--block_cache", type=number, help="threshold of reused blocks; default: 0, none")
    parser.add_argument("--as_upstream", action="store_true", help="of s2v and animate: with the original's choices")
    parser.add_argument(
        "--chain",
        action="store_true",
        help="of animate: from a video and a picture through preprocessing, beside perfect inputs; 30 videos",
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu; default: the best there is")
    parser.add_argument("--quantize", type=one_of(QUANTIZED), metavar="NAME", help="int8 or fp8; default: off")
    parser.add_argument("--dtype", type=one_of(DTYPES), default="bf16", metavar="NAME", help="or fp32; default: bf16")
    parser.add_argument("--progress", type=one_of(["bar", "none"]), default="bar", help="or none; default: bar")
    args = parser.parse_args(None if argv is None else list(argv))
    family = FAMILIES[args.family]
    if args.chain and args.family != "animate":
        parser.error(f"--chain preprocesses videos of the family animate, not of {args.family}")
    args.videos = args.videos or (CHAIN_VIDEOS if args.chain else family.videos)
    args.out = Path(args.out or f"outputs/evaluate_{args.family}{'_chain' if args.chain else ''}")
    if args.expert != "both" and NANO_CONFIGS[family.task].boundary is None:
        parser.error(f"--expert {args.expert}: {family.task} has one model")
    try:
        return run_family(args, family)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(exit_code(main))

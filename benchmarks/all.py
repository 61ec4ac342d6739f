"""One table of this machine, `python -m benchmarks.all`: the videos of all tasks, and large networks beside diffusers.

Videos are made by the embedded models, from the request to the checked file. Networks have the released widths and
random weights; ours and those of diffusers compute in turns. Each row is a process of its own with its own time limit.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import dit, vae
from benchmarks.common import add_device, describe_machine, gemm_ceiling, make_parser, parse, write_result
from benchmarks.gpu.runner import Part, Setting, run_apart, run_here
from wan.arguments import parse as parse_command
from wan.configs import NANO_CONFIGS
from wan.jobs import Outcome, make
from wan.memory import peak_memory
from wan.parser import exit_code
from wan.planning import plan

HEADER = (
    *("what", "settings", "values", "load s", "encode s", "denoise s", "decode s", "write s", "GB", "share of floor"),
    "diffusers: times slower, GB",
)
EXAMPLES = Path(__file__).parents[1] / "examples"
INPUTS = {
    "i2v-A14B": ("--image", "first_frame.png"),
    "s2v-14B": ("--image", "face.png", "--audio", "voice.wav"),
    "animate-14B": ("--src_root_path", "performance"),
}
LIMIT = 3600.0  # seconds of a row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("all", __doc__, rounds=3)
    add_device(parser)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="default: all; a wrong name lists them")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parse(parser, arguments)
    rows = rows_of(args)
    for name in args.rows or ():
        if name not in rows:
            parser.error(f"--rows {name}: there are {', '.join(rows)}")
    chosen = args.rows or list(rows)
    if args.here:
        torch.set_grad_enabled(False)
        part = Part(chosen[0], rows[chosen[0]], LIMIT)
        sys.exit(run_here(part, Setting(args.device, room=0, toy=False)))
    found, notes = [], []
    for name in chosen:
        command = [sys.executable, "-m", "benchmarks.all", "--device", str(args.device), "--rounds", str(args.rounds)]
        done = run_apart(name, [*command, "--here", "--rows", name], LIMIT)
        if done.result == "passed":
            found.append([name, *done.lines])
        else:
            notes.append(f"- {name} {done.result}: {' / '.join(done.lines)}")
    machine = re.sub(r"[^a-z0-9]+", "-", describe_machine(args.device).partition(",")[0].lower()).strip("-")
    write_result(
        f"all-{machine}.md",
        args.save,
        title="All of it on one machine",
        device=args.device,
        settings={"rounds": args.rounds},
        header=HEADER,
        rows=found,
        notes=[
            *notes,
            "- Values: those of the model in the named type; nothing is approximated. GB: peak of the device, on a CPU "
            "of the process; of networks what a call takes beside the weights.",
            "- Write: from the last decoded frame to the checked file; frames are written while others are decoded.",
        ],
    )


def rows_of(args: argparse.Namespace) -> dict[str, Callable[[Setting], list[str]]]:
    """Name the rows, each with the function that measures its cells."""
    on_cpu = args.device.type == "cpu"
    cases = dit.CPU_CASES if on_cpu else dit.CUDA_CASES
    rows = {f"{task} nano": video(task) for task in NANO_CONFIGS}
    rows |= {f"transformer {name}": transformer(case, args.rounds) for name, case in cases.items()}
    rows |= {f"VAE {name}": autoencoder(name, on_cpu, args.rounds) for name in vae.NETWORKS}
    return rows


def video(task: str) -> Callable[[Setting], list[str]]:
    """Make the row of a task: a video by its embedded model with the default settings."""

    def run(setting: Setting) -> list[str]:
        flag, *rest = INPUTS.get(task, ("",))
        given = [word if word.startswith("--") else str(EXAMPLES / word) for word in (flag, *rest) if word]
        with tempfile.TemporaryDirectory() as folder:
            output = ["--save_file", f"{folder}/a.mp4", "--progress", "none", "--base_seed", "0"]
            job = plan(parse_command(["--task", task, *given, "--device", str(setting.device), *output]))
            start = time.perf_counter()
            pipeline = job.pipeline(job.config, job.checkpoint, runtime=job.runtime)
            parts = pipeline.text_encoder, pipeline.vae, *map(pipeline.weights.get, job.config.experts)
            del parts  # they are loaded
            loaded = time.perf_counter()
            make(Outcome(job), pipeline)
            taken = time.perf_counter() - loaded
        phases = {name: stats.seconds for name, stats in pipeline.phases.items()}
        request, peak = job.request, peak_memory(setting.device)
        if setting.device.type == "cuda":  # each phase begins anew
            peak = max(stats.peak_bytes for stats in pipeline.phases.values())
        width, height = request.framing.saved
        settings = f"{width}x{height}, {job.num_frames} frames, {request.steps} steps"
        times = (loaded - start, *phases.values(), max(0.0, taken - sum(phases.values())))
        return [settings, job.runtime.dtype_name, *(f"{one:.2f}" for one in times), f"{peak / 1e9:.2f}", "", ""]

    return run


def transformer(case: dit.Case, rounds: int) -> Callable[[Setting], list[str]]:
    """Make the row of a forward, with that of diffusers in turns; the better of eager and compiled blocks counts."""

    def run(setting: Setting) -> list[str]:
        how = argparse.Namespace(rounds=rounds, no_peer=False, no_compile=False)
        _, eager, share, compiled, compiled_share, _, _, _, best, _, peak = dit.measure(case, setting.device, how)
        taken, floor = min((eager, share), (compiled, compiled_share))
        cells = ["", "", f"{taken / 1e3:.3f}", "", "", f"{peak * 2**30 / 1e9:.2f}", f"{floor:.0%}", f"{best:.2f}"]
        dtype = "bf16" if dit.matrix_type(setting.device) == torch.bfloat16 else "fp32"
        return [f"{case}, one forward", dtype, *cells]

    return run


def autoencoder(name: str, on_cpu: bool, rounds: int) -> Callable[[Setting], list[str]]:
    """Make the row of decoding 17 frames, with diffusers in turns; of VAE 2.2, which is slower, 5 on a CPU."""
    frames = 5 if on_cpu and name == "2.2" else 17

    def run(setting: Setting) -> list[str]:
        device, (width, height) = setting.device, (832, 480) if on_cpu else (1280, 704)
        ours, theirs = vae.build_pair(name, device, torch.float32)
        shape = (1, ours.z_dim, (frames + 3) // 4, *(edge // ours.config.stride[1] for edge in (height, width)))
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
        calls = (lambda: ours.decode(latent, chunk=4)), (lambda: theirs.decode(latent).sample)
        flops = vae.decode_or_encode_flops(type(ours), "decode", shape)
        found = vae.compare("decode", *calls, flops, device, 1 if on_cpu else rounds)
        _, taken, _, ratio, peak, other, *_ = found
        floor = flops / gemm_ceiling(device, torch.float32) / taken
        cells = ["", "", "", f"{taken:.2f}", "", f"{peak * 2**30 / 1e9:.2f}", f"{floor:.0%}"]
        return [f"{width}x{height}, {frames} frames", "fp32", *cells, f"{ratio:.2f}, {other * 2**30 / 1e9:.2f}"]

    return run


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Videos of several clips: seconds of the parts of a clip, cost of adapters, memory; for the tasks that make them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import add_device, alternate, make_parser, parse, write_result
from wan.clips import FramesDecoded
from wan.configs import NANO_CONFIGS, nano_checkpoint
from wan.jobs import PIPELINES
from wan.memory import peak_memory
from wan.modules.model import WanModel, time_features
from wan.modules.model_config import WanModelConfig
from wan.modules.packed import can_pack, pack_linears
from wan.modules.steps import Prepared, Step
from wan.request import Request
from wan.runtime import Runtime

FEW, MANY = 2, 20  # clips
# glibc returns blocks of this size at once. Without it freed memory is kept for others that may fit, and the peaks of
# equal runs differ by a third.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


class Case(NamedTuple):
    """Task to measure: a model of real width with few blocks, and the request of a video of so many clips."""

    task: str
    model: Callable[[], WanModel]
    prepare: Callable[[WanModel], tuple[tuple[int, int, int], Prepared]]  # the size of the latent, and what is prepared
    request: Callable[[int, Path], Request]
    most: float  # share of a forward that adapters may take
    more: Callable[[argparse.Namespace], Sequence[object]] | None = None  # makes a row of the task's own


def run(case: Case, description: str, arguments: Sequence[str] | None) -> None:
    """Measure a case and print, or save, its table."""
    parser = make_parser(case.task.partition("-")[0], description, rounds=5)
    add_device(parser)
    parser.add_argument("--memory", type=int, metavar="CLIPS", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parse(parser, arguments)
    torch.set_grad_enabled(False)
    if args.memory:
        print(json.dumps(peak_of(case, args.memory, Path(args.folder), args.device)))
        return
    rows = [*phase_rows(case, args), adapter_row(case, args), memory_row(case, args)]
    rows += [case.more(args)] if case.more else []
    write_result(
        f"{case.task.partition('-')[0]}-{args.device.type}.md",
        args.save,
        title=f"Clips of {case.task}",
        device=args.device,
        settings={"model of the phases": "nano", "rounds": args.rounds},
        header=("what", "value", "limit"),
        rows=rows,
        notes=[
            "Adapters: a forward with them against one without, in turns, at the width of the released model. Memory: "
            f"with {' '.join(f'{name}={value}' for name, value in ALLOCATOR.items())}."
        ],
    )


@torch.no_grad()
def random_model(kind: type[WanModel], config: WanModelConfig) -> WanModel:
    """Make a model with random weights in bfloat16; only its speed is of interest."""
    with torch.device("meta"):
        made = kind(config)
    made = made.to_empty(device="cpu").to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    return made.eval()


def phase_rows(case: Case, args: argparse.Namespace) -> list[Sequence[object]]:
    """Measure the seconds of each phase of a clip, of the embedded model."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline, request = made(case, args.device), case.request(FEW, Path(folder))
        for event in pipeline.run(request):
            del event
    count = pipeline.num_clips(request)
    return [(f"{name}, a clip", f"{stats.seconds / count:.2f} s", "") for name, stats in pipeline.phases.items()]


def made(case: Case, device: torch.device) -> Any:
    runtime = Runtime.from_flags(device=str(device))
    return PIPELINES[case.task](NANO_CONFIGS[case.task], nano_checkpoint(case.task), runtime=runtime)


def adapter_row(case: Case, args: argparse.Namespace) -> Sequence[object]:
    """Measure the share of a forward that the steps between the blocks take."""
    model = case.model().to(args.device)
    size, prepared = case.prepare(model)
    if can_pack(args.device, torch.bfloat16):
        for step in model.trunk():
            for module in step.modules:
                pack_linears(module)
    features = time_features(torch.tensor([500, 0]), model.config.freq_dim, args.device)
    latent = torch.randn(model.config.out_dim, *size, device=args.device)
    steps = list(model.trunk())
    blocks = {*model.blocks}
    plain = [step for number, step in enumerate(steps) if number in (0, len(steps) - 1) or blocks & {*step.modules}]

    def forward(chosen: list[Step]) -> None:
        model.trunk = lambda: chosen
        model([latent], features, prepared)

    found = alternate(partial(forward, plain), partial(forward, steps), args.device, args.rounds)
    share = found.ratio - 1
    what = f"{len(steps) - len(plain)} adapters beside {len(model.blocks)} blocks"
    return what, f"{share:+.1%} of a forward ({found.ours:.2f} s)", f"{case.most:.0%}"


def memory_row(case: Case, args: argparse.Namespace) -> Sequence[object]:
    """Compare the peak memory of videos of few and of many clips, each in its own process."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (FEW, MANY):
            name = case.task.partition("-")[0]
            command = [sys.executable, "-m", f"benchmarks.{name}", "--device", str(args.device)]
            command += ["--memory", str(count), "--folder", folder]
            done = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1]) / 2**20)
    few, many = peaks
    return f"peak memory of {FEW} and {MANY} clips", f"{few:.0f} and {many:.0f} MiB ({many / few - 1:+.1%})", "+5%"


def peak_of(case: Case, count: int, folder: Path, device: torch.device) -> int:
    """Make a video of so many clips, a frame of which is kept, and return the peak of memory in bytes."""
    pipeline = made(case, device)
    for event in pipeline.run(case.request(count, folder)):
        if isinstance(event, FramesDecoded):
            assert event.frames.isfinite().all()
    return peak_memory(device)

"""Predict the gain of several GPUs from the FLOPs and bytes of each rank, which are counted from shapes.

`python -m benchmarks.parallel` prints the prediction for the released models; with `--measure` a small model runs on
one and on two processes, each bound to one core. The counts are exact: tests/distributed/test_counts.py compares them
with a real run. The rates are not measured here: they fit published runs of one GPU.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import make_parser, parse, write_result
from wan import geometry
from wan.configs import WAN_CONFIGS, TaskConfig
from wan.distributed.replica import Replica
from wan.modules.model import WanModel, WanModelConfig
from wan.parallel import Parallel, shares
from wan.parser import exit_code

# One H100: FLOP/s, and seconds of norms, modulation and rotation per token, channel and block.
GEMM_RATE, ATTENTION_RATE = 730e12, 690e12
POINTWISE_SECONDS = 0.12 / (32760 * 5120 * 40)
MACHINE = 8  # GPUs that are linked directly
NETWORK = 45e9  # bytes/s of each GPU to other machines

SIZES = {
    "t2v-A14B": (("832*480", 81), ("1280*720", 81)),
    "i2v-A14B": (("832*480", 81), ("1280*720", 81)),
    "ti2v-5B": (("1280*704", 121),),
}


@dataclass(frozen=True)
class Link:
    """Link between the GPUs of a machine: bytes/s of each in one direction, and seconds to start an exchange."""

    name: str
    rate: float
    start: float


LINKS = (Link("NVLink", 350e9, 20e-6), Link("PCIe 4", 20e9, 30e-6))


# Counts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Work of the first of several ranks, which has the most heads, in one forward of one sample."""

    gemm: int  # FLOPs of matrix products of its tokens
    attention: int  # FLOPs of attention: its heads over all tokens, its tokens to the text
    repeated: int  # FLOPs that every rank does in full: text and time embedding, keys and values of the text
    pointwise: int  # tokens * channels * blocks
    exchanged: int  # bytes sent to other ranks, for attention and for the gathering at the end
    exchanges: int

    @property
    def flops(self) -> int:
        return self.gemm + self.attention + self.repeated


def forward_work(
    config: WanModelConfig, grid: tuple[int, int, int], ranks: int, *, itemsize: int = 2, timesteps: int = 1
) -> Work:
    """Count the work for the tokens of `grid` on `ranks`; q, k and v take `itemsize` bytes a value."""
    dim, patch, tokens = config.dim, math.prod(config.patch_size), math.prod(grid)
    mine = -(-tokens // ranks)  # filled up to equal parts
    heads = shares(config.num_heads, ranks)[0]

    per_token = config.num_layers * (6 * dim * dim + 2 * dim * config.ffn_dim)
    per_token += patch * (config.in_dim + config.out_dim) * dim
    per_text_row = config.num_layers * 2 * dim * dim + (config.text_dim + dim) * dim
    per_timestep = (config.freq_dim + dim + 6 * dim) * dim
    to_tokens = mine * ranks * tokens * heads * config.head_dim  # queries include the filling, keys do not
    to_text = mine * config.text_len * dim
    heads_sent = 3 * (config.num_heads - heads) + (ranks - 1) * heads  # per token: q, k, v; then the results
    return Work(
        gemm=2 * mine * per_token,
        attention=4 * config.num_layers * (to_tokens + to_text),
        repeated=2 * (config.text_len * per_text_row + timesteps * per_timestep),
        pointwise=mine * dim * config.num_layers,
        exchanged=mine
        * (config.num_layers * heads_sent * config.head_dim * itemsize + (ranks - 1) * patch * config.out_dim * 4),
        exchanges=0 if ranks == 1 else 2 * config.num_layers + 1,
    )


@cache
def gathered_bytes(config: WanModelConfig, ranks: int, itemsize: int = 2) -> int:
    """Bytes that a rank sends in one forward when the parameters are spread over `ranks` by rows (FSDP)."""
    with torch.device("meta"):
        parameters = dict(WanModel(config).named_parameters())
    held = 0
    for name, parameter in parameters.items():
        rows = -(-parameter.shape[0] // ranks)
        held += rows * parameter[0].numel() * (4 if WanModel.keeps_float32(name) else itemsize)
    return (ranks - 1) * held


def latent_bytes(config: WanModelConfig, grid: tuple[int, int, int]) -> int:
    """Bytes that a rank sends in one step when the branches of guidance are computed side by side."""
    return 4 * math.prod(grid) * math.prod(config.patch_size) * config.out_dim


# Prediction ----------------------------------------------------------------------------------------------------------


def forward_seconds(work: Work, ranks: int, link: Link) -> float:
    compute = (work.gemm + work.repeated) / GEMM_RATE + work.attention / ATTENTION_RATE
    return compute + work.pointwise * POINTWISE_SECONDS + exchange_seconds(work.exchanged, work.exchanges, ranks, link)


def exchange_seconds(sent: int, count: int, ranks: int, link: Link) -> float:
    """Seconds in which every rank sends equal parts to all others, while nothing else happens."""
    if ranks == 1:
        return 0.0
    away = max(0, ranks - MACHINE) / (ranks - 1)  # share of the others that are on another machine
    return count * link.start + sent * ((1 - away) / link.rate + away / NETWORK)


def step_seconds(config: WanModelConfig, grid: tuple[int, int, int], parallel: Parallel, link: Link) -> float:
    """Seconds of one denoising step with both branches of guidance."""
    ranks = parallel.ulysses_size
    forward = forward_seconds(forward_work(config, grid, ranks), ranks, link)
    if parallel.cfg_size == 1:
        return 2 * forward
    rate = NETWORK if parallel.world_size > MACHINE else link.rate
    return forward + link.start + latent_bytes(config, grid) / rate


def best_division(config: WanModelConfig, grid: tuple[int, int, int], gpus: int, link: Link) -> Parallel:
    choices = [Parallel(gpus, cfg, gpus // cfg) for cfg in (1, 2) if gpus % cfg == 0]
    return min(choices, key=lambda parallel: step_seconds(config, grid, parallel, link))


def predictions(task: TaskConfig, size: str, frame_num: int) -> Iterator[list[object]]:
    config = WanModelConfig.from_dict(task.architecture())
    latent = geometry.latent_shape(geometry.parse_size(size), frame_num, task.vae_stride, task.z_dim)
    f, h, w = (n // p for n, p in zip(latent[1:], config.patch_size, strict=True))
    grid = (f, h, w)
    for link in LINKS:
        alone = step_seconds(config, grid, Parallel(), link)
        for gpus in (1, 2, 4, 8, 16):
            division = best_division(config, grid, gpus, link)
            step = step_seconds(config, grid, division, link)
            work = forward_work(config, grid, division.ulysses_size)
            branches = 2 // division.cfg_size
            spread = gathered_bytes(config, gpus) * branches / 1e9 if gpus > 1 else 0.0
            yield [
                f"{task.name} {size} x {frame_num}",
                link.name,
                gpus,
                f"{division.cfg_size} x {division.ulysses_size}",
                step,
                alone / step,
                f"{alone / step / gpus:.0%}",
                work.flops * branches / 1e15,
                f"{work.repeated / work.flops:.2%}",
                (work.exchanged * branches + (division.cfg_size > 1) * latent_bytes(config, grid)) / 1e9,
                spread,
                f"{spread * 1e9 / link.rate / step:.0%}",
            ]


# Measurement on two cores --------------------------------------------------------------------------------------------

SMALL = WanModelConfig(dim=1024, ffn_dim=4096, num_heads=8, num_layers=2, text_dim=256, text_len=64)
SMALL_GRID = (8, 16, 16)


def measure(rounds: int) -> list[list[object]]:
    """Run a small float32 model on one process and on two: seconds, processor seconds, and the counted gain.

    Two processes with a whole forward each show how much busy cores slow each other down.
    """
    one, twice, two = (_run_pinned(count, parts, rounds) for count, parts in ((1, 1), (2, 1), (2, 2)))
    ratio = forward_work(SMALL, SMALL_GRID, 1).flops / forward_work(SMALL, SMALL_GRID, 2).flops
    rows: list[list[object]] = [["1 process", *one, 1.0, 1.0, 1.0]]
    rows.append(["2 processes, a forward each", *twice, one[0] / twice[0], one[1] / twice[1], 1.0])
    rows.append(["2 processes, one forward", *two, one[0] / two[0], one[1] / two[1], ratio])
    return rows


def _run_pinned(count: int, parts: int, rounds: int) -> tuple[float, float]:
    """Median seconds and processor seconds of a forward on the slowest of `count` processes, one core each; groups of
    `parts` processes share the tokens."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        workers = [
            context.Process(target=_forwards, args=(i, count, parts, meeting, rounds, results)) for i in range(count)
        ]
        for worker in workers:
            worker.start()
        found = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
    return max(wall for wall, _ in found), max(processor for _, processor in found)


def _forwards(rank: int, count: int, parts: int, meeting: str, rounds: int, results: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    model = WanModel(SMALL).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    Replica(Parallel(count, ulysses_size=parts), torch.device("cpu")).spread_tokens(model, scale=2.0)
    f, h, w = SMALL_GRID
    inputs = [torch.randn(SMALL.in_dim, f, 2 * h, 2 * w)], torch.tensor([500]), [torch.randn(64, SMALL.text_dim)]
    walls, processors = [], []
    for _ in range(rounds + 1):
        dist.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        model(*inputs)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    results.put((statistics.median(walls[1:]), statistics.median(processors[1:])))
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("parallel", __doc__, rounds=9)
    parser.add_argument(
        "--measure", action="store_true", help="run a small model on one and two cores instead; default: predict"
    )
    args = parse(parser, arguments)
    if args.measure:
        write_result(
            "parallel-cpu.md",
            args.save,
            title="Ulysses on two cores",
            device="cpu",
            settings={
                "model": f"dim {SMALL.dim} x {SMALL.num_layers}, float32",
                "grid": SMALL_GRID,
                "rounds": args.rounds,
            },
            header=("", "seconds", "processor seconds", "times faster", "by processor time", "by counted FLOPs"),
            rows=measure(args.rounds),
            notes=["The slowest process counts. Where cores are shared with others, processor time tells more."],
        )
        return
    write_result(
        "parallel.md",
        args.save,
        title="Several GPUs: predicted denoising steps",
        device="cpu",
        settings={
            "GPU": f"H100, GEMM {GEMM_RATE / 1e12:.0f} and attention {ATTENTION_RATE / 1e12:.0f} TFLOP/s",
            "links": ", ".join(f"{link.name} {link.rate / 1e9:.0f} GB/s" for link in LINKS),
            "network": f"{NETWORK / 1e9:.0f} GB/s per GPU between machines of {MACHINE}",
        },
        header=(
            "video",
            "link",
            "GPUs",
            "branches x parts",
            "s/step",
            "times faster",
            "efficiency",
            "PFLOP/rank",
            "repeated",
            "GB sent/rank",
            "FSDP GB",
            "FSDP share",
        ),
        rows=[row for name, sizes in SIZES.items() for size in sizes for row in predictions(WAN_CONFIGS[name], *size)],
        notes=[
            "A prediction, not a measurement. FLOPs and bytes are counted; the rates are those that fit published runs "
            "of one H100, also for PCIe, so that rows differ in the link alone. A step is both branches of guidance, "
            "divided in the better of the two ways. `repeated` is the share of a rank's FLOPs that every rank does in "
            "full. The last columns are what --dit_fsdp sends per step and rank, and the time of that at the link's "
            "rate as a share of the step: below 100 % it can be hidden behind the work of the block before."
        ],
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))

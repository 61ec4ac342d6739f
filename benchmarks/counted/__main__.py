"""Everything that can be said about speed and memory on a GPU without one: `python -m benchmarks.counted [--save]`.

The package runs on pretended tensors of released sizes. Operations, bytes and live memory are counted, and seconds are
predicted from rates that an H200 is taken to sustain. One forward is one branch of guidance of one step.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.common import make_parser, parse, write_result
from benchmarks.counted.cases import Case, cases
from benchmarks.counted.count import HEAVY, Counter
from benchmarks.counted.rates import MEMORY, RATES, Figures, figures, op_seconds
from wan.parser import exit_code
from wan.typed import one_of

GB = 1e9
LINES = 25  # of the source, in the list of the dearest
HEADER = (
    *("case", "launches", "GEMM TF", "attention TF", "conv TF", "other GB", "GEMM s", "attention s", "conv s"),
    *("other s", "eager s", "ideal fusion s", "floor share", "weights GB", "activations GB", "host asks", "host GB"),
)
NOTES = (
    f"- Rates: products {RATES['gemm'][0] / 1e12:.0f} TFLOP/s in 16 bits, attention {RATES['attention'][0] / 1e12:.0f},"
    f" convolutions {RATES['conv'][1] / 1e12:.0f} (TF32), memory {MEMORY / 1e12:.1f} TB/s. "
    "A kernel takes 2 us at least.",
    "- Ideal fusion: all operations between products, attention and convolutions are as few kernels as their order "
    "allows, in the form of the code that a compiler sees. Floor: all FLOPs at the rate of products.",
    "- Activations: the largest sum of live tensors but weights, without what libraries and the allocator add. Host "
    "asks: how often the host waits for a value; host GB: what is copied between host and device.",
    "- Forwards are of one branch of guidance, after `prepare`. Frames of a decoded video go to the host as float32.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    every = cases()
    parser = make_parser("counted", __doc__, rounds=1)
    phases = list(dict.fromkeys(case.phase for case in every))
    parser.add_argument(
        "--phases", nargs="+", type=one_of(phases), metavar="NAME", help=f"of {', '.join(phases)}; default: all"
    )
    parser.add_argument("--case", metavar="TEXT", help="only cases whose name has this text in it; default: all")
    parser.add_argument("--lines", action="store_true", help="also list the dearest lines of the source; default: not")
    args = parse(parser, arguments)
    chosen = [case for case in every if case.phase in (args.phases or phases) and (args.case or "") in case.name]
    if not chosen:
        parser.error(f"no case has {args.case!r} in its name; there are {', '.join(case.name for case in every)}")
    rows, goals, lines = [], [], []
    for case in chosen:
        counter = case.count()
        counts = figures(counter)
        compiled = figures(case.count(for_compiler=True)) if case.compiled else counts
        rows.append(row(case, counts, compiled))
        if case.goal:
            goals.append(reached(case, compiled.fused))
        if args.lines:
            lines += ["", f"Dearest lines of {case.name}; the peak is at `{counter.peak_at}`:", "", *dearest(counter)]
    write_result(
        "counted.md",
        args.save,
        title="Counted on pretended tensors, with seconds predicted for an H200: nothing here is measured",
        device="cpu",
        settings={"prompt": "100 tokens of 512", "frames": "those of the configs", "precision": "the default"},
        header=HEADER,
        rows=rows,
        notes=[*goals, *NOTES, *lines],
    )


def row(case: Case, counts: Figures, compiled: Figures) -> list[object]:
    flops = [counts.flops[kind] / 1e12 for kind in HEAVY]
    times = [f"{counts.seconds[kind]:.3f}" for kind in (*HEAVY, "other")]
    memory = f"{counts.weights / GB:.2f}", f"{(counts.peak - counts.weights) / GB:.2f}"
    shares = f"{counts.floor / counts.eager:.0%}, fused {compiled.floor / compiled.fused:.0%}"
    host = counts.asks, (counts.to_host + counts.to_device) / GB
    totals = counts.other_bytes / GB, *times, f"{counts.eager:.3f}", f"{compiled.fused:.3f}"
    return [case.name, counts.launches, *flops, *totals, shares, *memory, *host]


def reached(case: Case, seconds: float) -> str:
    """Compare the seconds of a compiled forward with its goal."""
    verdict = "reached" if seconds <= case.goal else "not reached"
    found = f"at most {case.goal:.2f} s, predicted {seconds:.2f} s"
    return f"- Goal for {case.name}, one compiled forward: {found}: {verdict}."


def dearest(counter: Counter) -> list[str]:
    """List the lines of the source that cost most."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0])
    for op in counter.ops:
        line = sums[op.where, op.name]
        for place, value in enumerate((1, op.bytes / GB, op_seconds(op) * 1e3)):
            line[place] += value
    found = sorted(sums.items(), key=lambda item: -item[1][2])[:LINES]
    return [
        f"- {time:.2f} ms, {count:.0f} x {name}, {size:.2f} GB: {line}" for (line, name), (count, size, time) in found
    ]


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Shared parts of the benchmarks: the machine in words, alternating timings, ceilings, peak memory, the result file."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from wan.files import check_writable
from wan.parser import Parser
from wan.runtime import resolve_device
from wan.typed import at_least, parsed, path

RESULTS = Path(__file__).parent / "results"


# Arguments -----------------------------------------------------------------------------------------------------------


def make_parser(name: str, description: str, rounds: int) -> Parser:
    """Make the parser of `python -m benchmarks.NAME`, with the flags of all benchmarks: --rounds and --save."""
    parser = Parser(prog=f"python -m benchmarks.{name}", description=description.split("\n")[0])
    parser.add_argument(
        "--rounds", type=at_least(1), default=rounds, metavar="N", help="measurements of each; default: %(default)s"
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const=True,
        type=path,
        metavar="FILE",
        help="write the table to benchmarks/results, under the usual name or this one; default: only print it",
    )
    return parser


def parse(parser: Parser, arguments: Sequence[str] | None) -> Namespace:
    """Parse the arguments, and make sure that a result can be written."""
    args = parser.parse_args(arguments)
    if args.save:
        try:
            check_writable(RESULTS / ("new.md" if args.save is True else args.save), overwrite=True)
        except ValueError as error:
            parser.error(f"{str(error).partition(';')[0]}; leave --save out to print the table only")
    return args


def add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        type=parsed(resolve_device),
        default=resolve_device(None),
        metavar="NAME",
        help="cuda, cuda:1, mps or cpu; default: the best there is",
    )


# The machine ---------------------------------------------------------------------------------------------------------


def describe_machine(device: torch.device | str = "cpu") -> str:
    """One line: processor or accelerator, memory in GiB, threads, versions of torch and Python."""
    device = torch.device(device)
    software = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, {software}"
    isa = torch.backends.cpu.get_cpu_capability()
    memory = f"{_total_memory() / 2**30:.0f} GiB" if _total_memory() else "memory unknown"
    return f"{_processor()} ({isa}), {torch.get_num_threads()} threads, {memory}, {software}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
        return " ".join([fields.get("model name", platform.machine()), *bf16])
    return platform.processor() or platform.machine()


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def describe_commit() -> str:
    """Short hash of the checkout, with "+changes" when tracked files differ from it; "unknown" outside git."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# Time ----------------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has finished; nothing to wait for on a CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def seconds(run: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Wall-clock seconds of one call, device work included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Comparison:
    """Medians of an alternating run in seconds; `ratio` is the median of reference / ours over the pairs."""

    ours: float
    reference: float
    ratio: float
    rounds: int


def median_seconds(
    run: Callable[[], object], device: torch.device | str = "cpu", rounds: int = 5, warmup: int = 1
) -> float:
    """Median wall-clock seconds of `rounds` calls after `warmup` unmeasured ones."""
    for _ in range(warmup):
        run()
    return statistics.median(seconds(run, device) for _ in range(rounds))


def alternate(
    ours: Callable[[], object],
    reference: Callable[[], object],
    device: torch.device | str = "cpu",
    rounds: int = 5,
    warmup: int = 1,
) -> Comparison:
    """Time two callables in turn, so that a machine that slows down meets both. Their order changes every round."""
    for _ in range(warmup):
        ours()
        reference()
    pairs = []
    for index in range(rounds):
        if index % 2 == 0:
            a = seconds(ours, device)
            b = seconds(reference, device)
        else:
            b = seconds(reference, device)
            a = seconds(ours, device)
        pairs.append((a, b))
    return Comparison(
        ours=statistics.median(a for a, _ in pairs),
        reference=statistics.median(b for _, b in pairs),
        ratio=statistics.median(b / a for a, b in pairs),
        rounds=rounds,
    )


# Ceilings ------------------------------------------------------------------------------------------------------------


def gemm_ceiling(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    shapes: Iterable[tuple[int, int, int]] | None = None,
    rounds: int = 5,
) -> float:
    """Best FLOP/s of `F.linear` over `shapes` (tokens, in, out): the measured limit of the matrix units."""
    cpu = torch.device(device).type == "cpu"
    shapes = shapes or ([(2048, 1536, 1536), (2048, 1536, 8960)] if cpu else [(8192, 5120, 5120), (16384, 5120, 13824)])
    best = 0.0
    for tokens, width, out in shapes:
        x = torch.randn(tokens, width, device=device, dtype=dtype)
        weight = torch.randn(out, width, device=device, dtype=dtype)
        with torch.inference_mode():
            fastest = _fastest(lambda x=x, weight=weight: F.linear(x, weight), device, rounds)
        best = max(best, 2 * tokens * width * out / fastest)
    return best


def sdpa_ceiling(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    tokens: int = 2048,
    heads: int = 12,
    head_dim: int = 128,
    rounds: int = 5,
) -> float:
    """FLOP/s of unmasked attention, 4 * tokens^2 * heads * head_dim per call, fastest of `rounds`."""
    q, k, v = torch.randn(3, 1, heads, tokens, head_dim, device=device, dtype=dtype).unbind(0)
    with torch.inference_mode():
        fastest = _fastest(lambda: F.scaled_dot_product_attention(q, k, v), device, rounds)
    return 4 * tokens**2 * heads * head_dim / fastest


def _fastest(run: Callable[[], object], device: torch.device | str, rounds: int) -> float:
    run()
    return min(seconds(run, device) for _ in range(rounds))


def floor_seconds(gemm_flops: float, sdpa_flops: float, gemm_rate: float, sdpa_rate: float) -> float:
    """Shortest time for this work at the measured rates. Divided by a measured time, it is the share of the ceiling."""
    return gemm_flops / gemm_rate + sdpa_flops / sdpa_rate


def dit_flops(
    *, dim: int, ffn_dim: int, num_layers: int, tokens: int, context_tokens: int, batch: int = 1
) -> tuple[int, int]:
    """(GEMM, attention) FLOPs of a WanModel's blocks: 8 square projections (two of them of the context's tokens), the
    feed-forward pair, self-attention and cross-attention. Embeddings and head, well below 1 %, are left out."""
    gemm = 2 * dim * dim * (6 * tokens + 2 * context_tokens) + 4 * tokens * dim * ffn_dim
    attend = 4 * tokens * dim * (tokens + context_tokens)
    return batch * num_layers * gemm, batch * num_layers * attend


# Memory --------------------------------------------------------------------------------------------------------------


@dataclass
class Peak:
    """Peak memory in bytes: in all (`bytes`), and above the level at the start (`added`). Set when the block ends."""

    bytes: int = 0
    added: int = 0


@contextmanager
def peak_memory(device: torch.device | str = "cpu", interval: float = 0.002) -> Iterator[Peak]:
    """Measure the peak memory of a block of code: on CUDA that of the allocator; on a Linux CPU the anonymous memory
    of the process (RssAnon), sampled every `interval` seconds. Pages of mapped files, which the kernel may drop, do
    not count."""
    device = torch.device(device)
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device)
    else:
        start = peak.bytes = anonymous_memory()
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(interval):
                peak.bytes = max(peak.bytes, anonymous_memory())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield peak
        finally:
            stop.set()
            watcher.join()
        peak.bytes = max(peak.bytes, anonymous_memory())
    peak.added = peak.bytes - start


def anonymous_memory() -> int:
    """Bytes of memory of this process that no file backs (Linux: RssAnon)."""
    return status("RssAnon")


def status(field: str) -> int:
    """Read a size of /proc/self/status in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not report {field}; run memory benchmarks on Linux")


# Results -------------------------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table; floats have three significant digits."""
    cells = [list(header), ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write_result(
    name: str,
    save: str | bool | None,
    *,
    title: str,
    device: torch.device | str,
    settings: dict[str, object],
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    notes: Iterable[str] = (),
) -> None:
    """Print a table as Markdown with machine, commit, settings and the command that repeats it.

    With `save` it is also written to benchmarks/results: True takes `name`, a text is another name or a path.
    """
    lines = [
        f"# {title}",
        "",
        f"- machine: {describe_machine(device)}",
        f"- commit: {describe_commit()}, {time.strftime('%Y-%m-%d')}",
        f"- settings: {', '.join(f'{key} {value}' for key, value in settings.items())}",
        f"- command: `{command_line()}`",
        "",
        markdown_table(header, rows),
        "",
        *notes,
    ]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if save:
        file = RESULTS / (name if save is True else save)
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file}", file=sys.stderr)


def command_line() -> str:
    """Return the command that started this process, as a reader would type it, without paths of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {Path(sys.argv[0]).name}"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])

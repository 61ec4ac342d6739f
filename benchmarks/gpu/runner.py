"""Parts of `make gpu`: each is a process with its own time limit, and the table is written again after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import describe_commit, describe_machine, markdown_table
from wan.files import atomic_file
from wan.memory import peak_memory

LAST_LINES = 6  # of a part that failed
SKIPPED = 77  # exit code
GB = 1e9
MARK = "RESULT "  # in front of the line of output that has what a part found
ROOT = Path(__file__).parents[2]


class Setting(NamedTuple):
    """Place where a part runs. `room` are the bytes that it may take; `toy` sizes are for trying the parts out."""

    device: torch.device
    room: int
    toy: bool


class Skip(Exception):
    """Reason why a part cannot be run here."""


@dataclass(frozen=True)
class Part:
    """Something to look at. `run` returns what it found, one line for each thing, or raises."""

    name: str
    run: Callable[[Setting], Sequence[str]]
    limit: float  # seconds


@dataclass(frozen=True)
class Outcome:
    name: str
    result: str  # "passed", "failed", "skipped", "running"
    seconds: float = 0.0
    peak: int | None = None  # bytes of the device, or on a CPU of the process
    lines: tuple[str, ...] = ()


def run_here(part: Part, setting: Setting) -> int:
    """Run a part in this process, and print what it found for the process that waits; return the exit code."""
    try:
        lines, code = list(part.run(setting)), 0
    except Skip as reason:
        lines, code = [str(reason)], SKIPPED
    print(MARK + json.dumps({"lines": lines, "peak": peak_memory(setting.device)}), flush=True)
    return code


def run_apart(name: str, command: Sequence[str], limit: float) -> Outcome:
    """Run a part in a process of its own; whatever happens to it, and after `limit` seconds, it is over."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
        taken = time.monotonic() - start
        output.seek(0)
        printed = output.read().decode(errors="replace").splitlines()
    return outcome(name, code, taken, printed, limit)


def _end_group(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome(name: str, code: int | None, taken: float, printed: Sequence[str], limit: float) -> Outcome:
    """Read the end of a part off its exit code, None for a part that was stopped, and what it printed."""
    found = next((json.loads(line[len(MARK) :]) for line in reversed(printed) if line.startswith(MARK)), None)
    if found and code in (0, SKIPPED):
        return Outcome(name, "skipped" if code else "passed", taken, found["peak"], tuple(found["lines"]))
    if code is None:
        why = f"stopped after {limit:.0f} s, its limit"
    elif code < 0:
        why = f"killed by {signal.Signals(-code).name}"
    else:
        why = f"exit code {code}"
    last = [line for line in printed if line.strip() and not line.startswith(MARK)][-LAST_LINES:]
    return Outcome(name, "failed", taken, found["peak"] if found else None, (why, *last))


def run_all(
    parts: Sequence[Part], file: Path, device: torch.device, budget: float, command: Callable[[Part], Sequence[str]]
) -> list[Outcome]:
    """Run all parts one after the other within `budget` seconds, and write the table to `file` after each."""
    start, done = time.monotonic(), []
    for index, part in enumerate(parts):
        left = budget - (time.monotonic() - start)
        write(file, device, [*done, *(Outcome(later.name, "still to run") for later in parts[index:])])
        if left < 1:
            done.append(Outcome(part.name, "skipped", lines=(f"the {budget:.0f} s of all parts are over",)))
            continue
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        done.append(run_apart(part.name, command(part), min(part.limit, left)))
        print(f"{part.name}: {done[-1].result}, {done[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    write(file, device, done)
    return done


def write(file: Path, device: torch.device, outcomes: Sequence[Outcome]) -> None:
    """Write the table of all parts so far."""
    rows = [
        (one.name, one.result, f"{one.seconds:.1f}", "" if one.peak is None else f"{one.peak / GB:.2f}", _cell(one))
        for one in outcomes
    ]
    text = [
        f"# What was seen on {describe_card(device)}",
        "",
        f"- machine: {describe_machine(device)}",
        f"- commit: {describe_commit()}, {time.strftime('%Y-%m-%d')}",
        f"- versions: {describe_versions()}",
        "- command: `make gpu`" + (f" `DEVICE={device}`: toy sizes" if device.type == "cpu" else ""),
        "",
        markdown_table(("part", "result", "seconds", "peak GB", "found"), rows),
    ]
    with atomic_file(file, overwrite=True) as partial:
        partial.write_text("\n".join(text) + "\n", encoding="utf-8")


def _cell(one: Outcome) -> str:
    return "<br>".join(line.replace("|", "\\|") for line in one.lines)


def describe_card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def describe_versions() -> str:
    """List torch, what it was built with, and the packages that have kernels."""
    from importlib import metadata

    names = "triton", "flash-attn", "flash-attn-3", "sageattention", "torchao", "transformers", "diffusers"
    found = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]
    if torch.backends.cudnn.is_available():
        found.append(f"cuDNN {torch.backends.cudnn.version()}")
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)

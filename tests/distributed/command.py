"""Run the command in several processes, as torchrun does but without its start-up time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.launch import CONTEXT

SECONDS = 300  # nothing here takes long on a quiet machine


@dataclass
class Run:
    """Processes of one command and their stderr, by rank."""

    processes: list[Any]
    logs: list[Path]
    _text: dict[int, str] = field(default_factory=dict)

    def finish(self) -> list[int]:
        """Wait for all and return their exit codes. Fails when one does not end."""
        deadline = time.monotonic() + SECONDS
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        assert None not in codes, f"still running after {SECONDS} s: {codes}\n{self}"
        return codes

    def error(self, rank: int) -> str:
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""

    def wait_for(self, text: str, rank: int = 0) -> None:
        """Wait until a process has written `text`."""
        deadline = time.monotonic() + SECONDS
        while text not in self.error(rank):
            assert time.monotonic() < deadline and self.processes[rank].is_alive(), f"no {text!r}:\n{self}"
            time.sleep(0.02)

    def send(self, number: signal.Signals, rank: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def __str__(self) -> str:
        return "\n".join(f"rank {rank}: {self.error(rank)}" for rank in range(len(self.logs)))


@contextmanager
def command(
    size: int, arguments: Sequence[str], folder: Path, *, world_size: int | None = None, prepare: Callable | None = None
):
    """`generate.py` with `arguments` in `size` processes that work in `folder`; all are gone afterwards.

    `prepare(rank)` is called in each process first; `world_size` is what they are told, when that is wrong.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # what the agent of torchrun holds
    environment = {
        "WORLD_SIZE": str(world_size or size),
        "LOCAL_WORLD_SIZE": str(world_size or size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    logs = [folder / f"rank{rank}.log" for rank in range(size)]
    processes = [
        CONTEXT.Process(target=_command, args=(rank, environment, arguments, log, folder, prepare))
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    try:
        yield Run(processes, logs)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _command(
    rank: int,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    log: Path,
    folder: Path,
    prepare: Callable[[int], None] | None,
) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    os.chdir(folder)
    sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115 - for the life of the process
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    from wan import cli

    if prepare is not None:
        prepare(rank)
    sys.exit(cli.main(list(arguments)))

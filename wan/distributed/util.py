"""The processes of a run: how they join and part, and the few messages that everything else is made of.

All of it is a no-op in a program that one process runs alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from wan.distributed.watch import Watch

BACKENDS = {"cuda": "nccl"}  # every other device: gloo
JOIN_SECONDS = 120
# A wait is no failure: one rank may load or write for long. The watch notices when a process is gone.
WAIT = timedelta(hours=6)
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def get_rank() -> int:
    """Number of this process among all of the run, 0 when it is alone."""
    return dist.get_rank() if _joined() else 0


def get_world_size() -> int:
    """Processes of the run that have joined, 1 when this one is alone."""
    return dist.get_world_size() if _joined() else 1


def launched_size(environ: Mapping[str, str] = os.environ) -> int:
    """Processes that torchrun started, by their environment. Raises ValueError when that contradicts itself."""
    text = environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {text!r}; start with torchrun, which sets it")
    size = int(text)
    if size == 1:
        return 1
    command = f"torchrun --nproc_per_node={size} generate.py ..., or unset WORLD_SIZE to run one process"
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing:
        raise ValueError(f"WORLD_SIZE is {size}, but {', '.join(missing)} not set; start with {command}")
    if int(environ["RANK"]) >= size:
        raise ValueError(f"RANK {environ['RANK']} does not exist among WORLD_SIZE {size}; start with {command}")
    local = int(environ.get("LOCAL_WORLD_SIZE", size))
    if local > size or (environ.get("GROUP_WORLD_SIZE") == "1" and local != size):
        raise ValueError(
            f"WORLD_SIZE is {size}, but torchrun started {local} processes here; leave WORLD_SIZE to torchrun"
        )
    return size


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Number of this process on its machine, which is the number of its GPU."""
    return int(environ.get("LOCAL_RANK", 0))


def init_distributed_group(device: torch.device | str | None = None) -> Watch | None:
    """Join the other processes of torchrun, with the backend of `device` (None: CUDA if there is one).

    Nothing to do for a process alone, or when the group exists. Returns the watch of a group that it made. Raises
    ValueError when the environment is wrong and ConnectionError when not all processes come.
    """
    size = launched_size()
    if size == 1 or _joined():
        return None
    if device is None:
        device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        on_gpu = {"device_id": device} if device.type == "cuda" else {}
        backend = BACKENDS.get(device.type, "gloo")
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT, **on_gpu)
    except (dist.DistError, RuntimeError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(
            f"the {size} processes that WORLD_SIZE announces did not all meet at {place} within {JOIN_SECONDS} s; "
            f"start every one with the same torchrun command ({error})"
        ) from error
    return Watch.join(rank, size)


@contextmanager
def processes(device: torch.device | str | None, report: Callable[[BaseException], None]) -> Iterator[None]:
    """All of a run's work: the processes join before it and part after it, and when one fails all end.

    `report` shows an error before the others hear of it; they get PeerFailed. The error is raised again in any case.
    """
    watch = None
    try:
        watch = init_distributed_group(device)
        if watch is not None:
            signal.signal(signal.SIGTERM, _stop)
        yield
        if watch is not None:
            watch.part()
            dist.destroy_process_group()
    except BaseException as error:
        shown = error if watch is None else watch.explain(error)
        report(shown)
        if watch is not None:
            watch.tell(shown)
        raise shown from (None if shown is error else error)


def _stop(*_: object) -> NoReturn:
    """torchrun stops the processes that are left this way; unwinding removes unfinished files."""
    raise SystemExit(128 + signal.SIGTERM)


def broadcast_int(value: int | None, device: torch.device | str = "cpu") -> int:
    """The `value` of rank 0, -2**63 to 2**63 - 1, on every rank."""
    if get_world_size() == 1:
        return int(value)
    box = torch.tensor([value if get_rank() == 0 else 0], dtype=torch.int64, device=device)
    dist.broadcast(box, src=0)
    return int(box)


def broadcast_text(text: str | None, device: torch.device | str = "cpu") -> str:
    """The `text` of rank 0 on every rank, sent as bytes."""
    if get_world_size() == 1:
        return str(text)
    data = (text or "").encode("utf-8")
    length = broadcast_int(len(data), device)
    box = torch.zeros(length, dtype=torch.uint8)
    if get_rank() == 0 and length:
        box = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    box = box.to(device)
    dist.broadcast(box, src=0)
    return bytes(box.tolist()).decode("utf-8")


def all_to_all(packed: Tensor, send: Sequence[int], receive: Sequence[int], group: ProcessGroup) -> Tensor:
    """send[r] values of the flat `packed` go to rank r of the group, in order; receive[r] come from each."""
    received = packed.new_empty(sum(receive))
    dist.all_to_all_single(received, packed, list(receive), list(send), group=group)
    return received


def all_gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """x of the same shape from each of P ranks -> [P, *x.shape]."""
    whole = x.new_empty(group.size(), *x.shape)
    dist.all_gather(list(whole.unbind(0)), x.contiguous(), group=group)
    return whole


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()

"""Join and leave the processes of a run, and send the few kinds of messages that all else is made of.

All of it is a no-op in a process alone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from wan.distributed.watch import Watch
from wan.parallel import launched_size, local_rank

BACKENDS = {"cuda": "nccl"}  # every other device: gloo
JOIN_SECONDS = 120
AGENT_SECONDS = 5  # torchrun listens before it starts a process
PATIENCE = 5  # seconds after which a process logs which others are missing
# Waiting is no failure: one rank may load or write for long. The watch notices when a process is gone.
WAIT = timedelta(hours=6)
log = logging.getLogger(__name__)


def get_rank() -> int:
    """Number of this process among all of the run, 0 when it is alone."""
    return dist.get_rank() if _joined() else 0


def get_world_size() -> int:
    """Processes of the run that have joined, 1 when this one is alone."""
    return dist.get_world_size() if _joined() else 1


def init_distributed_group(device: torch.device | str | None = None) -> None:
    """Join the other processes of torchrun, with the backend of `device` (None: CUDA if there is one).

    Does nothing for a process alone, or when the group exists. Raises ValueError when the environment is wrong, and
    ConnectionError when not all processes come.
    """
    size = launched_size()
    if size == 1 or _joined():
        return
    if device is None:
        device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    on_gpu = {"device_id": device} if device.type == "cuda" else {}
    if on_gpu:
        torch.cuda.set_device(device)
    _check_agent()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        _meet(store, rank, size)
        backend = BACKENDS.get(device.type, "gloo")
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT, **on_gpu)
    except RuntimeError as error:  # also all errors of torch.distributed
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(
            f"the {size} processes that WORLD_SIZE announces did not all meet at {place} within {JOIN_SECONDS} s; "
            f"start every one with the same torchrun command ({str(error).splitlines()[0]})"
        ) from error


def _check_agent() -> None:
    """Make sure that torchrun is still there; joining would wait for its store for minutes. Raises ConnectionError."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    place, deadline = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return socket.create_connection(place, timeout=AGENT_SECONDS).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"torchrun, which started this process, is gone ({error})") from None
            time.sleep(0.5)


def _meet(store: dist.Store, rank: int, size: int) -> None:
    """Wait until all have come; only from then on may they wait for each other without a limit."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    here = [f"wan/{attempt}/here/{other}" for other in range(size)]
    store.set(here[rank], "")
    patience = min(PATIENCE, JOIN_SECONDS)
    try:
        store.wait(here, timedelta(seconds=patience))
    except dist.DistStoreError:
        missing = [other for other in range(size) if not store.check([here[other]])]
        if rank == min(set(range(size)) - set(missing)):
            absent = ", ".join(map(str, missing))
            log.error("waiting up to %d s for rank %s of %d processes ...", JOIN_SECONDS, absent, size)
        store.wait(here, timedelta(seconds=JOIN_SECONDS - patience))
    store.set_timeout(WAIT)


def start(device: torch.device | str | None = None) -> None:
    """Join the others. From now on this process ends when one of them fails. Call `stop` when the work is done."""
    global _watch
    init_distributed_group(device)
    if _joined() and _watch is None:
        _watch = Watch.join(get_rank(), get_world_size())


def stop() -> None:
    """Wait until the others are done as well, and leave the group."""
    global _watch
    if _watch is not None:
        _watch.part()
        _watch = None
        dist.destroy_process_group()


def is_first_failure(error: BaseException) -> bool:
    """Tell whether this process must show `error`: not when it only follows from an error that another one shows."""
    if _watch is None:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's request to end would interrupt this
    return _watch.is_first(error)


_watch: Watch | None = None


def broadcast_int(value: int, device: torch.device | str = "cpu", group: ProcessGroup | None = None) -> int:
    """Return the `value` of the first rank, -2**63 to 2**63 - 1, on every rank of the group (None: all)."""
    if get_world_size() == 1:
        return value
    return int(_from_first(torch.tensor([value], dtype=torch.int64, device=device), group))


def least(value: int, device: torch.device | str = "cpu") -> int:
    """Return the least `value` of all processes on every one."""
    if get_world_size() == 1:
        return value
    found = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def broadcast_text(text: str, device: torch.device | str = "cpu", group: ProcessGroup | None = None) -> str:
    """Return the `text` of the first rank on every rank; it is sent as bytes."""
    if get_world_size() == 1:
        return text
    data = torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8, device=device)
    length = broadcast_int(len(data), device, group)
    data = _from_first(data if len(data) == length else data.new_zeros(length), group)
    return bytes(data.tolist()).decode("utf-8", "surrogateescape")


def broadcast_tensor(x: Tensor | None, like: Tensor, group: ProcessGroup) -> Tensor:
    """Return the `x` of the first rank, of any shape, on every rank; type and device are those of `like`."""
    shape = torch.zeros(MAX_DIMS, dtype=torch.int64, device=like.device)
    if x is not None:
        shape[: x.ndim + 1] = torch.tensor([x.ndim, *x.shape])
    ndim, *sizes = _from_first(shape, group).tolist()
    return _from_first(like.new_empty(sizes[:ndim]) if x is None else x.to(like).contiguous(), group)


MAX_DIMS = 8


def _from_first(x: Tensor, group: ProcessGroup | None) -> Tensor:
    dist.broadcast(x, group=group, group_src=0)
    return x


def all_to_all(packed: Tensor, send: Sequence[int], receive: Sequence[int], group: ProcessGroup) -> Tensor:
    """Send send[r] values of the flat `packed` to each rank r of the group, in order; return receive[r] from each."""
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

"""Run a function in several processes that are joined over gloo, and collect what each returns."""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 300  # on a busy machine starting alone takes a minute
CONTEXT = multiprocessing.get_context("forkserver")  # one server imports torch, every process is a quick fork of it
ENCODERS = [f"transformers.models.{name}.modeling_{name}" for name in ("clip", "wav2vec2")]  # seconds each time
OURS = ["wan.cli", "wan.modules.vae2_2"]
CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "torch.distributed.fsdp", *OURS, *ENCODERS])


def launch(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """Call fn(*args), of a test module, in `size` processes. Fails with the traceback of any process."""
    results: Any = CONTEXT.Queue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        workers = [CONTEXT.Process(target=_work, args=(rank, size, meeting, results, fn, args)) for rank in range(size)]
        for worker in workers:
            worker.start()
        try:
            found = dict(results.get(timeout=SECONDS) for _ in workers)
        except queue.Empty:
            raise AssertionError(f"not all of {size} processes answered within {SECONDS} s") from None
        finally:
            for worker in workers:
                worker.join(timeout=5)
                worker.kill()
    failed = {rank: value.text for rank, value in found.items() if isinstance(value, _Failure)}
    assert not failed, "\n".join(f"rank {rank}: {text}" for rank, text in sorted(failed.items()))
    return [found[rank] for rank in range(size)]


class _Failure:
    def __init__(self, text: str):
        self.text = text


def _work(rank: int, size: int, meeting: str, results: Any, fn: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    try:
        result = fn(*args)
    except BaseException:
        result = _Failure(traceback.format_exc())
    results.put((rank, _plain(result)))
    dist.destroy_process_group()


def _plain(value: Any) -> Any:
    """Turn tensors into arrays: tensors would be sent in shared memory, which ends with the process."""
    if isinstance(value, torch.Tensor):
        return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

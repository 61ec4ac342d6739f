"""Move models between devices, which nothing else does, and measure memory.

Models are loaded when they are first used, and are never copied back. Host weights stay as they were loaded (often as a
memory map of the file), and a model leaves the device by dropping its device copy.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread

import torch
from torch import Tensor, nn

from wan.runtime import Offload


@dataclass(frozen=True)
class PhaseStats:
    """Seconds of a phase of a run, and its peak memory in bytes.

    On an accelerator it is the peak of the device within the phase, on a CPU that of the process up to its end. None
    where the platform does not tell it.
    """

    seconds: float
    peak_bytes: int | None


class Weights:
    """Models of one pipeline by name. Each is loaded on first use, and is on the device as the policy allows."""

    def __init__(self, device: torch.device, offload: Offload):
        self.device = device
        self.set_offload(offload)
        self._loaders: dict[str, Callable[[], nn.Module]] = {}
        self._modules: dict[str, nn.Module] = {}
        self._coming: dict[str, Future[nn.Module]] = {}
        self._host: dict[str, dict[str, Tensor]] = {}  # host tensors of the models that are on the device

    def set_offload(self, offload: Offload) -> None:
        """Change the policy between runs. On a CPU nothing is ever moved."""
        self.offload = offload if self.device.type != "cpu" else Offload.NONE

    def add(self, name: str, loader: Callable[[], nn.Module]) -> None:
        """Register a model. `loader` is called on first use. It returns the model with its weights on the CPU, or on
        the device if they stay there."""
        self._loaders[name] = loader

    def get(self, name: str) -> nn.Module:
        """Return the model; its weights may be on any device."""
        if name not in self._modules:
            coming = self._coming.pop(name, None)
            self._modules[name] = self._loaders[name]() if coming is None else coming.result()
        return self._modules[name]

    def prefetch(self, name: str) -> None:
        """Start to load a model in the background for later use; not on a CPU, which it would slow down.

        An error of the loader is raised where the model is used. The process may end while it is still loading.
        """
        if self.device.type == "cpu" or name in self._modules or name in self._coming:
            return
        self._coming[name] = future = Future()

        def load() -> None:
            try:
                if self.device.type == "cuda":  # each thread has a current device of its own, at first cuda:0
                    torch.cuda.set_device(self.device)
                future.set_result(self._loaders[name]())
            except BaseException as error:
                future.set_exception(error)

        Thread(target=load, name=f"load {name}", daemon=True).start()

    def use(self, name: str) -> nn.Module:
        """Return the model with its weights on the device; under `Offload.MODEL` every other one leaves it first."""
        if self.offload is not Offload.NONE:
            for other in list(self._host):
                if other != name:
                    self._leave(other)
        module = self.get(name)
        tensors = dict(_tensors(module))
        if name not in self._host and any(tensor.device != self.device for tensor in tensors.values()):
            self._host[name] = {key: tensor.data for key, tensor in tensors.items()}
            for tensor in tensors.values():
                tensor.data = tensor.data.to(self.device, non_blocking=True)
        return module

    def done(self, name: str) -> None:
        """End the use of a model in this phase: under `Offload.MODEL` it leaves the device."""
        if self.offload is not Offload.NONE and name in self._host:
            self._leave(name)

    def drop(self, name: str) -> None:
        """Forget a loaded model; the next use loads it again."""
        self._host.pop(name, None)
        self._modules.pop(name, None)
        gc.collect()

    def _leave(self, name: str) -> None:
        host = self._host.pop(name)
        for key, tensor in _tensors(self._modules[name]):
            tensor.data = host[key]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@contextmanager
def measured(phases: dict[str, PhaseStats], name: str, device: torch.device) -> Iterator[None]:
    """Add the time of a phase of a run to `phases[name]`, and record its peak memory; also when it fails."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before = phases.get(name, PhaseStats(0.0, None))
        peaks = [peak for peak in (before.peak_bytes, peak_memory(device)) if peak is not None]
        phases[name] = PhaseStats(before.seconds + time.perf_counter() - start, max(peaks, default=None))


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: of the allocator on CUDA, of the process on a CPU; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def keep_no_gaps() -> None:
    """Give freed tensors of a MiB and more back to the system at once; where the C library is not glibc, do nothing.

    glibc keeps blocks of up to 32 MiB for later. Decoding 1008x704 in tiles of 256 took 1.39 GiB so, and takes 0.60.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


M_MMAP_THRESHOLD = -3  # of malloc.h


def total_memory(device: torch.device) -> int | None:
    """Memory of a device in bytes, for a CPU that of the machine; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None

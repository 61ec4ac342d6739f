"""Move models between devices, which only this file and `streaming` do, and measure memory.

Models are loaded when they are first used. Host weights stay as they were loaded (often as a memory map of the file),
and a model leaves the device by dropping its device copy. One that was loaded there is copied to the host once.
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
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from wan.runtime import Host, Offload
from wan.streaming import Streamed, make_lane


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

    def __init__(
        self,
        device: torch.device,
        offload: Offload,
        host: Host = Host.ALL,
        stay: int = 0,
        group: ProcessGroup | None = None,
    ):
        """`host` and `stay` are those of a `Runtime`; the processes of `group` share the host memory of blocks."""
        self.device, self.host, self.stay, self.group = device, host, stay, group
        self.offload = Offload.NONE
        self._loaders: dict[str, Loader] = {}
        self._modules: dict[str, nn.Module] = {}
        self._streams: dict[str, Streamed] = {}
        self._coming: dict[str, Future[tuple[nn.Module, Streamed | None]]] = {}
        self._there: dict[str, dict[str, Tensor] | None] = {}  # on the device, with host tensors if there are any
        self.set_offload(offload)

    def set_offload(self, offload: Offload) -> None:
        """Change the policy between runs. On a CPU whole models are never moved."""
        assert offload is not Offload.AUTO, "the plan of a run decides"
        before = self.offload
        self.offload = Offload.NONE if self.device.type == "cpu" and offload is Offload.MODEL else offload
        if self.offload is not before and Offload.BLOCK in (before, self.offload):
            for name in list(self._there):
                self._leave(name)
            for name in [name for name, stream in self._streams.items() if stream.is_spread]:
                self.drop(name)  # its weights are whole nowhere: they are read again

    def add(
        self,
        name: str,
        load: Callable[[], nn.Module],
        types: Callable[[str], torch.dtype] | None = None,
        keeps: bool = False,
    ) -> None:
        """Register a model. `load` is called on first use, and returns it on the CPU, or on the device.

        types: of its tensors at work, by name; None: as `load` returns them. keeps: its blocks are wanted again and
        again, so that they are worth pinned memory while they stream.
        """
        self._loaders[name] = Loader(load, types, keeps and self.host is not Host.MAPPED)

    def knows(self, name: str) -> bool:
        """Tell whether a model of that name was added."""
        return name in self._loaders

    def get(self, name: str) -> nn.Module:
        """Return the model; its weights may be on any device."""
        if name not in self._modules:
            coming = self._coming.pop(name, None)
            module, stream = self._load(name) if coming is None else coming.result()
            self._modules[name] = module
            if stream is not None:
                self._streams[name] = stream
        return self._modules[name]

    def prefetch(self, name: str) -> None:
        """Start to load a model in the background for later use; not on a CPU, which it would slow down.

        Nor where there is room on the host for one at a time. An error of the loader is raised where the model is used.
        The process may end while it is still loading.
        """
        if self.device.type == "cpu" or self.host is Host.ONE or name in self._modules or name in self._coming:
            return
        self._coming[name] = future = Future()

        def load() -> None:
            try:
                if self.device.type == "cuda":  # each thread has a current device of its own, at first cuda:0
                    torch.cuda.set_device(self.device)
                future.set_result(self._load(name))
            except BaseException as error:
                future.set_exception(error)

        Thread(target=load, name=f"load {name}", daemon=True).start()

    def use(self, name: str) -> nn.Module:
        """Return the model with its weights on the device, or those of its steps while each works.

        Except under `Offload.NONE` every other model leaves the device first.
        """
        if name in self._there and (len(self._there) == 1 or self.offload is Offload.NONE):
            return self._modules[name]
        if self.offload is not Offload.NONE:
            for other in list(self._there):
                if other != name:
                    self._leave(other)
        module = self.get(name)
        if name not in self._there:
            self._enter(name, module)
        return module

    def done(self, name: str) -> None:
        """End the use of a model in this phase: except under `Offload.NONE` it leaves the device."""
        if self.offload is not Offload.NONE and name in self._there:
            self._leave(name)

    def drop(self, name: str) -> None:
        """Forget a loaded model; the next use loads it again."""
        for known in (self._there, self._modules, self._streams):
            known.pop(name, None)
        gc.collect()

    def _load(self, name: str) -> tuple[nn.Module, Streamed | None]:
        module = self._loaders[name].load()
        return module, self._streamed(name, module)

    def _streamed(self, name: str, module: nn.Module) -> Streamed | None:
        """Make the steps of a model ready to stream, if the policy wants it and the model has a list of them."""
        if self.offload is not Offload.BLOCK or not hasattr(module, "trunk"):
            return None
        _, types, keeps = self._loaders[name]
        group = self.group if keeps else None
        return self._streams.get(name) or Streamed(module, make_lane(self.device), keeps, types, group)

    def _enter(self, name: str, module: nn.Module) -> None:
        stream, types = self._streamed(name, module), self._loaders[name].types
        if stream is not None:
            self._streams[name] = stream
        tensors = {key: tensor for key, tensor in _tensors(module) if stream is None or key not in stream.names}
        moves = any(tensor.device != self.device for tensor in tensors.values())
        self._there[name] = {key: tensor.data for key, tensor in tensors.items()} if moves else None
        for key, tensor in tensors.items() if moves or types else ():
            tensor.data = tensor.data.to(self.device, *([types(key)] if types else []), non_blocking=True)
        if stream is not None:
            stream.start(self.stay)

    def _leave(self, name: str) -> None:
        host, stream, tensors = self._there[name], self._streams.get(name), dict(_tensors(self._modules[name]))
        streams = stream is not None and stream.shelf is not None
        if host is None and not streams and self.device.type != "cpu":  # it was loaded there
            if any(hasattr(tensor, "placements") for tensor in tensors.values()):
                return  # other processes have parts of it
            host = {key: tensor.data.cpu() for key, tensor in tensors.items()}
        del self._there[name]
        if streams:
            stream.stop()
        for key, data in (host or {}).items():
            tensors[key].data = data
        if self.host is Host.ONE and self._loaders[name].keeps:
            del host, stream, tensors
            self.drop(name)


class Loader(NamedTuple):
    """Loader of a model, as it was given to `Weights.add`."""

    load: Callable[[], nn.Module]
    types: Callable[[str], torch.dtype] | None
    keeps: bool


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
    except torch.OutOfMemoryError as error:
        error.phase = name
        raise
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
    with suppress(OSError):  # Linux, where the figure below is at least that of the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
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


def free_memory(device: torch.device) -> int | None:
    """Memory in bytes that programs can still get: of the GPU itself, elsewhere all there is; None where unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else total_memory(device)

"""Stand-in for a GPU and its driver: the host computes, the device pretends, and what passes between them is listed.

Tensors of the device are FakeTensors of `cuda:0`, in an ordinary CUDA build of torch on a machine without a GPU.
Weights have the shapes and types of their files, and no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.counted.count import ASKS, where
from benchmarks.counted.pretend import Device
from wan.checkpoint import source

MEMORY = 80 * 10**9


class Event(NamedTuple):
    """Something that passed between host and device, or was left on the host."""

    phase: str
    what: str  # "to host", "to device", "asked", "left on the host"
    operation: str
    nbytes: int
    where: str


class Driver(TorchDispatchMode):
    """Context in which tensors are on a pretended GPU. `events` lists what happened, by the phase that was current."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.phase = ""
        self._pretend = FakeTensorMode(allow_non_fake_inputs=True)
        self._stack = ExitStack()

    def __enter__(self) -> Driver:
        for name, value in self._replaced().items():
            owner, _, attribute = name.rpartition(".")
            self._stack.enter_context(mock.patch(f"{owner}.{attribute}", value, create=attribute == "data"))
        for mode in (self._pretend, Device(), torch.no_grad()):
            self._stack.enter_context(mode)
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._stack.close()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name what happens within the context."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = [torch.device(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        on_host = all(place.type == "cpu" for place in places)
        if on_host and not any(isinstance(x, FakeTensor) for x in given):
            self._see("left on the host", name, [x for x in given if x.ndim and x.device.type == "cpu"])
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in ASKS and isinstance(given[0], FakeTensor):
            self._see("asked", name, given)
            if name == "allclose":
                return True
            if name == "_local_scalar_dense" and given[0].dtype == torch.bool:
                return where().startswith("finite.py")  # all is finite, and nothing else is true
            if name == "_local_scalar_dense" and given[0].dtype.is_floating_point:
                return 0.5
        if name == "copy_" and type(given[0]) is Tensor and given[0].device.type == "cpu":  # it has no values to give
            self._see("to host", name, given[:1])
            with unset_fake_temporarily():
                return given[0].zero_()
        args, kwargs = tree_map(self._pretended, (args, kwargs))
        result = func(*args, **kwargs)
        met = given + [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        moves = name in ("_to_copy", "to")
        if len({x.device.type for x in met if x.ndim or moves}) > 1:
            target = result if moves else given[0]
            self._see("to device" if target.device.type == "cuda" else "to host", name, [target])
        return result

    def _pretended(self, value: Any) -> Any:
        return self._pretend.from_tensor(value) if type(value) in (Tensor, nn.Parameter) else value

    def _see(self, what: str, name: str, tensors: list[Tensor]) -> None:
        if tensors:
            self.events.append(Event(self.phase, what, name, sum(x.nbytes for x in tensors), where()))

    def weight(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Make a weight without values on the host."""
        with unset_fake_temporarily():
            return FakeTensor(self._pretend, torch.empty(shape, dtype=dtype, device="meta"), torch.device("cpu"))

    def _replaced(self) -> dict[str, Any]:
        """List what asks the driver, and what stands for it."""
        card = SimpleNamespace(name="pretended", total_memory=MEMORY, major=9, minor=0, multi_processor_count=132)
        plain, read_contents = torch.Generator, source.read_contents

        def read(*given: Any) -> Any:
            with unset_fake_temporarily():
                return read_contents(*given)

        nothing, zero = (lambda *given, **options: None), (lambda *given, **options: 0)
        data = property(torch.Tensor.data.__get__, _set_data)
        return {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.current_device": zero,
            "torch.cuda.set_device": nothing,
            "torch.cuda.get_device_properties": lambda device=None: card,
            "torch.cuda.get_device_capability": lambda device=None: (card.major, card.minor),
            "torch.cuda.get_device_name": lambda device=None: card.name,
            "torch.cuda.mem_get_info": lambda device=None: (MEMORY, MEMORY),
            **{f"torch.cuda.{name}": zero for name in ("memory_allocated", "max_memory_allocated", "memory_reserved")},
            **{f"torch.cuda.{name}": nothing for name in ("synchronize", "reset_peak_memory_stats", "empty_cache")},
            "torch.cuda.Event": _Waited,
            "torch.cuda.Stream": _Waited,
            "torch.cuda.current_stream": lambda device=None: _Waited(),
            "torch.cuda.stream": lambda stream: ExitStack(),
            "torch.Generator": lambda device="cpu": plain(),
            "torch._fused_sdp_choice": lambda *operands: 1,
            "torch._subclasses.fake_tensor.FakeTensor.data": data,
            "torch.nn.Module._apply": _apply,
            "wan.streaming.CudaLane.pinned": lambda lane, nbytes: self.weight((nbytes,), torch.uint8),
            "wan.memory.Thread": _Now,  # a pretended device is one of the thread that entered the context
            "wan.checkpoint.loading._one_ahead": map,  # it has a thread
            "wan.checkpoint.source.read_contents": read,
            "wan.checkpoint.source.TensorSource.get": lambda file, name: self.weight(
                file.shape(name), file.dtype(name)
            ),
        }


class _Waited:
    """Event or stream of a device that has always finished."""

    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **options: self


class _Now:
    """Thread that runs when it is started."""

    def __init__(self, target: Any, **options: Any) -> None:
        self.start = target


def _apply(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """Change the tensors of a module; PyTorch's own way exchanges whole parameters, which pretended ones refuse."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = change(tensor.data)
    return module


def _set_data(tensor: FakeTensor, value: Tensor) -> None:
    """Exchange the storage of a pretended tensor, and its device with it."""
    torch.Tensor.data.__set__(tensor, value)
    tensor.fake_device = value.device

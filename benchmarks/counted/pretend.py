"""Tensors that pretend to be on a GPU, on a machine without one; the CPU build of torch is enough.

The package runs on FakeTensors of `cuda:0`, so that each branch on a device is that of a GPU. Nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def pretended() -> Iterator[None]:
    """Allow tensors on `DEVICE`, without gradients."""
    with FakeTensorMode(allow_non_fake_inputs=True), Device(), torch.no_grad():
        yield


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def place(build: Callable[[], Module], dtype: Callable[[str], torch.dtype]) -> Module:
    """Build a module with its weights on the pretended device; `dtype` gives the type of each by its name."""
    with unset_fake_temporarily(), torch.device("meta"):
        module = build()
    for name, weight in [*module.named_parameters()]:
        owner, _, leaf = name.rpartition(".")
        value = nn.Parameter(empty(*weight.shape, dtype=dtype(name)), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, value)
    for name, value in [*module.named_buffers()]:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, empty(*value.shape, dtype=value.dtype))
    module.to = lambda *place, **options: module  # it is there, and pretended weights cannot be exchanged
    return module.eval()


@torch.library.custom_op("counted::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Stand for any fused kernel of attention, q [B, N, L, D]; it reads its operands and writes its result."""
    raise NotImplementedError


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    b, n, length, _ = q.shape  # in memory [B, L, N, D], as flash kernels and cuDNN write it
    return torch.empty((b, length, n, v.shape[-1]), dtype=q.dtype, device=q.device).transpose(1, 2)


@torch.library.custom_op("counted::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Stand for the one kernel that a CUDA build has, and that a build for CPUs takes apart."""
    raise NotImplementedError


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attend by a fused kernel; it asks for operands whose last stride is 1. The plain one writes all scores."""
    if all(operand.stride(-1) == 1 for operand in (query, key, value)):
        return attention(query, key, value, attn_mask)
    root = (options.get("scale") or query.shape[-1] ** -0.5) ** 0.5
    scores = (query * root) @ (key * root).transpose(-2, -1)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ value


class Device(TorchFunctionMode):
    """Replaces what needs a device: its kernels, and indexing, which asks a build with CUDA for a guard."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and isinstance(args[0], FakeTensor):
            return _item(*args)
        if func is Tensor.__setitem__ and isinstance(args[0], FakeTensor):
            target, index, value = args
            write = aten.copy_ if isinstance(value, Tensor) else aten.fill_
            write(_item(target, index), value)
            return None
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if func is F.rms_norm:
            return rms_norm(args[0], args[2] if len(args) > 2 else kwargs.get("weight"))
        if func is Tensor.copy_:
            return aten.copy_(*args, **kwargs)
        if func is Tensor.contiguous:
            layout = kwargs.get("memory_format", torch.contiguous_format)
            if aten.is_contiguous.memory_format(args[0], layout):
                return args[0]
            return aten.clone(args[0], memory_format=layout)
        if func is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _item(x: Tensor, index: Any) -> Tensor:
    """Index by plain operators."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [i for i in index if not isinstance(i, Tensor)]:
        place = [i is Ellipsis for i in index].index(True)
        used = sum(i is not None for i in index) - 1
        index = (*index[:place], *[slice(None)] * (x.ndim - used), *index[place + 1 :])
    dim = 0
    for i in index:
        if isinstance(i, int):
            x = aten.select(x, dim, i)
            continue
        if i is None:
            x = aten.unsqueeze(x, dim)
        elif isinstance(i, slice):
            start, stop, step = i.indices(x.shape[dim])
            if (start, stop, step) != (0, x.shape[dim], 1):
                x = aten.slice(x, dim, start, max(start, stop), step)
        else:
            x = aten.index(x, [None] * dim + [torch.as_tensor(i)])
        dim += 1
    return x

"""Tensors that pretend to be on a GPU, on a machine without one, and a guard against waiting for it.

The package runs on FakeTensors of `cuda:0`, so that each branch on a device is that of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
ASKS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal")


@contextmanager
def pretended() -> Iterator[None]:
    """Allow tensors on `DEVICE`, without gradients."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Indexing(), torch.no_grad():
        yield


class NeverWaits(TorchDispatchMode):
    """Raises AssertionError when a value of the device is asked for, or anything moves between host and device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        assert name not in ASKS or not any(x.is_cuda for x in given), f"{name} asks the device"
        out = func(*args, **kwargs or {})
        met = given + [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        places = {x.device.type for x in met if x.ndim or name == "_to_copy"}  # a number of the host is an argument
        assert len(places) < 2, f"{name} moves {[tuple(x.shape) for x in given]} between host and device"
        return out


class _Indexing(TorchFunctionMode):
    """Index by plain operators: Python's own indexing asks for a CUDA guard, which a build for CPUs lacks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _item(*args)
        if func is Tensor.__setitem__:
            target, index, value = args
            write = aten.copy_ if isinstance(value, Tensor) else aten.fill_
            write(_item(target, index), value)
            return None
        if func is F.scaled_dot_product_attention:  # which kernel runs is decided by the device
            return torch.empty_like(args[0])
        if func is Tensor.copy_:
            return aten.copy_(*args, **kwargs or {})
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


def _item(x: Tensor, index: Any) -> Tensor:
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
            x = aten.slice(x, dim, start, max(start, stop), step)
        else:
            x = aten.index(x, [None] * dim + [torch.as_tensor(i)])
        dim += 1
    return x

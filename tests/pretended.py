"""Guard against waiting for a pretended GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.counted.count import ASKS


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

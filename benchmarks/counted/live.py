"""Bytes of live tensors while code runs, with real tensors or with pretended ones that compute nothing."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Context that counts `peak`: the most bytes of tensors alive at once that an operation read or made.

    `device` leaves out tensors of other devices, by type.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.device = device
        self._known: dict[int, int] = {}  # id of a storage -> its number, which no later storage has

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.see((args, kwargs))
        result = func(*args, **kwargs or {})
        self.see(result)
        return result

    def see(self, values: Any) -> list[int]:
        """Note the tensors among the values, and return the numbers of their storages."""
        return [self._number(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._known:
            counts = self.device in (None, tensor.device.type)
            nbytes = storage.nbytes() if counts else 0
            self._count = self._known[key] = self._count + 1
            self.live += nbytes
            weakref.finalize(storage, self._forget, key, nbytes)
            self.peak = max(self.peak, self.live)
        return self._known[key]

    def _forget(self, key: int, nbytes: int) -> None:
        del self._known[key]
        self.live -= nbytes

    _count = 0

"""Count the bytes of live tensors while code runs, with real tensors or with pretended ones that compute nothing."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Context that counts `peak`: the most bytes of tensors alive at once that an operation read or made."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self._see((args, kwargs))
        result = func(*args, **kwargs or {})
        self._see(result)
        return result

    def _see(self, values: Any) -> None:
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)):
            if id(storage) not in self._known:
                self._known.add(id(storage))
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _forget(self, storage: int, nbytes: int) -> None:
        self._known.discard(storage)
        self.live -= nbytes

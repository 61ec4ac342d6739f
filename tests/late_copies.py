"""A lane whose copies run as late as events allow, or at random before that. It notices copies that come too early.

Work of the CPU is done at once. So a missing wait for `ready` computes with old weights. A missing wait for `free`, or
a host buffer that is filled while it is copied from, raises AssertionError.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan.streaming import Lane, Unit

CPU = torch.device("cpu")


@dataclass
class Copied:
    """Event of a copy."""

    target: Tensor
    source: Tensor
    is_done: bool = False
    is_known: bool = False  # the host has waited for it


class LateLane(Lane):
    """Use it as a context: it then sees which memory work reads."""

    def __init__(self, seed: int = 0):
        super().__init__(CPU)
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.pending: list[Copied] = []
        self.sent: list[Copied] = []
        self.clock, self.read = 0, {}
        self.watch = _Reads(self)

    def __enter__(self) -> LateLane:
        self.watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.watch.__exit__(*error)

    def slot(self, nbytes: int) -> Tensor:
        return super().slot(nbytes).fill_(255)  # as floats they are no numbers

    def copy(self, target: Tensor, source: Tensor, after: int) -> Copied:
        with self.lock:
            last = self.read.get(target.untyped_storage().data_ptr(), 0)
            assert after >= last, "a slot is written while work may still read it"
            event = Copied(target, source)
            self.pending.append(event)
            self.sent.append(event)
            for _ in range(self.random.choice((0, 0, 1, 2))):
                self._run_first()
            return event

    def mark(self) -> int:
        return self.clock

    def wait(self, event: Copied) -> None:
        with self.lock:
            while not event.is_done:
                self._run_first()

    def finish(self, event: Copied) -> None:
        self.wait(event)
        event.is_known = True

    def check_filling(self, flat: Tensor) -> None:
        """Assert that no copy may still read these bytes of the host."""
        with self.lock:
            still = [e for e in self.sent if e.source.data_ptr() == flat.data_ptr() and not e.is_known]
            assert not still, "a buffer of the host is filled while it is copied from"

    def _run_first(self) -> None:
        if self.pending:
            event = self.pending.pop(0)
            with torch.utils._python_dispatch._disable_current_modes():
                event.target.copy_(event.source)
            event.is_done = True


class _Reads(TorchDispatchMode):
    def __init__(self, lane: LateLane):
        super().__init__()
        self.lane = lane

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if not func.is_view:
            self.lane.clock += 1
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor):
                    self.lane.read[x.untyped_storage().data_ptr()] = self.lane.clock
        return out


def checked_filling(monkeypatch, lane: LateLane) -> None:
    """Let the lane see what is filled on the host."""
    fill = Unit.fill

    def checked(unit: Unit, flat: Tensor) -> None:
        lane.check_filling(flat)
        fill(unit, flat)

    monkeypatch.setattr(Unit, "fill", checked)

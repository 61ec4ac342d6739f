"""End a run when values are not finite, by a check that does not make the device wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class FiniteCheck:
    """Check of the last values. On a GPU the answer is copied while the next step runs."""

    def __init__(self) -> None:
        self._flag: Tensor | None = None
        self._ready: torch.cuda.Event | None = None
        self._stage = ""

    def note(self, values: Tensor, stage: str) -> None:
        """Start to check the values of `stage`; `read` waits for the answer."""
        self._flag, self._stage = values.isfinite().all(), stage
        if self._flag.is_cuda:
            self._flag = self._flag.to("cpu", non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read(self) -> None:
        """Raise FloatingPointError, naming the stage, when the values noted last were not finite."""
        if self._flag is None:
            return
        if self._ready is not None:
            self._ready.synchronize()
        require_finite(self._flag, self._stage)
        self._flag = None


USUAL_CURE = "--attention sdpa or --dtype fp32, a guidance below 10, or other weights"


def require_finite(values: Tensor, stage: str, cure: str = "") -> None:
    """Raise FloatingPointError when values (or a flag about them) are not finite; waits for them.

    It names the stage, and the flag `cure` of a stage that has one of its own.
    """
    if not bool(values if values.dtype == torch.bool else values.isfinite().all()):
        raise FloatingPointError(
            f"{stage} gave values that are not finite: its weights are damaged, the precision is too low or the "
            f"guidance too high; try {cure or USUAL_CURE}"
        )


@contextmanager
def in_clip(index: int, count: int) -> Iterator[None]:
    """Name the clip, of several, whose values are not finite."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"clip {index + 1} of {count}: {error}" if count > 1 else str(error)) from None

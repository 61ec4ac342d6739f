"""Progress of denoising as a bar or as lines of the log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from wan.clips import Event, StepDone

log = logging.getLogger(__name__)


@contextlib.contextmanager
def reporter(progress: str) -> Iterator[Callable[[Event], None]]:
    """Give a function that shows the events of a run: as a bar, as lines for about every tenth step, or not at all."""
    if progress == "none":
        yield lambda event: None
    elif progress == "plain":
        yield _of_steps(_PlainLines())
    else:
        from tqdm import tqdm

        bar = tqdm(desc="denoising", unit="step", dynamic_ncols=True)
        try:
            yield _of_steps(lambda done, total: _advance(bar, done, total))
        finally:
            with contextlib.suppress(OSError):
                bar.close()


def _of_steps(show: Callable[[int, int], None]) -> Callable[[Event], None]:
    """Show the steps of all clips as one row of steps."""

    def report(event: Event) -> None:
        if isinstance(event, StepDone):
            show(event.index * event.steps + event.step, event.count * event.steps)

    return report


def _advance(bar: Any, done: int, total: int) -> None:
    if bar.total is None:  # the first step includes loading; the time left is computed from the second on
        bar.reset(total)
        bar.initial = done
    with contextlib.suppress(OSError):  # a terminal that has gone ends no run
        bar.update(done - bar.n)


class _PlainLines:
    """Log lines for the first step, then for about every tenth of all, with the time left."""

    def __init__(self) -> None:
        self.first = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if not self.first:
            self.first, self.start = done, now
            log.info("step %d/%d", done, total)
        elif done == total or done % max(1, total // 10) == 0:
            left = (now - self.start) / (done - self.first) * (total - done)
            log.info("step %d/%d, %.0f s left", done, total, left)

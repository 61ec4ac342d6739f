"""Progress of denoising as a bar or as lines of the log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)


@contextlib.contextmanager
def reporter(progress: str) -> Iterator[Callable[[int, int, Tensor], None] | None]:
    """What to call after every denoising step: a bar with the time left, plain lines about every tenth, or nothing."""
    if progress == "none":
        yield None
    elif progress == "plain":
        yield _plain_lines()
    else:
        from tqdm import tqdm

        bar = tqdm(desc="denoising", unit="step", dynamic_ncols=True)
        try:
            yield lambda done, total, latent: _advance(bar, done, total)
        finally:
            with contextlib.suppress(OSError):
                bar.close()


def _advance(bar: Any, done: int, total: int) -> None:
    if done == 1:  # the first step includes loading; the time left is reckoned from the second on
        bar.reset(total)
        bar.initial = 1
    with contextlib.suppress(OSError):  # a terminal that has gone ends no run
        bar.update(done - bar.n)


def _plain_lines() -> Callable[[int, int, Tensor], None]:
    second_step_from = 0.0

    def on_step(done: int, total: int, latent: Tensor) -> None:
        nonlocal second_step_from
        now = time.perf_counter()
        if done == 1:
            second_step_from = now
            log.info("step 1/%d", total)
        elif done == total or done % max(1, total // 10) == 0:
            left = (now - second_step_from) / (done - 1) * (total - done)
            log.info("step %d/%d, %.0f s left", done, total, left)

    return on_step

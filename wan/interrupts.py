"""Requests to end: Ctrl-C, SIGTERM and SIGHUP become one KeyboardInterrupt, which a critical part can delay."""

from __future__ import annotations

import _thread
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = 130  # the exit code, as shells have it for Ctrl-C
GRACE = 5.0  # seconds that a process has to clean up before it is ended


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for a request that would end the process; a signal that is ignored stays ignored.

    Requests of the next GRACE seconds count as the same one: a key pressed twice, or the signals of a terminal that
    closes, must not stop the cleaning up.
    """
    last = -math.inf

    def request(*_: object) -> None:
        nonlocal last
        if time.monotonic() - last >= GRACE:
            last = time.monotonic()
            raise KeyboardInterrupt

    with _handled(request):
        yield


@contextmanager
def put_off() -> Iterator[None]:
    """Let a short part finish first: a request that comes within the block is raised at its end."""
    came: list[int] = []
    with _handled(lambda number, _: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


def without_traceback() -> None:
    """Let Ctrl-C end the process without a traceback where no other handler is installed: at its start and end."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process at once on a request: during imports, an exception could turn into another one."""
    with _handled(_leave):
        yield


def end_with_torchrun() -> None:
    """End this process soon after torchrun, its parent, was killed. While it starts, nothing else notices that."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.name == "posix":
        threading.Thread(target=_follow, args=(os.getppid(),), name="follow torchrun", daemon=True).start()


def _follow(parent: int) -> NoReturn:
    """Wait for the end of the parent. Give the main thread time to clean up and to end the process; then end it."""
    while os.getppid() == parent:
        time.sleep(1)
    _thread.interrupt_main()
    from wan.files import remove_partial_files

    time.sleep(GRACE)
    remove_partial_files()
    os._exit(1)


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Install `handler` for requests that are not ignored, as in background jobs and under nohup."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread has signals
        yield
        return
    before = {number: signal.getsignal(number) for number in REQUESTS}
    before = {number: usual for number, usual in before.items() if usual not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def _leave(*_: object) -> NoReturn:
    os.write(2, b"interrupted; nothing was written\n")
    os._exit(INTERRUPTED)

"""Watch over a run: if one process fails, all end, and its error is the one that is shown.

A process that waits for a message notices nothing else: on a GPU it waits inside a kernel. So a thread in every process
looks at the store of the run once a second. The first failure is written there, and every process gives signs of life.
The thread also notices signals that ask the process to end: a signal handler would have to wait for the kernel.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store

from wan.files import remove_partial_files
from wan.interrupts import GRACE, REQUESTS
from wan.program import print_error

PERIOD = 1.0  # seconds between two looks
SILENCE = 30  # looks without a sign of life after which a process counts as gone
FAILURE = "failure"


class Watch:
    """Watch of one process over all `size` of them; `store` is a connection that only the watch uses."""

    def __init__(self, store: Store, rank: int, size: int):
        self.rank = rank
        self._store = store
        self._alive = [f"alive/{other}" for other in range(size)]
        self._over = threading.Event()
        self._claimed = False  # the failure that ends the run is this process' own
        self._signals, written = os.pipe()
        for end in (self._signals, written):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    @classmethod
    def join(cls, rank: int, size: int) -> Watch:
        """Start the watch over the run that the environment describes."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(dist.PrefixStore(f"wan/{attempt}", store), rank, size)

    def is_first(self, error: BaseException) -> bool:
        """Tell whether `error` ends the run and must be shown here; else another process shows the cause of it."""
        if self._cause(seconds=3 * PERIOD if is_lost_contact(error) else 0) is not None:
            return False
        return self._claim("was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}")

    def part(self) -> None:
        """Wait for the others to finish their work as well, then stop watching."""
        dist.barrier()
        self._over.set()
        self._thread.join()
        os.close(signal.set_wakeup_fd(-1))
        os.close(self._signals)

    def _claim(self, what: str) -> bool:
        """Store a failure as the one that ends the run; False when there is one already."""
        mine = f"rank {self.rank} {what}"
        try:
            self._claimed = self._store.compare_set(FAILURE, "", mine).decode() == mine
        except RuntimeError:  # the store is gone, and with it every process that could have shown something
            self._claimed = True
        return self._claimed

    def _cause(self, seconds: float = 0) -> str | None:
        """Read the failure that ends the run, waiting up to `seconds` for it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self._store.check([FAILURE]):
                    return self._store.get(FAILURE).decode()
            except RuntimeError:
                return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(PERIOD / 10)

    def _look(self) -> None:
        signs, silent, looks = [b""] * len(self._alive), [0] * len(self._alive), 0
        while not self._over.wait(PERIOD):
            looks += 1
            if self._asked_to_end():
                return self._leave()
            try:
                self._store.set(self._alive[self.rank], str(looks))
                now = self._store.multi_get(self._alive) if self._store.check(self._alive) else signs
            except RuntimeError:
                if not self._over.wait(PERIOD):  # after parting the store may go
                    self._end("the process that held the run together is gone")
                return
            silent = [count + 1 if old == new else 0 for count, old, new in zip(silent, signs, now, strict=True)]
            signs = now
            if self._cause() is not None:
                return self._end()
            if max(silent) > SILENCE:
                return self._end(f"no sign of life from rank {silent.index(max(silent))} for {SILENCE * PERIOD:.0f} s")

    def _end(self, found: str | None = None) -> None:
        """Wake the main thread, which can clean up; if it does not end, end the process without it."""
        if found is not None and self._claim(f"failed: {found}"):
            print_error(f"rank {self.rank} ends: {found}")
        if found is not None or not self._claimed:
            _thread.interrupt_main()
        self._leave()

    def _asked_to_end(self) -> bool:
        """Tell whether torchrun or the keyboard sent a signal since the last look; its handler may not have run."""
        try:
            received = os.read(self._signals, 64)
        except BlockingIOError:
            return False
        return bool(set(REQUESTS) & set(received))

    def _leave(self) -> None:
        """Give the main thread time to clean up and to end the process; then end it from here."""
        self._over.wait(GRACE)
        remove_partial_files()
        os._exit(1)


def is_lost_contact(error: BaseException) -> bool:
    """Tell whether `error` is a message that could not be sent or received, because another process has ended."""
    named = any(word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named)

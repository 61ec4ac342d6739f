"""If one process of a run fails, all end, and its error is the one that is shown.

A process that waits for a message cannot look around: on a GPU it waits inside a kernel. So a thread in every process
looks at the store of the run once a second: there the first failure is written, and every process gives signs of life.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store

from wan.files import remove_partial_files

PERIOD = 1.0  # seconds between two looks
SILENCE = 60  # looks without a sign of life after which a process counts as gone
GRACE = 5.0  # seconds that a process has to clean up before it is ended
FAILURE = "wan/failure"


class PeerFailed(RuntimeError):
    """Another process of the run failed; the message says which and why."""


class Watch:
    """The watch of one process over all `size` of them; `store` is a connection that only the watch uses."""

    def __init__(self, store: Store, rank: int, size: int):
        self.rank = rank
        self._store = store
        self._alive = [f"wan/alive/{other}" for other in range(size)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    @classmethod
    def join(cls, rank: int, size: int) -> Watch:
        """A watch over the run that the environment describes."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return cls(dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30)), rank, size)

    def explain(self, error: BaseException) -> BaseException:
        """What to show for `error`: itself, or PeerFailed when it only follows from the failure of another process."""
        lost = _is_lost_contact(error)
        cause = self._cause(seconds=3 * PERIOD if lost else 0)
        if cause is not None:
            return PeerFailed(cause)
        return PeerFailed(f"another process is gone, it was probably killed ({error})") if lost else error

    def tell(self, error: BaseException) -> None:
        """This process ends with `error`: the first one to say so decides what all others are told."""
        reason = (
            "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error or type(error).__name__}"
        )
        try:
            self._store.compare_set(FAILURE, "", f"rank {self.rank} {reason}")
        except RuntimeError:  # the store is gone, and with it everyone who could read it
            return

    def part(self) -> None:
        """The work is done: wait for the others, then stop watching."""
        dist.barrier()
        self._over.set()
        self._thread.join()

    def _cause(self, seconds: float = 0) -> str | None:
        """The first failure that was told, waiting up to `seconds` for it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self._store.check([FAILURE]):
                    return self._store.get(FAILURE).decode()
            except RuntimeError:
                return "the process that held the run together has ended"
            if time.monotonic() >= deadline:
                return None
            time.sleep(PERIOD / 10)

    def _look(self) -> None:
        signs, silent, looks = [b""] * len(self._alive), [0] * len(self._alive), 0
        while not self._over.wait(PERIOD):
            looks += 1
            cause = self._cause()
            try:
                self._store.set(self._alive[self.rank], str(looks))
                now = self._store.multi_get(self._alive) if self._store.check(self._alive) else signs
            except RuntimeError:
                now = signs
            silent = [count + 1 if old == new else 0 for count, old, new in zip(silent, signs, now, strict=True)]
            signs = now
            if cause is None and max(silent) > SILENCE:
                cause = f"rank {silent.index(max(silent))} has given no sign of life for {SILENCE * PERIOD:.0f} s"
            if cause is not None:
                return self._end(cause)

    def _end(self, cause: str) -> None:
        """Wake the main thread, which may clean up and report; if it cannot, end the process without it."""
        if self._over.wait(PERIOD):  # parted meanwhile: the store may go away then
            return
        if not cause.startswith(f"rank {self.rank} "):
            _thread.interrupt_main()
        self._over.wait(GRACE)
        remove_partial_files()
        os._exit(1)


def _is_lost_contact(error: BaseException) -> bool:
    """Whether a message could not be sent or received; only the failure of another process does that."""
    named = any(word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named)

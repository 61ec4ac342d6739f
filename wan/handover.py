"""Make items in this thread while another one uses those before: frames are decoded while others are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Full, Queue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 0.1  # seconds after which an end of the other side is noticed


class Abandoned(Exception):
    """Raised in the thread that uses items, when there will be no more because their maker failed or was stopped."""


def used_beside(items: Iterator[Item], use: Callable[[Iterator[Item]], Result], ahead: int = 1) -> Result:
    """Return `use(items)`, which runs in a thread of its own while this one makes up to `ahead` further items.

    Errors of either side are raised here, and interrupts too: `use` is then ended by `Abandoned` at the item that it
    asks for next, and has cleaned up before this function ends.
    """
    queue: Queue[tuple[bool, Item | None]] = Queue(ahead)  # whether an item is there
    outcome: Future[Result] = Future()
    abandoned = False

    def given() -> Iterator[Item]:
        while True:
            more, item = queue.get()
            if abandoned:
                raise Abandoned
            if not more:
                return
            yield item

    def work() -> None:
        try:
            outcome.set_result(use(given()))
        except BaseException as error:
            outcome.set_exception(error)

    def put(more: bool, item: Item | None = None) -> None:
        while not outcome.done():
            try:
                return queue.put((more, item), timeout=PATIENCE)
            except Full:
                continue

    thread = Thread(target=work, name="use what is made")
    thread.start()
    try:
        for item in items:
            put(True, item)
            del item
            if outcome.done():
                break
    except BaseException:
        abandoned = True
        raise
    finally:
        put(False)
        thread.join()
    return outcome.result()

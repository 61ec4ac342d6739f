"""Services behind an address: the address, a limit of time for an answer, failures that may pass, what was answered."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from json import JSONDecodeError
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from wan.files import shown
from wan.values import quoted, text

THREAD = "asks a server"
NOISY = ("dashscope", "httpx", "httpx2")  # loggers that tell of every request and failure


class Refused(Exception):
    """Answer of a server with another status than 200."""

    def __init__(self, status_code: int, reason: str):
        super().__init__(f"status {status_code}, {reason}")
        self.status_code = status_code


def check_address(name: str, url: str) -> str:
    """Return the address of a server without a slash at its end. Raises ValueError, naming the setting, for others."""
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or not url.isascii() or re.search(r"[\s\\<>\"{}|^`]", url) or not url.isprintable():
        near = f"http://{url}" if re.fullmatch(r"[\w.-]+(:\d+)?(/[\w./-]*)?", url) else "http://localhost:8000/v1"
        raise ValueError(f"{name} is the address of a server, got {quoted(url)}; try {near}")
    return url


def may_pass(error: BaseException) -> bool:
    """Tell whether the same request may succeed later: the server is busy or broken, or could not be reached."""
    if (status := getattr(error, "status_code", None)) is not None:
        return status in (408, 429) or status >= 500
    is_connection = isinstance(error, OSError) and not isinstance(error, ValueError)  # of requests; ValueError: no JSON
    return is_connection or type(error).__name__ in ("APIConnectionError", "APITimeoutError")


def found_in(answer: Any, look: Callable[[], Any]) -> str:
    """Return the text that `look` finds in an answer. Raises ValueError that shows the answer when it finds none."""
    try:
        found = look()
    except (AttributeError, IndexError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise ValueError(f"{OTHER}: {shown(answer, 100)}")
    if not found.strip():
        raise ValueError("the answer is empty")
    return text("the answer", found)


def in_words(error: BaseException) -> str:
    """Say why a request failed, also where a package only says that it did."""
    if isinstance(error, (JSONDecodeError, UnicodeDecodeError)):
        return f"the answer is no JSON ({error})"
    reason = str(error) or type(error).__name__
    if isinstance(error, (AttributeError, LookupError, TypeError)):  # in a package that reads the answer
        return f"{OTHER} ({reason})"
    return f"{reason} ({error.__cause__})" if isinstance(error.__cause__, Exception) else reason


OTHER = "the answer is not as the API promises"


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Call in a thread that is left alone after `seconds`: a server that sends a byte now and then stops no run.

    What packages log there is dropped, because the caller says it once.
    """
    outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    for name in NOISY:
        logging.getLogger(name).addFilter(_is_of_others)
    Thread(target=run, name=THREAD, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _is_of_others(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD

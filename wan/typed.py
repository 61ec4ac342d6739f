"""Convert values of flags: text, paths, numbers and names. Each error names a value that would be valid."""

import argparse
import difflib
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from wan.files import is_unicode
from wan.values import quoted

YES = ("yes", "true", "t", "y", "1")
NO = ("no", "false", "f", "n", "0")


def text(value: str) -> str:
    """Read a text as UTF-8 in any locale, else as the locale reads it. Raises ArgumentTypeError when neither can."""
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeError:  # other bytes, or text of a Python program that the locale has no bytes for
        if not is_unicode(value):
            raise argparse.ArgumentTypeError(
                f"the text is not UTF-8, perhaps GBK or Latin-1: {quoted(value)}; convert it to UTF-8"
            ) from None
        return value


def path(value: str) -> str:
    """Read a path and resolve ~ in it. Its bytes stay unchanged, UTF-8 or not."""
    if not value.strip():
        raise argparse.ArgumentTypeError("the path is empty; a shell variable that is not set looks like this")
    if "\0" in value:
        raise argparse.ArgumentTypeError("a path cannot hold a NUL character")
    found = os.path.expanduser(value)
    if value.startswith("~") and found == value:
        raise argparse.ArgumentTypeError(
            f"{quoted(value)} names the home folder of an unknown user; write the whole path, or ./ before the name"
        )
    return found


def number(value: str) -> float:
    """Read a number with a decimal point, finite or infinite."""
    try:
        return float(value)
    except ValueError:
        guess = _as_number(value.replace(",", "."))
        raise _expected("a number", value, None if guess is None else f"{guess:g}") from None


def whole(value: str) -> int:
    """Read a whole number; for 81.0 and 1e3 the error names it."""
    try:
        return int(value)
    except ValueError:
        guess = _as_number(value)
        near = None if guess is None or not math.isfinite(guess) or abs(guess) > 2**63 else str(round(guess))
        raise _expected("a whole number", value, near) from None


def at_least(low: int) -> Callable[[str], int]:
    """Make a reader of whole numbers from `low` up."""

    def convert(value: str) -> int:
        if (number := whole(value)) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {number}")
        return number

    return convert


def str2bool(value: str | bool) -> bool:
    """Read yes, true, t, y, 1 or no, false, f, n, 0 in any case. Raises ArgumentTypeError for anything else."""
    if isinstance(value, bool):
        return value
    if value.lower() in YES + NO:
        return value.lower() in YES
    raise argparse.ArgumentTypeError(f"a yes or no was expected (true, false, yes, no, 1, 0), got {quoted(value)}")


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Make a reader of one of some names; an error suggests a similar one."""

    def convert(value: str) -> str:
        if value in (known := tuple(names)):
            return value
        near = nearest(value, known)
        hint = f"; did you mean {near}?" if near else ""
        raise argparse.ArgumentTypeError(f"invalid choice: {quoted(value)}{hint} (choose from {', '.join(known)})")

    return convert


def person(value: str) -> int | tuple[float, float]:
    """Read which person is meant: a number from the left, or a point "X,Y" of the first frame, in pixels."""
    parts = value.split(",")
    if len(parts) == 2:
        return number(parts[0]), number(parts[1])
    if len(parts) == 1 and value.strip().isdecimal():
        return at_least(1)(value)
    raise _expected("a number from 1 up or X,Y", value, "1")


def parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a reader whose ValueError argparse shows, instead of a text of its own."""

    def convert(value: str) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Guess the known name that was meant: in another case, a few letters apart, or with a part that no other has."""
    names = {_plain(name): name for name in known}
    plain = _plain(word)
    parts = set(plain.split("_"))
    sharing = [key for key in names if parts & set(key.split("_"))]
    starting = [key for key in names if len(plain) > 1 and key.startswith(plain)]
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.6)
    found = [plain] * (plain in names) or sharing[:1] * (len(sharing) == 1) or close or starting
    return names[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_").replace(".", "_")


def _expected(what: str, value: str, guess: str | None) -> argparse.ArgumentTypeError:
    hint = "" if guess is None else f"; try {guess}"
    return argparse.ArgumentTypeError(f"{what} was expected, got {quoted(value)}{hint}")


def _as_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None

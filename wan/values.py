"""Check values that a user gives. Errors call a field by the name that this user knows."""

import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from fractions import Fraction
from typing import Any

from wan.files import is_unicode, shown

MAX_DENOMINATOR = 100_100  # of rates; frames of uneven lengths have none that is simple
LONGEST_TEXT = 100_000  # characters; a text encoder reads 512 tokens

_names: ContextVar[Mapping[str, str]] = ContextVar("names", default={})  # noqa: B039 - never changed


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Set the names of fields in errors within the block: those of flags, or of arguments of `generate`."""
    token = _names.set(names)
    try:
        yield
    finally:
        _names.reset(token)


def called(field: str) -> str:
    """Return the name of a field of a request for an error; without `named` its own."""
    return _names.get().get(field, field)


def whole(field: str, value: Any) -> int:
    """Convert a whole number of Python, NumPy or a tensor; no bool, no text. Raises ValueError that names the field."""
    if not _is_bool(value):
        with suppress(TypeError):
            return operator.index(value)
    raise ValueError(f"{called(field)} must be a whole number, got {quoted(value)}")


def real(field: str, value: Any) -> float:
    """Convert a finite number of Python, NumPy or a tensor, no bool or text. Raises ValueError that names the field."""
    if not _is_bool(value) and not isinstance(value, (str, bytes, bytearray)):
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            if math.isfinite(number := float(value)):
                return number
    raise ValueError(f"{called(field)} must be a finite number, got {quoted(value)}")


def rate(field: str, value: Any) -> Fraction:
    """Convert a rate, such as frames per second, to a fraction. Raises ValueError that names the field."""
    return value if isinstance(value, Fraction) else Fraction(real(field, value)).limit_denominator(MAX_DENOMINATOR)


def reals(field: str, value: Any) -> tuple[float, ...]:
    """Convert several finite numbers. Raises ValueError that names the field."""
    if isinstance(value, (str, bytes, bytearray)) or not hasattr(value, "__iter__"):
        raise ValueError(f"{called(field)} must be several numbers, got {quoted(value)}")
    return tuple(real(field, number) for number in value)


def parse_reals(value: str) -> tuple[float, ...]:
    """Read numbers between commas. Raises ValueError."""
    try:
        return tuple(map(float, value.split(",")))
    except ValueError:
        raise ValueError(f"needs numbers between commas, as 1,0.8,0.4, got {value!r}") from None


def parse_rate(value: str) -> Fraction:
    """Read a rate from a text as "30", "29.97" or "30000/1001". Raises ValueError."""
    with suppress(ValueError, ZeroDivisionError):
        if len(value) <= 40 and "e" not in value.lower():  # of a huge exponent comes a huge number
            return rate("", Fraction(value)).limit_denominator(MAX_DENOMINATOR)
    raise ValueError(f"a number or a fraction was expected, as 30 or 30000/1001, got {quoted(value)}")


def text(field: str, value: Any) -> str:
    """Check a text: every encoding of Unicode must be able to write it. Raises ValueError that names the field."""
    if not isinstance(value, str):
        raise ValueError(f"{called(field)} must be text, got {quoted(value)}")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{called(field)} has {len(value)} characters; at most {LONGEST_TEXT} are taken")
    if not is_unicode(value):
        raise ValueError(f"{called(field)} holds bytes that are no text: {quoted(value)}")
    return value


def flag(field: str, value: Any) -> bool:
    """Check True or False. Raises ValueError that names the field."""
    if not isinstance(value, bool):
        raise ValueError(f"{called(field)} must be True or False, got {quoted(value)}")
    return value


def dictionary(name: str, value: Any) -> dict[str, Any]:
    """Check a dictionary. Raises ValueError that names it."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a dictionary, got {quoted(value)}")
    return value


def counted(number: int, noun: str) -> str:
    """`1 frame`, `17 frames`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def quoted(value: Any) -> str:
    """Show any value in an error, in a few safe characters."""
    try:
        return shown(repr(value), 60)
    except Exception:  # numbers of more digits than Python writes, nesting, a foreign __repr__
        return f"a value of type {type(value).__name__}"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")

"""Guidance: the weight of the prompt, for each expert."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from wan.values import called, quoted, real


class Guidance(NamedTuple):
    """Scale of classifier-free guidance of each expert; a task with one model uses the first. 1 means no guidance."""

    low_noise: float
    high_noise: float

    @classmethod
    def of(cls, name: str, scale: Any) -> Guidance:
        """Make the guidance of one number, or of a pair (low-noise, high-noise expert). Raises ValueError."""
        if isinstance(scale, (tuple, list)) or getattr(scale, "ndim", 0):
            if len(scale) != 2:
                raise ValueError(f"{called(name)} is one number or (low, high), got {quoted(scale)}")
            return cls(*(real(name, number) for number in scale))
        return cls(real(name, scale), real(name, scale))


def format_guidance(guidance: tuple[float, float]) -> str:
    """(low, high) = (3, 4) -> '3,4'; one number when they are equal. `parse_guidance` reverses it."""
    low, high = guidance
    return f"{low:g}" if low == high else f"{low:g},{high:g}"


def parse_guidance(text: str) -> Guidance:
    """'5' -> (5, 5); '3,4' -> (3, 4), low-noise expert first. Raises ValueError with an example."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        found = re.findall(r"\d+\.?\d*", text)
        hint = f"; try {','.join(found)}" if len(found) == 2 else ""
        raise ValueError(f"guidance is one number or low,high (for example 5 or 3,4), got {text!r}{hint}")
    return Guidance(numbers[0], numbers[-1])

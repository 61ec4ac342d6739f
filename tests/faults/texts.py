"""Edit JSON by its structure: other types, ranges and keys, and texts that are hardly JSON."""

import copy
import json
from random import Random
from typing import Any

HOSTILE = "\x1b[31m\x1b]0;title\x07\r\n\x00\u202e"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 255, 2.5, -0.0, 1e-300, 1e300, 2**31, 2**63, 10**30, 10**400, -(2**63),
    "", "5", "nano", "a" * 70_000, HOSTILE, "\ud800", "../../x", "/etc/passwd", "\0",
    [], [1], [1, 2, 2], [None], [[]], [0, 0, 0], ["a"] * 3, [10**9] * 3, {}, {"a": 1}, [[[[[]]]]],
)  # fmt: skip


def edited(rng: Random, value: Any) -> tuple[str, Any]:
    """Return a changed copy of a JSON value, and the change in words."""
    value = copy.deepcopy(value)
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        parent, key = _place(rng, value)
        if parent is None:
            return "all replaced", copy.deepcopy(rng.choice(VALUES))
        change = rng.choice(CHANGES)
        done.append(f"{change.__name__.strip('_')} {key!r}"[:60])
        change(rng, parent, key)
    return ", ".join(done), value


def _place(rng: Random, value: Any) -> tuple[Any, Any]:
    """Draw a container within `value` and a key of it; deep ones are as likely as the outermost."""
    parent, key = None, None
    while isinstance(value, (dict, list)) and value and (parent is None or rng.random() < 0.6):
        parent, key = value, rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = parent[key]
    return parent, key


def _replace(rng: Random, parent: Any, key: Any) -> None:
    parent[key] = copy.deepcopy(rng.choice(VALUES))


def _remove(rng: Random, parent: Any, key: Any) -> None:
    del parent[key]
    if not parent and isinstance(parent, list):
        parent.append(0)


def _scale(rng: Random, parent: Any, key: Any) -> None:
    old = parent[key]
    if isinstance(old, bool) or not isinstance(old, (int, float)):
        _retype(rng, parent, key)
    else:
        parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 10**8, old / 2, old // 2, old * 1.0))


def _retype(rng: Random, parent: Any, key: Any) -> None:
    """Change the type of a value: text for a number, a list around it, a number for a text."""
    old = parent[key]
    parent[key] = rng.choice((str(old), [old], {"value": old}, [old, old], len(str(old)), old is None))


def _text(rng: Random, parent: Any, key: Any) -> None:
    old = parent[key] if isinstance(parent[key], str) else str(parent[key])
    at = rng.randrange(len(old) + 1)
    parent[key] = old[:at] + rng.choice((HOSTILE, "\0", "/", "*", "猫", "\ud800", " ", "0" * 5000)) + old[at:]


def _add(rng: Random, parent: Any, key: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(rng.choice(VALUES)))
    else:
        parent[rng.choice(("extra", "", HOSTILE, "\ud800", "__class__", str(key) + " "))] = rng.choice(VALUES)


def _swap(rng: Random, parent: Any, key: Any) -> None:
    other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


def _nest(rng: Random, parent: Any, key: Any) -> None:
    for _ in range(rng.choice((10, 300))):
        parent[key] = [parent[key]]


CHANGES = (_replace, _replace, _replace, _remove, _remove, _scale, _scale, _retype, _text, _add, _swap, _nest)


def dumped(rng: Random, value: Any) -> tuple[str, str]:
    """Write `value` as JSON, now and then as a text that strict readers refuse; return it and what is odd about it."""
    text = json.dumps(value)
    if rng.random() < 0.8:
        return "", text
    name = rng.choice(sorted(ODD_TEXTS))
    return name, ODD_TEXTS[name](text)


def _repeated(text: str) -> str:
    """Repeat the first member of an object with another value."""
    key = text[1:].partition(":")[0]
    return text if not text.startswith("{") or text == "{}" else f"{{{key}: 0, {text[1:]}"


def edited_json(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Edit a value of a JSON file; the text is mostly valid."""
    what, value = edited(rng, json.loads(data))
    odd, text = dumped(rng, value)
    return f"{what} {odd}", text.encode("utf-8", "surrogatepass")


ODD_TEXTS = {
    "repeated key": _repeated,
    "NaN": lambda text: text.replace(": ", ": NaN, \"x\": ", 1),
    "trailing comma": lambda text: text[:-1] + "," + text[-1:],
    "single quotes": lambda text: text.replace('"', "'"),
    "comment": lambda text: "// comment\n" + text,
    "two documents": lambda text: text + text,
    "byte order mark": lambda text: "\ufeff" + text,
    "nested": lambda text: text[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "half": lambda text: text[: len(text) // 2],
    "long number": lambda text: text.replace(": ", ": 1" + "0" * 6000 + ", \"x\": ", 1),
    "spaces": lambda text: " " * 100_000 + text,
}  # fmt: skip

"""Reading golden files: recorded inputs, weights and outputs of the reference implementation."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def read_case(path: Path) -> dict | None:
    """The `case` of a golden file's metadata, None where it has none."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata["case"]) if "case" in metadata else None


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix ('weights/', 'in/', 'out/'), named without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def numbered(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """name.0, name.1, ... as a list."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return [tensors[f"{name}.{i}"] for i in range(count)]


def assert_near(actual: Tensor, expected: Tensor, atol: float) -> None:
    """Same shape and type, and nowhere further apart than `atol`."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Exactly the same values, of the same shape and type."""
    assert_near(actual, expected, 0)

"""Read golden files: recorded inputs, weights and outputs of the reference implementation."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def read_case(path: Path) -> dict | None:
    """Read the `case` of a golden file's metadata; None where it has none."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata["case"]) if "case" in metadata else None


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors below a prefix ('weights/', 'in/', 'out/'), and remove it from their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def numbered(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """List name.0, name.1, ..."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return [tensors[f"{name}.{i}"] for i in range(count)]


def assert_near(actual: Tensor, expected: Tensor, atol: float) -> None:
    """Check that shapes and types are equal, and values differ by at most `atol`."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Check that values, shapes and types are equal."""
    assert_near(actual, expected, 0)

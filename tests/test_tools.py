"""The tools that the original names find the tree as `make format` left it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "tool, arguments",
    [
        pytest.param("black", ("--check", "--quiet", "--diff", "."), marks=pytest.mark.slow),
        ("isort", ("--check", "--diff", ".")),
        ("isort", ("--check", "--diff", "generate.py", "wan")),  # as the original writes it
        ("flake8", (".",)),
    ],
    ids=str,
)
def test_the_tree_is_as_the_tool_would_leave_it(tool, arguments):
    pytest.importorskip(tool)
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""Hundreds of damaged files through the real command: each is refused cleanly, or does no harm."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ended(first: int, last: int) -> str:
    """Run `python -m tests.faults` on these inputs in a fresh process; return its output."""
    command = [sys.executable, "-m", "tests.faults", f"{first}-{last}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert re.search(rf"^{last - first + 1} inputs, 0 wrong$", done.stdout, re.MULTILINE), done.stdout
    return done.stdout


def test_some_inputs():
    counts = re.findall(r"\w+ ([012]): (\d+)", ended(0, 79))
    accepted, refused = (sum(int(count) for code, count in counts if code in codes) for codes in ("0", "2"))
    assert accepted > 8 and refused > 40, "faults that are all alike find nothing"


@pytest.mark.slow
def test_ten_thousand_inputs():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda first: ended(first, first + 499), range(0, 10_000, 500)))

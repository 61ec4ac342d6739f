"""Threads that wait sleep instead of spinning: every program sets this before torch loads OpenMP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wan.program import share_cores

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in CHOICES})


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch without OpenMP")
@pytest.mark.parametrize(
    "program",
    [
        "generate.py --frame_num 2",  # refused after torch is loaded, which --help does not need
        "-m wan.cli --frame_num 2",
        "-m wan.training --help",
        "-m wan.nano.recipes --help",
        "-m wan.nano.evaluate --help",
    ],
)
def test_openmp_is_loaded_with_threads_that_sleep(program):
    """OpenMP can print its settings when it is loaded; it does not read the environment later."""
    done = subprocess.run(
        [sys.executable, *program.split()],
        env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    said = [line.split("'")[1] for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert done.returncode in (0, 2) and set(said) == {"PASSIVE"}, done.stderr


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_user_has_chosen_stays(name):
    os.environ[name] = "ACTIVE"
    before = dict(os.environ)
    share_cores()
    assert os.environ == before


def test_importing_changes_no_setting():
    code = "import os; before = dict(os.environ); import wan, wan.cli, wan.training.__main__, wan.nano.evaluate; "
    subprocess.run([sys.executable, "-c", code + "assert os.environ == before"], env=os.environ, check=True)

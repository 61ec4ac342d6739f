"""Requests to end a process: all signals mean the same, and some parts finish first."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wan.interrupts import as_interrupt, put_off

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_request_is_an_interrupt(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), as_interrupt():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_request_that_is_repeated_at_once_is_one():
    done = []
    with pytest.raises(KeyboardInterrupt), as_interrupt():
        try:
            with put_off():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("cleaned up")
    assert done


def test_an_ignored_request_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_part_that_must_finish_does():
    done = []
    with pytest.raises(KeyboardInterrupt), as_interrupt(), put_off():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("after the signal")
    assert done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("start", [["generate.py"], ["-m", "wan"]])
def test_an_interrupt_while_importing_has_no_traceback(tmp_path, start, number):
    (tmp_path / "torch.py").write_text("import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, *start, "--prompt", "a red circle"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == "interrupted; nothing was written\n"
    assert process.returncode == 130


@pytest.mark.parametrize("start", [["generate.py"], ["-m", "wan"]])
def test_an_interrupt_at_the_very_start_has_no_traceback(tmp_path, start):
    """It comes while the first modules of the standard library are imported."""
    (tmp_path / "tempfile.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, *start, "--prompt", "a red circle"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=30)[1] and process.returncode != 0


def test_an_interrupt_while_leaving_has_no_traceback(tmp_path):
    code = "import atexit, os\natexit.register(os.kill, os.getpid(), 2)\nraise SystemExit(0)\n"
    (tmp_path / "torch.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "generate.py", "--prompt", "a red circle"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert done.stderr == "" and done.returncode == -signal.SIGINT

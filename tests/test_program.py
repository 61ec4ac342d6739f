"""The name and the command lines in messages: they are as the user started them, and work when they are pasted."""

import logging
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from wan import program

ROOT = Path(__file__).parents[1]
SHOW = "from wan.program import *; print(program_name(), command_line('--resume', 'a b'), torchrun_line(2), sep='\\n')"


def shown(tmp_path, start, script="generate.py", path=None):
    """Start a program by a shell in `tmp_path`; return the name, command and torchrun command that it prints."""
    file = tmp_path / "bin" / script
    file.parent.mkdir()
    file.write_text(f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r})\n{SHOW}\n")
    file.chmod(0o755)
    search = os.pathsep.join([*(path or []), "/usr/bin", "/bin"])
    done = subprocess.run(start, shell=True, cwd=tmp_path, env={"PATH": search}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_script_keeps_its_path_and_its_interpreter(tmp_path):
    name, command, several = shown(tmp_path, f"{sys.executable} bin/generate.py")
    assert (name, command) == ("generate.py", f"{sys.executable} bin/generate.py --resume 'a b'")
    assert several == "torchrun --nproc_per_node=2 bin/generate.py ..."


def test_python_is_said_where_it_is_this_one(tmp_path):
    folder = Path(sys.executable).parent
    assert (folder / "python").exists()
    command = shown(tmp_path, "python ./bin/generate.py", path=[str(folder)])[1]
    assert command == "python ./bin/generate.py --resume 'a b'"


def test_the_installed_script_calls_itself_by_its_name(tmp_path):
    name, command, several = shown(tmp_path, "wan-generate", "wan-generate", [str(tmp_path / "bin")])
    assert (name, command) == ("wan-generate", "wan-generate --resume 'a b'")
    assert several == "torchrun --nproc_per_node=2 --no-python wan-generate ..."


def test_an_installed_script_beside_the_path_is_named_with_its_folder(tmp_path):
    assert shown(tmp_path, "bin/wan-generate", "wan-generate")[1] == "bin/wan-generate --resume 'a b'"


def test_a_module_is_run_as_one(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="wan.cli"))
    assert program.program_name() == "python -m wan.cli"
    assert program.command_line("x").endswith(" -m wan.cli x")
    assert program.torchrun_line(4) == "torchrun --nproc_per_node=4 -m wan.cli ..."


def test_an_extra_is_installed_from_the_checkout_or_by_its_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert program.install_command("s2v") == "pip install '.[s2v]'"
    monkeypatch.chdir(tmp_path)
    assert program.install_command("s2v") == f"pip install '{ROOT}[s2v]'"
    monkeypatch.setattr(program, "__file__", str(tmp_path / "wan" / "program.py"))
    required = ["torch>=2.7", 'a>=1; extra == "animate"', "b; extra == 'animate-mediapipe'", 'c; extra == "animate"']
    monkeypatch.setattr(program.metadata, "requires", lambda name: required)
    assert program.install_command("animate") == "pip install 'a>=1' c"
    monkeypatch.setattr(program.metadata, "requires", missing := Mock(side_effect=PackageNotFoundError("wan")))
    assert program.install_command("animate") == "pip install '.[animate]'" and missing.called


def test_called_from_another_program():
    assert program.program_name() == "generate.py" and program.command_line("x") == "python generate.py x"


@pytest.mark.parametrize("name", [b"plain", b"it's $5", b"\xba\xec.mp4", b"a\nb", "\u7ea2".encode(), b"\x1b[31m'\\"])
def test_shell_words_are_read_back_by_bash(name):
    word = program.shell_word(os.fsdecode(name))
    assert "\n" not in word and "\x1b" not in word and word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}".encode()], capture_output=True)
    assert done.stdout == name


def test_what_the_terminal_cannot_show_is_spelled(monkeypatch):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(encoding="ascii"))
    assert program.shell_word("\u7ea2") == r"$'\xe7\xba\xa2'"


def test_closed_streams_become_the_null_device(tmp_path):
    code = "from wan.program import *; keep_streams_open(); print_error('gone'); print(open('x', 'w').fileno() > 2)"
    done = subprocess.run(
        f'"{sys.executable}" -c "{code}" 2>&- <&-',
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "True\n"


def test_log_lines_are_escaped_and_shortened():
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "prompt: %s", ("\x1b[31m" + "a" * 100_000,), None)
    line = program.OneLine("%(message)s").format(record)
    assert line.startswith("prompt: \\x1b[31maaa") and line.endswith("aaa... (100013 characters)") and len(line) < 6000


@pytest.mark.parametrize("where", ["| head -c 1", ">/dev/full", "2>/dev/full", ">&- 2>&-", "2>&1 | head -c 1"])
def test_nobody_has_to_listen(tmp_path, where):
    """A log that cannot be written ends no run and changes no exit code."""
    code = (
        "import sys; from wan.program import *; keep_streams_open(); print('x' * 10**6); print_error('y' * 10**6); "
        "print('z', file=sys.stderr); open('done', 'w').close()"
    )
    command = f'set -o pipefail; "{sys.executable}" -c "{code}" {where}'
    env = {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and (tmp_path / "done").exists() and "Error" not in done.stderr


def test_log_lines_do_nothing_to_a_terminal():
    record = logging.LogRecord("wan", logging.INFO, "", 0, "prompt: %s", ("a\x1b[31m\n\udcba",), None)
    assert program.OneLine("%(message)s").format(record) == r"prompt: a\x1b[31m\n\udcba"

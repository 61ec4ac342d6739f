"""The command as it was started: its name in messages, command lines to repeat it, and streams that may be closed."""

import io
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

LONGEST_LINE = 5000  # characters of a log line; a path has up to 4096 bytes


def program_name() -> str:
    """The name that help and errors begin with: generate.py, wan-generate or python -m wan.cli."""
    module = _module()
    return f"python -m {module}" if module else _script() or "generate.py"


def command_line(*arguments: str | os.PathLike[str]) -> str:
    """This program with other arguments, as a shell in the current folder runs it."""
    python = [] if _script() == "wan-generate" else [_interpreter()]
    return " ".join(map(shell_word, [*python, *_program(), *map(os.fspath, arguments)]))


def torchrun_line(processes: int | str) -> str:
    """This program on several processes, as a message gives it."""
    words = ["--no-python", *_program()] if _script() == "wan-generate" else _program()
    return f"torchrun --nproc_per_node={processes} {' '.join(map(shell_word, words))} ..."


def shell_word(text: str) -> str:
    """The text as one word of bash or zsh; what a terminal cannot show is spelled by its bytes."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
        if text.isprintable():
            return shlex.quote(text)
    except UnicodeEncodeError:
        pass
    escaped = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(text))
    return "$'" + "".join(escaped) + "'"


def print_error(message: str, program: str | None = None) -> None:
    """`PROGRAM: MESSAGE` as one line on stderr, in characters that do nothing to a terminal."""
    print(f"{program or program_name()}: {printable(' '.join(message.splitlines()))}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with control characters and bytes that are no text spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class OneLine(logging.Formatter):
    """Log lines in characters that do nothing to a terminal, and not too many, whatever names and prompts hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return printable(text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}... ({len(text)} characters)")


def share_cores() -> None:
    """Let threads that wait for each other sleep. Call it before torch is imported: OpenMP reads this as it is loaded.

    By default they spin for milliseconds. Where other programs keep the cores busy, what they wait for is not running,
    and two threads take several times as long as one. 2000 rounds, about 0.1 ms, serve where cores are free. Nothing
    is changed for a user who has chosen. The names are those of GNU's, every and LLVM's OpenMP.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ |= {"GOMP_SPINCOUNT": "2000", "OMP_WAIT_POLICY": "PASSIVE"}


def keep_streams_open() -> None:
    """Outlive `2>&-`, `| head` and a full disk behind the log: what nobody can read any more is dropped.

    Python has None for a stream that was closed from the start, and `print` to None goes to stdout; a file that is
    opened later would take its number.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115 - it stays open
        elif number and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Lossy(stream.fileno(), "w", closefd=False)
            stream = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=number == 2 or raw.isatty()
            )
        setattr(sys, name, stream)


class _Lossy(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _module() -> str | None:
    """The module after `python -m`, if it is one of ours."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    return name if name.split(".")[0] in ("wan", "benchmarks") else None


def _script() -> str | None:
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    return name if name in ("generate.py", "wan-generate") else None


def _program() -> list[str]:
    """The words after `python`, or the installed script alone; generate.py when another program calls this one."""
    path = sys.argv[0]
    if module := _module():
        return ["-m", module]
    if _script() == "wan-generate":
        return ["wan-generate" if _is_on_path("wan-generate", path) else path]
    return [path if _script() else "generate.py"]


def _interpreter() -> str:
    """`python` where that is this one; otherwise as it was typed, or as torchrun started it."""
    ours = _module() or _script()
    return sys.orig_argv[0] if ours and not _is_on_path("python", sys.executable) else "python"


def _is_on_path(name: str, path: str) -> bool:
    found = shutil.which(name)
    return found is not None and os.path.abspath(found) == os.path.abspath(path)

"""Program: its name in messages, command lines that repeat it, and streams that may be closed."""

import io
import logging
import os
import shlex
import shutil
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

LONGEST_LINE = 5000  # characters of a log line; a path has up to 4096 bytes


def program_name() -> str:
    """Name with which help and errors begin: generate.py, wan-generate or python -m wan.cli."""
    module = _module()
    return f"python -m {module}" if module else _script() or "generate.py"


def command_line(*arguments: str | os.PathLike[str]) -> str:
    """Write the command that runs this program with other arguments, for a shell in the current folder."""
    python = [] if _script() == "wan-generate" else [_interpreter()]
    return " ".join(map(shell_word, [*python, *_program(), *map(os.fspath, arguments)]))


def torchrun_line(processes: int | str) -> str:
    """Write the command that starts this program in several processes."""
    words = ["--no-python", *_program()] if _script() == "wan-generate" else _program()
    return f"torchrun --nproc_per_node={processes} {' '.join(map(shell_word, words))} ..."


def install_command(extra: str) -> str:
    """Write the command that installs an extra of pyproject.toml: from the checkout, else package by package."""
    root, packages = Path(__file__).resolve().parents[1], []
    with suppress(metadata.PackageNotFoundError):  # files that were copied
        if not (root / "pyproject.toml").is_file():
            marked = (line.replace("'", '"').partition(";") for line in metadata.requires("wan") or ())
            packages = [name.strip() for name, _, marker in marked if f'extra == "{extra}"' in marker]
    place: str | Path = root
    with suppress(FileNotFoundError):  # the current folder was removed
        place = "." if root == Path.cwd() else root
    return f"pip install {' '.join(map(shell_word, packages or [f'{place}[{extra}]']))}"


def shell_word(text: str) -> str:
    """Quote a text as one word of bash or zsh; characters that a terminal cannot show become escaped bytes."""
    with suppress(UnicodeEncodeError):
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
        if text.isprintable():
            return shlex.quote(text)
    escaped = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(text))
    return "$'" + "".join(escaped) + "'"


def print_error(message: str, program: str | None = None) -> None:
    """Print `PROGRAM: MESSAGE` as one line on stderr, with control characters escaped."""
    print(f"{program or program_name()}: {printable(' '.join(message.splitlines()))}", file=sys.stderr)


def printable(text: str, limit: int | None = None) -> str:
    """Escape control characters and undecodable bytes of a text, which is cut at `limit` characters."""
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class OneLine(logging.Formatter):
    """Formatter of log lines of limited length with control characters escaped, as names and prompts may have them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), LONGEST_LINE)


def share_cores() -> None:
    """Let threads that wait for each other sleep. Call it before torch is imported: OpenMP reads this once.

    By default they spin for milliseconds. If other programs keep the cores busy, a thread that is waited for does not
    run, and two threads take several times as long as one. On free cores 2000 rounds, about 0.1 ms, are enough. A
    choice of the user is kept. The variables are those of GNU's, of every and of LLVM's OpenMP.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ |= {"GOMP_SPINCOUNT": "2000", "OMP_WAIT_POLICY": "PASSIVE"}


def keep_streams_open() -> None:
    """Keep running after `2>&-`, `| head` and a full disk under the log: output that cannot be written is dropped.

    A stream that was closed from the start is None in Python. `print` to None goes to stdout, and a file that is opened
    later would take its number.
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
    """Return the module after `python -m`, if it is one of ours."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    return name if name.split(".")[0] in ("wan", "benchmarks") else None


def _script() -> str | None:
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    return name if name in ("generate.py", "wan-generate") else None


def _program() -> list[str]:
    """Return the words after `python`, or the installed script alone; generate.py when another program calls us."""
    path = sys.argv[0]
    if module := _module():
        return ["-m", module]
    if _script() == "wan-generate":
        return ["wan-generate" if _is_on_path("wan-generate", path) else path]
    return [path if _script() else "generate.py"]


def _interpreter() -> str:
    """Return `python` if it is this interpreter, else its name as it was typed or as torchrun used it."""
    ours = _module() or _script()
    return sys.orig_argv[0] if ours and not _is_on_path("python", sys.executable) else "python"


def _is_on_path(name: str, path: str) -> bool:
    found = shutil.which(name)
    return found is not None and os.path.abspath(found) == os.path.abspath(path)

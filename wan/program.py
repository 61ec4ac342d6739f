"""The command as it was started: its name in messages, command lines to repeat it, and streams that may be closed."""

import os
import shlex
import shutil
import sys
from pathlib import Path


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


def print_error(message: str) -> None:
    """`PROGRAM: MESSAGE` as one line on stderr."""
    print(f"{program_name()}: {' '.join(message.splitlines())}", file=sys.stderr)


def open_closed_streams() -> None:
    """Give a process that was started with `2>&-` or the like a null device, so that no file of ours takes its number.

    Python has None for a closed stream, and `print` to None goes to stdout.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def _module() -> str | None:
    """The module after `python -m`, if it is one of ours."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    return name if name.split(".")[0] in ("wan", "benchmarks") else None


def _script() -> str | None:
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    return name if name in ("generate.py", "wan-generate") else None


def _program() -> list[str]:
    """What comes after `python`, or the installed script alone; generate.py when another program calls this one."""
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

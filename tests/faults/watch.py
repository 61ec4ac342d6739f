"""Run one input in a process of its own, and judge how it ended and what it touched."""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.base import Base
from tests.faults.inputs import Input, make
from wan import cli, media
from wan.program import print_error

CPU_SECONDS = 30  # an input takes under one
WALL_SECONDS = 90  # of a process that waits without working, as on a FIFO; many, because the machine may be busy
GROWTH = 500 << 20  # bytes that a process may take beyond what it had when it was forked
PICTURE_GROWTH = 1500 << 20  # of 100 million pixels and more
ADDRESS_SPACE = 6 << 30
FILE_BYTES = 100 << 20
LONGEST_REFUSAL = 4000  # characters
LONGEST_LOG = 12_000
LARGEST_RUN = 64 * 64 * 17 * 2 * 2  # pixels times frames times steps times videos; larger runs are only planned
PLANNED = "planned only"
NOT_FINITE = "values that are not finite"
BROKEN = 99  # exit code of a process that ended in an exception
FORBIDDEN = frozenset(
    "subprocess.Popen os.system os.exec os.posix_spawn os.fork os.forkpty pty.spawn webbrowser.open pickle.find_class "
    "socket.connect socket.bind socket.getaddrinfo socket.gethostbyname urllib.Request http.client.connect".split()
)
NAMES_OF_PROGRAMS = ("gs", "gswin64c", "ffmpeg", "ffprobe", "convert", "magick", "curl", "wget", "git", "xdg-open")


@dataclass
class Result:
    number: int
    kind: str
    what: str
    code: int | str  # exit code, or how the process died
    wrong: list[str]  # what is wrong with that; empty when all is well
    text: str  # what the command printed
    megabytes: int  # taken beyond the process it was forked from

    def line(self) -> str:
        return (
            f"{self.number} {self.kind} ({self.what.strip()[:100]!r}): {self.code} {'; '.join(self.wrong) or 'right'}"
        )


@dataclass
class Place:
    """Folders of one input."""

    root: Path

    def __post_init__(self) -> None:
        self.work, self.out, self.temporary = (self.root / name for name in ("work", "out", "tmp"))
        self.log, self.trace = self.root / "log", self.root / "trace"
        for folder in (self.work, self.out, self.temporary):
            folder.mkdir(parents=True)
        self.trace.touch()


def set_up(folder: Path) -> Base:
    """Prepare this process for many inputs: sound files, and programs first in PATH that leave a trace."""
    programs = folder / "bin"
    programs.mkdir()
    for name in NAMES_OF_PROGRAMS:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/started\nexit 1\n')
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.dont_write_bytecode = True
    sound = folder / "base"
    sound.mkdir()
    return Base(sound)


def run(number: int, base: Base, folder: Path) -> Result:
    """Make input `number`, run it and judge; its files are removed afterwards."""
    place = Place(folder / str(number))
    try:
        kind, given = make(number, base, place.work)
        os.utime(place.work / "canary", (1, 1))
        before, sound = _listing(place.work), _listing(base.folder)
        memory = _resident()
        code, peak = _forked(given, place)
        text = place.log.read_bytes().decode("utf-8", "replace")
        growth = peak - memory
        wrong = [*_conduct(code, text, given), *_traces(place, folder / "started", given, code, text, before)]
        if growth > (PICTURE_GROWTH if kind == "picture" else GROWTH):
            wrong.append(f"took {growth >> 20} MiB")
        if _listing(base.folder) != sound:
            wrong.append("changed files that it was given")
        return Result(number, kind, given.what, code, wrong, text, growth >> 20)
    finally:
        shutil.rmtree(place.root)


# ---------------------------------------------------------------- the process


def _forked(given: Input, place: Place) -> tuple[int | str, int]:
    """Fork a process for that input; return how it ended, and its peak memory in bytes."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            _confine(place)
            code = _call(given) if given.call else _command(given, place)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + WALL_SECONDS
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return "hangs", usage.ru_maxrss << 10
        time.sleep(0.004)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status), usage.ru_maxrss << 10
    number = os.WTERMSIG(status)
    return "hangs" if number == signal.SIGXCPU else signal.Signals(number).name, usage.ru_maxrss << 10


def _confine(place: Place) -> None:
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["TMPDIR"] = str(place.temporary)
    os.chdir(place.work)
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_AS, _address_space() + ADDRESS_SPACE),
    ):
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    _watch(place)


def _watch(place: Place) -> None:
    """Note in the trace what no file may cause: programs, connections, writing or reading elsewhere."""
    trace = os.open(place.trace, os.O_WRONLY | os.O_APPEND)
    canary, root = str(place.work / "canary"), str(place.root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            os.write(trace, f"{event} {arguments!r:.200}\n".encode("utf-8", "backslashreplace"))
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            name = os.path.abspath(os.fsdecode(arguments[0]))
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            is_writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if name == canary or (is_writing and not name.startswith(root) and name != os.devnull):
                os.write(trace, f"opens {name}\n".encode("utf-8", "backslashreplace"))

    sys.addaudithook(hook)


def _command(given: Input, place: Place) -> int:
    """Run the real command. Long runs are only planned; the files of finished ones are checked."""
    make_video = cli.run

    def small(job: Any) -> int:
        request, (width, height) = job.request, job.request.framing.used
        if width * height * request.frame_num * job.num_videos * (job.latent is None and request.steps) > LARGEST_RUN:
            print(PLANNED)
            return 0
        return make_video(job)

    cli.run = small
    own = [] if "--device" in given.argv else ["--device", "cpu"]
    code = cli.main([*given.argv, *own, "--progress", "plain", "--output_dir", str(place.out), "--save_file", "o.mp4"])
    for path in place.out.glob("*.mp4"):
        frames, _ = media.read_video(path)
        print(f"video {list(frames.shape)}, {'flat' if frames.min() == frames.max() else 'of pixels'}")
    return code


def _call(given: Input) -> int:
    try:
        given.call()
    except (ValueError, OSError) as error:
        print_error(f"error: {error}")
        return 2
    except FloatingPointError as error:
        print_error(f"failed: {error}")
        return 1
    print(PLANNED)
    return 0


# ---------------------------------------------------------------- the verdict


def _conduct(code: int | str, text: str, given: Input) -> list[str]:
    """List what is wrong with the end and the messages of a process."""
    wrong = []
    if code not in (0, 1, 2):
        wrong.append(f"ended with {code}: {_last_line(text)}")
    for mark in ("Traceback", "panicked at", "weights_only", "this is a defect", "Segmentation"):
        if mark in text:
            wrong.append(f"says {mark!r}")
    if odd := {c for c in text if not c.isprintable() and c != "\n"}:
        wrong.append(f"prints {sorted(odd)!r}")
    if len(text) > LONGEST_LOG:
        wrong.append(f"prints {len(text)} characters")
    if code == 1 and NOT_FINITE not in text:
        wrong.append(f"fails late: {_last_line(text)}")
    if code == 2:
        wrong += _refusal(text, given.names)
    is_sound = "of pixels" in text or ("flat" in text and "WARNING" in text)
    if code == 0 and PLANNED not in text and not is_sound:
        wrong.append("says that it is done, without a sound video")
    return wrong


def _refusal(text: str, names: tuple[str, ...]) -> list[str]:
    message = text.partition("error: ")[2]
    wrong = []
    if not message:
        wrong.append("is refused without a word")
    if len(message) > LONGEST_REFUSAL:
        wrong.append(f"is refused in {len(message)} characters")
    if names and not any(name in message for name in names):
        wrong.append(f"the refusal names none of {names}: {message[:200]!r}")
    if "INFO: step" in text:
        wrong.append("is refused after steps")
    return wrong


def _traces(
    place: Place, started: Path, given: Input, code: int | str, text: str, before: dict[str, tuple[int, ...]]
) -> list[str]:
    """List what the process opened, started, left or removed."""
    wrong = [f"did: {line}" for line in place.trace.read_text(errors="replace").splitlines()[:3]]
    if started.exists():
        wrong.append(f"started: {started.read_text()[:200]!r}")
        started.unlink()
    if (place.work / "canary").stat().st_atime > 1:
        wrong.append("read the canary")
    after = _listing(place.work)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if changed := {name for name in changed if not name.startswith(given.keeps if code else given.uses_up)}:
        wrong.append(f"made, changed or removed {sorted(changed)[:3]}")
    left = {path.name for path in place.out.iterdir()}
    if code == 0:
        left = {name for name in left if not name.endswith(".mp4")}
    elif "--resume" in text:
        left = {name for name in left if not name.endswith(".latent.safetensors")}
    left |= {path.name for path in place.temporary.iterdir()}
    return [*wrong, f"left {sorted(left)[:3]}"] if left else wrong


def _listing(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in folder.rglob("*"):
        info = path.lstat()
        found[str(path.relative_to(folder))] = info.st_mode, info.st_size, info.st_mtime_ns
    return {name: values for name, values in found.items() if not os.path.isdir(folder / name)}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

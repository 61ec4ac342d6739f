"""Integration matrix of `bash tests/test.sh`: every task, size and way to run, a command each, and a table of results.

INPUTS, ALONE, TOGETHER and METHODS are the matrix as data. Tasks, sizes and folders are those of the package: what is
added there joins without a change here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":  # as tests/test.sh starts it, in any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tests.tiny_qwen import write_tiny_qwen
from wan.checkpoint.layout import repository
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS, is_embedded, nano_checkpoint
from wan.configs.shared_config import TaskConfig
from wan.interrupts import INTERRUPTED, as_interrupt, put_off
from wan.media import read_metadata, save_image, write_video
from wan.output import REQUEST_KEY
from wan.parser import Parser, exit_code
from wan.program import install_command, printable
from wan.typed import at_least, path, text
from wan.utils.language_models import ALIASES, find_model
from wan.utils.prompt_extend import DashScopePromptExpander, OpenAIPromptExpander, QwenPromptExpander

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "generate.py"
COLUMNS = ["task", "inputs", "size", "processes", "flags", "result", "seconds", "reason"]
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
STOPPING = 45.0  # seconds that a command has to end when it is asked to; torchrun gives its processes 30

# Task -> name of its inputs -> flags. {name} is a file of `examples`; of a task that is not listed the prompt is all.
INPUTS = {
    "i2v-A14B": {"image": "--image {first_frame.png}"},
    "ti2v-5B": {"text": "", "image": "--image {first_frame.png}"},
    "s2v-14B": {
        "speech": "--image {first_frame.png} --audio {talk.wav}",
        "speech, pose": "--image {first_frame.png} --audio {talk.wav} --pose_video {pose.mp4}",
    },
    "animate-14B": {
        "animate": "--src_root_path {wan_animate/animate/process_results} --refert_num 1",
        "replace": "--src_root_path {wan_animate/replace/process_results} --refert_num 1 --replace_flag",
        "replace, relit": "--src_root_path {wan_animate/replace/process_results} --refert_num 1 --replace_flag "
        "--use_relighting_lora",
    },
}
# Ways to run in one process, and in several. The first of each is the usual one: it runs at every size.
ALONE = ("", "--offload_model True --convert_model_dtype", "--offload_model --t5_cpu")
TOGETHER = (
    "--dit_fsdp --t5_fsdp --ulysses_size {count}",
    "--offload_model True --convert_model_dtype --t5_cpu --ulysses_size {count}",
)
METHODS = ("local_qwen", "dashscope", "openai")  # of prompt extension
# Of videos of the nano family: that a row runs is of interest, not what it shows.
NANO_STEPS = 2
NANO_FLAGS = {"s2v-14B": ("--audio_len", "1")}


@dataclass(frozen=True)
class Row:
    """Command of the matrix, or with `lacks` the reason for which it cannot run; then its result."""

    task: str
    inputs: str = ""
    size: str = ""
    processes: int = 1
    way: str = ""
    flags: tuple[str, ...] = ()
    lacks: str = ""
    result: str = SKIPPED
    seconds: float = 0.0
    reason: str = ""

    def cells(self) -> list[str]:
        many = str(self.processes) if self.inputs else ""
        took = "" if self.result == SKIPPED else f"{self.seconds:.1f}"
        way = self.way or "none" * bool(self.inputs)
        return [self.task, self.inputs, self.size, many, way, self.result, took, self.reason or self.lacks]

    def title(self) -> str:
        return " ".join(filter(None, self.cells()[:5]))

    def command(self) -> list[str]:
        """Write the command, with absolute paths: it can be pasted in any folder."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        return [sys.executable, *(launcher if self.processes > 1 else []), str(PROGRAM), *self.flags]


@dataclass(frozen=True)
class Asked:
    """Models (None: the nano family), number of processes, further flags of every command, folder of the results."""

    models: Path | None
    count: int
    further: tuple[str, ...]
    folder: Path

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all tasks that the package knows."""
        for task in dict.fromkeys([*WAN_CONFIGS, *NANO_CONFIGS]):
            config, lacks = self._config(task)
            if config is None or lacks:
                yield Row(task, lacks=lacks)
                continue
            for number, (inputs, flags) in enumerate(INPUTS.get(task, {"text": ""}).items()):
                sizes = (config.size, *(size for size in config.sizes if size != config.size))
                row = Row(task, inputs, config.size, flags=("--task", task, *self._checkpoint(config)))
                yield from self._ways(row, sizes if number == 0 else sizes[:1], config.prompt, flags)

    def _config(self, task: str) -> tuple[TaskConfig | None, str]:
        """Return the config of a task, and the reason for which it cannot run here."""
        if task not in IMPLEMENTED_TASKS:
            return None, "this task comes later"
        if self.models is not None:
            config = WAN_CONFIGS[task]
            here = (self.models / repository(config)).is_dir()
            return config, "" if here else f"there is no folder {repository(config)}"
        if task not in NANO_CONFIGS or not is_embedded(NANO_CONFIGS[task], nano_checkpoint(task)):
            return None, "this task has no embedded model"
        return NANO_CONFIGS[task], ""

    def _checkpoint(self, config: TaskConfig) -> list[str]:
        if self.models is None:
            return list(NANO_FLAGS.get(config.name, ()))
        return ["--ckpt_dir", str(self.models / repository(config))]

    def _ways(self, row: Row, sizes: tuple[str, ...], prompt: str, flags: str) -> Iterator[Row]:
        """Yield all ways to run one kind of inputs: the usual one at all sizes, the others, prompt extension."""
        given, missing = self._files(flags)
        if "--use_relighting_lora" in flags and self.models is None:
            missing = "the embedded model has no relighting LoRA"
        row = replace(row, lacks=missing, flags=(*row.flags, *given, "--prompt", prompt))
        several = max(self.count, 2)
        for number, way in enumerate(ALONE):
            for size in sizes if self.count == 1 and number == 0 else sizes[:1]:
                yield self._at(row, size, 1, way)
        too_few = replace(row, lacks=row.lacks or ("GPU_COUNT is 1" if self.count == 1 else ""))
        for number, way in enumerate(TOGETHER):
            for size in sizes if self.count > 1 and number == 0 else sizes[:1]:
                yield self._at(too_few, size, several, way.format(count=several))
        usual = ALONE[0] if self.count == 1 else TOGETHER[0].format(count=self.count)
        for method in METHODS:
            asking, lacks = self._extension(method, row.task, "--image" in flags)
            extended = self._at(replace(row, lacks=row.lacks or lacks), sizes[0], self.count, usual)
            yield replace(extended, way=f"prompt extension by {method}", flags=(*extended.flags, *asking))

    def _at(self, row: Row, size: str, processes: int, way: str) -> Row:
        here = ("--device", "cpu") if processes > max(torch.cuda.device_count(), 1) else ()
        flags = (*row.flags, "--size", size, "--base_seed", "0", *shlex.split(way), *here, *self.further)
        return replace(row, size=size, processes=processes, way=way, flags=flags)

    def _files(self, flags: str) -> tuple[list[str], str]:
        """Return flags with the paths of the files they name, and which of these is not there."""
        words, missing = [], ""
        for word in flags.split():
            if word.startswith("{"):
                name = word.strip("{}")
                file = next((file for file in (ROOT / "examples" / name, self.folder / name) if file.exists()), None)
                missing = missing or ("" if file or name in MADE else f"examples/{name} is not there")
                word = str(file or self.folder / name)
            words.append(word)
        return words, missing

    def _extension(self, method: str, task: str, is_vl: bool) -> tuple[list[str], str]:
        """Return the flags of a method of prompt extension, and the reason for which it cannot run here."""
        flags = ["--use_prompt_extend", "--prompt_extend_method", method, "--prompt_extend_target_lang", "en"]
        try:
            if method == "dashscope":
                DashScopePromptExpander(task=task, is_vl=is_vl)
            elif method == "openai":
                if not (url := os.environ.get("OPENAI_BASE_URL")):
                    return flags, "OPENAI_BASE_URL is not set; it holds the address of a server"
                OpenAIPromptExpander(url, task=task, is_vl=is_vl)
                flags += ["--prompt_extend_url", url]
            elif missing := [name for name in QwenPromptExpander.packages if find_spec(name) is None]:
                return flags, f"the package {missing[0]} is not installed; {install_command('prompt')}"
            elif model := self._language_model(is_vl):
                flags += ["--prompt_extend_model", model]
            else:
                kind = "Qwen2.5-VL" if is_vl else "Qwen2.5"
                return flags, f"neither MODEL_DIR nor the cache of Hugging Face holds a {kind} model"
        except (ValueError, OSError) as error:
            return flags, str(error)
        return flags, ""

    def _language_model(self, is_vl: bool) -> str | None:
        """Find a model on this machine; for the nano family it is a random one, which `prepare` writes."""
        if self.models is None:
            return str(self.folder / TINY_QWEN[is_vl])
        for name in [*map(str, sorted(self.models.glob("Qwen*"))), *ALIASES]:
            with suppress(OSError, ValueError):
                if isinstance(find_model(name, is_vl), Path):
                    return name
        return None


def write_speech(file: Path) -> None:
    """Write a second of sound, 16 kHz: a tone that comes and goes four times."""
    t = torch.arange(16000) / 16000
    sound = torch.sin(440 * torch.pi * t) * torch.sin(4 * torch.pi * t).square() * 2**14
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(sound.short().numpy().tobytes())


EDGES = 64, 64  # of performances, which decide on the size of their video
FRAMES = 17  # of theirs


def write_pose(file: Path) -> None:
    """Write a second of a white bar that moves over black."""
    frames = torch.zeros(FRAMES, *EDGES, 3, dtype=torch.uint8)
    for i, frame in enumerate(frames):
        frame[16:48, 1 + i : 9 + i] = 255
    write_video(frames, file, 16)


TINY_QWEN = ("tiny-qwen", "tiny-qwen-vl")


def write_performance(folder: Path) -> None:
    """Write a second of a performance: a bar for a skeleton, grey faces, a background, a mask, a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pose(folder / "src_pose.mp4")
    shutil.copyfile(folder / "src_pose.mp4", folder / "src_mask.mp4")
    grey = torch.full((FRAMES, *EDGES, 3), 128, dtype=torch.uint8)
    for name in ("src_face.mp4", "src_bg.mp4"):
        write_video(grey, folder / name, 16)
    save_image(grey[0], folder / "src_ref.png")


MADE = {  # written where the checkout has none
    "talk.wav": write_speech,
    "pose.mp4": write_pose,
    "wan_animate/animate/process_results": write_performance,
    "wan_animate/replace/process_results": write_performance,
}


def prepare(rows: list[Row], folder: Path) -> None:
    """Write the files that rows name in the folder of the results."""
    named = {Path(word) for row in rows if not row.lacks for word in row.flags}
    for name, write in MADE.items():
        if folder / name in named and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
    for is_vl, name in enumerate(TINY_QWEN):
        if folder / name in named:
            write_tiny_qwen(folder / name, bool(is_vl))


def run(row: Row, name: str, folder: Path) -> Row:
    """Run the command of a row; return it with its result. The log and the video get the name."""
    video, log = folder / f"{name}.mp4", folder / f"{name}.log"
    row = replace(row, flags=(*row.flags, "--save_file", str(video), "--overwrite"))
    video.unlink(missing_ok=True)
    print(f"  {shlex.join(row.command())}", flush=True)
    start = time.monotonic()
    code = follow(row.command(), log)
    row = replace(row, seconds=time.monotonic() - start, result=PASSED)
    reason = _why(log, code) if code else _wrong(row, video)
    return replace(row, result=FAILED, reason=f"{reason} ({log.name})") if reason else row


def follow(command: list[str], log: Path) -> int:
    """Run a command to its end and return its exit code. What it starts ends with us; its output goes to the log."""
    process = None
    with open(log, "wb") as out:
        try:
            with put_off():
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent, start_new_session=True
                )
            return process.wait()
        finally:
            if process is not None and process.poll() is None:
                stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ask a command to end, as Ctrl-C does; it cleans up and takes its processes along. Then end it."""
    process.terminate()  # SIGINT is ignored where we run in the background
    try:
        process.wait(STOPPING)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _why(log: Path, code: int) -> str:
    """Find the line of a log that tells why the command failed."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(f"{PROGRAM.name}: ")] or lines[-1:] or ["nothing was printed"]
    ended = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    return f"{ended}: {printable(said[0].strip(), 300)}"


def _wrong(row: Row, video: Path) -> str:
    """Name what is wrong with a video whose command reported success; '' for nothing."""
    if not video.is_file():
        return "no video was written"
    try:
        request = json.loads(read_metadata(video)[REQUEST_KEY])
    except (KeyError, ValueError) as error:
        return f"the video holds no request: {error}"
    has_fallen_back = "--use_prompt_extend" in row.flags and request.get("original_prompt") is None
    return "the prompt was not extended" if has_fallen_back else ""


def table(rows: list[Row]) -> str:
    """Lay rows out under the names of the columns, and count the results."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    counts = ", ".join(f"{sum(row.result == result for row in rows)} {result}" for result in (PASSED, FAILED, SKIPPED))
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([*shown, "", f"{counts} in {sum(row.seconds for row in rows):.0f} s"])


def run_all(rows: list[Row], folder: Path) -> int:
    """Run the rows and print the table, also of a run that is interrupted; return the exit code."""
    done: list[Row] = []
    try:
        prepare(rows, folder)
        for number, row in enumerate(rows, 1):
            print(f"[{number}/{len(rows)}] {row.title()}", flush=True)
            name = "-".join([f"{number:02}", row.task, *row.inputs.replace(",", "").split(), str(row.processes)])
            done.append(row if row.lacks else run(row, name, folder))
            *_, result, seconds, reason = done[-1].cells()
            print(f"  {result}{f' in {seconds} s' * bool(seconds)}{f': {reason}' * bool(reason)}", flush=True)
    except KeyboardInterrupt:
        left = rows[len(done) :]
        print(f"\n{table([*done, *(replace(row, reason='interrupted') for row in left)])}", flush=True)
        return INTERRUPTED
    print(f"\n{table(done)}", flush=True)
    return int(any(row.result == FAILED for row in done))


def main(argv: list[str] | None = None) -> int:
    """Run the program; return 0, 1 when a row failed, 130 for Ctrl-C. Raises ValueError when no row can run."""
    parser = Parser(
        prog="tests/test.sh",
        usage="bash tests/test.sh MODEL_DIR GPU_COUNT [flags]",
        description="Run the integration matrix: each task at each of its sizes, in one and in several processes, with "
        "the flags that save memory, and with prompt extension. It prints each command, and a table at the end.",
        epilog="local_qwen takes a folder Qwen... in MODEL_DIR or a model in the cache of Hugging Face (nano: a random "
        "one), dashscope the key in DASH_API_KEY, openai the address in OPENAI_BASE_URL. "
        "Exit codes: 0 all that can run passed, 1 a row failed, 2 wrong arguments or nothing can run, 130 interrupted.",
    )
    parser.add_argument(
        "model_dir", type=path, help="the folder that holds the released ones (Wan2.2-T2V-A14B, ...), or nano"
    )
    parser.add_argument("gpu_count", type=at_least(1), help="processes of the rows that use several")
    parser.add_argument("--only", type=text, metavar="WORDS", default="", help="rows with these words; default: all")
    parser.add_argument(
        "--sample_steps",
        type=at_least(1),
        metavar="N",
        help=f"of each video; default: the task's, of nano {NANO_STEPS}",
    )
    parser.add_argument(
        "--output_dir",
        type=path,
        metavar="DIR",
        help="of videos and logs; default: a temporary folder, kept when a row failed",
    )
    parser.add_argument("--list", action="store_true", help="print rows and commands, run nothing")
    args = parser.parse_args(argv)
    models = None if args.model_dir == "nano" else Path(args.model_dir).expanduser().absolute()
    _check(models, args.gpu_count)
    steps = args.sample_steps or (NANO_STEPS if models is None else None)
    further = ("--sample_steps", str(steps)) if steps else ()
    with as_interrupt():
        if args.output_dir:
            return _run(Asked(models, args.gpu_count, further, Path(args.output_dir).expanduser().absolute()), args)
        asked = Asked(models, args.gpu_count, further, Path(tempfile.mkdtemp(prefix="wan-matrix-")))
        code = 0
        try:
            code = _run(asked, args)
            return code
        finally:
            if code != 1:
                shutil.rmtree(asked.folder, ignore_errors=True)


def _run(asked: Asked, args: argparse.Namespace) -> int:
    """List or run the rows that were asked for. Raises ValueError when none can run."""
    rows = [row for row in asked.rows() if {*args.only.split()} <= {*row.title().split()}]
    if not rows:
        raise ValueError(f"no row has all of the words {args.only!r}; --list shows the rows")
    if args.list:
        for row in rows:
            print(row.title(), f"\n  skipped: {row.lacks}" if row.lacks else f"\n  {shlex.join(row.command())}")
        return 0
    asked.folder.mkdir(parents=True, exist_ok=True)
    code = run_all(rows, asked.folder)
    if code == 1 or args.output_dir:
        print(f"videos and logs are in {asked.folder}")
    if all(row.lacks for row in rows):
        raise ValueError("nothing ran: every row is skipped, for the reasons above")
    return code


def _check(models: Path | None, count: int) -> None:
    """Raise FileNotFoundError for a folder that does not exist, ValueError for fewer GPUs than asked."""
    if models is None:
        return
    if not models.is_dir():
        raise FileNotFoundError(f"there is no folder {models}; name the one that holds Wan2.2-T2V-A14B, ..., or nano")
    if models.name in map(repository, WAN_CONFIGS.values()):
        raise ValueError(f"MODEL_DIR is the folder that holds {models.name}; try {models.parent}")
    if 0 < (found := torch.cuda.device_count()) < count:
        raise ValueError(f"GPU_COUNT is {count}, and this machine has {found}; at most {found}")


if __name__ == "__main__":
    sys.exit(exit_code(main))

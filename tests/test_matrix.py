"""`bash tests/test.sh`: its rows, its results with a stand-in for the command, and one real row."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import av
import pytest
import torch

from tests import matrix
from wan.arguments import build_parser
from wan.checkpoint.layout import repository
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS
from wan.media import read_metadata, write_video
from wan.output import REQUEST_KEY
from wan.parser import exit_code
from wan.utils.language_models import find_model

SCRIPT = Path(__file__).with_name("test.sh")
# In place of generate.py: writes a video, fails as that does, reports success without a video, or waits to be stopped.
STAND_IN = """
import shutil, sys, time
from pathlib import Path
video, task = Path(sys.argv[sys.argv.index("--save_file") + 1]), sys.argv[sys.argv.index("--task") + 1]
if task == "i2v-A14B":
    print("some words first"), sys.exit("generate.py: failed: the disk is full")
if Path(__file__).with_name("wait").exists():
    Path(__file__).with_name("wait").rename(Path(__file__).with_name("waits"))
    time.sleep(600)
if "--t5_cpu" not in sys.argv:
    shutil.copy(Path(__file__).parent / "video.mp4", video)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """A folder with spaces in its name, whose `generate.py` is run; results of a temporary folder lie in `made`."""
    folder = tmp_path / "a folder's name"
    (folder / "made").mkdir(parents=True)
    (folder / "generate.py").write_text(STAND_IN)
    write_video(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), folder / "video.mp4", 8, {REQUEST_KEY: "{}"})
    monkeypatch.setattr(matrix, "PROGRAM", folder / "generate.py")
    monkeypatch.setattr("tempfile.tempdir", str(folder / "made"))
    return folder


def rows_of(*arguments: str, capsys) -> list[list[str]]:
    """List rows: the words of the title and the text of the line below it."""
    assert matrix.main([*arguments, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[title.strip(), below.strip()] for title, below in zip(lines[::2], lines[1::2], strict=True)]


def released(folder: Path, *tasks: str) -> Path:
    for task in tasks:
        (folder / repository(WAN_CONFIGS[task])).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_row_is_a_command_that_is_understood(count, capsys):
    rows = rows_of("nano", str(count), capsys=capsys)
    seen = set()
    for _, command in rows:
        if command.startswith("skipped: "):
            continue
        words = shlex.split(command)
        at = words.index(str(matrix.PROGRAM))
        args = build_parser().parse_args(words[at + 1 :])
        processes = count if f"--nproc_per_node={count}" in words[:at] else 1
        assert words[0] == sys.executable and ("--standalone" in words) == (processes > 1)
        assert not args.image or Path(args.image).is_file()
        seen.add((args.task, bool(args.image), processes, args.dit_fsdp, bool(args.offload_model), args.t5_cpu))
    kinds = [("t2v-A14B", False), ("i2v-A14B", True), ("ti2v-5B", False), ("ti2v-5B", True)]
    for kind in kinds:
        assert {(*kind, 1, False, False, False), (*kind, 1, False, True, False), (*kind, 1, False, True, True)} <= seen
        assert ({(*kind, count, True, False, False), (*kind, count, False, True, True)} <= seen) == (count > 1)


def test_all_tasks_and_all_their_sizes_have_rows(tmp_path, capsys):
    rows = rows_of(str(released(tmp_path, *WAN_CONFIGS)), "1", capsys=capsys)
    for task, config in WAN_CONFIGS.items():
        titles = [title.split() for title, below in rows if title.startswith(task) and not below.startswith("skipped")]
        assert {size for _, *words in titles for size in words if size in config.sizes} == (
            set(config.sizes) if task in IMPLEMENTED_TASKS else set()
        )


def test_folders_tasks_and_files_that_are_not_there_are_skipped(tmp_path, capsys, monkeypatch):
    models = released(tmp_path / "all models", "ti2v-5B", "animate-14B")
    rows = dict(rows_of(str(models), "1", capsys=capsys))
    assert rows["t2v-A14B"] == "skipped: there is no folder Wan2.2-T2V-A14B"
    assert f"--ckpt_dir '{models}/Wan2.2-TI2V-5B'" in rows["ti2v-5B text 704*1280 1 none"]
    assert "--src_root_path" in rows["animate-14B animate 1280*720 1 none"]
    monkeypatch.delitem(matrix.MADE, "wan_animate/animate/process_results")
    rows = dict(rows_of(str(models), "1", capsys=capsys))
    if not (matrix.ROOT / "examples/wan_animate").exists():
        lacks = "skipped: examples/wan_animate/animate/process_results is not there"
        assert rows["animate-14B animate 1280*720 1 none"] == lacks
    monkeypatch.setattr(matrix, "IMPLEMENTED_TASKS", [task for task in IMPLEMENTED_TASKS if task != "animate-14B"])
    assert dict(rows_of(str(models), "1", capsys=capsys))["animate-14B"] == "skipped: this task comes later"


def test_a_task_joins_when_the_package_has_it(monkeypatch, capsys):
    task = "s2v-14B"
    config = NANO_CONFIGS[task] if task in NANO_CONFIGS else NANO_CONFIGS["i2v-A14B"].copy(name=task)
    monkeypatch.setattr(matrix, "IMPLEMENTED_TASKS", [*IMPLEMENTED_TASKS, task])
    monkeypatch.setattr(matrix, "NANO_CONFIGS", {**NANO_CONFIGS, task: config})
    monkeypatch.setattr(matrix, "is_embedded", lambda *_: True)
    rows = [command for title, command in rows_of("nano", "2", capsys=capsys) if title.startswith(task)]
    assert any("--audio" in row and "--pose_video" in row and "nproc_per_node=2" in row for row in rows)


def test_sound_and_pose_are_made_where_the_checkout_has_none(tmp_path):
    files = (str(tmp_path / "talk.wav"), str(tmp_path / "pose.mp4"))
    matrix.prepare([matrix.Row("s2v-14B", flags=files)], tmp_path)
    with av.open(str(tmp_path / "talk.wav")) as sound, av.open(str(tmp_path / "pose.mp4")) as pose:
        assert sound.streams.audio[0].rate == 16000 and pose.streams.video[0].frames == matrix.FRAMES


def extension(*, capsys, models="nano") -> dict[str, str]:
    """Return what the rows of text-to-video with prompt extension run or lack, by method."""
    rows = rows_of(str(models), "1", "--only", "t2v-A14B prompt extension", capsys=capsys)
    return {title.split()[-1]: command for title, command in rows}


def test_prompt_extension_runs_where_its_requirements_are_met(tmp_path, capsys, monkeypatch):
    packages = set()
    for module in ("tests.matrix", "wan.utils.prompt_extend"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: name in packages or None)
    monkeypatch.delenv("DASH_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    for method, lacking in extension(capsys=capsys).items():
        assert lacking.startswith("skipped: the package") and "not installed" in lacking, method
    packages |= {"transformers", "dashscope", "openai", "tenacity"}
    monkeypatch.setattr(matrix, "find_model", lambda name, is_vl: Path(name) if name.startswith("/") else name)
    models = released(tmp_path, "t2v-A14B")
    lacking = extension(capsys=capsys, models=models)
    assert lacking["dashscope"].startswith("skipped: DASH_API_KEY is not set")
    assert lacking["local_qwen"].endswith("the cache of Hugging Face holds a Qwen2.5 model")
    assert lacking["openai"].endswith("--prompt_extend_url http://localhost:8000/v1")
    (models / "Qwen2.5-3B-Instruct").mkdir()
    monkeypatch.setenv("DASH_API_KEY", "a secret")
    monkeypatch.delenv("OPENAI_BASE_URL")
    found = extension(capsys=capsys, models=models)
    assert found["local_qwen"].endswith(f"--prompt_extend_model {models}/Qwen2.5-3B-Instruct")
    assert "--use_prompt_extend" in found["dashscope"] and "secret" not in found["dashscope"]
    assert found["openai"].startswith("skipped: OPENAI_BASE_URL is not set")
    for command in (found["local_qwen"], found["dashscope"], lacking["openai"]):
        build_parser().parse_args(shlex.split(command)[2:])


def test_results_reasons_and_times_are_a_table(stand_in, capsys, monkeypatch):
    """Of the commands some fail, some pass, and some report success without a video."""
    monkeypatch.setattr(matrix, "METHODS", ())
    arguments = ["nano", "1", "--output_dir", str(stand_in / "the results")]
    assert matrix.main(arguments) == 1
    out = capsys.readouterr().out
    *lines, _, total, place = out.partition("\ntask ")[2].splitlines()
    results = {state: [line for line in lines if f"  {state} " in line] for state in ("passed", "failed", "skipped")}
    assert all(results.values()) and sum(map(len, results.values())) == len(lines) - 1  # the first names the columns
    assert total.startswith(", ".join(f"{len(rows)} {state}" for state, rows in results.items()))
    assert any("GPU_COUNT is 1" in line for line in results["skipped"])
    full = "exit code 1: generate.py: failed: the disk is full"
    assert {full in line for line in results["failed"] if line.startswith("i2v-A14B")} == {True}
    assert {"no video was written" in line for line in results["failed"] if "--t5_cpu" in line} == {False, True}
    assert place.endswith("the results") and list((stand_in / "the results").glob("*.log"))
    assert len(list((stand_in / "the results").glob("*-1.mp4"))) == len(results["passed"])
    assert matrix.main(arguments) == 1 and f"{len(results['passed'])} passed" in capsys.readouterr().out, "run again"


def test_without_a_failure_nothing_is_left(stand_in, capsys):
    assert matrix.main(["nano", "1", "--only", "ti2v-5B image 1 True"]) == 0
    assert "1 passed, 0 failed, 0 skipped" in capsys.readouterr().out
    assert not list((stand_in / "made").iterdir())
    assert matrix.main(["nano", "1", "--only", "i2v-A14B 1 True"]) == 1
    (kept,) = (stand_in / "made").iterdir()
    assert str(kept) in capsys.readouterr().out and list(kept.glob("*.log"))


def test_a_row_that_was_printed_can_be_pasted(stand_in, capsys):
    assert matrix.main(["nano", "1", "--only", "ti2v-5B text 1 True", "--output_dir", str(stand_in / "b c")]) == 0
    command = capsys.readouterr().out.splitlines()[1].strip()
    shutil.rmtree(stand_in / "b c")
    (stand_in / "b c").mkdir()
    assert subprocess.run(["bash", "-c", command], cwd="/").returncode == 0 and list((stand_in / "b c").glob("*.mp4"))


def test_an_extension_that_fell_back_has_failed(tmp_path):
    for prompt, wrong in ((None, "the prompt was not extended"), ("a cat", "")):
        stored, video = json.dumps({"prompt": "a tabby", "original_prompt": prompt}), tmp_path / f"{prompt}.mp4"
        write_video(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), video, 8, {REQUEST_KEY: stored})
        assert matrix._wrong(matrix.Row("t2v-A14B", flags=("--use_prompt_extend",)), video) == wrong
        assert matrix._wrong(matrix.Row("t2v-A14B"), video) == ""
    video.write_bytes(b"no video")
    assert matrix._wrong(matrix.Row("t2v-A14B"), video).startswith("the video holds no request")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_command_and_prints_the_table(stand_in, number, capsys):
    (stand_in / "wait").touch()

    def interrupt():
        while not (stand_in / "waits").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    Thread(target=interrupt, daemon=True).start()
    assert matrix.main(["nano", "1", "--only", "none"]) == 130
    out = capsys.readouterr().out
    assert (
        "interrupted" in out
        and re.search(r"0 passed, 0 failed, \d+ skipped", out)
        and not list((stand_in / "made").iterdir())
    )
    assert str(stand_in) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def script(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(["bash", str(SCRIPT), *arguments], cwd=cwd, capture_output=True, text=True, env=environment)


def test_the_language_models_of_the_nano_family_are_made(tmp_path):
    pytest.importorskip("transformers")
    folders = [tmp_path / name for name in matrix.TINY_QWEN]
    matrix.prepare([matrix.Row("t2v-A14B", flags=tuple(map(str, folders)))], tmp_path)
    assert [find_model(str(folder), is_vl) for is_vl, folder in enumerate(folders)] == folders


def test_a_real_row_runs_from_any_folder(tmp_path):
    how = ("--only", "t2v-A14B 1 True", "--sample_steps", "2", "--output_dir", "the results")
    done = script("nano", "1", *how, cwd=tmp_path)
    assert done.returncode == 0 and "1 passed, 0 failed, 0 skipped" in done.stdout, done.stdout + done.stderr
    assert read_metadata(next((tmp_path / "the results").glob("*.mp4")))[REQUEST_KEY]


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["nano"], "gpu_count"),
        (["nano", "0"], "at least 1, got 0"),
        (["nano", "two"], "whole number"),
        (["no such folder", "1"], "there is no folder"),
        (["nano", "1", "--only", "nothing"], "no row has all of the words 'nothing'"),
        (["nano", "1", "--lst"], "--list"),
        (["..", "1"], "nothing ran: every row is skipped"),
        (["Wan2.2-T2V-A14B", "1"], "MODEL_DIR is the folder that holds Wan2.2-T2V-A14B; try "),
    ],
)
def test_mistakes_are_one_line(arguments, error, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty/Wan2.2-T2V-A14B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty")
    try:
        code = exit_code(lambda: matrix.main(arguments))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and len(said) == 1 and error in said[0], said


def test_without_torch_the_script_says_what_to_do(tmp_path):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = script("nano", "1", "--list", cwd=tmp_path, PYTHON="/no/python", PATH=str(tmp_path), VIRTUAL_ENV="")
    has_own = (matrix.ROOT / ".venv/bin/python").exists()
    assert has_own or (done.returncode == 2 and "no Python with torch is found" in done.stderr)

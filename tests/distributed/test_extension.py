"""Prompt extension in several processes: one asks, all use the answer, also when the server dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.command import command
from tests.language_server import ANSWER, LanguageServer
from tests.tiny_qwen import write_tiny_qwen
from wan import media, output
from wan.nano.random import write_random_checkpoint
from wan.utils import prompt_extend

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle moves left"
SECONDS = 300  # torchrun and its processes import for long on busy machines


@pytest.fixture(scope="module")
def run_flags(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("nano"))
    run = ["--ckpt_dir", str(folder), "--device", "cpu", "--frame_num", "5", "--sample_steps", "1", "--base_seed", "3"]
    return [*run, "--prompt", PROMPT, "--save_file", "a.mp4", "--use_prompt_extend"]


@pytest.fixture(autouse=True)
def installed():
    for package in ("openai", "tenacity", "transformers"):
        pytest.importorskip(package)


def by(address):
    return ["--prompt_extend_method", "openai", "--prompt_extend_url", address]


def briefly(rank):
    prompt_extend.NEW_TOKENS = 16


def prompts(folder, name="a.mp4"):
    stored = json.loads(media.read_metadata(folder / name)[output.REQUEST_KEY])
    return [stored["prompt"], stored["original_prompt"]]


def test_one_process_asks_and_all_make_the_video_of_its_answer(run_flags, tmp_path):
    """Each of the two makes a video of its own, so that each stores the prompt it used."""
    with (
        LanguageServer(ANSWER, 401) as server,
        command(2, [*run_flags, *by(server.address), "--num_videos", "2"], tmp_path) as run,
    ):
        assert run.finish() == [0, 0], run
        assert len(server.asked) == 1
    assert prompts(tmp_path, "a-1.mp4") == prompts(tmp_path, "a-2.mp4") == [ANSWER, PROMPT]


def test_one_process_loads_the_model_of_this_machine(run_flags, tmp_path):
    folder = write_tiny_qwen(tmp_path / "qwen")
    flags = [*run_flags, "--prompt_extend_model", str(folder), "--num_videos", "2"]
    with command(2, flags, tmp_path, prepare=briefly) as run:
        assert run.finish() == [0, 0], run
        assert ["loading the language model" in run.error(rank) for rank in (0, 1)] == [True, False]
    first, second = prompts(tmp_path, "a-1.mp4"), prompts(tmp_path, "a-2.mp4")
    assert first == second and first[0] != PROMPT == first[1]


def test_a_refusal_is_one_line_of_all_processes(run_flags, tmp_path):
    with command(2, [*run_flags, *by("localhost:8000")], tmp_path) as run:
        assert run.finish() == [2, 2], run
        assert sum(run.error(rank).count("error: --prompt_extend_url") for rank in (0, 1)) == 1


def test_torchrun_with_a_server_that_dies_in_the_middle_of_its_answer(run_flags, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "tests.language_server"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            address = server.stdout.readline().strip()
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            done = subprocess.run(
                [*torchrun, str(ROOT / "generate.py"), *run_flags, *by(address), "--num_videos", "2"],
                cwd=tmp_path,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert server.wait(SECONDS) == 1, "it has died"
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the prompt was not written out (") == 1 and "Traceback" not in done.stderr
    assert prompts(tmp_path, "a-1.mp4") == prompts(tmp_path, "a-2.mp4") == [PROMPT, None]

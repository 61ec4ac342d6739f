"""The commands of `make demo`, without running it."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def words(*variables):
    """Return the arguments that `make demo` passes to generate.py, as a list."""
    done = subprocess.run(["make", "-n", "demo", *variables], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    (command,) = (line for line in lines if "generate.py --task" in line)
    return shlex.split(command)[2:]


def demo(*variables):
    """Return these arguments by flag, all but the last of which have a value."""
    given = words(*variables)
    return dict(zip(given[:-1:2], given[1::2]))


@pytest.mark.parametrize(("task", "name"), [("t2v", "t2v-A14B"), ("i2v", "i2v-A14B"), ("ti2v", "ti2v-5B")])
def test_tasks_have_short_names_and_prompts(task, name):
    flags = demo(f"TASK={task}")
    assert (
        flags["--task"] == name and flags["--base_seed"] == "0" and flags["--save_file"] == f"outputs/demo-{task}.mp4"
    )
    assert ("--image" in flags) == (task == "i2v") and "moves right" in flags["--prompt"]
    assert (ROOT / flags.get("--image", "")).exists()


def test_a_face_talks_with_the_sound_of_the_repository_or_of_the_user():
    flags = demo("TASK=s2v")
    assert flags["--task"] == "s2v-14B" and flags["--save_file"] == "outputs/demo-s2v.mp4"
    assert all((ROOT / flags[name]).exists() for name in ("--image", "--audio"))
    assert demo("TASK=s2v", "AUDIO=it's mine.mp3")["--audio"] == "it's mine.mp3"


def test_a_figure_performs_what_is_in_the_repository_or_in_a_folder_of_the_user():
    given = words("TASK=animate")
    assert given[:2] == ["--task", "animate-14B"] and "--prompt" not in given and "--replace_flag" not in given
    folder = ROOT / given[given.index("--src_root_path") + 1]
    assert {path.name for path in folder.iterdir()} >= {"src_pose.mp4", "src_face.mp4", "src_ref.png"}
    given = words("TASK=replace", "PERFORMANCE=it's mine")
    assert "--replace_flag" in given and given[given.index("--src_root_path") + 1] == "it's mine"
    assert {"src_bg.mp4", "src_mask.mp4"} <= {path.name for path in folder.iterdir()}


def test_without_a_python_for_mediapipe_its_tests_are_left_out():
    done = subprocess.run(
        ["make", "--no-print-directory", "test-mediapipe", "MEDIAPIPE_PYTHON="],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "needs Python 3.10 to 3.12, and none was found" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_the_tests_with_mediapipe_run_in_an_environment_without_the_numpy_of_the_core(tmp_path):
    """A pip and a pytest that only note their arguments stand for the real ones."""
    place = tmp_path / "venv"
    (place / "bin").mkdir(parents=True)
    (place / ".python").touch()
    python = place / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho $@ >> "{tmp_path}/calls"\n')
    python.chmod(0o755)
    flags = [f"MEDIAPIPE_VENV={place}", "MEDIAPIPE_PYTHON=python3", "ARGS=-x"]
    done = subprocess.run(["make", "test-mediapipe", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    install, tests = (tmp_path / "calls").read_text().splitlines()
    assert install.startswith("-m pip install") and tests.startswith("-m pytest -m mediapipe tests/")
    assert "tests/modules/animate/preprocess/test_mediapipe.py" in tests and tests.endswith(" -x")
    lines = (place / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("numpy")] == ["numpy==1.26.4"]
    assert {"torch", "pytest", "mediapipe"} <= {line.partition("==")[0] for line in lines}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this Python has a CUDA build of torch")
def test_the_pretended_gpu_needs_a_build_with_cuda(tmp_path):
    """The environment has the torch of this Python, and a pip that only notes its arguments."""
    place = tmp_path / "venv"
    (place / "bin").mkdir(parents=True)
    (place / ".python").touch()
    python = place / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\necho "$@" >> "{tmp_path}/calls"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(["make", "pretend-cuda", f"CUDA_VENV={place}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and f"needs a CUDA build of torch, and {place} has {torch.__version__}" in done.stderr
    lines = (place / "requirements.txt").read_text().splitlines()
    assert lines[0] == "torch" and {"numpy", "transformers", "pytest"} <= {line.partition("==")[0] for line in lines}
    assert not [line for line in lines if line.startswith("torch=")], "any version of torch"
    assert "-m pytest" not in (tmp_path / "calls").read_text(), "nothing runs"


@pytest.mark.parametrize("task", ["i2v", "ti2v"])
def test_text_of_the_user_stays_one_word(task):
    image, prompt = "my photo's $HOME.png", 'it\'s "$5" `date` & more'
    flags = demo(f"TASK={task}", f"IMAGE={image}", f"PROMPT={prompt}", "SEED=7")
    assert (flags["--image"], flags["--prompt"], flags["--base_seed"]) == (image, prompt, "7")


def test_the_prompt_of_a_first_frame_is_of_what_it_shows():
    asked = demo("TASK=ti2v", "IMAGE=examples/first_frame.png")["--prompt"]
    assert asked == demo("TASK=i2v")["--prompt"] != demo("TASK=ti2v")["--prompt"] != demo()["--prompt"]

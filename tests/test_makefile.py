"""The commands of `make demo`, without running it."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def demo(*variables):
    """Return the arguments that `make demo` passes to generate.py."""
    done = subprocess.run(["make", "-n", "demo", *variables], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    (command,) = (line for line in lines if "generate.py --task" in line)
    words = shlex.split(command)
    return dict(zip(words[2:-1:2], words[3::2]))  # every flag but the last has a value


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


@pytest.mark.parametrize("task", ["i2v", "ti2v"])
def test_text_of_the_user_stays_one_word(task):
    image, prompt = "my photo's $HOME.png", 'it\'s "$5" `date` & more'
    flags = demo(f"TASK={task}", f"IMAGE={image}", f"PROMPT={prompt}", "SEED=7")
    assert (flags["--image"], flags["--prompt"], flags["--base_seed"]) == (image, prompt, "7")


def test_the_prompt_of_a_first_frame_is_of_what_it_shows():
    asked = demo("TASK=ti2v", "IMAGE=examples/first_frame.png")["--prompt"]
    assert asked == demo("TASK=i2v")["--prompt"] != demo("TASK=ti2v")["--prompt"] != demo()["--prompt"]

"""The help explains every flag and its default, and is true."""

import re
import subprocess
import sys

import pytest

from wan import cli
from wan.arguments import build_parser
from wan.choices import SOLVERS
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS
from wan.utils.solvers import make_solver

ACTIONS = [action for action in build_parser()._actions if action.dest != "help"]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.dest)
def test_every_flag_says_what_it_does_and_names_its_default(action):
    assert action.help and action.help.isascii() and "default" in action.help
    assert action.help % vars(action)  # argparse formats it


def test_help_is_complete_and_fits_every_terminal(capsys):
    assert cli.main(["--help"]) == cli.DONE
    text = capsys.readouterr().out
    assert text.isascii() and all(option in text for action in ACTIONS for option in action.option_strings)
    assert "speech-to-video:" in text and "character animation and replacement:" in text and "comes later" not in text


def test_the_defaults_in_the_help_are_those_of_the_tasks(capsys):
    cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for task in IMPLEMENTED_TASKS:
        config = WAN_CONFIGS[task]
        for value in (
            config.size,
            config.frame_num,
            config.sample_steps,
            f"{config.sample_shift:g}",
            config.sample_fps,
        ):
            assert re.search(rf"default: [^;.]*{re.escape(str(value))}\b", text)
    t2v, ti2v, s2v = (NANO_CONFIGS[task] for task in ("t2v-A14B", "ti2v-5B", "s2v-14B"))
    assert f"{t2v.size} or {ti2v.size}, {t2v.frame_num} to {s2v.frame_num} frames at {t2v.sample_fps} to" in text


@pytest.mark.parametrize("solver", SOLVERS)
def test_boundary_is_the_level_from_which_up_the_high_noise_expert_works(solver):
    (action,) = (action for action in ACTIONS if action.dest == "boundary")
    assert (
        "from which up the high-noise expert works: with 0 it makes all steps, with 1 at most the first" in action.help
    )
    steps = make_solver(solver, 20, 5.0).timesteps
    assert int((steps >= 0).sum()) == 20 and int((steps >= 1000).sum()) <= 1 and not bool((steps[1:] >= 1000).any())


@pytest.mark.parametrize(
    "typed, code",
    [(["--help"], 0), (["--promt", "a fox"], 2), (["--sample_solver", "unipc2"], 2), (["--size", "8"], 2)],
)
def test_help_and_wrong_arguments_import_no_torch(typed, code):
    """Both appear at once: importing torch takes more than a second."""
    for start in ("wan.__main__", "wan.cli"):
        program = f"""
import runpy, sys
sys.argv = ["generate.py", *{typed!r}]
try:
    runpy.run_module({start!r}, run_name="__main__")
except SystemExit as stop:
    sys.exit(99 if {{"torch", "numpy", "PIL", "av"}} & sys.modules.keys() else stop.code)
"""
        assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == code

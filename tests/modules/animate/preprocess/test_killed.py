"""A run that is killed at any place, then the same command: the files are those of a run that nobody killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.modules.animate.preprocess.fake import ByColour, Squares, picture, walk
from wan.modules.animate.preprocess import stage as module
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.stage import Stage
from wan.performance import Performance

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
COUNT = 6
FINISHED = {"src_pose.mp4", "meta.json"}
STAGES = {  # where it is killed -> the function, and its number of calls before that
    "people are found": ("Squares.people", 0),
    "points are found": ("Squares.points", 0),
    "masks begin": ("ByColour.masks", 0),
    "frames are drawn": ("face_picture", 3),
    "the preview is drawn": ("Preview.of", COUNT - 1),
    "the description is made": ("folders.describe", 0),
    **{f"file {n} gets its name": ("os.replace", n) for n in range(9)},
}


class Found(ByColour):
    """Masks that a network finds, which are kept."""

    identity = "red"


def run(folder: Path) -> None:
    given = {"video": str(folder / "v.mp4"), "picture": str(folder / "p.png"), "folder": folder / "out"}
    settings = Settings(**given, area=80 * 64, replaces=True, preview=True)
    Stage(settings, Squares(), "squares", Found()).run()


def killed(folder: Path, name: str, calls: int) -> None:
    """Run, and end the process as `kill -9` does when a function is called for another time."""
    owner, _, attribute = name.rpartition(".")
    places = {"Squares": Squares, "ByColour": ByColour, "os": os, "": module}
    place = places[owner] if owner in places else getattr(module, owner)
    function, left = getattr(place, attribute), [calls]

    def counted(*given, **named):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*given, **named)

    setattr(place, attribute, counted)
    run(folder)


def ended(target, *given) -> int:
    process = CONTEXT.Process(target=target, args=given)
    process.start()
    process.join()
    return process.exitcode


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def inputs(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    walk(folder / "v.mp4", COUNT)
    picture(folder / "p.png")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = inputs(tmp_path_factory.mktemp("whole"))
    assert ended(run, folder) == 0
    return files(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_makes_the_same_files(whole, tmp_path, stage):
    folder = inputs(tmp_path / "killed")
    assert ended(killed, folder, *STAGES[stage]) == -signal.SIGKILL
    left = {path.name for path in (folder / "out").iterdir()}
    assert not left >= FINISHED and "src_pose.mp4" not in left, "it looks finished"
    with pytest.raises(FileNotFoundError):
        Performance.of(folder / "out")
    run(folder)
    assert files(folder) == whole


def test_a_folder_that_is_made_again_with_other_options_is_not_finished_meanwhile(whole, tmp_path):
    folder = inputs(tmp_path / "again")
    (folder / "out").mkdir()
    for name, content in whole.items():
        (folder / "out" / name).write_bytes(content)
    assert ended(killed, folder, "face_picture", 1) == -signal.SIGKILL
    assert not FINISHED & files(folder).keys()
    run(folder)
    assert files(folder) == whole


def test_every_name_that_a_file_gets_is_among_the_stages(whole):
    assert len(whole) == sum("gets its name" in stage for stage in STAGES)

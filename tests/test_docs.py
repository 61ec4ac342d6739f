"""The pages are true: every command and snippet in them is run with the embedded models, or planned.

A command that needs released weights, a network, several GPUs or minutes has the word "planned" behind the language of
its fence, or `<!-- planned -->` in its line. It is then parsed and planned. A row that says "add" continues the command
above it.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module, util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.performances import write_performance
from wan import cli, media, planning
from wan.arguments import build_parser
from wan.checkpoint.layout import repository
from wan.configs import IMPLEMENTED_TASKS, WAN_CONFIGS
from wan.modules.animate.preprocess import preprocess_data
from wan.nano import worlds
from wan.nano.random import write_random_checkpoint
from wan.pipeline import WanPipeline
from wan.training.config import TrainConfig
from wan.utils import prompt_extend

tomllib = import_module("tomllib" if util.find_spec("tomllib") else "tomli")  # on Python 3.10 pytest brings tomli
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "torchrun", "wan-generate", "make", "pip", "poetry", "hf", "modelscope", "pre-commit")
QUICKLY = ["--sample_steps", "1", "--frame_num", "1", "--progress", "none"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Text:
    """Code of a fence, or of a line of prose."""

    language: str
    code: str
    is_planned: bool
    line: str = ""


def texts(page: Path) -> Iterator[Text]:
    """Yield each fence as a whole, and each `inline code`, in the order of the page."""
    fence: list[str] | None = None
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("```") and fence is None:
            fence, info = [], line[3:].split()
        elif line.startswith("```"):
            yield Text(info[0] if info else "", "\n".join(fence), "planned" in info)
            fence = None
        elif fence is not None:
            fence.append(line)
        else:
            for code in re.findall(r"`([^`]+)`", line):
                yield Text("inline", code, "<!-- planned -->" in line, line)
    assert fence is None, "a fence is not closed"


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield the words of every command, and True when it is only planned."""
    last: list[str] = []
    for text in texts(page):
        if text.language == "bash":
            lines = text.code.replace("\\\n", " ").splitlines()
        elif text.language == "inline" and f"| add `{text.code}`" in text.line:
            flags = re.findall(r"`(--[^`]+)`", text.line.partition("(")[0])
            yield [*last, *shlex.split(" ".join(flags))], text.is_planned
            continue
        elif re.search(r"\| (later|gone): ", text.line):  # refused, or not there: `test_from_wan22` sees to that
            continue
        else:
            code = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", text.code)  # variables of the environment
            lines = [code] if code.startswith(tuple(f"{program} " for program in PROGRAMS)) else []
        for line in lines:
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] in PROGRAMS, f"{page.name}: {line}: nothing here checks this program"
                last = words
                yield words, text.is_planned


@pytest.fixture(scope="module")
def done():
    """Commands that have run already."""
    return set()


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, with the examples of the checkout."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("DASH_API_KEY", "a key")
    return tmp_path


@each_page
def test_every_command_runs_as_it_stands_or_is_planned(page, desk, done, monkeypatch, capsys):
    for words, is_planned in commands(page):
        if frozenset(words) in done:  # on another page
            continue
        done.add(frozenset(words))
        program, *rest = words
        if program == "make":
            made_by_make(rest)
        elif words[:2] == ["python", "generate.py"] or program == "wan-generate":
            arguments = rest[1:] if program == "python" else rest
            planned(arguments, 1, monkeypatch) if is_planned else generated(arguments, monkeypatch, capsys)
        elif program == "torchrun":
            launched(rest, monkeypatch)
        elif words[0] == "python" and words[1].endswith("preprocess_data.py"):
            assert is_planned and (ROOT / words[1]).is_file()
            preprocess_data.settings_of(preprocess_data.build_parser().parse_args(words[2:]))
        elif words[:2] == ["python", "-m"]:
            assert is_planned, words
            understood(*rest[1:], monkeypatch=monkeypatch, capsys=capsys)
        else:
            assert is_planned, words
            named(words)


def generated(arguments, monkeypatch, capsys):
    """Run it with the embedded model, in few steps; a command that resumes has something to resume."""
    if "--help" in arguments:
        assert cli.main(arguments) == cli.DONE
        return
    given = build_parser().parse_args(arguments)
    if given.resume:
        interrupt(Path(given.resume), monkeypatch)
    before = set(Path().rglob("*.mp4"))
    code = cli.main([*arguments, *([] if given.resume else [*QUICKLY, *frames(given)]), "--overwrite"])
    assert code == cli.DONE, (arguments, capsys.readouterr().err)
    assert set(Path().rglob("*.mp4")) - before or given.save_file or given.from_video, arguments


def frames(given):
    """Return the flag for more than one frame, where one is not enough."""
    if given.src_root_path or given.video:
        return ["--frame_num", "33"]  # clips share one
    return ["--frame_num", "5"] if given.last_image else []  # a single one is the first


def interrupt(latent: Path, monkeypatch):
    """Leave the latent of a run whose video could not be written."""

    def full(*_):
        raise OSError("No space left on device")

    video = Path(latent.name.removesuffix(".latent.safetensors") + ".mp4")
    video.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(media, "write_video", full)
        assert cli.main(["--prompt", "a red circle", *QUICKLY, "--save_file", str(video)]) == cli.FAILED
    assert latent.exists()


def planned(arguments, processes, monkeypatch):
    """Plan a command; the folder that it names, if any, holds a miniature that looks like a released checkpoint."""
    args = build_parser().parse_args(arguments)
    if args.download:
        assert set(args.typed) <= {"--download", "--task", "--ckpt_dir", "--source"} and args.task in IMPLEMENTED_TASKS
        return
    if args.ckpt_dir:
        stand_in(Path(args.ckpt_dir), args.task)
        if args.use_relighting_lora:
            torch.save({}, Path(args.ckpt_dir, "relighting_lora.ckpt"))
    if args.video:
        assert args.image
        args.video, args.image, args.src_root_path = None, None, "prepared"
    if args.src_root_path and not Path(args.src_root_path).exists():
        write_performance(Path(args.src_root_path))
    with monkeypatch.context() as patch:
        patch.setattr(prompt_extend, "find_spec", lambda name: True)
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "0")
        patch.setenv("WORLD_SIZE", str(processes))
        patch.setattr(planning, "check_checkpoint", lambda *_: None)  # it would refuse so small a stand-in
        patch.setattr(planning, "with_plan", lambda job: job)  # so would this
        job = planning.plan(args)
    assert job.config.family == ("wan2.2" if args.ckpt_dir else "nano") and job.runtime.parallel.world_size == processes


def stand_in(folder: Path, task: str):
    write_random_checkpoint(folder, task)
    for path in folder.rglob("config.json"):
        described = json.loads(path.read_text())
        described.pop("family", None)  # the speech encoder has none
        path.write_text(json.dumps(described))


def launched(words, monkeypatch):
    """Plan a command of torchrun: its own flags stand before the program, the program's behind it."""
    at = words.index("generate.py")
    flags = dict(word.removeprefix("--").split("=") for word in words[:at])
    assert set(flags) <= {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id"}
    planned(words[at + 1 :], int(flags["nproc_per_node"]) * int(flags.get("nnodes", 1)), monkeypatch)


def made_by_make(words):
    """Check that `make` knows the target; run the commands of a demo that need the embedded models alone."""
    if shutil.which("make") is None:
        return
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.replace("\\\n", " ").splitlines():
        if "generate.py --task" in line:
            arguments = shlex.split(line)[2:]
            assert cli.main([*arguments, *QUICKLY, *frames(build_parser().parse_args(arguments))]) == cli.DONE


def understood(module, *arguments, monkeypatch, capsys):
    """Check that the parser of a program of ours takes the arguments."""
    found = util.find_spec(module)
    program = import_module(f"{module}.__main__" if found.submodule_search_locations else module)
    monkeypatch.setattr("sys.argv", [module, *arguments, "--help"])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 0 and f"python -m {module}" in capsys.readouterr().out


def named(words):
    """Check that the names of extras and of repositories exist here."""
    if words[:2] == ["pip", "install"] and words[2].startswith("."):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"[\w-]+", words[2])) <= set(extras)
    if words[:2] in (["hf", "download"], ["modelscope", "download"]):
        assert words[2] in [f"Wan-AI/{repository(WAN_CONFIGS[task])}" for task in IMPLEMENTED_TASKS]


@each_page
def test_every_snippet_of_python_runs(page, desk, monkeypatch):
    """It runs with the embedded models in one step; a planned one runs with a pipeline without weights."""
    video = WanPipeline.video

    def build(self, config, checkpoint_dir, **flags):
        self.config = config

    for text in texts(page):
        if text.language != "python":
            continue
        with monkeypatch.context() as patch:
            if text.is_planned:
                patch.setattr(prompt_extend, "find_spec", lambda name: True)
                patch.setattr(WanPipeline, "__init__", build)
                patch.setattr(WanPipeline, "video", lambda self, request, **_: torch.zeros(3, 5, 16, 16))
            else:
                patch.setattr(WanPipeline, "video", lambda self, request, **_: video(self, replace(request, steps=1)))
            names = {"folder": "Wan2.2-T2V-A14B"}
            exec(compile(text.code, str(page), "exec"), names)
            assert "video" not in names or names["video"].shape[0] == 3


@each_page
def test_every_configuration_file_is_read(page, desk):
    for text in texts(page):
        if text.language == "toml":
            Path("page.toml").write_text(text.code)
            TrainConfig.from_toml("page.toml")


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_prompts_beside_the_example_name_what_it_shows():
    """A colour that is not named is free to change: the embedded models then turned the triangle white or pink."""
    picture = np.asarray(Image.open(ROOT / "examples" / "first_frame.png").convert("RGB"))
    seen = worlds.measure(np.stack([picture] * 17))
    prompts = [
        build_parser().parse_args(words[2:]).prompt
        for page in PAGES
        for words, _ in commands(page)
        if words[:2] == ["python", "generate.py"] and "examples/first_frame.png" in words
    ]
    assert len(prompts) > 5
    for prompt in prompts:
        assert {seen.shape, seen.color, seen.background} <= set(prompt.split()), prompt


def test_the_vocabulary_of_the_embedded_models_is_told():
    page = (ROOT / "README.md").read_text()
    told = page[page.index("They know a small world") :].partition("\n\n")[0].replace(",", " ").split()
    motions = {"stays still" if motion == "still" else motion for motion in worlds.MOTIONS}
    words = {*worlds.SHAPES, *worlds.COLORS, *worlds.BACKGROUNDS, *" ".join(motions).split()}
    assert words <= {word.strip(".;") for word in told}

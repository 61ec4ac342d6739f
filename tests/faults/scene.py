"""Folder of one input, and the program that runs on it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.faults import damage
from tests.faults.base import SMALL, T5, TOKENIZER, VAES, WEIGHTS, Base

PROMPT = ("--prompt", "a red circle")


@dataclass
class Input:
    """Program that runs: `argv` of the command, or `call`, a function of Python.

    A refusal names one of `names`. A success may change or remove only files that begin with `uses_up`, and a failure
    those named in `keeps`.
    """

    what: str
    names: tuple[str, ...]
    argv: tuple[str, ...] = ()
    call: Callable[[], Any] | None = None
    uses_up: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


@dataclass
class Scene:
    """Place of one input: `folder` is its working folder, `canary` a file there that nothing may open."""

    rng: Random
    base: Base
    folder: Path
    canary: Path

    def checkpoint(self, task: str) -> Path:
        return self.base.link(task, self.folder / "ckpt")

    def replace(self, path: Path, content: bytes) -> None:
        """Write a new file under that name; the file of the base that was linked there stays."""
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def spoil(self, path: Path, faulty: Callable[[Random, bytes], tuple[str, bytes]], special: float = 0.5) -> str:
        """Damage a file, by `faulty`, which knows the format, or in a way that fits any file."""
        rng = self.rng
        data = path.read_bytes()
        if rng.random() >= special:
            what, content = faulty(rng, data)
            self.replace(path, content)
            return what
        way = rng.random()
        if way < 0.5:
            what, content = damage.bytewise(rng, data)
            self.replace(path, content)
        elif way < 0.8:
            others = damage.foreign(self.canary) | self.others()
            what = rng.choice(sorted(others))
            self.replace(path, others[what])
        elif way < 0.9:
            what = rng.choice(damage.NO_FILES)
            damage.put_no_file(path, what)
        else:
            what = "gone"
            path.unlink()
        return what

    def others(self) -> dict[str, bytes]:
        """Sound files of the other kinds."""
        base = self.base.folder / "t2v-A14B"
        return {
            "a picture": self.base.pictures[".png"],
            "a video": self.base.video("t2v-A14B").read_bytes(),
            "a tokenizer": (base / TOKENIZER).read_bytes(),
            "a config": (base / "low_noise_model" / "config.json").read_bytes(),
            "an expert": (base / "low_noise_model" / WEIGHTS).read_bytes(),
            "a text encoder": (base / T5).read_bytes(),
            "VAE 2.2": (self.base.folder / "ti2v-5B" / VAES["ti2v-5B"]).read_bytes(),
        }


def sample_flags(task: str, ckpt: Path, *more: str) -> tuple[str, ...]:
    return ("--task", task, "--ckpt_dir", str(ckpt), *PROMPT, *SMALL, *more)


def draw_task(rng: Random) -> str:
    return rng.choice(("t2v-A14B", "t2v-A14B", "ti2v-5B"))

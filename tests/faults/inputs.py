"""Make input N: a generator that N seeds draws the kind of file, its damage, and the program that reads it."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults import texts
from tests.faults.base import SMALL, Base
from tests.faults.checkpoints import config, diffusers, pickled, place, shards, tensors, tokenizer
from tests.faults.drivings import driving
from tests.faults.recordings import latent, picture, request, sound, video
from tests.faults.scene import Input, Scene
from tests.faults.trainings import trained, training


def make(number: int, base: Base, folder: Path) -> tuple[str, Input]:
    """Make input `number` below `folder`; return it and its kind."""
    rng = Random(f"wan {number}")
    kind = kind_of(number)
    canary = folder / "canary"
    canary.write_bytes(base.video("t2v-A14B").read_bytes())
    return kind.__name__, kind(Scene(rng, base, folder, canary))


def kind_of(number: int) -> Callable[[Scene], Input]:
    return KINDS[number % len(KINDS)]


def flags(scene: Scene) -> Input:
    """Draw values of flags, as a shell may pass them."""
    rng = scene.rng
    given = {"--task": "t2v-A14B", "--prompt": "a red circle", "--ckpt_dir": str(scene.base.folder / "t2v-A14B")}
    given |= dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    for _ in range(rng.choice((1, 1, 2))):
        given[rng.choice(FLAGS)] = rng.choice(WORDS)
    argv = [part for pair in given.items() for part in (pair if rng.random() < 0.95 else pair[:1])]
    return Input(repr(given)[:200], (), tuple(argv))


FLAGS = (
    "--size", "--frame_num", "--sample_steps", "--sample_shift", "--sample_guide_scale", "--base_seed", "--boundary",
    "--fps", "--prompt", "--negative_prompt", "--vae_tile", "--num_videos", "--image", "--from_video", "--resume",
    "--ckpt_dir", "--task", "--dtype", "--device", "--attention", "--fit", "--sample_solver",
)  # fmt: skip
WORDS = (
    "", " ", "0", "-1", "1e400", "nan", "-inf", "10" * 50, "x" * 3000, texts.HOSTILE.replace("\0", ""), "\udcba\udcec",
    "1*1", "0*0", "99999999*99999999", "1280*720", "a*b", "3,4,5", "1e38", "None", "[]", "~nobody/x", "/dev/zero",
    "/proc/self/mem", "-", "--", "http://127.0.0.1:9/x.png", "concat:a|b", "²", "٣",
)  # fmt: skip


# About each tenth input is of one kind. A kind with many possible faults stands here more than once.
KINDS: tuple[Callable[[Scene], Input], ...] = (
    config, tensors, pickled, picture, request, latent, tokenizer, video, shards, diffusers,
    config, tensors, pickled, picture, request, flags, training, sound, place, trained,
    driving, driving,
)  # fmt: skip

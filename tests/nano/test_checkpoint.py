"""The embedded checkpoint does what it was trained for: eight held-out prompts, generous thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from wan.configs.nano import NANO_CONFIGS, nano_checkpoint
from wan.nano.evaluate import FAMILIES, generator, vae_round_trip
from wan.nano.scores import Report, evaluate, heldout_scenes, reconstruction
from wan.runtime import Runtime
from wan.text2video import WanT2V

FOLDER = nano_checkpoint("t2v-A14B")
TEXT = FAMILIES["t2v"].goals["text"]
VIDEOS = 8
AT_LEAST = {"shape colour": 7, "background colour": 7, "motion direction": 7, "shape": 6}  # of eight

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this checkout lacks the embedded text-to-video checkpoint")


@pytest.fixture(scope="module")
def pipeline():
    runtime = Runtime.from_flags(device="cpu", dtype="fp32")
    return WanT2V(NANO_CONFIGS["t2v-A14B"], FOLDER, runtime=runtime)


@pytest.fixture(scope="module")
def report(pipeline):
    return evaluate(generator(pipeline), heldout_scenes(VIDEOS, seed=1), tuple(TEXT.targets), seed=1)


def enough(report: Report) -> dict[str, bool]:
    return {measure: report.count(measure) >= least for measure, least in AT_LEAST.items()}


def test_videos_show_what_was_asked(report):
    assert all(enough(report).values()), {m: report.count(m) for m in report.measures}


def test_the_thresholds_fail_when_the_text_is_ignored(report):
    """The same videos against each other's prompts: every threshold must be out of reach."""
    samples = report.samples
    pairs = zip(samples, np.roll(samples, 1))
    moved = Report(tuple(replace(a, scene=b.scene, prompt=b.prompt) for a, b in pairs), report.measures)
    assert not any(enough(moved).values())


def test_the_autoencoder_keeps_the_picture(pipeline):
    assert reconstruction(vae_round_trip(pipeline), heldout_scenes(6, seed=2)).mean_psnr >= 29


def test_the_seed_decides_the_video(pipeline, report):
    sample = report.samples[0]
    generate = generator(pipeline)
    assert (generate(sample.prompt, sample.seed, None) == sample.frames).all()
    assert (generate(sample.prompt, sample.seed + 1, None) != sample.frames).any()


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12e6

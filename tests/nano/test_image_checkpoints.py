"""The embedded checkpoints that start from an image do what they were trained for: few scenes, generous thresholds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wan.configs.nano import NANO_CONFIGS, nano_checkpoint
from wan.geometry import parse_size
from wan.nano.evaluate import FAMILIES, generator, vae_round_trip
from wan.nano.scores import Report, evaluate, heldout_scenes, psnr, reconstruction
from wan.nano.worlds import render
from wan.runtime import Runtime

SCENES = {name: FAMILIES[name] for name in ("t2v", "i2v", "ti2v")}  # the others know other worlds
FOLDERS = [nano_checkpoint(family.task) for family in SCENES.values()]
VIDEOS = 4
MISSES = 1  # of four, by every measure

pytestmark = pytest.mark.skipif(
    not all(map(Path.is_dir, FOLDERS)), reason="this checkout lacks embedded checkpoints that start from an image"
)


@pytest.fixture(scope="module")
def pipelines():
    runtime = Runtime.from_flags(device="cpu", dtype="fp32")
    return {
        name: family.pipeline(NANO_CONFIGS[family.task], nano_checkpoint(family.task), runtime=runtime)
        for name, family in SCENES.items()
        if name != "t2v"
    }


@pytest.fixture(scope="module")
def reports(pipelines):
    """(family, mode) -> report."""
    return {
        (name, mode): evaluate(
            generator(pipeline),
            heldout_scenes(VIDEOS, seed=1),
            tuple(goal.targets),
            seed=1,
            image_size=parse_size(pipeline.config.size)[0] if mode == "image" else None,
        )
        for name, pipeline in pipelines.items()
        for mode, goal in SCENES[name].goals.items()
    }


def test_videos_show_what_was_asked(reports):
    for key, report in reports.items():
        missed = {measure: VIDEOS - report.count(measure) for measure in report.measures}
        assert max(missed.values()) <= MISSES, (key, missed)


@pytest.mark.parametrize("name", ["i2v", "ti2v"])
def test_the_first_frame_is_the_image(reports, name):
    goal = SCENES[name].goals["image"].first_frame
    assert reports[name, "image"].first_frame_psnr >= goal - 2


@pytest.mark.parametrize("name", ["i2v", "ti2v"])
def test_the_thresholds_fail_when_image_and_text_are_ignored(reports, name):
    """The same videos against each other's scenes."""
    samples = reports[name, "image"].samples
    pairs = list(zip(samples, np.roll(samples, 1)))
    moved = Report(tuple(replace(a, scene=b.scene) for a, b in pairs), reports[name, "image"].measures)
    assert all(VIDEOS - moved.count(measure) > 1 for measure in moved.measures)
    likeness = [psnr(render(b.scene, size=a.frames.shape[1])[0], a.frames[0]) for a, b in pairs]
    assert np.mean(likeness) < SCENES[name].goals["image"].first_frame - 4


def test_the_autoencoder_of_the_hybrid_keeps_the_picture(pipelines):
    assert reconstruction(vae_round_trip(pipelines["ti2v"]), heldout_scenes(4, seed=2), 128).mean_psnr >= 29


def test_the_hybrid_decodes_nothing_that_its_transformer_leaves_as_noise(pipelines):
    """Channels that training leaves out are not denoised."""
    pipeline = pipelines["ti2v"]
    model = pipeline.weights.get(pipeline.config.experts[0])
    head = model.head.head.weight.unflatten(0, (-1, model.config.out_dim))
    noisy = (head == 0).all(dim=(0, 2))
    assert 0 < noisy.sum() < len(noisy)
    assert not pipeline.vae.model.conv2.weight[:, noisy].any()


def test_a_last_image_is_reached(pipelines):
    from PIL import Image

    from wan.media import to_uint8
    from wan.request import Request

    pipeline = pipelines["i2v"]
    scene = next(scene for scene in heldout_scenes(20, seed=4) if scene.motion == "left")
    truth = render(scene)
    first, last = (Image.fromarray(truth[index]) for index in (0, -1))
    request = Request.create(pipeline.config, prompt="", image=first, last_image=last, seed=0, noise_device="cpu")
    frames = to_uint8(pipeline.video(request)).numpy()
    assert psnr(truth[0], frames[0]) > 20 and psnr(truth[-1], frames[-1]) > 20
    assert psnr(truth[0], truth[-1]) < 18


def test_new_files_are_small():
    sizes = {path: path.stat().st_size for folder in FOLDERS[1:] for path in folder.rglob("*") if path.is_file()}
    assert max(size for path, size in sizes.items() if "s2v-14B" not in path.parts) <= 4e6
    assert sum(size for path, size in sizes.items() if "s2v-14B" in path.parts) <= 6e6, "of a task with all its parts"
    assert sum(path.stat().st_size for folder in FOLDERS for path in folder.rglob("*") if path.is_file()) <= 40 << 20

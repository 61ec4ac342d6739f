"""Whole pipelines on a pretended GPU, by `make pretend-cuda`: nothing is left on the host, and the loop never waits."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.counted.pretend import DEVICE
from tests.driver import Driver
from tests.performances import write_performance
from tests.recorded import write_wav
from wan import media, pipeline as pipelines
from wan.checking import MODELS
from wan.clips import FramesDecoded, StepDone
from wan.configs import NANO_CONFIGS
from wan.geometry import parse_size
from wan.jobs import PIPELINES
from wan.memory import Weights
from wan.modules.speech import num_states
from wan.nano.random import SPEECH_MODEL, write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime
from wan.speech2video import WanS2V
from wan.utils.flow import FlowScheduler

pytestmark = pytest.mark.pretend_cuda

# What the loop may do at each step: the check of the latent goes to the host, and is read there one step later.
# Streamed weights come to the device, on a stream of their own.
LOOP = ("denoise", "step")
ALLOWED = {("to host", "finite.py", 1), ("asked", "finite.py", 1)}
TEXT = {"t2v": ("t2v-A14B", ()), "ti2v from text": ("ti2v-5B", ())}
CASES = TEXT | {
    "ti2v from an image": ("ti2v-5B", ("image",)),
    "i2v": ("i2v-A14B", ("image",)),
    "s2v": ("s2v-14B", ("image", "audio")),
    "animate": ("animate-14B", ("performance",)),
}


@pytest.fixture(scope="module", autouse=True)
def cuda_build():
    """An ordinary build is needed: one for CPUs takes other branches."""
    if torch.version.cuda is None:
        pytest.fail(f"torch {torch.__version__} is a build for CPUs; make pretend-cuda installs one with CUDA")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A picture, a speech of a second and a half, and a performance of twelve frames."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    return {
        "image": Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)),
        "audio": write_wav(folder / "a.wav", 0.5 * np.sin(np.arange(24_000) / 20)),
        "performance": write_performance(folder / "performance"),
    }


@pytest.fixture
def driver(monkeypatch):
    """A driver that knows the phases of a run, and what an expert does once, at its first step."""
    driver = Driver()

    @contextmanager
    def measured(phases, name, device):
        with driver.during(name):
            yield

    def named(function, phase):
        def run(*given, **options):
            with driver.during(phase if driver.phase in LOOP else driver.phase):
                return function(*given, **options)

        return run

    monkeypatch.setattr(pipelines, "measured", measured)
    monkeypatch.setattr(pipelines, "time_features", named(pipelines.time_features, "prepare"))
    for method in ("use", "prefetch"):
        monkeypatch.setattr(Weights, method, named(getattr(Weights, method), "weights"))
    for kind in {*MODELS.values()}:
        monkeypatch.setattr(kind, "prepare", named(kind.prepare, "prepare"))
        monkeypatch.setattr(kind, "forward", named(kind.forward, "step"))
    monkeypatch.setattr(FlowScheduler, "step", named(FlowScheduler.step, "step"))
    # convolutions of transformers' speech encoder ask the driver
    shape = SPEECH_MODEL["audio_layers"], SPEECH_MODEL["audio_dim"]
    states = lambda self, samples: torch.zeros(shape[0], num_states(len(samples)), shape[1])  # noqa: E731
    monkeypatch.setattr(WanS2V, "encode_speech", states)
    for kind in PIPELINES.values():
        monkeypatch.setattr(kind, "noise", named(kind.noise, "noise"))
    return driver


def run(driver, name, folder, inputs, flags=None, **given):
    """Make a video on the pretended GPU; return the number of steps in all."""
    task, needed = CASES[name]
    config = NANO_CONFIGS[task]
    checkpoint = write_random_checkpoint(folder / "checkpoint", task)
    values = {"prompt": "a red circle moves left", "seed": 1, "steps": 4} | given
    request = Request.create(config, **values | {name: inputs[name] for name in needed})
    frames = steps = 0
    with driver:
        pipeline = PIPELINES[task](config, checkpoint, runtime=Runtime.from_flags(device="cuda:0", **flags or {}))
        for event in pipeline.run(request):
            if isinstance(event, StepDone):
                assert event.latent.device == DEVICE
                steps += 1
            elif isinstance(event, FramesDecoded):
                with driver.during("write"):
                    frames += len(media.to_uint8(event.frames).cpu())
    assert frames == pipeline.num_frames(request) and steps == 4 * pipeline.num_clips(request)
    return steps


def check_loop(driver, steps):
    """Fail for anything in the loop but what it may do, once a step."""
    host = [event for event in driver.events if event.phase == "step" and event.what == "left on the host"]
    assert not host, f"the loop computes on the host: {host}"
    loop = [event for event in driver.events if event.phase in LOOP and event.what != "left on the host"]
    loop = [event for event in loop if not (event.what == "to device" and event.where.startswith("streaming.py"))]
    passed = Counter((event.what, event.where.partition(":")[0], event.nbytes) for event in loop)
    assert passed == dict.fromkeys(ALLOWED, steps), f"{loop}"


@pytest.mark.parametrize("name", CASES)
def test_a_whole_pipeline(driver, name, tmp_path, inputs):
    check_loop(driver, run(driver, name, tmp_path, inputs))


@pytest.mark.parametrize("solver", ["dpm++", "euler"])
def test_solvers(driver, solver, tmp_path, inputs):
    check_loop(driver, run(driver, "t2v", tmp_path, inputs, solver=solver))


@pytest.mark.parametrize(
    "flags",
    [
        {"offload": "none"},
        {"offload": "block"},
        {"vae_tile": 64},
        {"t5_cpu": True},
        {"dtype": "fp32"},
        {"convert_model_dtype": True},
    ],
    ids=lambda flags: "-".join(map(str, *flags.items())),
)
def test_flags(driver, flags, tmp_path, inputs):
    check_loop(driver, run(driver, "t2v", tmp_path, inputs, flags))


@pytest.mark.parametrize("name", TEXT)
def test_decoding_moves_a_latent_there_and_bytes_back(driver, name, tmp_path, inputs):
    run(driver, name, tmp_path, inputs)
    decode = [event for event in driver.events if event.phase == "decode" and "vae" not in event.where]
    moved = [event for event in decode if event.what == "to device" and "loading" not in event.where]
    assert len(moved) <= 1, f"the latent alone goes to the device: {moved}"
    assert not [event for event in decode if event.what == "to host"], "frames stay there until they are bytes"
    config = NANO_CONFIGS[CASES[name][0]]
    width, height = parse_size(config.size)
    passed = [event.nbytes for event in driver.events if event.phase == "write"]
    assert len(passed) > 1 and sum(passed) == 3 * config.frame_num * width * height, "bytes come back chunk by chunk"


def test_what_waits_or_is_left_on_the_host_is_seen(driver, monkeypatch, tmp_path, inputs):
    usual = pipelines.WanPipeline.velocity

    def velocity(*given):
        inner = usual(*given)

        def waits(latent, t):
            latent.isfinite().all().item()
            return inner(latent.cpu().to(DEVICE), t)

        return waits

    monkeypatch.setattr(pipelines.WanPipeline, "velocity", velocity)
    steps = run(driver, "t2v", tmp_path, inputs)
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        check_loop(driver, steps)


def test_a_weight_that_was_forgotten_on_the_host_ends_the_run(driver, monkeypatch, tmp_path, inputs):
    usual = Weights.use

    def use(weights, name):
        module = usual(weights, name)
        if name in ("low_noise_model", "high_noise_model"):
            module.head.modulation.data = module.head.modulation.data.to("cpu")
        return module

    monkeypatch.setattr(Weights, "use", use)
    with pytest.raises(RuntimeError, match="device"):
        run(driver, "t2v", tmp_path, inputs)

"""No forward and no step of the loop moves anything between host and device, or asks the device for a value."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.counted.pretend import DEVICE, empty, place, pretended
from tests.pretended import NeverWaits
from wan.clips import Clip
from wan.configs import WAN_CONFIGS
from wan.distributed.replica import Replica
from wan.modules.model import WanModel, WanModelConfig, time_features
from wan.parallel import ALONE
from wan.request import Request
from wan.runtime import Runtime
from wan.sampling import denoise, keep_first_frame, make_solver
from wan.text2video import WanT2V

CONFIG = WanModelConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_len=12, text_dim=10, freq_dim=16)
SIZE = (3, 4, 4)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    monkeypatch.setattr("wan.modules.attention.resolve_backend", lambda *asked: "sdpa")
    with pretended():
        yield


def build(**changes):
    config = WanModelConfig(**(CONFIG.to_dict() | changes))
    return place(
        lambda: WanModel(config), lambda name: torch.float32 if WanModel.keeps_float32(name) else torch.bfloat16
    )


def test_the_guard_sees_what_waits():
    for wait in (
        lambda x: x.cpu(),
        lambda x: x[0].item(),
        lambda x: x.nonzero(),
        lambda x: x + torch.ones(3).to(DEVICE),
    ):
        with pytest.raises((AssertionError, RuntimeError)), NeverWaits():
            wait(empty(3))


@pytest.mark.parametrize("parts", [None, [(4, 1), (8, 0)]], ids=["text", "clean first frame"])
def test_a_forward_of_what_was_prepared(parts):
    model = build(in_dim=20)
    prepared = model.prepare([empty(5, 10)], [SIZE], parts, [empty(4, *SIZE)])
    features = time_features(torch.tensor([900, 0]), CONFIG.freq_dim, DEVICE)
    with NeverWaits():
        (out,) = model([empty(16, *SIZE)], features, prepared)
    assert out.shape == (16, *SIZE) and out.device == DEVICE


def test_the_public_forward_with_a_timestep_per_sample():
    model, sizes = build(), [SIZE, (2, 4, 4)]
    inputs = [empty(16, *size) for size in sizes], empty(2), [empty(5, 10)] * 2
    model(*inputs)  # the first forward of a size makes its rotary table
    with NeverWaits():
        outs = model(*inputs)
    assert [out.shape[1:] for out in outs] == sizes


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize("with_first_frame", [False, True])
def test_a_step_of_the_loop(solver, with_first_frame):
    pipeline = object.__new__(WanT2V)
    pipeline.config = WAN_CONFIGS["t2v-A14B"]
    pipeline.runtime = Runtime(DEVICE)
    pipeline.replica, pipeline.calls = Replica(ALONE, DEVICE), Counter()
    experts = {name: build() for name in pipeline.config.experts}
    pipeline.weights = SimpleNamespace(use=experts.get)
    request = Request.create(pipeline.config, prompt="a fox", size=(832, 480), frame_num=9, steps=4, boundary=0.9)
    shape = pipeline.latent_shape(pipeline.config, request)
    clip = Clip(shape, 1, y=None)
    if with_first_frame:
        keep = keep_first_frame(empty(16, 1, *shape[2:]), empty(*shape))
        clip = replace(clip, keep=keep, segments=((30 * 52, 1), (2 * 30 * 52, 0)))
    with unset_fake_temporarily():  # the schedule is on the host
        schedule = make_solver(solver, 4, 5.0)
        schedule.timesteps = schedule.timesteps.numpy()
    contexts = empty(5, 10), empty(7, 10)
    velocity = pipeline.velocity(request, contexts, clip, schedule.timesteps.tolist())
    steps = denoise(empty(*shape), schedule, velocity, clip.keep)
    next(steps)  # an expert's first step prepares
    with NeverWaits():
        next(steps)
    next(steps)
    with NeverWaits():
        assert next(steps).shape == shape
    assert schedule.timesteps[1] >= 900 > schedule.timesteps[2], "each expert has a first and a second step"

"""The expected memory changes with the request: relations that hold for any figures."""

import json
import math

import pytest
import torch

from wan.checkpoint.source import open_source
from wan.configs import NANO_CONFIGS
from wan.forecast import expected_bytes, transformer_bytes
from wan.nano.random import write_random_checkpoint
from wan.parallel import Parallel
from wan.request import Request
from wan.runtime import Offload, Runtime

CONFIG = NANO_CONFIGS["t2v-A14B"]
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Miniature whose transformers claim the width of the released ones, so that denoising takes the most."""
    folder = write_random_checkpoint(tmp_path_factory.mktemp("wide"))
    for expert in CONFIG.experts:
        path = folder / expert / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dim": 5120, "ffn_dim": 13824, "num_heads": 40}))
    return folder


@pytest.fixture
def forecast(folder):
    def forecast(frame_num=81, size=(1280, 720), offload=Offload.NONE, device=GPU, **how):
        request = Request.create(CONFIG, prompt="a cat", size=size, frame_num=frame_num)
        how.setdefault("t5_device", device)
        return expected_bytes(CONFIG, folder, request, Runtime(device, offload=offload, **how))

    return forecast


def spread(processes, cfg_size=1, **flags):
    return Parallel(processes, cfg_size=cfg_size, ulysses_size=processes // cfg_size, **flags)


@pytest.mark.parametrize("offload", [Offload.NONE, Offload.MODEL, Offload.BLOCK])
def test_processes_that_share_the_tokens_share_what_denoising_takes(forecast, offload):
    one, two, four = (forecast(offload=offload, parallel=spread(n)) for n in (1, 2, 4))
    assert one - two == pytest.approx(2 * (two - four), rel=0.02)
    assert one - two > 1 << 30
    # a process of each branch of guidance has all tokens
    assert forecast(offload=offload, parallel=spread(2, cfg_size=2)) == pytest.approx(one, rel=0.02)
    assert forecast(offload=offload, parallel=spread(4, cfg_size=2)) == pytest.approx(two, rel=0.02)


@pytest.mark.parametrize("frames", [41, 81, 161])
def test_denoising_grows_with_the_tokens(forecast, frames):
    short, long = (forecast(n) - forecast(n, parallel=spread(2)) for n in (frames, 2 * frames - 1))
    assert long == pytest.approx(short * ((frames - 1) // 2 + 1) / ((frames - 1) // 4 + 1), rel=0.02)


@pytest.mark.parametrize("offload", [Offload.NONE, Offload.MODEL])
def test_processes_that_decode_together_share_the_rows(forecast, offload, monkeypatch):
    """The request is a single large frame, where decoding takes the most."""
    monkeypatch.setattr("wan.forecast.denoise_bytes", lambda *shapes: 0)
    large = {"frame_num": 1, "size": (4096, 4096), "offload": offload}
    one, two, four = (forecast(**large, parallel=spread(n)) for n in (1, 2, 4))
    assert one - two == pytest.approx(2 * (two - four), rel=0.05)
    assert forecast(**large, parallel=spread(2, cfg_size=2)) == pytest.approx(two, rel=0.05)
    tiled = [forecast(**large, parallel=spread(n), vae_tile=256) for n in (1, 2)]
    assert tiled[0] < 0.5 * one and tiled[1] <= tiled[0]
    assert forecast(**large | {"size": (4096, 2048)}) < 0.6 * one


def test_spread_parameters_take_a_share_of_their_memory(forecast, folder):
    expert = transformer_bytes(folder / CONFIG.experts[0], Runtime(GPU))
    text = (folder / CONFIG.t5_checkpoint).stat().st_size
    for flag, whole in (("dit_fsdp", len(CONFIG.experts) * expert), ("t5_fsdp", text)):
        for processes in (2, 4):
            saved = forecast(parallel=spread(processes)) - forecast(parallel=spread(processes, **{flag: True}))
            assert 0 < saved <= whole * (1 - 1 / processes) + 2, flag
    assert forecast() - forecast(t5_device=CPU) == pytest.approx(text, rel=0.1)
    wide = transformer_bytes(folder / CONFIG.experts[0], Runtime(GPU, dtype=torch.float32))
    assert forecast(dtype=torch.float32) - forecast() >= len(CONFIG.experts) * (wide - expert) > 0


def test_models_that_take_turns_are_not_counted_together(forecast, folder):
    expert = 2 * sum(map(math.prod, open_source(folder / CONFIG.experts[0]).shapes().values()))
    saved = forecast() - forecast(offload=Offload.MODEL)
    assert saved >= expert * (len(CONFIG.experts) - 1)


def test_a_process_on_a_cpu_counts_itself(forecast, monkeypatch):
    monkeypatch.setattr("wan.memory.peak_memory", lambda device: 5 << 30 if device == CPU else pytest.fail("asked"))
    assert forecast(device=CPU) - forecast() == pytest.approx(5 << 30, rel=0.01)
    monkeypatch.setattr("wan.memory.peak_memory", lambda device: None)  # as on Windows
    assert forecast(device=CPU) == pytest.approx(forecast(), rel=0.01)

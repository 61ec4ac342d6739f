import threading

import pytest
import torch
from torch import nn

from wan.memory import PhaseStats, Weights, decoded_at_once, denoise_bytes, measured, peak_memory
from wan.runtime import Offload

CPU = torch.device("cpu")


def test_a_model_is_loaded_once_and_only_when_used():
    loads = []
    weights = Weights(CPU, Offload.NONE)
    weights.add("a", lambda: loads.append("a") or nn.Linear(2, 2))
    weights.add("b", lambda: loads.append("b") or nn.Linear(2, 2))
    assert weights.use("a") is weights.use("a") and loads == ["a"]
    weights.drop("a")
    weights.use("a")
    assert loads == ["a", "a"]


def test_nothing_moves_on_a_cpu():
    weights = Weights(CPU, Offload.MODEL)
    weights.add("a", lambda: nn.Linear(2, 2))
    pointer = weights.use("a").weight.data_ptr()
    weights.done("a")
    assert weights.get("a").weight.data_ptr() == pointer and weights.offload is Offload.NONE


def test_a_model_that_was_fetched_ahead_is_loaded_once():
    loads, started = [], threading.Event()
    weights = Weights(torch.device("meta"), Offload.MODEL)  # any device that is no CPU
    weights.add("a", lambda: [started.wait(10), loads.append("a"), nn.Linear(2, 2)][-1])
    weights.prefetch("a")
    weights.prefetch("a")
    assert loads == [], "it does not wait"
    started.set()
    assert weights.get("a") is weights.get("a") and loads == ["a"]
    weights.prefetch("a")
    assert loads == ["a"]


def test_fetching_ahead_works_on_the_device_of_the_process(monkeypatch):
    """`fully_shard` asks CUDA for the current device, and a new thread's is the first one."""
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    weights = Weights(torch.device("cuda:3"), Offload.NONE)
    weights.add("a", lambda: calls.append("load"))
    weights.prefetch("a")
    weights.get("a")
    assert calls == [torch.device("cuda:3"), "load"]


def test_an_error_while_fetching_ahead_is_raised_by_the_use():
    weights = Weights(torch.device("meta"), Offload.NONE)
    weights.add("a", lambda: 1 / 0)
    weights.prefetch("a")
    with pytest.raises(ZeroDivisionError):
        weights.get("a")


def test_a_cpu_fetches_nothing_ahead():
    weights = Weights(CPU, Offload.NONE)
    weights.add("a", lambda: pytest.fail("loaded"))
    weights.prefetch("a")


@pytest.mark.gpu
def test_one_model_at_a_time_on_a_gpu_and_host_weights_come_back_unchanged():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    weights = Weights(torch.device("cuda"), Offload.MODEL)
    models = {name: nn.Linear(8, 8) for name in "ab"}
    pointers = {name: model.weight.data_ptr() for name, model in models.items()}
    for name, model in models.items():
        weights.add(name, lambda model=model: model)
    assert weights.use("a").weight.is_cuda
    assert weights.use("b").weight.is_cuda and not weights.get("a").weight.is_cuda
    weights.done("b")
    assert {name: model.weight.data_ptr() for name, model in models.items()} == pointers


def test_a_phase_is_recorded_also_when_it_fails():
    phases: dict[str, PhaseStats] = {}
    with pytest.raises(RuntimeError), measured(phases, "decode", CPU):
        raise RuntimeError
    assert phases["decode"].seconds >= 0


def test_the_process_tells_its_peak():
    assert peak_memory(CPU) > 1 << 20


def test_the_estimate_grows_with_tokens_and_weights():
    small = denoise_bytes(10, 100, 64, 256, torch.bfloat16)
    assert denoise_bytes(10, 200, 64, 256, torch.bfloat16) - 10 == 2 * (small - 10)
    assert denoise_bytes(20, 100, 64, 256, torch.bfloat16) == small + 10


def test_tiles_bound_what_is_decoded_at_once():
    assert decoded_at_once((1280, 704), (4, 16, 16), None) == (1280, 704)
    assert decoded_at_once((1280, 704), (4, 16, 16), 256) == (256 + 2 * 13 * 16, 256 + 2 * 13 * 16)
    assert decoded_at_once((320, 704), (4, 8, 8), 256) == (320, 256 + 2 * 13 * 8)

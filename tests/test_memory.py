import platform
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.late_copies import LateLane
from wan.memory import PhaseStats, Weights, measured, peak_memory
from wan.modules.steps import Step, run_blocks
from wan.runtime import Host, Offload

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


def test_the_process_tells_its_peak(monkeypatch):
    assert 1 << 20 < peak_memory(CPU) < 1 << 44
    monkeypatch.setattr("wan.memory.Path", lambda _: Path("/nowhere"))  # as on systems without /proc
    kib = peak_memory(CPU) // 1024
    monkeypatch.setattr("sys.platform", "darwin")  # counts in bytes there
    assert kib <= peak_memory(CPU) < 2 * kib


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_tells_its_own_peak_and_not_that_of_its_parent():
    """A comparison of a short video with a long one would else find them equal."""
    code = "import torch; from wan.memory import peak_memory; print(peak_memory(torch.device('cpu')))"
    held = torch.ones(1 << 28)  # 1 GiB
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 25 < int(done.stdout) < held.nbytes


def test_a_gpu_is_measured_by_itself_within_the_phase(monkeypatch):
    """The GPU that works is measured from the start of the phase, and timed when it has finished."""
    calls, peak = [], {torch.device("cuda:1"): 7}
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append((name, str(device))))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: calls.append("peak") or peak[device])
    phases: dict[str, PhaseStats] = {}
    with measured(phases, "denoise", torch.device("cuda:1")):
        calls.append("work")
    assert calls == [("reset_peak_memory_stats", "cuda:1"), "work", ("synchronize", "cuda:1"), "peak"]
    assert phases["denoise"].peak_bytes == 7


def test_other_devices_are_not_asked_about_cuda(monkeypatch):
    for name in ("reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: pytest.fail("asked"))
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    phases: dict[str, PhaseStats] = {}
    for device in ("mps", "cpu"):
        with measured(phases, device, torch.device(device)):
            pass
    assert phases["mps"].peak_bytes == 5 < phases["cpu"].peak_bytes


class Value:
    """Data of a tensor on a device, with only the methods that moving calls."""

    def __init__(self, place):
        self.device = place

    def to(self, device, non_blocking):
        return Value(device)

    def cpu(self):
        return Value(CPU)


class Parameter:
    def __init__(self):
        self.data = Value(CPU)

    device = property(lambda self: self.data.device)


class Model:
    """Model of a parameter and a buffer."""

    def __init__(self):
        self.tensors = {"weight": Parameter(), "mean": Parameter()}
        self.host = {name: tensor.data for name, tensor in self.tensors.items()}

    def named_parameters(self):
        yield "weight", self.tensors["weight"]

    def named_buffers(self):
        yield "mean", self.tensors["mean"]

    def places(self):
        return {str(tensor.device) for tensor in self.tensors.values()}

    def is_home(self):
        return all(tensor.data is self.host[name] for name, tensor in self.tensors.items())


def test_models_take_turns_on_a_gpu_and_come_back_to_their_host_tensors():
    weights = Weights(torch.device("cuda:1"), Offload.MODEL)
    models = {name: Model() for name in "ab"}
    for name, model in models.items():
        weights.add(name, lambda model=model: model)
    a, b = models.values()
    for _ in range(2):
        assert weights.use("a") is a and a.places() == {"cuda:1"} and b.is_home()
    assert weights.use("b") is b and b.places() == {"cuda:1"} and a.is_home()
    weights.done("a")
    assert b.places() == {"cuda:1"}
    weights.done("b")
    assert a.is_home() and b.is_home()

    weights.set_offload(Offload.NONE)
    for name in "ab":
        weights.use(name)
        weights.done(name)
    assert a.places() == b.places() == {"cuda:1"}
    weights.set_offload(Offload.MODEL)
    weights.use("b")
    assert a.is_home() and b.places() == {"cuda:1"}


HEAP = """
import sys, torch
from wan.memory import keep_no_gaps
if sys.argv[1] == "none":
    keep_no_gaps()
torch.zeros(30 << 18)  # from now on glibc takes blocks of up to 30 MiB from its heap
blocks = [torch.zeros(1 << 19) for _ in range(100)]  # of 2 MiB
blocks = blocks[-1:]  # the last one holds the end of the heap
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_a_heap_without_gaps():
    def used(gaps):
        command = [sys.executable, "-c", HEAP, gaps]
        return int(
            subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
        )

    assert used("none") < used("kept") - (150 << 20)


class Steps(nn.Module):
    """Model with blocks, as a transformer or text encoder has them."""

    def __init__(self, count=5):
        super().__init__()
        self.first, self.blocks = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        self.run_blocks = run_blocks

    def trunk(self):
        return [Step(lambda x, cond, block=block: block(x), (block,)) for block in (self.first, *self.blocks)]

    def forward(self, x):
        return self.run_blocks(self.trunk(), x, None)


@pytest.fixture
def lane(monkeypatch):
    lane = LateLane(1)
    monkeypatch.setattr("wan.memory.make_lane", lambda device: lane)
    return lane


def test_blocks_stream_and_the_model_leaves_after_its_use(lane):
    weights, model, x = Weights(CPU, Offload.BLOCK), Steps(), torch.ones(2, 4)
    weights.add("a", lambda: model, keeps=True)
    weights.add("b", lambda: nn.Linear(2, 2))
    with torch.no_grad(), lane:
        expected = model(x)
        assert torch.equal(weights.use("a")(x), expected) and len(weights._streams["a"].slots) == 2
        sent = len(lane.sent)
        assert weights.use("a") is model and len(lane.sent) == sent, "nothing is done twice"
        weights.use("b")
        assert not weights._streams["a"].slots, "it has left"
        assert torch.equal(weights.use("a")(x), expected)
        weights.done("a")
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("other", [Offload.NONE, Offload.MODEL])
def test_the_policy_can_change_between_runs(lane, other):
    weights, model, x = Weights(CPU, other), Steps(), torch.ones(2, 4)
    weights.add("a", lambda: model)
    with torch.no_grad(), lane:
        expected = weights.use("a")(x)
        for policy in (Offload.BLOCK, other, Offload.BLOCK):
            weights.set_offload(policy)
            sent = len(lane.sent)
            assert torch.equal(weights.use("a")(x), expected)
            assert (len(lane.sent) > sent) == (policy is Offload.BLOCK)


def test_one_expert_is_alive_when_memory_is_short(lane):
    loads, alive = [], []
    weights = Weights(CPU, Offload.BLOCK, Host.ONE)

    def load(name):
        alive.append(weakref.ref(model := Steps()))
        loads.append(name)
        return model

    for name in "ab":
        weights.add(name, lambda name=name: load(name), keeps=True)
    weights.add("text", lambda: load("text"))
    for name in ("text", "a", "a", "b", "text", "a"):
        weights.use(name)
        assert sum(model() is not None for model in alive) == len({"text", name})
    weights.prefetch("b")
    assert loads == ["text", "a", "b", "a"] and not weights._coming, "the text encoder is a view of its file"


def test_weights_that_are_views_of_a_file_are_converted_on_their_way(lane):
    model, x = Steps(), torch.ones(2, 4, dtype=torch.bfloat16)
    weights = Weights(CPU, Offload.BLOCK, Host.MAPPED)
    weights.add("a", lambda: model, lambda name: torch.bfloat16, keeps=True)
    with torch.no_grad(), lane:
        rounded = Steps()
        rounded.load_state_dict(model.state_dict())
        expected = rounded.bfloat16()(x)
        assert torch.equal(weights.use("a")(x), expected)
        assert weights._streams["a"].kept is None and model.blocks[0].weight.dtype == torch.float32
        weights.done("a")


def test_a_model_that_was_loaded_on_the_device_leaves_it_and_comes_back():
    weights = Weights(torch.device("cuda:1"), Offload.MODEL)
    there, other = Model(), Model()
    for tensor in there.tensors.values():
        tensor.data = Value(torch.device("cuda:1"))
    weights.add("vae", lambda: there)
    weights.add("b", lambda: other)
    assert weights.use("vae").places() == {"cuda:1"}
    for _ in range(2):
        weights.use("b")
        assert there.places() == {"cpu"} and other.places() == {"cuda:1"}
        weights.use("vae")
        assert there.places() == {"cuda:1"} and other.is_home()

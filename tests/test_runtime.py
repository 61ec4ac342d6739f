"""The runtime: public flags become one value, or a clear refusal."""

import pytest
import torch

from wan import choices, runtime
from wan.arguments import build_parser
from wan.parallel import Parallel
from wan.runtime import Offload, Runtime, available_devices, own_device, resolve_device


def test_defaults_on_the_cpu():
    value = Runtime.from_flags(device="cpu")
    assert value == Runtime(device=torch.device("cpu"))
    assert (value.dtype, value.offload, value.attention) == (torch.bfloat16, Offload.NONE, "auto")
    assert value.dtype_name == "bf16"


@pytest.mark.parametrize(
    "name, dtype", [("fp32", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_dtype_names(name, dtype):
    assert Runtime.from_flags(device="cpu", dtype=name).dtype == dtype


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(runtime, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_gpu_defaults(two_gpus):
    value = Runtime.from_flags()
    assert value.device == value.t5_device == torch.device("cuda:0")
    assert value.offload is Offload.AUTO
    assert Runtime.from_flags(offload_model=False).offload is Offload.NONE
    assert Runtime.from_flags(offload_model=True).offload is Offload.MODEL
    assert [Runtime.from_flags(offload=policy.value).offload for policy in Offload] == list(Offload)
    assert Runtime.from_flags(offload="model", offload_model=True).offload is Offload.MODEL
    assert Runtime.from_flags(t5_cpu=True).t5_device == torch.device("cpu")
    assert Runtime.from_flags(device="cuda").device == torch.device("cuda:0")
    assert Runtime.default(device_id=1).device == torch.device("cuda:1")
    assert build_parser().parse_args(["--device", "CPU "]).device == "cpu"
    with pytest.raises(ValueError, match="--device cuda:2 cannot be used here: this machine has cuda:0, cuda:1, cpu"):
        Runtime.from_flags(device="cuda:2")


@pytest.mark.parametrize(
    "flags, text",
    [
        ({"dtype": "fp16"}, "--dtype must be one of bf16, fp32, got 'fp16'"),
        ({"convert_model_dtype": True, "dtype": "fp32"}, "contradicts --dtype fp32"),
        ({"device": "gpu"}, "--device 'gpu' is not a device"),
        ({"device": "meta"}, "--device meta is not supported"),
        ({"offload": "blocks"}, "--offload must be one of none, model, block, auto, got 'blocks'"),
        ({"offload": "block", "offload_model": True}, "--offload_model True is --offload model, got --offload block"),
        ({"offload": "model", "offload_model": False}, "--offload_model False is --offload none, got --offload model"),
    ],
)
def test_refusals(flags, text):
    with pytest.raises(ValueError) as error:
        Runtime.from_flags(**({"device": "cpu"} | flags))
    assert text in str(error.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps"])
def test_absent_devices_name_what_there_is(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=f"--device {name} cannot be used here: this machine has cpu; try --device cpu"
    ):
        resolve_device(name)


def test_the_cpu_is_always_there():
    assert available_devices()[-1] == "cpu"
    assert resolve_device("cpu") == resolve_device("cpu:0") == torch.device("cpu")


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.fixture
def machine(monkeypatch):
    """Fake `machine(gpus, mps=False, current=0)`; torch may count its GPUs only where CUDA is available."""

    def pretend(gpus, mps=False, current=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus or pytest.fail("asked without CUDA"))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    "gpus, mps, names",
    [
        (0, False, ["cpu"]),
        (0, True, ["mps", "cpu"]),
        (2, False, ["cuda:0", "cuda:1", "cpu"]),
        (1, True, ["cuda:0", "mps", "cpu"]),
    ],
)
def test_the_best_device_comes_first_and_is_the_default(machine, gpus, mps, names):
    machine(gpus, mps)
    assert available_devices() == names
    assert str(resolve_device(None)) == str(Runtime.default().device) == names[0]
    assert [str(resolve_device(name)) for name in names] == names
    on_gpu = Offload.NONE if names[0] == "cpu" else Offload.AUTO
    assert Runtime.default().offload is on_gpu and str(Runtime.default().t5_device) == names[0]
    assert str(Runtime.default(t5_cpu=True).t5_device) == "cpu"


def test_a_gpu_without_a_number_is_the_current_one(machine):
    machine(3, current=2)
    assert [str(resolve_device(name)) for name in ("cuda", "cuda:1", torch.device("cuda"))] == [
        *("cuda:2", "cuda:1", "cuda:2")
    ]
    assert [str(Runtime.default(device_id=n).device) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]
    with pytest.raises(ValueError, match="cuda:3 cannot be used here"):
        Runtime.default(device_id=3)


@pytest.mark.parametrize("gpus, mps, own", [(0, False, "cpu"), (0, True, "mps"), (4, False, "cuda:3")])
def test_the_device_of_the_fourth_process(machine, gpus, mps, own):
    machine(gpus, mps)
    assert own_device(None, 3) == own
    assert own_device("cpu", 3) == "cpu" and own_device("mps:0", 3) == "mps:0"
    assert own_device("cuda:0", 3) == ("cuda:3" if gpus else "cuda:0")  # refused later, by its name
    if gpus:
        with pytest.raises(ValueError, match="than there are GPUs, 4"):
            own_device(None, gpus)


@pytest.mark.parametrize("name", [None, "cuda", "cuda:0"])
def test_each_of_several_processes_takes_its_own_gpu(four_gpus, name):
    assert own_device(name, 2) == "cuda:2"
    runtime = Runtime.from_flags(device=name, parallel=Parallel(4, ulysses_size=4), local_rank=3)
    assert (runtime.device, runtime.offload) == (torch.device("cuda:3"), Offload.AUTO)


def test_a_cpu_streams_blocks_and_moves_no_models():
    policies = {name: Runtime.from_flags(device="cpu", offload=name).offload.value for name in choices.OFFLOAD}
    assert policies == {"none": "none", "model": "none", "block": "block", "auto": "none"}


def test_processes_share_a_cpu():
    assert own_device("cpu", 2) == "cpu"


def test_more_processes_than_gpus_and_one_gpu_for_all_are_refused(four_gpus):
    with pytest.raises(ValueError, match="more processes here than there are GPUs, 4; --nproc_per_node=4"):
        own_device(None, 4)
    with pytest.raises(ValueError, match="--device cuda:2 would put all processes on one GPU; leave it out"):
        own_device("cuda:2", 0)


def test_two_ways_to_make_room_are_refused(four_gpus):
    spread = Parallel(4, ulysses_size=4, dit_fsdp=True, t5_fsdp=True)
    with pytest.raises(ValueError, match=r"\(--offload_model True\) moves whole models.*leave --dit_fsdp out"):
        Runtime.from_flags(parallel=spread, offload_model=True)
    with pytest.raises(ValueError, match="--offload block moves whole blocks, --dit_fsdp and --t5_fsdp keeps a part"):
        Runtime.from_flags(parallel=spread, offload="block")
    with pytest.raises(ValueError, match="--t5_cpu and --t5_fsdp are two ways"):
        Runtime.from_flags(parallel=spread, t5_cpu=True)


def test_tiles_too_small_to_be_worth_it_are_refused():
    assert Runtime.from_flags(device="cpu", vae_tile=256).vae_tile == 256
    with pytest.raises(ValueError, match="--vae_tile must be at least 64 pixels, got 16; try 256"):
        Runtime.from_flags(device="cpu", vae_tile=16)


def test_frames_and_precision_of_the_autoencoder():
    runtime = Runtime.from_flags(device="cpu", vae_frames=1, vae_dtype="float16", vae_tile=256)
    assert (runtime.vae_frames, runtime.vae_dtype) == (1, torch.float16)
    assert runtime.vae_flags == ["--vae_tile", "256", "--vae_frames", "1", "--vae_dtype", "fp16"]
    assert Runtime.from_flags(device="cpu").vae_flags == []
    for number, near in ((3, 2), (0, 1), (8, 4)):
        with pytest.raises(ValueError, match=f"--vae_frames must be one of 1, 2, 4, got {number}; try {near}"):
            Runtime.from_flags(device="cpu", vae_frames=number)
    with pytest.raises(ValueError, match="--vae_dtype must be one of fp32, fp16, got 'bf16'"):
        Runtime.from_flags(device="cpu", vae_dtype="bf16")

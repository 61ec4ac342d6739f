"""How it is run: the public flags become one value, or a clear refusal."""

import pytest
import torch

from wan import runtime
from wan.runtime import Offload, Runtime, available_devices, resolve_device


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
    assert value.offload is Offload.MODEL
    assert Runtime.from_flags(offload_model=False).offload is Offload.NONE
    assert Runtime.from_flags(t5_cpu=True).t5_device == torch.device("cpu")
    assert Runtime.from_flags(device="cuda").device == torch.device("cuda:0")
    assert Runtime.default(device_id=1).device == torch.device("cuda:1")
    with pytest.raises(ValueError, match="--device cuda:2 cannot be used here: this machine has cuda:0, cuda:1, cpu"):
        Runtime.from_flags(device="cuda:2")


@pytest.mark.parametrize(
    "flags, text",
    [
        ({"t5_fsdp": True}, "--t5_fsdp needs several GPUs"),
        ({"dit_fsdp": True}, "--dit_fsdp needs several GPUs"),
        ({"ulysses_size": 4}, "--ulysses_size 4 needs several GPUs, which is not available yet; use --ulysses_size 1"),
        ({"dtype": "fp16"}, "--dtype must be one of bf16, fp32, got 'fp16'"),
        ({"convert_model_dtype": True, "dtype": "fp32"}, "contradicts --dtype fp32"),
        ({"device": "gpu"}, "--device 'gpu' is not a device"),
        ({"device": "meta"}, "--device meta is not supported"),
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

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoint.memory import MemorySource
from wan.checkpoint.loading import _one_ahead, group_names, load_module, read_config, save_safetensors_folder


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6, bias=False)
        self.modulation = nn.Parameter(torch.zeros(1, 6, 6))


class Small(nn.Module):
    def __init__(self, blocks: int = 4):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Lazy(Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(3), persistent=False)


def state(dtype: torch.dtype = torch.float32, blocks: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {name: torch.randn(t.shape).to(t.dtype) for name, t in Small(blocks).state_dict().items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def load(tensors, **options):
    return load_module(options.pop("factory", Small), MemorySource(tensors), **options)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path, stored, wanted):
    tensors = state(stored)
    save_safetensors_folder(tensors, tmp_path, {}, max_shard_bytes=400)
    model = load_module(Small, tmp_path, dtype=wanted, keep_float32=lambda name: "norm" in name or "modul" in name)
    assert not model.training
    for name, tensor in model.state_dict().items():
        kept = "norm" in name or "modul" in name
        expected = torch.float32 if kept else (wanted or stored)
        if name == "count":
            expected = torch.int64
        assert tensor.dtype == expected, name
        assert torch.equal(tensor, tensors[name].to(expected)), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


def mapped_file(tensor: torch.Tensor) -> str:
    """Path of the file whose mapping holds the tensor; empty for ordinary memory (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in span.split("-"))
        if start <= tensor.data_ptr() < stop:
            return path[0] if path and path[0].startswith("/") else ""
    raise AssertionError("the tensor lies in no mapping")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux' list of mappings")
def test_a_tensor_that_already_fits_is_a_view_of_the_file(tmp_path):
    tensors = {"weight": torch.randn(300, 300), "bias": torch.randn(300)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pth")
    for path in (tmp_path / "x.safetensors", tmp_path / "x.pth"):
        assert mapped_file(load_module(lambda: nn.Linear(300, 300), path).weight) == str(path)
        half = load_module(lambda: nn.Linear(300, 300), path, dtype=torch.bfloat16, keep_float32="bias".__eq__)
        assert mapped_file(half.weight) == ""
        assert half.bias.dtype == torch.float32
        assert mapped_file(half.bias) == ""  # a view would keep the whole shard mapped


def test_the_file_may_be_replaced_while_the_model_lives(tmp_path):
    tensors = state()
    save_safetensors_folder(tensors, tmp_path, {})
    model = load_module(Small, tmp_path)
    save_safetensors_folder({name: t + 1 for name, t in tensors.items()}, tmp_path, {})
    assert torch.equal(model.blocks[1].linear.weight, tensors["blocks.1.linear.weight"])


def test_reading_ahead_keeps_order_and_errors():
    assert list(_one_ahead(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
    assert list(_one_ahead(lambda x: x, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(_one_ahead(lambda x: 1 / x, [1, 0, 2]))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
def test_a_change_is_made_before_conversion(dtype):
    """A sum is rounded once: bfloat16 weights and a difference far below their precision."""
    tensors, seen = state(torch.bfloat16), []

    def change(name, tensor):
        seen.append(name)
        return tensor.float() + 1e-3 if name.endswith("linear.weight") else tensor

    model = load(tensors, dtype=dtype, change=change, keep_float32=lambda name: "norm" in name)
    assert sorted(seen) == sorted(tensors)
    for name, tensor in model.state_dict().items():
        changed = tensors[name].float() + 1e-3 if name.endswith("linear.weight") else tensors[name]
        assert torch.equal(tensor, changed.to(tensor.dtype)), name
    assert model.blocks[0].linear.weight.dtype == (dtype or torch.bfloat16)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux' list of mappings")
def test_after_a_change_nothing_keeps_the_file_mapped(tmp_path):
    save_file({"weight": torch.randn(300, 300), "bias": torch.randn(300)}, tmp_path / "x.safetensors")
    module = load_module(
        lambda: nn.Linear(300, 300),
        tmp_path / "x.safetensors",
        change=lambda name, tensor: tensor * 2 if name == "weight" else tensor,
    )
    assert mapped_file(module.weight) == mapped_file(module.bias) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_device_is_filled_too(tmp_path):
    tensors = state()
    save_safetensors_folder(tensors, tmp_path, {}, max_shard_bytes=400)
    model = load_module(Small, tmp_path, device="cuda", dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert tensor.is_cuda
        assert torch.equal(tensor.cpu(), tensors[name].to(tensor.dtype))


def test_every_problem_is_in_one_message(tmp_path):
    tensors = state()
    for i in range(1, 4):
        del tensors[f"blocks.{i}.linear.bias"]
    for i in range(4):
        tensors[f"blocks.{i}.norm.weight"] = torch.ones(7)
    tensors |= {"extra": torch.ones(1), "blocks.4.linear.weight": torch.ones(6, 6)}
    tensors["blocks.0.modulation"] = torch.zeros(1, 6, 6, dtype=torch.int8)
    with pytest.raises(ValueError) as caught:
        load(tensors)
    message = str(caught.value)
    for line in (
        "does not fit Small",
        "3 missing:\n    blocks.{1..3}.linear.bias (3)",
        "2 unexpected:\n",
        "    extra",
        "    blocks.4.linear.weight",
        "4 of another shape:\n    blocks.{0..3}.norm.weight (4): [7] in the file, [6] needed",
        "1 of a type this version does not read:\n    blocks.0.modulation: torch.int8",
    ):
        assert line in message, message


def test_nothing_is_filled_before_everything_fits():
    class Refusing(MemorySource):
        def get(self, name):
            raise AssertionError("read a tensor although another one is missing")

    tensors = state()
    del tensors["count"]
    with pytest.raises(ValueError, match=r"1 missing:\s+count"):
        load_module(Small, Refusing(tensors))


def test_one_stored_tensor_is_alive_at_a_time():
    """The loader's bound of memory: a converted tensor does not keep its original."""
    originals: list[weakref.ref] = []

    class Counting(MemorySource):
        def get(self, name):
            assert all(ref() is None for ref in originals), name
            copy = self.tensors[name].clone()
            originals.append(weakref.ref(copy))
            return copy

    model = load_module(Small, Counting(state()), dtype=torch.bfloat16, keep_float32=lambda name: "norm" in name)
    assert len(originals) == len(model.state_dict())


def test_quantised_files_are_named():
    tensors = state()
    tensors["blocks.0.linear.weight"] = tensors["blocks.0.linear.weight"].to(torch.float8_e4m3fn)
    tensors["blocks.0.linear.scale_weight"] = torch.ones(())
    with pytest.raises(ValueError, match=r"(?s)float8_e4m3fn.*use the bf16, fp16 or fp32 file"):
        load(tensors)


def test_non_persistent_buffers_are_not_left_without_values():
    with pytest.raises(AssertionError, match="table"):
        load(state(), factory=Lazy)


def test_group_names():
    names = ["a", *(f"blocks.{i}.q.weight" for i in (0, 1, 2, 5, 7, 8)), "blocks.3.k.0.bias", "x.9"]
    assert group_names(names) == ["a", "blocks.{0..2,5,7..8}.q.weight (6)", "blocks.3.k.0.bias", "x.9"]
    assert group_names(["l.0.w", "l.1.w"], lambda name: f": {name[2]}") == ["l.0.w: 0", "l.1.w: 1"]
    assert group_names([f"n{i}" for i in range(50)])[-1] == "and 10 more lines"


def test_a_refusal_stays_short_when_nothing_fits():
    tensors = {f"{chr(97 + i % 26) * 40}{i}.weight": torch.zeros(1) for i in range(2000)}
    with pytest.raises(ValueError, match="unexpected") as refused:
        load(tensors)
    assert len(str(refused.value)) < 4000 and "and 1988 more lines" in str(refused.value)


def test_saved_folder_layout(tmp_path):
    tensors = state()
    save_safetensors_folder(tensors, tmp_path, {"dim": 6}, max_shard_bytes=400)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "all files are as readable as config.json"
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert read_config(tmp_path) == {"dim": 6}

    save_safetensors_folder(tensors, tmp_path, {"dim": 6})  # fewer shards: the old ones go
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    tensors = state()
    save_safetensors_folder(tensors, tmp_path, {"dim": 6})

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_safetensors_folder({name: t * 0 for name, t in tensors.items()}, tmp_path, {"dim": 7})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert torch.equal(load_module(Small, tmp_path).blocks[0].norm.weight, tensors["blocks.0.norm.weight"])


def test_read_config_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold an object"):
        read_config(tmp_path)

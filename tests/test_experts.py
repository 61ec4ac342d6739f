"""An expert is loaded once and changed step by step; each step returns the model for the next one."""

import pytest
import torch
from safetensors.torch import save_file

from wan.checkpoint.lora import Lora
from wan.checkpoint.source import open_source
from wan.configs import NANO_CONFIGS
from wan.experts import compiles, has_compiler, load_expert
from wan.modules.attention import log_kernel
from wan.modules.layers import AdaptedLinear, Linear
from wan.modules.packed import PackedLinear
from wan.nano.random import write_random_checkpoint
from wan.runtime import CPU, Offload, Runtime

CONFIG = NANO_CONFIGS["t2v-A14B"]
NAME = CONFIG.experts[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("random"))


def load(folder, beside=None, config=CONFIG, **flags):
    runtime = Runtime.from_flags(device="cpu", **flags)
    return load_expert(folder, config, NAME, runtime, Offload.NONE, beside=beside)


def test_a_lora_is_merged_before_weights_are_rounded_and_packed(folder, monkeypatch):
    packed = []
    monkeypatch.setattr("wan.experts.can_pack", lambda device, dtype: True)
    monkeypatch.setattr("wan.experts.pack_linears", lambda module: packed.append(module))
    stored = open_source(folder / NAME).get("blocks.0.self_attn.q.weight")
    ones = {
        f"blocks.0.self_attn.q.lora_{half}.weight": torch.ones(size) for half, size in (("A", (1, 32)), ("B", (32, 1)))
    }
    save_file(ones, folder / "ones.safetensors")
    model = load(folder, config=CONFIG.copy(lora_checkpoint="ones.safetensors", uses_lora=True))
    assert packed == [module for step in model.trunk() for module in step.modules] and {*model.blocks} < {*packed}
    assert torch.equal(model.blocks[0].self_attn.q.weight, (stored.float() + 1).bfloat16())


@pytest.mark.parametrize("flags", [{}, {"dtype": "fp32"}, {"convert_model_dtype": True}])
def test_types_of_the_weights(folder, monkeypatch, flags):
    monkeypatch.setattr("wan.experts.can_pack", lambda device, dtype: False)
    model = load(folder, **flags)
    half = torch.float32 if flags.get("dtype") == "fp32" else torch.bfloat16
    for name, parameter in model.named_parameters():
        kept = model.keeps_float32(name) and "convert_model_dtype" not in flags
        assert parameter.dtype == (torch.float32 if kept else half), name


def test_every_block_attends_with_the_kernel_that_was_named_and_is_compiled(folder, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda module, *args, **how: compiled.append(module))
    monkeypatch.setattr("wan.experts.compiles", lambda device: True)
    model = load(folder, attention="sdpa", compile=True, dtype="fp32")
    assert compiled == list(model.blocks)
    for block in model.blocks:
        assert block.self_attn.attend.keywords == block.cross_attn.attend.keywords == {"backend": "sdpa"}
        assert isinstance(block.self_attn.q, Linear)


def test_what_cannot_be_compiled_runs_as_it_is(folder, monkeypatch, caplog):
    """A compiler may be there and fail: one line says why, and blocks stay as they are."""

    def fail(function):
        raise RuntimeError("\nno Python.h\nand many more lines")

    monkeypatch.setattr("torch.compile", fail)
    monkeypatch.setattr("torch.nn.Module.compile", lambda module: pytest.fail("compiled"))
    compiles.cache_clear()
    load(folder, compile=True)
    assert "nothing can be compiled for cpu here" in caplog.text and "no Python.h\n" in caplog.text
    compiles.cache_clear()


def test_what_a_compiler_needs(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", {"gcc": "/usr/bin/gcc"}.get)
    monkeypatch.setattr("wan.experts.find_spec", lambda name: None)
    assert has_compiler(CPU) and not has_compiler(torch.device("cuda:0")), "Triton"
    monkeypatch.setenv("CC", "gcc -m64")
    assert has_compiler(CPU)
    monkeypatch.setattr("shutil.which", {}.get)
    assert not has_compiler(CPU)


@torch.no_grad()
def test_blocks_experts_and_prompts_share_one_graph(folder):
    """It has no breaks, so that a run compiles once."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(CONFIG.z_dim, 3, 8, 8)
    for name in CONFIG.experts:
        model = load_expert(folder, CONFIG, name, Runtime.from_flags(device="cpu", dtype="fp32"), Offload.NONE)
        for block in model.blocks:
            block.compile(backend=backend, fullgraph=True)
        for length in (3, 9, 5):
            model([x], torch.tensor([500.0]), [torch.randn(length, model.config.text_dim)], seq_len=48)
    assert len(graphs) == 1


def test_packing_leaves_what_computes_in_float32(folder, monkeypatch):
    """Only the choice of layers is tested: the products need a processor that has them."""
    monkeypatch.setattr("wan.experts.can_pack", lambda device, dtype: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: weight)
    before = load(folder, dtype="fp32")
    model = load(folder)
    packed = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert packed == {
        name.replace("ffn.0", "ffn.up").replace("ffn.2", "ffn.down")
        for name, module in before.named_modules()
        if isinstance(module, Linear) and name.startswith("blocks")
    }


@pytest.mark.parametrize("fuses", [False, True])
def test_the_gelu_is_fused_where_the_device_computes_it_by_tanh(folder, monkeypatch, fuses):
    monkeypatch.setattr("wan.experts.fuses_gelu_tanh", lambda device, dtype: fuses)
    model = load(folder, dtype="fp32")
    assert [block.ffn.has_fused_gelu for block in model.blocks] == [fuses] * len(model.blocks)


def test_the_log_names_the_kernel_of_attention(folder, caplog):
    caplog.set_level("INFO")
    log_kernel.cache_clear()
    load(folder, dtype="fp32")
    assert "attention: sdpa, flash attention on cpu" in caplog.messages


def write_lora(path, model):
    """Write an adapter of every layer of the blocks."""
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear) and "blocks" in name]
    state, generator = {}, torch.Generator().manual_seed(0)
    for name in layers:
        out, into = model.get_submodule(name).weight.shape
        state[f"{name}.lora_A.weight"] = torch.randn(2, into, generator=generator) * 0.3
        state[f"{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator) * 0.3
    save_file(state, path)
    return Lora(path, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("flags", [{"dtype": "fp32"}, {}, {"convert_model_dtype": True}])
def test_a_lora_is_merged_or_applied_beside_the_weights(folder, tmp_path, monkeypatch, flags):
    monkeypatch.setattr("wan.experts.can_pack", lambda device, dtype: False)
    plain = load(folder, **flags)
    lora = write_lora(tmp_path / "lora.safetensors", plain)
    config = CONFIG.copy(lora_checkpoint=str(tmp_path / "lora.safetensors"), uses_lora=True)
    merged, beside = load(folder, config=config, **flags), load(folder, beside=lora, **flags)
    assert str(lora) == f"{len(lora.pairs)} of {len(lora.pairs)} layers"
    assert sum(isinstance(module, AdaptedLinear) for module in beside.modules()) == len(lora.pairs)
    x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    context = [torch.randn(3, plain.config.text_dim, generator=torch.Generator().manual_seed(2))]
    with torch.no_grad():
        found = [model([x], torch.tensor([500]), context)[0] for model in (plain, merged, beside)]
    assert (found[1] - found[0]).norm() > 0.05 * found[0].norm()
    tolerance = 1e-5 if "dtype" in flags else 0.02
    assert (found[2] - found[1]).norm() < tolerance * found[1].norm()

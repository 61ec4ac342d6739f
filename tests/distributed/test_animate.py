"""Character animation over several processes: frames that are cut, adapters, parameters that are spread."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.launch import launch
from tests.modules.animate.tiny import CONFIG, call, clip_inputs, randn, tiny_model
from tests.performances import write_performance
from wan.animate import WanAnimate
from wan.checkpoint.lora import Lora
from wan.checkpoint.source import open_source
from wan.configs import NANO_CONFIGS
from wan.distributed.fsdp import spread_parameters
from wan.distributed.sequence_parallel import parallelize
from wan.experts import adapt
from wan.modules.animate.model import BlankFace, WanAnimateModel
from wan.modules.layers import Linear
from wan.modules.model import time_features
from wan.nano.random import write_random_checkpoint
from wan.parallel import Parallel
from wan.runtime import Runtime

# 72 tokens, which four ranks cut within frames; 18 tokens, which four do not share evenly; 6 tokens of 2 frames
SIZES = ((3, 8, 12), (3, 4, 6), (2, 2, 6))
PARTS = ("motion_encoder.enc.fc.0", "face_encoder.out_proj", "face_adapter.fuser_blocks.1.linear1_kv", "img_emb.proj.3")


def loop(model):
    """Predict as a loop with guidance does: two branches, of which one has a blank face."""
    features = time_features(torch.tensor([700, 0]), CONFIG.freq_dim, torch.device("cpu"))
    size, blank = SIZES[1], BlankFace()
    found = []
    for faces in ({}, {"face_pixel_values": blank}, {"face_pixel_values": blank}):
        prepared = model.prepare([randn(5, 10, seed=5)], [size], **clip_inputs(size) | faces)
        found.append(model([randn(16, *size)], features, prepared)[0])
    return found


def forwards(with_fsdp):
    model, mesh = tiny_model(), init_device_mesh("cpu", (dist.get_world_size(),))
    if with_fsdp:
        spread_parameters(model, mesh)
        for name in PARTS:
            parameter = model.get_submodule(name).weight
            assert parameter.to_local().numel() <= -(-parameter.shape[0] // mesh.size()) * parameter[0].numel()
    parallelize(model, mesh)
    return [*(call(model, size=size) for size in SIZES), *loop(model)]


@pytest.mark.parametrize("count, with_fsdp", [(2, False), (4, False), (2, True), (4, True)])
def test_several_processes_equal_one(count, with_fsdp):
    model = tiny_model()
    with torch.no_grad():
        expected = [*(call(model, size=size) for size in SIZES), *loop(model)]
    for found in launch(count, forwards, with_fsdp):
        for a, b in zip(map(torch.from_numpy, found), expected, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def adapted(folder, mesh=None, beside=False):
    """Load the model of a folder with its LoRA, merged while weights are read, or applied beside them."""
    lora = Lora(folder / "lora.safetensors", open_source(folder).shapes())
    shard = None if mesh is None else partial(spread_parameters, mesh=mesh)
    model = WanAnimateModel.from_pretrained(folder, shard=shard, change=None if beside else lora.merge)
    return adapt(model, lora if beside else None)


def adapted_forwards(folder):
    mesh, found = init_device_mesh("cpu", (dist.get_world_size(),)), []
    for beside in (False, True):
        model = adapted(folder, mesh, beside)
        parallelize(model, mesh)
        found.append(call(model, size=SIZES[1]))
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_with_a_lora_equal_one(count, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    layers = [name for name, module in model.blocks.named_modules() if isinstance(module, Linear)]
    factors = {}
    for name in layers:
        out, into = model.blocks.get_submodule(name).weight.shape
        factors |= {
            f"blocks.{name}.lora_A.weight": randn(2, into),
            f"blocks.{name}.lora_B.weight": randn(out, 2, seed=1),
        }
    save_file(factors, tmp_path / "lora.safetensors")
    with torch.no_grad():
        plain, expected = call(model, size=SIZES[1]), call(adapted(tmp_path), size=SIZES[1])
    assert (plain - expected).norm() > 0.1 * plain.norm()
    for found in launch(count, adapted_forwards, tmp_path):
        for velocity in map(torch.from_numpy, found):
            assert (velocity - expected).abs().max() <= 1e-5 * expected.abs().max()


def video(folder, performance, flags):
    count = dist.get_world_size() if dist.is_initialized() else 1
    parallel = Parallel.from_flags(world_size=count, num_videos=1, **flags)
    runtime = Runtime.from_flags(device="cpu", dtype="fp32", parallel=parallel)
    pipeline = WanAnimate(NANO_CONFIGS["animate-14B"], folder, runtime=runtime)
    settings = {"clip_len": 9, "sampling_steps": 2, "guide_scale": 2, "seed": 7}
    return pipeline.generate(performance, True, composite=True, match_color=True, **settings)


NONE = {"ulysses_size": None, "cfg_parallel": False, "dit_fsdp": False, "t5_fsdp": False}


@pytest.mark.parametrize("count, flags", [(2, {"dit_fsdp": True, "t5_fsdp": True}), (4, {"cfg_parallel": True})])
def test_several_processes_make_the_clips_of_one(tmp_path, count, flags):
    folder = write_random_checkpoint(tmp_path / "model", "animate-14B")
    performance = str(write_performance(tmp_path / "performance"))
    expected = video(folder, performance, NONE)
    first, *others = launch(count, video, folder, performance, NONE | flags)
    assert others == [None] * (count - 1)
    assert (torch.from_numpy(first) - expected).norm() <= 1e-5 * expected.norm()

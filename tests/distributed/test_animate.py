"""Character animation over several processes: frames that are cut, adapters, parameters that are spread."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.launch import launch
from tests.modules.animate.tiny import CONFIG, call, clip_inputs, randn, tiny_model
from wan.distributed.fsdp import spread_parameters
from wan.distributed.sequence_parallel import parallelize
from wan.modules.animate.model import BlankFace
from wan.modules.model import time_features

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

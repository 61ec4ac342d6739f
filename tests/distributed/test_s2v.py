"""Speech-to-video over several processes: tokens that are cut within frames, adapters, parameters that are spread."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.launch import launch
from tests.modules.s2v.tiny import CONFIG, call, clip_inputs, randn, tiny_model
from wan.distributed.fsdp import spread_parameters
from wan.distributed.sequence_parallel import parallelize
from wan.modules.model import time_features

# 144 tokens; 60 tokens, which three ranks cut within frames; 84 tokens of three frames
SIZES = {"even": ((2, 8, 16), {}), "first clip": ((2, 8, 8), {"motion_latents": None}), "longer": ((3, 8, 8), {})}


def forwards(with_fsdp):
    model, mesh = tiny_model(), init_device_mesh("cpu", (dist.get_world_size(),))
    if with_fsdp:
        spread_parameters(model, mesh)
        for name in ("casual_audio_encoder.encoder.conv3.conv", "frame_packer.proj_4x", "audio_injector.injector.1.q"):
            parameter = model.get_submodule(name).weight
            assert parameter.to_local().numel() <= -(-parameter.shape[0] // mesh.size()) * parameter[0].numel()
    parallelize(model, mesh)
    results = [call(model, size=size, **changes) for size, changes in SIZES.values()]
    size, changes = SIZES["longer"]
    prepared = model.prepare([randn(5, 10, seed=5)], [size], **clip_inputs(size) | changes)
    features = time_features(torch.tensor([700, 0]), CONFIG.freq_dim, torch.device("cpu"))
    return [*results, model([randn(16, *size)], features, prepared)[0]]


@pytest.mark.parametrize("count, with_fsdp", [(2, False), (4, False), (2, True), (4, True)])
def test_several_processes_equal_one(count, with_fsdp):
    model = tiny_model()
    with torch.no_grad():
        expected = [call(model, size=size, **changes) for size, changes in SIZES.values()]
    for found in launch(count, forwards, with_fsdp):
        for a, b in zip(map(torch.from_numpy, found), [*expected, expected[-1]], strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()

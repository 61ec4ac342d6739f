"""Speech-to-video over several processes: tokens that are cut within frames, adapters, parameters that are spread."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.launch import launch
from tests.modules.s2v.tiny import CONFIG, call, clip_inputs, randn, tiny_model
from tests.recorded import write_wav
from wan.configs import NANO_CONFIGS
from wan.distributed.fsdp import spread_parameters
from wan.distributed.sequence_parallel import parallelize
from wan.modules.model import time_features
from wan.nano.random import write_random_checkpoint
from wan.parallel import Parallel
from wan.runtime import Runtime
from wan.speech2video import WanS2V

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


def video(folder, inputs, flags):
    count = dist.get_world_size() if dist.is_initialized() else 1
    parallel = Parallel.from_flags(world_size=count, num_videos=1, **flags)
    runtime = Runtime.from_flags(device="cpu", dtype="fp32", parallel=parallel)
    pipeline = WanS2V(NANO_CONFIGS["s2v-14B"], folder, runtime=runtime)
    return pipeline.generate(
        "a red circle", inputs / "a.png", inputs / "a.wav", infer_frames=12, sampling_steps=2, guide_scale=3, seed=7
    )


NONE = {"ulysses_size": None, "cfg_parallel": False, "dit_fsdp": False, "t5_fsdp": False}


@pytest.mark.parametrize(
    "count, flags", [(2, {"dit_fsdp": True, "t5_fsdp": True}), (2, {"cfg_parallel": True}), (4, {"cfg_parallel": True})]
)
def test_several_processes_make_the_clips_of_one(tmp_path, count, flags):
    folder = write_random_checkpoint(tmp_path / "model", "s2v-14B")
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(np.arange(20_000) / 20))  # two clips
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    expected = video(folder, tmp_path, NONE)
    assert expected.shape == (3, 20, 64, 64)
    first, *others = launch(count, video, folder, tmp_path, NONE | flags)
    assert others == [None] * (count - 1)
    # of the whole video: single pixels of random weights differ by 1.1e-5, through two clips and their decoding
    assert (torch.from_numpy(first) - expected).norm() <= 1e-5 * expected.norm()

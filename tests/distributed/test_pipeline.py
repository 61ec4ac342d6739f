"""The Python classes of every task under torchrun, with upstream's flags."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distributed.launch import launch
from wan import WanI2V, WanT2V, WanTI2V
from wan.configs import NANO_CONFIGS
from wan.nano.random import write_random_checkpoint
from wan.runtime import Runtime

TASKS = {"t2v-A14B": WanT2V, "i2v-A14B": WanI2V, "ti2v-5B": WanTI2V}


def generate(task, folder, seed, use_sp, **flags):
    runtime = None if use_sp else Runtime.from_flags(device="cpu")
    pipeline = TASKS[task](NANO_CONFIGS[task], folder, use_sp=use_sp, runtime=runtime, **flags)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    own = {"size": (64, 64)} if task == "t2v-A14B" else {"img": Image.fromarray(picture), "max_area": 64 * 64}
    return pipeline.generate("a red circle", frame_num=5, sampling_steps=2, seed=seed, **own)


def spread(task, folder, flags):
    return generate(task, folder, 7, use_sp=True, **flags)


@pytest.mark.parametrize(
    "task, flags",
    [
        ("t2v-A14B", {"dit_fsdp": True, "t5_fsdp": True}),
        ("i2v-A14B", {"t5_cpu": True}),
        ("ti2v-5B", {"dit_fsdp": True}),
    ],
)
def test_generate_returns_the_video_on_rank_0(tmp_path, task, flags):
    folder = write_random_checkpoint(tmp_path, task)
    expected = generate(task, folder, 7, use_sp=False)
    first, other = launch(2, spread, task, folder, flags)
    assert other is None
    # the matrices are bfloat16 here: a sum in another order may round differently
    assert (torch.from_numpy(first) - expected).abs().mean() < 0.01 * expected.std()


def drawn(folder):
    video = generate("t2v-A14B", folder, -1, use_sp=True)
    return None if video is None else bool(video.isfinite().all())


def test_a_drawn_seed_is_that_of_the_first(tmp_path):
    assert launch(2, drawn, write_random_checkpoint(tmp_path)) == [True, None]

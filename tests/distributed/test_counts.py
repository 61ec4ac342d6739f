"""The counts of benchmarks/parallel.py against real runs."""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.parallel import forward_work, gathered_bytes, latent_bytes
from tests.checkpoint.memory import MemorySource
from tests.distributed.launch import launch
from tests.distributed.tiny import CASES, CONFIG, tiny_model
from wan.checkpoint.loading import load_module
from wan.configs import WAN_CONFIGS
from wan.distributed.fsdp import spread_parameters
from wan.distributed.replica import side_by_side
from wan.distributed.sequence_parallel import parallelize
from wan.modules.model import WanModel, WanModelConfig

GRIDS = {"even": (2, 2, 4), "uneven length": (3, 1, 3)}
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def sent_bytes(calls):
    """Bytes that left this rank: all parts of a call but its own."""
    others = dist.get_world_size() - 1
    total = 0
    for name, args in calls:
        if name == "all_to_all_single":
            _, packed, _, send = args
            kept = send[dist.get_rank()]
            total += (packed.numel() - kept) * packed.itemsize
        else:
            total += args[1].nbytes * others
    return total


def counted(run):
    """FLOPs of `run`, and the bytes that its collective calls send."""
    calls = []

    def spy(name):
        original = getattr(dist, name)

        def call(*args, **kwargs):
            calls.append((name, args or (kwargs["output_tensor"], kwargs["input_tensor"])))
            return original(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    names = [
        n
        for n in ("all_to_all_single", "all_gather", "all_gather_into_tensor", "all_gather_single")
        if hasattr(dist, n)
    ]
    formula = {CPU_ATTENTION: lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(q, k, v)}
    flops = FlopCounterMode(display=False, custom_mapping=formula)
    patches = [spy(name) for name in names]
    with flops:
        for patch in patches:
            patch.start()
        run()
        mock.patch.stopall()
    return flops.get_total_flops(), sent_bytes(calls)


def counts_of_a_forward(config):
    model = tiny_model(config)
    parallelize(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    return [counted(lambda case=case: model(*CASES[case])) for case in GRIDS]


@pytest.mark.parametrize(
    "size, config", [(1, CONFIG), (2, CONFIG), (4, CONFIG), (2, replace(CONFIG, dim=48, num_heads=3))]
)
def test_flops_and_bytes_of_a_forward(size, config):
    expected = [forward_work(config, grid, size, itemsize=4) for grid in GRIDS.values()]
    found, *others = launch(size, counts_of_a_forward, config)
    assert found == [[work.flops, work.exchanged] for work in expected]
    assert all(flops <= work.flops for counts in others for (flops, _), work in zip(counts, expected))


def counts_of_guidance():
    latent = torch.randn(CONFIG.out_dim, 2, 4, 8)
    pair = side_by_side(init_device_mesh("cpu", (2,)))
    return counted(lambda: pair(lambda condition: latent * condition, torch.tensor(1.0), torch.tensor(2.0)))[1]


def test_bytes_of_the_two_branches():
    assert launch(2, counts_of_guidance) == [latent_bytes(CONFIG, GRIDS["even"])] * 2


def counts_of_gathering(config):
    model = tiny_model(config)
    shard = partial(spread_parameters, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    spread = load_module(lambda: WanModel(config), MemorySource(model.state_dict()), shard=shard)
    spread(*CASES["even"])  # the first forward also sets up
    return counted(lambda: spread(*CASES["even"]))[1]


def test_bytes_of_gathered_parameters():
    assert launch(4, counts_of_gathering, CONFIG) == [gathered_bytes(CONFIG, 4, itemsize=4)] * 4


@pytest.mark.parametrize("task", ["t2v-A14B", "i2v-A14B", "ti2v-5B"])
def test_little_is_done_by_every_rank(task):
    config = WanModelConfig.from_dict(WAN_CONFIGS[task].architecture())
    grid = (31, 22, 40) if task == "ti2v-5B" else (21, 30, 52)
    work = forward_work(config, grid, 8, timesteps=2)
    assert work.repeated < 0.03 * work.flops

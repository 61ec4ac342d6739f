import types
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.launch import launch
from tests.distributed.tiny import CASES, CONFIG, AdaptedModel, tiny_model
from wan.distributed.fsdp import spread_parameters
from wan.distributed.sequence_parallel import parallelize, shard, sp_attn_forward, sp_dit_forward
from wan.modules.steps import Segment, Tokens, by_frame

THREE_HEADS = replace(CONFIG, num_heads=3, dim=48)


def close(found, expected):
    """Largest difference at most 1e-5 of the largest value."""
    assert abs(torch.as_tensor(found) - expected).max() <= 1e-5 * expected.abs().max()


def forwards(config):
    model = tiny_model(config)
    parallelize(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    return [model(*case) for case in CASES.values()]


@pytest.mark.parametrize("size, config", [(2, CONFIG), (4, CONFIG), (2, THREE_HEADS), (4, THREE_HEADS)])
def test_a_sharded_model_equals_a_whole_one_on_every_rank(size, config):
    model = tiny_model(config)
    with torch.no_grad():
        expected = [model(*case) for case in CASES.values()]
    for of_rank in launch(size, forwards, config):
        for found, case in zip(of_rank, expected, strict=True):
            for a, b in zip(found, case, strict=True):
                close(a, b)


def by_upstreams_names():
    """A script of upstream's pipelines replaces the methods of a model like this."""
    model = tiny_model()
    for block in model.blocks:
        block.self_attn.forward = types.MethodType(sp_attn_forward, block.self_attn)
    model.forward = types.MethodType(sp_dit_forward, model)
    found = [model(*case) for case in CASES.values()]
    assert dist.get_world_size() == 1 or model.run_blocks.group.size() == dist.get_world_size()
    return found


@pytest.mark.parametrize("size", [1, 2])
def test_methods_under_upstreams_names_spread_the_tokens(size):
    with torch.no_grad():
        expected = [tiny_model()(*case) for case in CASES.values()]
    for of_rank in launch(size, by_upstreams_names):
        for found, case in zip(of_rank, expected, strict=True):
            for a, b in zip(found, case, strict=True):
                close(a, b)


def adapted(with_fsdp):
    model, mesh = tiny_model(kind=AdaptedModel), init_device_mesh("cpu", (dist.get_world_size(),))
    if with_fsdp:
        spread_parameters(model, mesh)
        assert model.adapter.mix.weight.to_local().numel() < model.config.dim**2
    parallelize(model, mesh)
    return [model(*CASES[name])[0] for name in ADAPTED]


ADAPTED = ("uneven length", "two segments, uneven")  # 9 tokens in three frames, of which two are adapted


@pytest.mark.parametrize("size, with_fsdp", [(2, False), (3, True), (4, True)])
def test_a_step_by_frame_works_on_frames_that_are_cut(size, with_fsdp):
    model = tiny_model(kind=AdaptedModel)
    with torch.no_grad():
        expected = [model(*CASES[name])[0] for name in ADAPTED]
        assert not torch.allclose(expected[0], tiny_model()(*CASES[ADAPTED[0]])[0], atol=1e-3)
    for of_rank in launch(size, adapted, with_fsdp):
        for found, case in zip(of_rank, expected, strict=True):
            close(found, case)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_frames_of_parts_are_those_of_the_whole(count):
    whole = tokens(11, (Segment(0, 11, torch.tensor([0])),))  # three frames of three tokens, and two tokens beyond
    place = torch.arange(5.0)[:, None, None]

    def fn(x, frames):
        assert x.shape[1] == frames.stop - frames.start and x.shape[2] == 3 and frames.stop <= 3
        return x * 2 + place[frames]

    expected = whole.x.clone()
    expected[:, :9] = expected[:, :9] * 2 + torch.arange(3.0).repeat_interleave(3)[:, None]
    parts = [by_frame(fn, shard(whole, rank, count), 3, 3) for rank in range(count)]
    assert torch.equal(torch.cat(parts, dim=1)[:, :11], expected)
    assert [shard(whole, rank, count).start for rank in range(count)] == [
        rank * -(-11 // count) for rank in range(count)
    ]


def widths():
    """Tokens that each layer sees in a forward of 9 tokens on 4 ranks."""
    model, seen = tiny_model(), {}
    parallelize(model, init_device_mesh("cpu", (4,)))
    for name in ("patch_embedding", "blocks.0.self_attn.q", "blocks.0.ffn", "blocks.1.cross_attn.q", "head.head"):
        hook = lambda _, inputs, __, name=name: seen.__setitem__(name, inputs[0].shape[1])  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model(*CASES["uneven length"])
    return list(seen.values())


def test_every_layer_works_on_local_tokens_only():
    assert launch(4, widths) == [[3] * 5] * 4


def regrouped():
    model = tiny_model()
    for width in (4, 2, 4, 1):
        parallelize(model, init_device_mesh("cpu", (4 // width, width), mesh_dim_names=("dp", "ulysses"))["ulysses"])
    assert not hasattr(model.run_blocks, "single") and not hasattr(model.blocks[0].self_attn.attend, "single")
    return model(*CASES["even"])


def test_parallelizing_again_replaces_and_one_rank_undoes():
    with torch.no_grad():
        expected = tiny_model()(*CASES["even"])[0]
    assert all(torch.equal(torch.from_numpy(found), expected) for (found,) in launch(4, regrouped))


def tokens(length, segments, batch=1):
    x = torch.arange(batch * length * 2.0).view(batch, length, 2)
    return Tokens(x, torch.ones(1, length, 3, 2), segments, None)


def test_shares_cover_all_tokens_and_their_segments():
    clean, noisy = torch.tensor([1]), torch.tensor([0])
    whole = tokens(10, (Segment(0, 4, clean), Segment(4, 10, noisy)))
    parts = [shard(whole, rank, 4) for rank in range(4)]
    together = torch.cat([part.x for part in parts], dim=1)
    assert torch.equal(together[:, :10], whole.x) and not together[:, 10:].any()
    assert [part.segments for part in parts] == [
        (Segment(0, 3, clean),),
        (Segment(0, 1, clean), Segment(1, 3, noisy)),
        (Segment(0, 3, noisy),),
        (Segment(0, 3, noisy),),
    ]
    assert all(part.lengths == (10,) for part in parts)


def test_lengths_that_divide_need_no_mask():
    part = shard(tokens(8, (Segment(0, 8, torch.tensor([0])),)), 1, 4)
    assert part.lengths is None and [segment[:2] for segment in part.segments] == [(0, 2)]

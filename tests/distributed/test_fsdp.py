from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import ShardingStrategy

from tests.distributed.launch import launch
from tests.distributed.tiny import CASES, CONFIG, tiny_model
from wan.checkpoint.loading import save_safetensors_folder
from wan.distributed.fsdp import free_model, shard_model, spread_parameters
from wan.distributed.sequence_parallel import parallelize
from wan.modules.model import WanModel, time_features
from wan.modules.t5 import T5Config, T5Encoder, load_t5

TIMES = torch.tensor([[0.0] * 4 + [999.0] * 12])  # bfloat16 would round 999 to 1000
LATENT, CONTEXT = CASES["even"][0], CASES["even"][2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_safetensors_folder(tiny_model().state_dict(), path, CONFIG.to_dict(), max_shard_bytes=100_000)
    return path


def load(folder, dtype, mesh=None, change=None):
    shard = None if mesh is None else partial(spread_parameters, mesh=mesh)
    return WanModel.from_pretrained(folder, dtype=dtype, shard=shard, change=change)


def sharded_forward(folder, dtype, with_ulysses):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = load(folder, dtype, mesh)
    if with_ulysses:
        parallelize(model, mesh)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    seen = {}

    def look(name, module, *_):
        seen[name] = str(module.weight.dtype), module.weight.numel()

    for name in ("blocks.1.ffn.0", "blocks.1.norm3", "time_embedding.0", "head.head"):
        model.get_submodule(name).register_forward_hook(partial(look, name))
    results = [model(LATENT, TIMES, CONTEXT)[0] for _ in range(2)]
    assert torch.equal(*results)
    free_again = all(hasattr(parameter, "placements") for parameter in model.parameters())
    return results[0], held, list(seen.values()), free_again


@pytest.mark.parametrize("size, dtype, with_ulysses", [(2, torch.bfloat16, False), (4, torch.float32, True)])
def test_a_model_that_is_spread_over_processes_equals_a_whole_one(folder, size, dtype, with_ulysses):
    whole = load(folder, dtype)
    with torch.no_grad():
        expected = whole(LATENT, TIMES, CONTEXT)[0]
    matrix, wide = str(dtype), "torch.float32"
    total = sum(parameter.numel() for parameter in whole.parameters())
    held_by_all = 0
    for found, held, seen, free_again in launch(size, sharded_forward, folder, dtype, with_ulysses):
        found = torch.from_numpy(found)
        if with_ulysses:
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        else:  # the same products of the same numbers: nothing is rounded that one process does not round
            assert torch.equal(found, expected)
        assert seen == [[wide, 16 * 64], [wide, 64], [matrix, 96 * 64], [wide, 24 * 64]]  # in order of use
        assert held < 1.5 * total / size and free_again
        held_by_all += held
    assert held_by_all == total


def prepared_forward(folder):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = load(folder, None, mesh)
    parallelize(model, mesh)
    prepared = model.prepare(CONTEXT, [LATENT[0].shape[1:]], [(4, 1), (12, 0)])
    assert all(hasattr(parameter, "placements") for parameter in model.parameters()), "given back after preparing"
    features = time_features(torch.tensor([999, 0]), CONFIG.freq_dim, model.device)
    return [model(LATENT, features, prepared)[0] for _ in range(2)]


def test_a_spread_model_prepares(folder):
    with torch.no_grad():
        expected = load(folder, None)(LATENT, TIMES, CONTEXT)[0]
    for results in launch(2, prepared_forward, folder):
        for found in results:
            assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5 * expected.abs().max()


def rows_read(folder):
    """Check that each rank has the right rows, and memory for no others."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model, whole = load(folder, None, mesh), load(folder, None)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.full_tensor(), whole.get_parameter(name)), name
        local = parameter.to_local()
        assert local.untyped_storage().nbytes() == local.nbytes, name


def test_each_process_reads_its_rows_only(folder):
    launch(4, rows_read, folder)


def changed_rows(folder):
    """Each process adds a matrix that depends on the row, as a LoRA does, and keeps its part of the sum."""

    def change(name, tensor):
        return tensor.float() + torch.arange(len(tensor))[:, None] if name.endswith("self_attn.q.weight") else tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    spread, whole = load(folder, torch.bfloat16, mesh, change), load(folder, torch.bfloat16, change=change)
    for name, parameter in spread.named_parameters():
        assert torch.equal(parameter.full_tensor(), whole.get_parameter(name)), name
    plain = load(folder, torch.bfloat16).blocks[0].self_attn.q.weight
    assert not torch.equal(whole.blocks[0].self_attn.q.weight, plain)


def test_changed_weights_are_spread_as_others(folder):
    launch(2, changed_rows, folder)


def fetched_ahead(folder):
    """Names of the units that each unit fetches while it works."""
    from torch.distributed.fsdp import FSDPModule

    order = []
    with mock.patch.object(FSDPModule, "set_modules_to_forward_prefetch", lambda *call: order.append(call)):
        model = load(folder, None, init_device_mesh("cpu", (dist.get_world_size(),)))
    names = {id(module): name for name, module in model.named_modules()}
    return [[names[id(unit)], [names[id(module)] for module in following]] for unit, following in order]


def test_the_next_step_is_fetched_while_one_works(folder):
    order = ["", "patch_embedding", "blocks.0", "blocks.1", "head"]
    assert launch(2, fetched_ahead, folder) == [[[unit, [following]] for unit, following in pairwise(order)]] * 2


def gathered_in_a_step(folder):
    """Names of the units that a forward with prepared values gathers."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    model = load(folder, None, init_device_mesh("cpu", (dist.get_world_size(),)))
    names = {id(module): name for name, module in model.named_modules()}
    prepared, features = (
        model.prepare(CONTEXT, [LATENT[0].shape[1:]]),
        time_features(TIMES[0, -1:], CONFIG.freq_dim, "cpu"),
    )
    seen, usual = set(), FSDPParamGroup.unshard

    def unshard(group, *arguments):
        seen.update(names[id(module)] for module in group.modules)
        return usual(group, *arguments)

    with mock.patch.object(FSDPParamGroup, "unshard", unshard):
        model(LATENT, features, prepared)
    units = {names[id(module)] for module in model.modules() if isinstance(module, FSDPModule)}
    return sorted(units), sorted(seen)


def test_a_forward_gathers_nothing_that_only_prepare_needs(folder):
    for units, seen in launch(2, gathered_in_a_step, folder):
        assert "text_embedding" in units and set(units) - set(seen) == {"text_embedding", ""}


def sharded_as_upstream(param_dtype):
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data += dist.get_rank()  # what other processes hold does not count
    assert shard_model(model, device_id=0, param_dtype=param_dtype, sync_module_states=True) is model
    result = model(LATENT, TIMES, CONTEXT)[0]
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    free_model(model)
    assert all(parameter.to_local().device.type == "meta" for parameter in model.parameters())
    return result, held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upstreams_shard_model_takes_a_model_with_its_weights(dtype):
    whole = tiny_model()
    total = sum(parameter.numel() for parameter in whole.parameters())
    with torch.no_grad():
        expected = whole.to(dtype)(LATENT, TIMES, CONTEXT)[0]
    for found, held in launch(2, sharded_as_upstream, dtype):
        assert torch.equal(torch.from_numpy(found), expected.float())
        assert 0.4 * total < held < 0.6 * total


def test_upstreams_shard_model_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="this is one; start with torchrun"):
        shard_model(tiny_model(), 0)
    with pytest.raises(ValueError, match="must be FULL_SHARD or left out"):
        shard_model(tiny_model(), 0, sharding_strategy=ShardingStrategy.NO_SHARD)


T5 = T5Config(vocab_size=30, dim=16, dim_attn=24, dim_ffn=20, num_heads=3, num_layers=2)
IDS, MASK = torch.tensor([[4, 9, 1, 0], [7, 1, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def encode(path):
    shard = partial(spread_parameters, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    encoder = load_t5(path, torch.bfloat16, "cpu", shard)
    return encoder(IDS, MASK)


def test_the_text_encoder_is_spread_as_well(tmp_path):
    encoder = T5Encoder(T5)
    encoder.init_weights(torch.Generator().manual_seed(0))
    torch.save(encoder.state_dict(), tmp_path / "t5.pth")
    with torch.no_grad():
        expected = load_t5(tmp_path / "t5.pth", torch.bfloat16, "cpu")(IDS, MASK).float()
    assert all(torch.equal(torch.from_numpy(found), expected) for found in launch(2, encode, tmp_path / "t5.pth"))

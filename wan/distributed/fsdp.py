"""Spread parameters over the ranks of a replica; those of a step are gathered just before it works."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from wan.distributed.util import get_world_size, init_distributed_group
from wan.modules.model import WanModel


def spread_parameters(model: nn.Module, mesh: DeviceMesh, **policy: Any) -> nn.Module:
    """Shard each step of a model's trunk, or each of its `blocks`, and the rest over a one-dimensional mesh.

    What `prepare` alone needs, such as the text embedding, is not gathered for a forward.

    Apply it to an empty model and let `checkpoint.loading.load_module` fill it: then each rank reads its own rows only.
    Parameters are sent in their own type: bfloat16 matrices as bfloat16, those sensitive to rounding as float32. No
    input is converted, so that timesteps keep their value. While a step works the next one is gathered.
    `policy` are further arguments of `fully_shard`. Returns `model`.
    """
    # its import takes 0.7 s, which a process alone does not need
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    is_dit = isinstance(model, WanModel)
    units = [list(s.modules) for s in model.trunk() if s.modules] if is_dit else [[block] for block in model.blocks]
    inside = {module for unit in units for module in unit}
    alone = [child for child in model.children() if is_dit and inside.isdisjoint(child.modules())]  # as for `prepare`
    apart = model.apart() if is_dit else ()  # first, so that the units around them leave their parameters out
    for unit in [*([part] for part in apart), *units, *([child] for child in alone)]:
        fully_shard(unit, mesh=mesh, **policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, **policy)
    if is_dit:
        register_fsdp_forward_method(model, "prepare")
    for (unit, *_), (following, *_) in pairwise([[model], *units]):
        unit.set_modules_to_forward_prefetch([following])
    return model


def shard_model(
    model: nn.Module,
    device_id: int = 0,
    param_dtype: torch.dtype = torch.bfloat16,
    reduce_dtype: torch.dtype = torch.float32,
    buffer_dtype: torch.dtype = torch.float32,
    process_group: dist.ProcessGroup | None = None,
    sharding_strategy: Any = None,
    sync_module_states: bool = True,
    use_lora: bool = False,
) -> nn.Module:
    """Do as `spread_parameters`, under upstream's name and arguments, for a model that has its weights already.

    They move to GPU `device_id`, or stay on the CPU without one; with `sync_module_states` every process gets those of
    the first. Parameters are sent as `param_dtype`; no input is converted. `sharding_strategy` can only be the full
    one, and `use_lora` changes nothing. Raises ValueError for one process.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if getattr(sharding_strategy, "name", "FULL_SHARD") != "FULL_SHARD":
        raise ValueError(f"sharding_strategy must be FULL_SHARD or left out, got {sharding_strategy}")
    init_distributed_group()
    if get_world_size() == 1:
        raise ValueError("shard_model spreads a model over several processes, and this is one; start with torchrun")
    device = torch.device("cuda", device_id) if torch.cuda.is_available() else torch.device("cpu")
    model.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.to(buffer_dtype) if buffer.is_floating_point() else buffer
    if sync_module_states:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, group=process_group, group_src=0)
    if process_group is None:
        mesh = init_device_mesh(device.type, (get_world_size(),))
    else:
        mesh = DeviceMesh.from_group(process_group, device.type)
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    return spread_parameters(model, mesh, mp_policy=policy)


def free_model(model: nn.Module) -> None:
    """Free the memory of a model, spread or not; it cannot be used any more. The name is upstream's."""
    model.to("meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Parameters spread over the ranks of a replica; a block is gathered whole just before it is needed."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.distributed.device_mesh import DeviceMesh


def shard_model(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard `model` and each of its `blocks` over a one-dimensional mesh; returns `model`.

    Apply it to an empty model and let `checkpoint.loading.load_module` fill it: then each rank reads its own rows only.
    Parameters travel in the type they have, so bfloat16 matrices as bfloat16 and what is sensitive to rounding as
    float32, and no input is converted: timesteps keep their value. While a block works the next one is on its way.
    """
    from torch.distributed.fsdp import fully_shard  # its import takes 0.7 s, which a process alone does not need

    blocks = list(model.blocks)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for unit, following in pairwise([model, *blocks]):
        unit.set_modules_to_forward_prefetch([following])
    return model

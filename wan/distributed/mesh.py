"""Who works with whom: the processes of a run as a mesh with named dimensions.

A replica is a set of processes that make one video together. Inside it `cfg` spreads the two guidance branches and
`ulysses` the tokens of a branch; `fsdp` spreads parameters over the whole replica. `dp` counts the replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Mesh:
    """The one-dimensional mesh of this process in each direction; neighbours in `ulysses` have neighbouring ranks."""

    dp: DeviceMesh
    cfg: DeviceMesh
    ulysses: DeviceMesh
    fsdp: DeviceMesh  # cfg and ulysses together: all ranks of the replica


def make_mesh(device_type: str, cfg_size: int = 1, ulysses_size: int = 1) -> Mesh:
    """Arrange all processes of the default group; collective, so every process must call it."""
    replicas = num_replicas(dist.get_world_size(), cfg_size, ulysses_size)
    names = ("dp", "cfg", "ulysses")
    grid = init_device_mesh(device_type, (replicas, cfg_size, ulysses_size), mesh_dim_names=names)
    pairs = init_device_mesh(device_type, (replicas, cfg_size * ulysses_size), mesh_dim_names=("dp", "fsdp"))
    return Mesh(*(grid[name] for name in names), pairs["fsdp"])


def num_replicas(world_size: int, cfg_size: int, ulysses_size: int) -> int:
    """How many videos `world_size` processes make at a time. Raises ValueError when the sizes do not divide it."""
    if cfg_size not in (1, 2):
        raise ValueError(f"the guidance branches are two: they take 1 or 2 groups of processes, got {cfg_size}")
    if world_size % cfg_size:
        raise ValueError(f"--cfg_parallel needs an even number of processes, and {world_size} were started")
    possible = [n for n in range(1, world_size + 1) if world_size // cfg_size % n == 0]
    if ulysses_size not in possible:
        share = f" (half of the {world_size}, with --cfg_parallel)" if cfg_size == 2 else ""
        raise ValueError(
            f"--ulysses_size must divide the number of processes, {world_size // cfg_size}{share}, got {ulysses_size}; "
            f"choose one of {', '.join(map(str, possible))}"
        )
    return world_size // (cfg_size * ulysses_size)


def shares(total: int, parts: int) -> list[int]:
    """`total` things for `parts` receivers, as evenly as possible: (40, 3) -> [14, 13, 13]."""
    return [total // parts + (i < total % parts) for i in range(parts)]

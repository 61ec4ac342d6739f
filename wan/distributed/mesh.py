"""Mesh of the processes of a run, with named dimensions.

A replica is a set of processes that make one video together. Inside it `cfg` spreads the two guidance branches and
`ulysses` the tokens of a branch; `fsdp` spreads parameters over the whole replica.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Mesh:
    """One-dimensional meshes of this process, one per direction; neighbours in `ulysses` have neighbouring ranks."""

    cfg: DeviceMesh
    ulysses: DeviceMesh
    fsdp: DeviceMesh  # cfg and ulysses together: all ranks of the replica


def make_mesh(device_type: str, cfg_size: int, ulysses_size: int) -> Mesh:
    """Arrange all processes of the default group; collective, so every process must call it."""
    replica_size = cfg_size * ulysses_size
    replicas = dist.get_world_size() // replica_size
    grid = init_device_mesh(device_type, (replicas, cfg_size, ulysses_size), mesh_dim_names=("dp", "cfg", "ulysses"))
    pairs = init_device_mesh(device_type, (replicas, replica_size), mesh_dim_names=("dp", "fsdp"))
    return Mesh(grid["cfg"], grid["ulysses"], pairs["fsdp"])

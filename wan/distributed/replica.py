"""Replica: the processes that make one video together, as a pipeline sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from wan.distributed.bands import decode_in_bands
from wan.distributed.fsdp import spread_parameters
from wan.distributed.sequence_parallel import parallelize
from wan.distributed.util import WAIT, all_gather, broadcast_int, broadcast_tensor, get_rank
from wan.modules.model import WanModel
from wan.modules.vae_wrapper import VideoVAE
from wan.parallel import Parallel
from wan.sampling import Branch, Condition, Pair, one_after_the_other

Shard = Callable[[nn.Module], nn.Module]


class Mesh(NamedTuple):
    """One-dimensional meshes of this process; neighbours in `ulysses` have neighbouring ranks."""

    cfg: DeviceMesh  # the two branches of guidance
    ulysses: DeviceMesh  # the tokens of a branch
    fsdp: DeviceMesh  # both together: all processes of the replica, over which parameters are spread


def make_mesh(device_type: str, cfg_size: int, ulysses_size: int) -> Mesh:
    """Arrange all processes of the default group in replicas; every one of them must call it."""
    size = cfg_size * ulysses_size
    grid = (dist.get_world_size() // size, cfg_size, ulysses_size)
    mesh = init_device_mesh(device_type, grid, mesh_dim_names=("replica", "cfg", "ulysses"))
    whole = init_device_mesh(device_type, (grid[0], size), mesh_dim_names=("replica", "fsdp"))
    return Mesh(mesh["cfg"], mesh["ulysses"], whole["fsdp"])


class Replica:
    """Division of the work on one video among its processes. In a process alone no method divides anything.

    All processes make their replicas at the same point, and those of one replica make the same calls.
    """

    def __init__(self, parallel: Parallel, device: torch.device):
        self.device = device
        self.index = get_rank() // parallel.replica_size  # which of the replicas this is
        self.mesh = None
        if parallel.replica_size > 1:
            self.mesh = make_mesh(device.type, parallel.cfg_size, parallel.ulysses_size)
        self.spreads_dit, self.spreads_t5 = parallel.dit_fsdp, parallel.t5_fsdp
        self.ulysses_size = parallel.ulysses_size

    @property
    def is_first(self) -> bool:
        """Tell whether this process gets the frames, and writes for the replica."""
        return self.mesh is None or self.mesh.fsdp.get_local_rank() == 0

    @property
    def shard_dit(self) -> Shard | None:
        """Function that spreads the parameters of an empty transformer; None when each process has all of them."""
        return partial(spread_parameters, mesh=self.mesh.fsdp) if self.spreads_dit else None

    @property
    def shard_t5(self) -> Shard | None:
        return partial(spread_parameters, mesh=self.mesh.fsdp) if self.spreads_t5 else None

    def group_of_weights(self) -> ProcessGroup:
        """Make another group of the processes that share the tokens of a branch; all processes must call it.

        Messages of one group wait for each other, and weights are on their way while tokens are exchanged.
        """
        return dist.new_subgroups(self.ulysses_size, timeout=WAIT)[0]  # neighbouring ranks, as in the mesh

    def pair(self) -> Pair:
        """Return the function that computes the two branches of guidance."""
        divided = self.mesh is not None and self.mesh.cfg.size() == 2
        return side_by_side(self.mesh.cfg) if divided else one_after_the_other

    def spread_tokens(self, model: WanModel, scale: float) -> WanModel:
        """Spread the tokens of `model` over ranks, for steps with guidance `scale`; returns it.

        Without guidance there is one branch, and all ranks of the replica share its tokens.
        """
        if self.mesh is not None:
            parallelize(model, self.mesh.fsdp if scale == 1 else self.mesh.ulysses)
        return model

    def computed_by_first(self, compute: Callable[[], list[Tensor]], count: int, dtype: torch.dtype) -> list[Tensor]:
        """Return the `count` tensors of `compute()`, of `dtype`, which one process computes for all."""
        if self.mesh is None:
            return compute()
        tensors = compute() if self.is_first else [None] * count
        like = torch.empty(0, dtype=dtype, device=self.device)
        return [broadcast_tensor(x, like, self.mesh.fsdp.get_group()) for x in tensors]

    def agree(self, number: int) -> int:
        """Return the `number` of the first process."""
        return number if self.mesh is None else broadcast_int(number, self.device, self.mesh.fsdp.get_group())

    def decode(self, vae: VideoVAE, latent: Tensor) -> Iterator[Tensor]:
        """Yield chunks of frames [3, f, H, W] on the first process; the others share the work and get none."""
        return vae.decode_stream(latent) if self.mesh is None else decode_in_bands(vae, latent, self.mesh.fsdp)


def side_by_side(mesh: DeviceMesh) -> Pair:
    """Make a `pair` for `sampling.guided`: each of the two ranks of `mesh` computes one branch, and both get both."""

    def pair(branch: Branch, cond: Condition, uncond: Condition) -> tuple[Tensor, Tensor]:
        positive, negative = all_gather(branch((cond, uncond)[mesh.get_local_rank()]), mesh.get_group())
        return positive, negative

    return pair

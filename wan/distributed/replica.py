"""Replica: the processes that make one video together, as a pipeline sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from wan.distributed.bands import decode_in_bands
from wan.distributed.cfg_parallel import side_by_side
from wan.distributed.fsdp import spread_parameters
from wan.distributed.mesh import make_mesh
from wan.distributed.sequence_parallel import parallelize
from wan.distributed.util import broadcast_int, broadcast_tensor, get_rank
from wan.modules.model import WanModel
from wan.modules.vae_wrapper import VideoVAE
from wan.parallel import Parallel
from wan.sampling import Pair, one_after_the_other

Shard = Callable[[nn.Module], nn.Module]


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

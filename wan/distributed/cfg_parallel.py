"""The two branches of guidance on the two halves of a replica."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from wan.distributed.mesh import Mesh
from wan.distributed.sequence_parallel import parallelize
from wan.distributed.util import all_gather
from wan.modules.model import WanModel
from wan.sampling import Branch, Condition, Pair, one_after_the_other


def divide_work(model: WanModel, mesh: Mesh, scale: float) -> Pair:
    """Spread a step of `model` with guidance `scale` over the replica; the result is the `pair` for `sampling.guided`.

    Without guidance there is one branch, and the ranks that would repeat it share its tokens instead.
    """
    if mesh.cfg.size() == 1 or scale == 1:
        parallelize(model, mesh.fsdp)
        return one_after_the_other
    parallelize(model, mesh.ulysses)
    return side_by_side(mesh.cfg)


def side_by_side(mesh: DeviceMesh) -> Pair:
    """Of the two ranks of `mesh` each computes one branch, and both get both."""
    assert mesh.size() == 2, mesh

    def pair(branch: Branch, cond: Condition, uncond: Condition) -> tuple[Tensor, Tensor]:
        mine = branch((cond, uncond)[mesh.get_local_rank()])
        positive, negative = all_gather(mine, mesh.get_group())
        return positive, negative

    return pair

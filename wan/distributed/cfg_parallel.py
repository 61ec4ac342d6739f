"""The two branches of guidance on the two halves of a replica."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from wan.distributed.util import all_gather
from wan.sampling import Branch, Condition, Pair


def side_by_side(mesh: DeviceMesh) -> Pair:
    """Make a `pair` for `sampling.guided`: each of the two ranks of `mesh` computes one branch, and both get both."""
    assert mesh.size() == 2, mesh

    def pair(branch: Branch, cond: Condition, uncond: Condition) -> tuple[Tensor, Tensor]:
        mine = branch((cond, uncond)[mesh.get_local_rank()])
        positive, negative = all_gather(mine, mesh.get_group())
        return positive, negative

    return pair

"""Ulysses sequence parallelism (arXiv:2309.14509) around any attention.

Outside attention every rank has some tokens with all heads; inside, all tokens with some heads. One exchange before
attention has q, k and v together, and one after it has the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from wan.distributed.util import all_to_all
from wan.modules.attention import attention
from wan.parallel import shares

Attention = Callable[[Tensor, Tensor, Tensor, Sequence[int] | None], Tensor]


def ulysses(attention: Attention, group: ProcessGroup) -> Attention:
    """Wrap `attention` for tokens that are spread evenly over the ranks of `group`, in order.

    Heads that cannot be divided equally give some ranks one head more. With fewer heads than ranks some have none.
    """
    size, rank = group.size(), group.rank()

    def attend(q: Tensor, k: Tensor, v: Tensor, kv_lens: Sequence[int] | None = None) -> Tensor:
        """This rank's q, k, v [B, l, N, D] -> its [B, l, N, D]; kv_lens counts the tokens of all ranks."""
        if q.requires_grad or k.requires_grad or v.requires_grad:
            raise RuntimeError("sequence parallelism has no backward pass; run it under torch.no_grad()")
        heads = shares(q.shape[2], size)
        q, k, v = _to_heads(q, k, v, heads, group)
        mixed = attention(q, k, v, kv_lens) if heads[rank] else q
        return _to_tokens(mixed, heads, group)

    attend.single = attention
    return attend


def distributed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seq_lens: Sequence[int] | Tensor | None = None,
    *,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Attention over the tokens of all ranks, under upstream's name; `group` None is all processes."""
    lens = None if seq_lens is None else [int(n) for n in seq_lens]
    return ulysses(attention, group or dist.group.WORLD)(q, k, v, lens)


def _to_heads(q: Tensor, k: Tensor, v: Tensor, heads: list[int], group: ProcessGroup) -> tuple[Tensor, ...]:
    """[B, l, N, D] each -> [B, L, n, D] each: all tokens of the heads of this rank, in one exchange."""
    b, length, _, d = q.shape
    size, mine = group.size(), heads[group.rank()]
    counts = [b * length * 3 * n * d for n in heads]
    packed = q.new_empty(sum(counts))
    parts = zip(*(x.split(heads, dim=2) for x in (q, k, v)), strict=True)
    for place, part, n in zip(packed.split(counts), parts, heads, strict=True):
        torch.stack(part, dim=2, out=place.view(b, length, 3, n, d))
    received = all_to_all(packed, counts, [b * length * 3 * mine * d] * size, group)
    # with one sample this is a view: tokens lie in order, q, k and v side by side
    return received.view(size, b, length, 3, mine, d).transpose(0, 1).flatten(1, 2).unbind(2)


def _to_tokens(x: Tensor, heads: list[int], group: ProcessGroup) -> Tensor:
    """[B, L, n, D] -> [B, l, N, D]: the reverse of `_to_heads` for the result."""
    b, total, mine, d = x.shape
    size = group.size()
    length = total // size
    packed = x.unflatten(1, (size, length)).transpose(0, 1).contiguous().flatten()
    counts = [b * length * n * d for n in heads]
    received = all_to_all(packed, [b * length * mine * d] * size, counts, group)
    parts = [part.view(b, length, n, d) for part, n in zip(received.split(counts), heads, strict=True)]
    return torch.cat(parts, dim=2)

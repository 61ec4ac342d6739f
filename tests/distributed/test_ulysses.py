import pytest
import torch
import torch.distributed as dist

from tests.distributed.launch import launch
from wan.distributed.ulysses import distributed_attention, ulysses
from wan.modules.attention import attention
from wan.parallel import shares


def operands(batch, length, heads):
    return torch.randn(3, batch, length, heads, 8, generator=torch.Generator().manual_seed(0)).unbind(0)


def share_of_attention(batch, length, heads, lens):
    rank, size = dist.get_rank(), dist.get_world_size()
    calls = []

    def counted(q, k, v, kv_lens):
        calls.append((tuple(q.shape), kv_lens))
        return attention(q, k, v, kv_lens)

    mine = [x.chunk(size, dim=1)[rank] for x in operands(batch, length, heads)]
    return ulysses(counted, dist.group.WORLD)(*mine, lens), calls


@pytest.mark.parametrize("size, heads", [(2, 4), (4, 4), (4, 6), (2, 5), (4, 3)])
@pytest.mark.parametrize("batch, lens", [(1, None), (1, (10,)), (2, (12, 7))])
def test_attention_over_all_tokens_with_a_share_of_the_heads(size, heads, batch, lens):
    results = launch(size, share_of_attention, batch, 12, heads, lens)
    whole = attention(*operands(batch, 12, heads), lens)
    together = torch.cat([torch.from_numpy(mine) for mine, _ in results], dim=1)
    torch.testing.assert_close(together, whole, atol=1e-6, rtol=1e-5)
    expected = [[(((batch, 12, n, 8)), lens)] if n else [] for n in shares(heads, size)]
    assert [[(tuple(shape), lens and tuple(given)) for shape, given in calls] for _, calls in results] == expected


def upstream_name():
    q, k, v = (x.chunk(2, dim=1)[dist.get_rank()] for x in operands(1, 12, 4))
    return distributed_attention(q, k, v, torch.tensor([11]))


def test_upstreams_name_uses_all_processes():
    together = torch.cat([torch.from_numpy(x) for x in launch(2, upstream_name)], dim=1)
    torch.testing.assert_close(together, attention(*operands(1, 12, 4), [11]), atol=1e-6, rtol=1e-5)


def refused_gradient():
    with torch.enable_grad(), pytest.raises(RuntimeError, match="no backward pass"):
        ulysses(attention, dist.group.WORLD)(*(x.requires_grad_() for x in operands(1, 4, 2)))


def test_gradients_are_refused():
    launch(2, refused_gradient)

import pytest
import torch
import torch.distributed as dist

from tests.distributed.launch import launch
from wan import parallel
from wan.distributed import util

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
TEXTS = ("a red circle", "", "色调艳丽 🙂" * 100)


def test_a_process_alone_needs_nobody():
    assert (util.get_rank(), util.get_world_size(), parallel.launched_size({}), parallel.launched_rank({})) == (
        0,
        1,
        1,
        0,
    )
    assert util.broadcast_int(-5) == -5 and util.broadcast_text("ä") == "ä"
    assert util.is_first_failure(ValueError())
    util.start()
    util.stop()
    assert not dist.is_initialized()


def test_the_environment_of_torchrun_is_read():
    assert (parallel.launched_size(TORCHRUN), parallel.launched_rank(TORCHRUN), parallel.local_rank(TORCHRUN)) == (
        4,
        3,
        1,
    )
    assert parallel.launched_size({"WORLD_SIZE": ""}) == parallel.launched_size({"WORLD_SIZE": "1"}) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE must be a number of processes, got 'four'"),
        ({"RANK": "", "MASTER_PORT": ""}, "WORLD_SIZE is 4, but RANK, MASTER_PORT not set; .*--nproc_per_node=4"),
        ({"RANK": "4"}, "RANK 4 does not exist among WORLD_SIZE 4"),
        ({"GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"}, "WORLD_SIZE is 4, but torchrun started 2 processes here"),
        ({"LOCAL_WORLD_SIZE": "8"}, "WORLD_SIZE is 4, but torchrun started 8"),
    ],
)
def test_a_wrong_environment_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        parallel.launched_size(TORCHRUN | change)


def messages():
    mine = dist.get_rank()
    numbers = [util.broadcast_int(value + mine) for value in (0, -(2**63), 2**63 - 2)]
    texts = [util.broadcast_text(text + "!" * mine) for text in TEXTS]
    like = torch.empty(0, dtype=torch.bfloat16)
    x = None if mine else torch.arange(6.0).view(1, 2, 3)
    tensors = [util.broadcast_tensor(x, like, dist.group.WORLD) for _ in range(2)]
    scalar = util.broadcast_tensor(None if mine else torch.tensor(2.5), like, dist.group.WORLD)
    return numbers, texts, tensors[1], scalar, str(scalar.dtype)


def test_rank_0_speaks_for_all():
    for numbers, texts, tensor, scalar, dtype in launch(2, messages):
        assert numbers == [0, -(2**63), 2**63 - 2] and texts == list(TEXTS)
        assert tensor.tolist() == [[[0, 1, 2], [3, 4, 5]]] and scalar.item() == 2.5 and dtype == "torch.bfloat16"

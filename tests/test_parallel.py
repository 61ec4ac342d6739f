import pytest

from wan.parallel import ALONE, Parallel, shares


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, (1, 8, 1)),
        ({"num_videos": 8}, (1, 1, 8)),
        ({"num_videos": 2}, (1, 4, 2)),
        ({"num_videos": 3}, (1, 8, 1)),  # one after the other, each by all
        ({"num_videos": 8, "dit_fsdp": True}, (1, 8, 1)),  # the model fits together only
        ({"cfg_parallel": True}, (2, 4, 1)),
        ({"cfg_parallel": True, "num_videos": 2}, (2, 2, 2)),
        ({"ulysses_size": 2}, (1, 2, 4)),
        ({"ulysses_size": 2, "cfg_parallel": True, "dit_fsdp": True, "t5_fsdp": True}, (2, 2, 2)),
    ],
)
def test_eight_processes_are_shared_out(flags, expected):
    parallel = Parallel.from_flags(world_size=8, **flags)
    assert (parallel.cfg_size, parallel.ulysses_size, parallel.replicas) == expected


@pytest.mark.parametrize(
    "world_size, flags, message",
    [
        (8, {"ulysses_size": 3}, "divide the number of processes, 8; 3 does not, choose one of 1, 2, 4, 8"),
        (8, {"ulysses_size": 8, "cfg_parallel": True}, "4, half of the 8 with --cfg_parallel; 8 does not"),
        (8, {"ulysses_size": 0}, "0 does not, choose one of 1, 2, 4, 8"),
        (3, {"cfg_parallel": True}, "--cfg_parallel needs an even number of processes, and torchrun started 3"),
        (4, {"ulysses_size": 1, "dit_fsdp": True}, "with --ulysses_size 1 that is one; use --ulysses_size 4"),
        (1, {"ulysses_size": 8}, "--ulysses_size needs several processes, and this is one; .*nproc_per_node=8"),
        (1, {"cfg_parallel": True, "t5_fsdp": True}, "--cfg_parallel and --t5_fsdp need .*nproc_per_node=2"),
    ],
)
def test_sizes_that_do_not_fit_name_those_that_do(world_size, flags, message):
    with pytest.raises(ValueError, match=message):
        Parallel.from_flags(world_size=world_size, **flags)


def remarks(world_size, num_videos=1, num_heads=40, **flags):
    parallel = Parallel.from_flags(world_size=world_size, **flags)
    return parallel.remarks(num_videos=num_videos, num_heads=num_heads)


def test_idle_processes_are_announced_with_a_remedy():
    (remark,) = remarks(8, ulysses_size=2)
    assert remark.startswith("6 of 8 processes have nothing to do") and "--ulysses_size 8" in remark
    assert "--num_videos 4" in remark
    (remark,) = remarks(4, ulysses_size=1, num_videos=6)
    assert "--num_videos 8 costs no more time" in remark
    assert remarks(8) == remarks(8, num_videos=8, ulysses_size=1) == remarks(1) == []


def test_heads_that_do_not_divide_are_announced():
    (remark,) = remarks(16)
    assert "40 attention heads in 16 parts are 3 or 2 each: attention works at 83%" in remark
    assert "1, 2, 4, 5, 8, 10, 20, 40" in remark
    assert remarks(8) == remarks(3, num_heads=24) == []


def test_one_line_says_how_the_work_is_divided():
    assert ALONE.describe() == ""
    line = Parallel(8, 2, 2, dit_fsdp=True).describe()
    assert line.startswith("8 processes, 2 videos at a time, the two guidance branches side by side, tokens in 2 parts")
    assert line.endswith("transformer spread over 4")


def test_without_guidance_all_processes_of_a_replica_share_the_tokens():
    parallel = Parallel(8, 2, 4)
    assert parallel.describe(guided=False) == "8 processes, tokens in 8 parts"
    assert parallel.remarks(num_videos=1, num_heads=12) == []
    assert parallel.remarks(num_videos=1, num_heads=12, guided=False) == [
        "12 attention heads in 8 parts are 2 or 1 each: attention works at 75%; parts that divide the heads are "
        "1, 2, 3, 4, 6, 12"
    ]


def test_tiles_leave_the_others_waiting():
    assert Parallel(4, 4 // 2, 2).remarks(num_videos=1, num_heads=4, tiled=True) == [
        "--vae_tile: one process decodes, tile by tile, and 3 wait for it; without the flag each decodes a band of "
        "every frame, in about 1/4 of the memory"
    ]
    assert Parallel(4, 1, 1).remarks(num_videos=4, num_heads=4, tiled=True) == []


def test_shares_are_as_even_as_possible():
    assert shares(40, 8) == [5] * 8 and shares(40, 3) == [14, 13, 13] and shares(2, 4) == [1, 1, 0, 0]

"""The command in several processes: the same videos as one, and a prompt end when one of them fails."""

import os
import signal
import time
from functools import partial

import pytest
import torch

from tests.distributed.command import command
from wan import cli
from wan.distributed import util
from wan.nano.random import write_random_checkpoint

REQUEST = ["--prompt", "a red circle", "--base_seed", "5", "--device", "cpu", "--dtype", "fp32", "--frame_num", "5"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {task: str(write_random_checkpoint(root / task, task)) for task in ("t2v-A14B", "ti2v-5B")}


@pytest.fixture
def request_flags(checkpoints):
    def flags(task="t2v-A14B", steps=3):
        return [*REQUEST, "--task", task, "--ckpt_dir", checkpoints[task], "--sample_steps", str(steps)]

    return flags


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".log")


def alone(arguments):
    """The command in this process, with one thread as each of several has: kernels of more round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli.main([*arguments, "--progress", "none"]) == cli.DONE
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "size, task, flags",
    [
        (2, "t2v-A14B", ["--ulysses_size", "2", "--dit_fsdp", "--t5_fsdp"]),
        (4, "t2v-A14B", ["--cfg_parallel", "--dit_fsdp"]),
        (4, "ti2v-5B", ["--cfg_parallel", "--t5_fsdp"]),
        (4, "t2v-A14B", []),  # more processes than heads
    ],
)
def test_several_processes_make_the_video_of_one(tmp_path, request_flags, size, task, flags):
    alone([*request_flags(task), "--save_file", str(tmp_path / "one.mp4")])
    with command(size, [*request_flags(task), *flags, "--save_file", "all.mp4"], tmp_path) as run:
        assert run.finish() == [0] * size, str(run)
    assert files(tmp_path) == ["all.mp4", "one.mp4"]
    assert (tmp_path / "all.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert "saved all.mp4" in run.error(0) and not any(run.error(rank) for rank in range(1, size))


def test_replicas_make_different_videos(tmp_path, request_flags):
    flags = [*request_flags(), "--num_videos", "3"]
    alone([*flags, "--save_file", str(tmp_path / "one.mp4")])
    with command(4, [*flags, "--ulysses_size", "2", "--save_file", "all.mp4"], tmp_path) as run:
        assert run.finish() == [0] * 4, str(run)
    for number in (1, 2, 3):
        assert (tmp_path / f"all-{number}.mp4").read_bytes() == (tmp_path / f"one-{number}.mp4").read_bytes()
    assert len(files(tmp_path)) == 6
    assert "2 videos at a time" in run.error(0) and "--num_videos 4 costs no more time" in run.error(0)


def test_processes_without_work_are_announced(tmp_path, request_flags):
    flags = ["--ulysses_size", "1", "--save_file", "all.mp4"]
    with command(2, [*request_flags(steps=1), *flags], tmp_path) as run:
        assert run.finish() == [0, 0], str(run)
    assert "1 of 2 processes have nothing to do" in run.error(0) and "--ulysses_size 2" in run.error(0)


def drawn_seeds_differ(rank):
    import wan.request

    wan.request.draw_seed = lambda: 100 + rank


def test_a_drawn_seed_is_that_of_rank_0(tmp_path, request_flags):
    with command(2, [*request_flags(steps=1), "--base_seed", "-1"], tmp_path, prepare=drawn_seeds_differ) as run:
        assert run.finish() == [0, 0], str(run)
    assert "seed 100" in run.error(0) and ["_100_" in name for name in files(tmp_path)] == [True]


# ---- one fails, all end ----


def ended(run):
    """The exit codes: `finish` fails when somebody goes on waiting for a process that is gone."""
    codes = run.finish()
    assert 0 not in codes, run
    return codes


def break_weights(rank, at):
    """The copy of the checkpoint that rank `at` reads is cut off."""
    if rank == at:
        import wan.checkpoint.source as source

        def damaged(self, name):
            raise ValueError("shard-2 is truncated: download it again")

        source.SafetensorsSource.get = damaged


def test_a_corrupt_shard_on_one_rank_ends_all_with_its_error(tmp_path, request_flags):
    arguments = [*request_flags(), "--dit_fsdp", "--save_file", "all.mp4"]
    with command(2, arguments, tmp_path, prepare=partial(break_weights, at=1)) as run:
        ended(run)
    assert run.error(1).strip().endswith("generate.py: failed: rank 1: shard-2 is truncated: download it again")
    assert "failed" not in run.error(0) and "Traceback" not in run.error(0) and files(tmp_path) == []


def test_a_wrong_plan_is_one_line_of_one_process(tmp_path, request_flags):
    with command(2, [*request_flags(), "--ulysses_size", "3"], tmp_path) as run:
        assert run.finish() == [cli.WRONG] * 2
    lines = (run.error(0) + run.error(1)).strip().splitlines()
    assert [line for line in lines if "error" in line] == [
        "generate.py: error: --ulysses_size must divide the number of processes, 2; 3 does not, choose one of 1, 2"
    ]


def test_a_killed_rank_ends_the_others(tmp_path, request_flags):
    with command(2, [*request_flags(steps=500), "--progress", "plain", "--save_file", "all.mp4"], tmp_path) as run:
        run.wait_for("step 1/500")
        run.send(signal.SIGKILL, rank=1)
        assert ended(run)[1] == -signal.SIGKILL
    assert "failed: rank 0: another process is gone, probably killed" in run.error(0) and files(tmp_path) == []


def test_an_interrupt_of_one_ends_all(tmp_path, request_flags):
    with command(2, [*request_flags(steps=500), "--progress", "plain", "--save_file", "all.mp4"], tmp_path) as run:
        run.wait_for("step 1/500")
        run.send(signal.SIGINT, rank=0)
        ended(run)
    assert "generate.py: interrupted; nothing was written" in run.error(0) and files(tmp_path) == []
    assert "Traceback" not in str(run)


def stuck_while_writing(rank):
    """Rank 0 waits for rank 1 as a GPU does, where nothing can interrupt it, with a file open; rank 1 fails."""
    from wan import media

    def write(frames, path, *_):
        from wan.files import atomic_file

        with atomic_file(path, True):
            os.read(os.pipe()[0], 1)  # for ever

    def decode(*_):
        time.sleep(1)
        raise ValueError("no frames on rank 1")

    media.write_video = write
    if rank == 1:
        from wan.distributed.replica import Replica

        Replica.decode = decode


def test_a_process_that_cannot_notice_is_ended_without_partial_files(tmp_path, request_flags):
    with command(2, [*request_flags(steps=1), "--save_file", "all.mp4"], tmp_path, prepare=stuck_while_writing) as run:
        assert ended(run) == [1, 1]
    assert "failed: rank 1: no frames on rank 1" in run.error(1)
    assert [name for name in files(tmp_path) if "partial" in name or name.endswith(".mp4")] == []


def impatient(rank):
    util.JOIN_SECONDS = 2


def test_a_world_size_that_nobody_fills_ends_soon(tmp_path, request_flags):
    with command(2, request_flags(), tmp_path, world_size=3, prepare=impatient) as run:
        assert run.finish() == [cli.WRONG] * 2
    assert "the 3 processes that WORLD_SIZE announces did not all meet at 127.0.0.1" in run.error(0)

"""The command in several processes: the same videos as one, and a prompt end when one of them fails."""

import ctypes
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.distributed.command import command
from wan import cli, media
from wan.distributed import bands, util
from wan.nano.random import write_random_checkpoint

REQUEST = ["--prompt", "a red circle", "--base_seed", "5", "--device", "cpu", "--dtype", "fp32", "--frame_num", "5"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {task: str(write_random_checkpoint(root / task, task)) for task in ("t2v-A14B", "i2v-A14B", "ti2v-5B")}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.linear_gradient("L").convert("RGB").rotate(30).save(path)
    return str(path)


@pytest.fixture
def request_flags(checkpoints):
    def flags(task="t2v-A14B", steps=3):
        return [*REQUEST, "--task", task, "--ckpt_dir", checkpoints[task], "--sample_steps", str(steps)]

    return flags


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".log")


def alone(arguments):
    """Run the command in this process with one thread, as each of several has: more threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli.main([*arguments, "--progress", "none"]) == cli.DONE
    finally:
        torch.set_num_threads(threads)


def with_one_slot(rank):
    """Let models of two blocks stream."""
    from wan import streaming

    streaming.num_slots = lambda sizes: 1


@pytest.mark.parametrize(
    "size, task, flags",
    [
        (2, "t2v-A14B", ["--block_cache", "0.5", "--ulysses_size", "2", "--dit_fsdp", "--t5_fsdp"]),
        (4, "t2v-A14B", ["--cfg_until", "0.5", "--cfg_parallel", "--dit_fsdp"]),
        (4, "ti2v-5B", ["--cfg_parallel", "--t5_fsdp"]),
        (4, "t2v-A14B", []),  # more processes than heads
        (4, "i2v-A14B", ["--cfg_parallel", "--dit_fsdp", "--t5_fsdp", "--ulysses_size", "2", "--image"]),
        (2, "ti2v-5B", ["--ulysses_size", "2", "--dit_fsdp", "--image"]),
        (2, "t2v-A14B", ["--cfg_parallel", "--offload", "block"]),
        (4, "t2v-A14B", ["--cfg_until", "0.5", "--cfg_parallel", "--offload", "block"]),
        (2, "t2v-A14B", ["--block_cache", "0.5", "--offload", "block"]),
    ],
)
def test_several_processes_make_the_video_of_one(tmp_path, request_flags, image, size, task, flags):
    request = request_flags(task)
    if flags[-1:] == ["--image"]:
        request, flags = [*request, "--image", image], flags[:-1]
    if flags[:1] in (["--block_cache"], ["--cfg_until"]):  # of the video, not of the processes
        request, flags = [*request, *flags[:2]], flags[2:]
    alone([*request, "--save_file", str(tmp_path / "one.mp4")])
    with command(size, [*request, *flags, "--save_file", "all.mp4"], tmp_path, prepare=with_one_slot) as run:
        assert run.finish() == [0] * size, str(run)
    assert files(tmp_path) == ["all.mp4", "one.mp4"]
    assert (tmp_path / "all.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert ("saved work" in run.error(0)) == bool({"--block_cache", "--cfg_until"} & set(request))
    assert "saved all.mp4" in run.error(0) and not any(run.error(rank) for rank in range(1, size))


def keep_decoded(rank, folder):
    """Decode in bands at every size, and keep the frames from before the encoder."""
    bands.SMALL, to_uint8, chunks = 0, media.to_uint8, []

    def keep(chunk):
        chunks.append(chunk)
        torch.save(torch.cat(chunks, dim=1), folder / f"decoded-{rank}.pt")
        return to_uint8(chunk)

    media.to_uint8 = keep


@pytest.mark.parametrize("task", ["t2v-A14B", "ti2v-5B"])
def test_frames_that_all_decode_are_those_of_one_process(tmp_path, monkeypatch, request_flags, task):
    monkeypatch.setattr(media, "to_uint8", media.to_uint8)  # is put back
    monkeypatch.setattr(bands, "SMALL", bands.SMALL)
    keep_decoded("alone", tmp_path)
    alone([*request_flags(task), "--save_file", str(tmp_path / "one.mp4")])
    prepare = partial(keep_decoded, folder=tmp_path)
    with command(2, [*request_flags(task), "--save_file", "all.mp4"], tmp_path, prepare=prepare) as run:
        assert run.finish() == [0, 0], str(run)
    found, expected = (torch.load(tmp_path / f"decoded-{name}.pt", weights_only=True) for name in (0, "alone"))
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not (tmp_path / "decoded-1.pt").exists()


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
    """Return the exit codes. `finish` fails when a process goes on waiting for one that has ended."""
    codes = run.finish()
    assert 0 not in codes, run
    return codes


def cut_off_weights(rank, at, checkpoint):
    """Rank `at` reads a copy of the checkpoint in which the weights of an expert end early."""
    os.mkdir(f"machine-{rank}")
    os.chdir(f"machine-{rank}")
    shutil.copytree(checkpoint, "weights")
    if rank == at:
        (path,) = Path("weights/low_noise_model").glob("*.safetensors")
        os.truncate(path, path.stat().st_size - 1000)


def test_a_corrupt_shard_on_one_rank_ends_all_with_its_error(tmp_path, checkpoints):
    flags = ["--task", "t2v-A14B", "--ckpt_dir", "weights", "--dit_fsdp", "--save_file", "all.mp4"]
    prepare = partial(cut_off_weights, at=1, checkpoint=checkpoints["t2v-A14B"])
    with command(2, [*REQUEST, *flags], tmp_path, prepare=prepare) as run:
        ended(run)
    assert "low_noise_model" in run.error(1) and "truncated" in run.error(1)
    assert not any(word in run.error(0) for word in ("error", "failed", "Traceback"))
    assert not any(tmp_path.glob("machine-*/all*"))


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


def stuck_in_a_kernel(rank):
    """Bring all ranks to a place where no signal handler runs."""
    import wan.pipeline

    read, _kept = os.pipe()
    os.set_inheritable(read, True)

    def denoise(*_):
        os.set_inheritable(sys.stderr.fileno(), True)
        # One call of C writes and waits: a signal between two calls would reach its handler.
        ctypes.CDLL(None).system(f"echo waiting for ever >&{sys.stderr.fileno()}; exec cat <&{read}".encode())

    wan.pipeline.denoise = denoise


def test_a_request_to_end_reaches_a_process_in_a_kernel(tmp_path, request_flags):
    with command(2, [*request_flags(), "--save_file", "all.mp4"], tmp_path, prepare=stuck_in_a_kernel) as run:
        for rank in (0, 1):
            run.wait_for("waiting for ever", rank)
        for rank in (0, 1):  # what torchrun does when another process has ended
            run.send(signal.SIGTERM, rank)
        assert ended(run) == [1, 1]
    assert files(tmp_path) == []


def stuck_while_writing(rank):
    """Make rank 1 fail while rank 0 waits for it with an open file, uninterruptible as in a GPU kernel."""
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
    util.JOIN_SECONDS, util.PATIENCE = 2, 1


def test_a_world_size_that_nobody_fills_ends_soon(tmp_path, request_flags):
    with command(2, request_flags(), tmp_path, world_size=3, prepare=impatient) as run:
        assert run.finish() == [cli.WRONG] * 2
    assert "waiting up to 2 s for rank 2 of 3 processes" in run.error(0) and "waiting" not in run.error(1)
    assert "the 3 processes that WORLD_SIZE announces did not all meet at 127.0.0.1" in run.error(0)

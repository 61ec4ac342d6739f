"""torchrun itself: one machine, two nodes, and nothing left after Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.test_command import alone

ROOT = Path(__file__).parents[2]
REQUEST = ["--prompt", "a red circle moves left", "--base_seed", "5", "--device", "cpu", "--dtype", "fp32"]
SECONDS = 120


def torchrun(folder, launch, arguments):
    """Start one agent of torchrun; the embedded model makes its video in `folder`."""
    command = [sys.executable, "-m", "torch.distributed.run", *launch, str(ROOT / "generate.py"), *REQUEST, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_nodes_make_the_video_of_one_process(tmp_path):
    meeting = ["--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    flags = ["--sample_steps", "3", "--cfg_parallel", "--ulysses_size", "2", "--dit_fsdp", "--t5_fsdp"]
    flags += ["--save_file", "both.mp4"]
    nodes = [torchrun(tmp_path, meeting, flags) for _ in range(2)]
    texts = [node.communicate(timeout=SECONDS)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(texts)
    alone([*REQUEST, "--sample_steps", "3", "--save_file", str(tmp_path / "one.mp4")])
    assert (tmp_path / "both.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert sum("4 processes, the two guidance branches side by side, tokens in 2 parts" in text for text in texts) == 1


def children(pid):
    """Processes below `pid`, as Linux lists them."""
    found = [
        int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()
    ]
    return [*found, *(below for child in found for below in children(child))]


def test_an_interrupt_leaves_no_process_and_no_file(tmp_path):
    agent = torchrun(tmp_path, ["--standalone", "--nproc_per_node=2"], ["--sample_steps", "900", "--progress", "plain"])
    for line in agent.stderr:
        if "step 1/900" in line:
            break
    below = children(agent.pid)
    assert len(below) >= 2
    agent.send_signal(signal.SIGINT)
    agent.communicate(timeout=SECONDS)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)
    assert agent.returncode != 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0.0, 4.0])
def test_a_killed_torchrun_leaves_no_process(tmp_path, seconds):
    """It is killed while the processes start: nothing can tell them to end, and there is no store to miss yet."""
    agent = torchrun(tmp_path, ["--standalone", "--nproc_per_node=2"], ["--sample_steps", "900"])
    while len(below := children(agent.pid)) < 2:
        time.sleep(0.02)
    time.sleep(seconds)
    agent.kill()
    agent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []

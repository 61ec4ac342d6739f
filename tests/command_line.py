"""Command lines on a pipeline without weights, and the folder that they work in."""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import torch

from wan import cli, planning
from wan.arguments import build_parser
from wan.clips import ClipSampled, FramesDecoded, SampledClip, StepDone
from wan.distributed.replica import Replica
from wan.memory import PhaseStats
from wan.text2video import WanT2V

ROOT = Path(__file__).parents[1]
BROKEN = ("decode", RuntimeError("codec"))
NANO = ["--prompt", "a red circle", "--device", "cpu", "--progress", "none"]


class StubT2V(WanT2V):
    """Pipeline without weights: the latent is a constant, the video grey. `fail` names the phase that breaks."""

    fail: tuple[str, BaseException] | None = None
    steps_seen = 0

    def __init__(self, config, checkpoint_dir, runtime):
        self.phases = {"encode": PhaseStats(0.1, 2**30)}
        self.calls = Counter()
        self.replica = Replica(runtime.parallel, runtime.device)

    def run(self, request, kept=()):
        kept = list(kept)
        if not kept:
            steps = []
            kept = [SampledClip(self.sample(request, lambda *step: steps.append(StepDone(0, 1, *step))))]
            yield from steps
            yield ClipSampled(0, 1, kept[0])
        for frames in self.decode(kept[0].latent, request.framing):
            yield FramesDecoded(0, 1, frames)

    def sample(self, request, on_step):
        for done in range(1, request.steps + 1):
            if on_step:
                on_step(done, request.steps, torch.zeros(1))
            type(self).steps_seen = done
            self.break_in("denoise")
        return torch.full((16, 5, 8, 8), 0.5)

    def decode(self, latent, framing):
        assert latent.eq(0.5).all()
        yield torch.zeros(3, 1, 64, 64)
        self.break_in("decode")
        yield torch.zeros(3, 16, 64, 64)

    def break_in(self, phase):
        if self.fail and self.fail[0] == phase:
            raise self.fail[1]


def planned(*flags):
    return planning.plan(build_parser().parse_args([*NANO, *flags]))


def resumed(*flags):
    return planning.plan(build_parser().parse_args(["--resume", "a.latent.safetensors", "--device", "cpu", *flags]))


def files():
    return sorted(path.name for path in Path().iterdir())


def resume_command(text):
    """Return the flags of the resume command in a message, as a shell reads them."""
    line = re.search(r"(?:finish it|go on) with: (.*)", text)[1]
    script = f"set -- {line}; printf '%s\\0' \"$@\""
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    return [os.fsdecode(word) for word in words[2:]]


def fail_and_resume(stub, capsys, *flags, more=()):
    """Make a run whose decoding fails, then run the command that it printed."""
    stub.fail = BROKEN
    assert cli.main([*NANO, *flags]) == cli.FAILED
    command = resume_command(capsys.readouterr().err)
    stub.fail = ("denoise", AssertionError("resuming must not sample"))
    assert cli.main([*command, "--progress", "none", *more]) == cli.DONE
    return command

"""A toy task of three clips, each made from the end of the one before, through the command line.

`python -m tests.three_clips CHECKPOINT KILL ARGUMENTS...` runs generate.py's command with it. KILL names a phase and a
clip, such as `denoise:1`, in the middle of which the process kills itself as `kill -9` would; `never` names none.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wan import cli, jobs, planning
from wan.clips import Clip, FramesDecoded, StepDone
from wan.sampling import keep_first_frame
from wan.text2video import WanT2V

CLIPS, TAIL = 3, 5


class ThreeClips(WanT2V):
    """Task whose later clips begin with the latent frame of the last frames, which is also decoded in front."""

    kill = "never"

    @staticmethod
    def num_clips(request) -> int:
        return CLIPS

    @staticmethod
    def num_frames(request) -> int:
        return CLIPS * request.frame_num - 1  # the last clip is cut

    @staticmethod
    def tail_frames(request) -> int:
        return TAIL

    def clip(self, request, index: int, tail: Tensor | None) -> Clip:
        self.die_in("encode", index)
        plain = replace(super().clip(request, index, tail), seed=request.seed + index)
        if tail is None:
            return plain
        lead = self.vae.encode([tail.to(self.device)])[0]
        mask = torch.ones(plain.shape)
        mask[:, 0] = 0
        return replace(plain, keep=keep_first_frame(lead[:, -1:], mask), lead=lead, drop=TAIL + 3)

    def run(self, request, kept=()):
        for event in super().run(request, kept):
            if isinstance(event, StepDone) and event.step == 2:
                self.die_in("denoise", event.index)
            if isinstance(event, FramesDecoded):
                self.die_in("decode", event.index)
            yield event

    def die_in(self, phase: str, index: int) -> None:
        if self.kill == f"{phase}:{index}":
            os.kill(os.getpid(), signal.SIGKILL)


def main(checkpoint: str, kill: str, arguments: list[str]) -> int:
    ThreeClips.kill = kill
    jobs.PIPELINES["t2v-A14B"] = ThreeClips
    planning.nano_checkpoint = lambda task: Path(checkpoint)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))

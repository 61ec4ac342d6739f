"""Character animation: seconds a clip and phase, cost of adapters, memory: `python -m benchmarks.animate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import clips
from benchmarks.common import seconds
from wan.configs import NANO_CONFIGS
from wan.modules.animate import WanAnimateModel
from wan.modules.animate.config import AnimateModelConfig
from wan.modules.animate.motion_encoder import FRAMES, FaceMotionEncoder
from wan.modules.steps import Prepared
from wan.parser import exit_code
from wan.performance import Footage, Performance
from wan.request import Request

TASK = "animate-14B"
BLOCKS = 5  # with one adapter
LATENT = (3, 16, 24)  # larger ones have more attention, and so a smaller share of adapters


class Noise:
    """Frames that are drawn when they are asked for."""

    def __init__(self, count: int, size: tuple[int, int]):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def take(self, numbers: Sequence[int]) -> np.ndarray:
        """Draw frames, uint8 [n, H, W, 3], by their numbers."""
        shape = (*self.size[::-1], 3)
        return np.stack([np.random.default_rng(number).integers(0, 256, shape, np.uint8) for number in numbers])


def model() -> WanAnimateModel:
    return clips.random_model(WanAnimateModel, AnimateModelConfig(num_layers=BLOCKS))


def prepare(made: WanAnimateModel, size: tuple[int, int, int] | None = None) -> tuple[tuple[int, int, int], Prepared]:
    """Prepare a clip of a latent of that size."""
    generator, config, size = torch.Generator().manual_seed(1), made.config, size or LATENT
    frames, rows, columns = size
    randn = lambda *shape: torch.randn(*shape, generator=generator).to(made.device)  # noqa: E731
    side = config.motion_encoder_size
    given = {
        "clip_fea": randn(1, 257, config.image_dim),
        "pose_latents": randn(1, config.out_dim, frames - 1, rows, columns),
        "face_pixel_values": randn(1, 3, 4 * frames - 7, side, side).clamp(-1, 1),
        "y": [randn(config.in_dim - config.out_dim, *size)],
    }
    return size, made.prepare([randn(min(100, config.text_len), config.text_dim)], [size], **given)


def request(count: int, folder: Path) -> Request:
    """Make the request of a video of so many clips, that are as long as they can be."""
    config = NANO_CONFIGS[TASK]
    frames = count * (config.frame_num - 1) + 1
    size = tuple(map(int, config.size.split("*")))
    footage = Footage(Noise(frames, size), Noise(frames, (32, 32)), Noise(1, size).take([0])[0])
    performance = replace(Performance.of(footage), rate=Fraction(16))
    return Request.create(config, performance=performance, steps=2, seed=1)


def motion_row(args: argparse.Namespace) -> Sequence[object]:
    """Measure the frames of faces a second that the motion encoder of the released size encodes."""
    encoder = FaceMotionEncoder(AnimateModelConfig())
    for parameter in encoder.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(0))
    side = AnimateModelConfig().motion_encoder_size
    faces = torch.rand(FRAMES, 3, side, side, device=args.device) * 2 - 1
    encode = partial(encoder.to(args.device), faces)
    taken = min(seconds(encode, args.device) for _ in range(args.rounds))
    return f"motion encoder, faces of {side}x{side}", f"{FRAMES / taken:.1f} frames/s", ""


CASE = clips.Case(TASK, model, prepare, request, 0.08, motion_row)


def main(arguments: Sequence[str] | None = None) -> None:
    clips.run(CASE, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Speech-to-video: seconds a clip and phase, cost of adapters, memory: `python -m benchmarks.s2v`."""

from __future__ import annotations

import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import clips
from wan.configs import NANO_CONFIGS
from wan.inputs import SPEECH_RATE
from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.config import S2VModelConfig
from wan.modules.steps import Prepared
from wan.parser import exit_code
from wan.request import Request

TASK = "s2v-14B"
BLOCKS, INJECTORS = 3, (0,)  # a little more than 12 beside 40
LATENT = (3, 16, 24)  # larger ones have more attention, and so a smaller share of adapters


def model() -> WanModel_S2V:
    return clips.random_model(WanModel_S2V, S2VModelConfig(num_layers=BLOCKS, audio_inject_layers=INJECTORS))


def prepare(
    made: WanModel_S2V, size: tuple[int, int, int] | None = None, history: int = 0
) -> tuple[tuple[int, int, int], Prepared]:
    """Prepare a clip of a latent of that size, with so many latent frames before it."""
    generator, config, size = torch.Generator().manual_seed(1), made.config, size or LATENT
    frames, rows, columns = size
    randn = lambda *shape: torch.randn(*shape, generator=generator).to(made.device)  # noqa: E731
    given = {
        "ref_latents": [randn(config.out_dim, 1, rows, columns)],
        "motion_latents": [randn(config.out_dim, history, rows, columns)] if history else None,
        "cond_states": None,
        "audio_input": randn(1, config.audio_layers, config.audio_dim, 4 * frames),
    }
    return size, made.prepare([randn(min(100, config.text_len), config.text_dim)], [size], **given)


def request(count: int, folder: Path) -> Request:
    """Make the request of a video of so many clips, of a tone that comes and goes."""
    config = NANO_CONFIGS[TASK]
    samples = int((count * config.frame_num - 3) * SPEECH_RATE / config.sample_fps)
    time = np.arange(samples) / SPEECH_RATE
    tone = np.sin(800 * time) * np.sin(6 * time) ** 2
    with wave.open(str(folder / f"{count}.wav"), "wb") as out:
        out.setparams((1, 2, SPEECH_RATE, 0, "NONE", ""))
        out.writeframes((tone * 2**14).astype(np.int16).tobytes())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    return Request.create(config, image=picture, audio=folder / f"{count}.wav", steps=2, seed=1)


CASE = clips.Case(TASK, model, prepare, request, 0.10)


def main(arguments: Sequence[str] | None = None) -> None:
    clips.run(CASE, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))

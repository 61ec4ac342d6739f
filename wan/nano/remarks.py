"""Remarks on a request that is too much for a nano model: unknown words, large sizes, long times."""

import math
from collections.abc import Iterator, Sequence

from wan import geometry
from wan.configs import TaskConfig
from wan.files import shown
from wan.geometry import LatentShape
from wan.nano import worlds
from wan.request import Request

LONG = 120  # seconds from which a remark calls a run long
STEP_FLOPS = 5e9  # per second and core
STEP_SECONDS = 0.08  # of the smallest model call
PIXELS = 250_000  # decoded per second and core


def remarks(config: TaskConfig, request: Request, shapes: Sequence[LatentShape]) -> Iterator[str]:
    """Yield remarks on a request that is too much for a toy model; `shapes` are those of the latents of its clips."""
    if (unknown := unknown_words(request.prompt)) and config.has_example:  # else the prompt decides nothing
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        yield (
            f"the nano model does not know {', '.join(map(repr, unknown[:8]))}{more}, and guesses. It knows "
            f"{vocabulary()}; for example: {config.prompt}"
        )
    if (seconds := sum(expected_seconds(config, request, shape) for shape in shapes)) > LONG:
        long = f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.0f} hours"
        yield (
            f"{geometry.format_size(request.framing.used)}, {request.frame_num * len(shapes)} frames and "
            f"{request.steps} steps are "
            f"far beyond the nano model, which was made for {config.size}, {config.frame_num} frames and "
            f"{config.sample_steps} steps: on two cores of a CPU this takes roughly {long}, and shows little"
        )


def unknown_words(prompt: str) -> list[str]:
    """List the words of a prompt that no caption of the small world has, each once."""
    words = worlds.words_of(prompt)
    return [shown(word, 30) for word in dict.fromkeys(words) if word not in worlds.WORDS]


def vocabulary() -> str:
    """List the words that a prompt can use, in a line."""
    named = {
        "the shapes": worlds.SHAPES,
        "colours": worlds.COLORS,
        "backgrounds": worlds.BACKGROUNDS,
        "motions": worlds.MOTIONS,
    }
    return ", the ".join(f"{name} {' '.join(values)}" for name, values in named.items())


def expected_seconds(config: TaskConfig, request: Request, shape: LatentShape) -> float:
    """Estimate the time of a clip on two cores from the counted work; the default takes a few seconds."""
    tokens = geometry.token_count(shape, config.patch_size)
    width, hidden = config.dim, config.ffn_dim
    block = tokens * (2 * (6 * width * width + 2 * width * hidden) + 4 * tokens * width)
    branches = 2 if any(scale != 1 for scale in request.guidance) else 1
    pixels = math.prod(request.framing.used) * (config.motion_frames + config.vae_stride[0] * shape[1])
    calls = request.steps * branches
    return calls * (STEP_SECONDS + config.num_layers * block / STEP_FLOPS / 2) + pixels / PIXELS / 2

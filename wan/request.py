"""Request: what the user wants, complete and checked before any weight is read."""

import json
import math
import random
from dataclasses import asdict, dataclass, fields
from typing import Any

from wan import geometry
from wan.configs import TaskConfig
from wan.geometry import Size
from wan.sampling import SOLVERS

MAX_SEED = 2**63 - 1
NOISE_DEVICES = ("default", "cpu")


@dataclass(frozen=True)
class Request:
    """One video. `size` is (width, height) in pixels, `guidance` (low-noise expert, high-noise expert).

    `boundary` is the share of the timesteps from which the high-noise expert works, None for tasks with one model.
    `noise_device` "default" draws the noise where the model runs; "cpu" makes it equal on every machine.
    Raises ValueError, in the user's words, for values that cannot work with any model.
    """

    task: str
    prompt: str
    negative_prompt: str
    size: Size
    frame_num: int
    steps: int
    shift: float
    guidance: tuple[float, float]
    solver: str
    seed: int
    fps: int
    boundary: float | None = None
    noise_device: str = "default"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError(f"the prompt is empty: {self.task} has nothing else to go by; describe the video in it")
        if self.steps < 1:
            raise ValueError(f"sample_steps must be at least 1, got {self.steps}; try 1, or leave it to the task")
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"sample_shift must be above 0, got {self.shift:g}; 1 leaves the schedule as it is")
        if not all(math.isfinite(scale) and scale >= 0 for scale in self.guidance):
            raise ValueError(
                f"sample_guide_scale must be 0 or more, got {format_guidance(self.guidance)}; 1 means no guidance"
            )
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown sample_solver {self.solver!r}; choose one of {', '.join(SOLVERS)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"the seed must lie in 0..{MAX_SEED} (or be negative for a random one), got {self.seed}")
        if self.fps < 1:
            raise ValueError(f"fps must be at least 1, got {self.fps}")
        if self.boundary is not None and not 0 <= self.boundary <= 1:
            raise ValueError(f"boundary is a share of the timesteps and must lie in 0..1, got {self.boundary:g}")
        if self.noise_device not in NOISE_DEVICES:
            raise ValueError(f"unknown noise_device {self.noise_device!r}; choose one of {', '.join(NOISE_DEVICES)}")

    @classmethod
    def create(
        cls,
        config: TaskConfig,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        size: Size | None = None,
        frame_num: int | None = None,
        steps: int | None = None,
        shift: float | None = None,
        guidance: float | tuple[float, float] | None = None,
        solver: str = "unipc",
        seed: int | None = None,
        fps: int | None = None,
        boundary: float | None = None,
        noise_device: str = "default",
    ) -> "Request":
        """Fill what is None from `config`, and check the rest against it; a seed of None or below 0 becomes random.

        An empty prompt is refused, an empty negative prompt is meant. Raises ValueError with the nearest valid choice.
        """
        size = geometry.parse_size(config.size) if size is None else (int(size[0]), int(size[1]))
        frame_num = config.frame_num if frame_num is None else frame_num
        geometry.check_size(size, config.vae_stride, config.patch_size)
        geometry.check_frame_num(frame_num, config.vae_stride[0])
        steps = config.sample_steps if steps is None else steps
        if steps > config.num_train_timesteps:
            raise ValueError(f"sample_steps can be at most {config.num_train_timesteps}, got {steps}")
        if boundary is not None and config.boundary is None:
            raise ValueError(f"boundary divides the work of two experts, and {config.name} has one model; leave it out")
        return cls(
            task=config.name,
            prompt=config.prompt if prompt is None else prompt,
            negative_prompt=config.sample_neg_prompt if negative_prompt is None else negative_prompt,
            size=size,
            frame_num=frame_num,
            steps=steps,
            shift=float(config.sample_shift if shift is None else shift),
            guidance=_pair(config.guidance if guidance is None else guidance),
            solver=solver,
            seed=draw_seed() if seed is None or seed < 0 else seed,
            fps=config.sample_fps if fps is None else fps,
            boundary=config.boundary if boundary is None else boundary,
            noise_device=noise_device,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reverses it."""
        return asdict(self) | {"size": format_size(self.size), "guidance": list(self.guidance)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Request":
        """The request of a `to_dict`, checked again; unknown keys are ignored. Raises ValueError for missing ones."""
        known = {field.name for field in fields(cls)}
        missing = known - {"boundary", "noise_device"} - set(values)
        if missing:
            raise ValueError(f"the stored request lacks {', '.join(sorted(missing))}")
        values = {key: value for key, value in values.items() if key in known}
        values["size"] = geometry.parse_size(values["size"])
        values["guidance"] = _pair(tuple(values["guidance"]))
        return cls(**values)

    def to_json(self, **extra: Any) -> str:
        """`to_dict` and the `extra` values as one line of JSON."""
        return json.dumps(self.to_dict() | extra, ensure_ascii=False)


def check_supported_size(config: TaskConfig, size: Size) -> None:
    """Refuse a size that is not in the table of the task, naming the one nearest in shape and area."""
    if size in [geometry.parse_size(known) for known in config.sizes]:
        return
    who = f"the nano model of {config.name}" if config.family == "nano" else config.name
    raise ValueError(
        f"size {format_size(size)} is not one that {who} makes; try {nearest_size(config, size)} "
        f"(it has {', '.join(config.sizes)})"
    )


def nearest_size(config: TaskConfig, size: Size) -> str:
    """The supported size whose sides differ least from `size`, in ratios."""

    def distance(known: str) -> float:
        sides = geometry.parse_size(known)
        return sum(math.log(a / b) ** 2 for a, b in zip(sides, size, strict=True))

    return min(config.sizes, key=distance)


def draw_seed() -> int:
    """A random seed in 0..2**63-1, from the operating system."""
    return random.SystemRandom().randint(0, MAX_SEED)


def format_size(size: Size) -> str:
    """(1280, 720) -> '1280*720', as it is typed."""
    return f"{size[0]}*{size[1]}"


def format_guidance(guidance: tuple[float, float]) -> str:
    """'3,4' for (low, high) = (3, 4), one number when they are equal; as it is typed."""
    low, high = guidance
    return f"{low:g}" if low == high else f"{low:g},{high:g}"


def parse_guidance(text: str) -> tuple[float, float]:
    """'5' -> (5, 5); '3,4' -> (3, 4), low-noise expert first. Raises ValueError with an example."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"guidance is one number or low,high (for example 5 or 3,4), got {text!r}")
    return numbers[0], numbers[-1]


def _pair(guidance: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(guidance, (int, float)):
        return float(guidance), float(guidance)
    if len(guidance) != 2:
        raise ValueError(f"guidance is one number or (low, high), got {guidance}")
    return float(guidance[0]), float(guidance[1])

"""Request: what the user wants, complete and checked before any weight is read."""

import hashlib
import json
import math
import operator
import random
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from wan import framing, geometry, media
from wan.configs import TaskConfig
from wan.framing import FITS, Framing
from wan.geometry import Size, format_size
from wan.sampling import SOLVERS

MAX_SEED = 2**63 - 1
NOISE_DEVICES = ("default", "cpu")


@dataclass(frozen=True)
class Picture:
    """An image that a video is made from: where it came from, its upright size and a hash that recognises it.

    `pixels` is the RGB PIL image, None in a request that was stored; `path` is None for an image from memory.
    """

    path: str | None
    size: Size
    sha256: str  # the first 16 digits
    pixels: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, image: Any) -> "Picture":
        """Read a file, or take a PIL image. Raises FileNotFoundError or ValueError that says what is wrong with it."""
        if isinstance(image, (str, Path)):
            pixels, path, content = media.read_image(image), str(image), Path(image).read_bytes()
        elif hasattr(image, "getexif"):
            pixels, path = media.upright_rgb(image), None
            content = pixels.tobytes()
        else:
            raise ValueError(f"an image is a path or a PIL image, got {type(image).__name__}")
        return cls(path, pixels.size, hashlib.sha256(content).hexdigest()[:16], pixels)

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": format_size(self.size), "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Picture":
        return cls(values["path"], geometry.parse_size(values["size"]), values["sha256"])


@dataclass(frozen=True)
class Request:
    """One video. `framing` holds its sizes in pixels, `guidance` is (low-noise expert, high-noise expert).

    `boundary` is the share of the timesteps from which the high-noise expert works, None for tasks with one model.
    `image` is the first frame and `last_image` the last; `fit` is how an image meets the size that was asked.
    `noise_device` "default" draws the noise where the model runs; "cpu" makes it equal on every machine.
    Raises ValueError, in the user's words, for values that cannot work with any model.
    """

    task: str
    prompt: str
    negative_prompt: str
    framing: Framing
    frame_num: int
    steps: int
    shift: float
    guidance: tuple[float, float]
    solver: str
    seed: int
    fps: int
    boundary: float | None = None
    noise_device: str = "default"
    image: Picture | None = None
    last_image: Picture | None = None
    fit: str = "area"

    def __post_init__(self) -> None:
        if not self.prompt.strip() and self.shape_image is None:
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
        if self.image is not None and self.last_image is not None and self.frame_num == 1:
            raise ValueError("frame_num 1 has no room for both image and last_image; leave one out, or try frame_num 5")

    @property
    def shape_image(self) -> Picture | None:
        """The image whose shape decides the size of the video: the first frame, or the last when that is missing."""
        return self.image or self.last_image

    @classmethod
    def create(
        cls,
        config: TaskConfig,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        size: Size | None = None,
        max_area: int | None = None,
        frame_num: int | None = None,
        steps: int | None = None,
        shift: float | None = None,
        guidance: float | tuple[float, float] | None = None,
        solver: str = "unipc",
        seed: int | None = None,
        fps: int | None = None,
        boundary: float | None = None,
        noise_device: str = "default",
        image: Any = None,
        last_image: Any = None,
        fit: str = "area",
    ) -> "Request":
        """Fill what is None from `config`, and check the rest against it; a seed of None or below 0 becomes random.

        `image` and `last_image` are paths or PIL images, and are read here. With an image and fit "area", `max_area`
        takes the place of the area of `size`. An empty prompt is refused unless there is an image, an empty negative
        prompt is meant. Raises ValueError with the nearest valid choice, and FileNotFoundError for a missing image.
        """
        config.check()
        pictures = _pictures(config, image=image, last_image=last_image)
        frame_num = config.frame_num if frame_num is None else frame_num
        geometry.check_frame_num(frame_num, config.vae_stride[0])
        steps = config.sample_steps if steps is None else steps
        if steps > config.num_train_timesteps:
            raise ValueError(f"sample_steps can be at most {config.num_train_timesteps}, got {steps}")
        pair = _pair(config.guidance if guidance is None else guidance)
        if config.boundary is None and boundary is not None:
            raise ValueError(f"boundary divides the work of two experts, and {config.name} has one model; leave it out")
        if config.boundary is None and pair[0] != pair[1]:
            raise ValueError(
                f"sample_guide_scale {format_guidance(pair)} is for two experts, and {config.name} has one model; "
                f"try {pair[0]:g}"
            )
        if prompt is None:
            prompt = "" if pictures else config.prompt  # the example describes another picture
        return cls(
            task=config.name,
            prompt=prompt,
            negative_prompt=config.sample_neg_prompt if negative_prompt is None else negative_prompt,
            framing=_framing(config, fit, size, max_area, next(iter(pictures.values()), None)),
            frame_num=frame_num,
            steps=steps,
            shift=float(config.sample_shift if shift is None else shift),
            guidance=pair,
            solver=solver,
            seed=draw_seed() if seed is None or seed < 0 else seed,
            fps=config.sample_fps if fps is None else fps,
            boundary=config.boundary if boundary is None else boundary,
            noise_device=noise_device,
            fit=fit,
            **pictures,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reverses it, except that images lose their pixels."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        sizes = values.pop("framing")
        pictures = {name: values[name] and values[name].to_dict() for name in ("image", "last_image")}
        return (
            values
            | pictures
            | {
                "size": format_size(sizes.asked),
                "used": format_size(sizes.used),
                "saved": format_size(sizes.saved),
                "guidance": list(self.guidance),
            }
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Request":
        """The request of a `to_dict`, checked again; unknown keys are ignored. Raises ValueError for missing ones."""
        needed = {field.name for field in fields(cls) if field.default is MISSING} - {"framing"} | {"size"}
        if missing := needed - set(values):
            raise ValueError(f"the stored request lacks {', '.join(sorted(missing))}")
        known = {field.name for field in fields(cls)}
        sizes = [geometry.parse_size(values.get(name, values["size"])) for name in ("size", "used", "saved")]
        values = {key: value for key, value in values.items() if key in known} | {"framing": Framing(*sizes)}
        for name in ("image", "last_image"):
            values[name] = values.get(name) and Picture.from_dict(values[name])
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


def _pictures(config: TaskConfig, **images: Any) -> dict[str, Picture]:
    """The images that were given, read, if they are what the task takes."""
    given = {name: image for name, image in images.items() if image is not None}
    for name in given:
        if name not in config.images:
            raise ValueError(f"{config.name} is not made from --{name}; leave it out")
    if config.needs_image and not given:
        first, *others = config.images
        also = "".join(f" (or --{name} FILE)" for name in others)
        raise ValueError(f"--task {config.name} needs --{first} FILE{also}")
    return {name: Picture.of(image) for name, image in given.items()}


def _framing(config: TaskConfig, fit: str, size: Size | None, max_area: int | None, image: Picture | None) -> Framing:
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}; choose one of {', '.join(FITS)}")
    if image is None and fit != "area":
        raise ValueError(f"fit {fit} is about an image, and none was given; leave it out")
    if fit != "area" and size is None and max_area is not None:
        raise ValueError(f"fit {fit} needs a size, (width, height); an area alone does not say its shape")
    asked = geometry.parse_size(config.size) if size is None else _sides(size)
    tokens = config.vae_stride, config.patch_size
    if image is None:
        return framing.plain(asked, *tokens)
    if fit != "area":
        return framing.of_size(fit, asked, image.size, *tokens)
    area = asked[0] * asked[1] if max_area is None else max_area
    used = framing.of_area(config.model_type, area, image.size, *tokens)
    return Framing(asked if max_area is None else used, used, used)


def _sides(size: Any) -> Size:
    """(width, height) in pixels, from two whole numbers or as it is typed, "832*480"."""
    if isinstance(size, str):
        return geometry.parse_size(size)
    try:
        width, height = map(operator.index, size)
    except (TypeError, ValueError):
        width = height = 0
    if width < 1 or height < 1:
        raise ValueError(f"size is (width, height) in whole pixels, for example (1280, 720), got {size!r}")
    return width, height


def _pair(guidance: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(guidance, (int, float)):
        return float(guidance), float(guidance)
    if len(guidance) != 2:
        raise ValueError(f"guidance is one number or (low, high), got {guidance}")
    return float(guidance[0]), float(guidance[1])

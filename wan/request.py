"""Request: what the user wants, complete and checked before any weight is read."""

import json
import math
import random
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from wan import framing, geometry, images, media
from wan.choices import DTYPES, NOISE_DEVICES, SOLVERS
from wan.configs import TaskConfig, get_config
from wan.framing import FITS, Framing
from wan.geometry import Size, format_size
from wan.guidance import Guidance, format_guidance
from wan.values import called, named, quoted, real, text, whole

MAX_SEED = 2**63 - 1
MAX_SHIFT, MAX_GUIDANCE = 1000, 3e38  # above the last one float32 ends
LONGEST_PATH = 4096


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
    def of(cls, image: Any, name: str = "image") -> "Picture":
        """Read a file, or take a PIL image. Raises FileNotFoundError or ValueError that says what is wrong with it."""
        if isinstance(image, (str, Path)):
            pixels, path = images.read_image(image), str(image)
        elif hasattr(image, "getexif"):
            pixels, path = images.upright_rgb(image), None
        else:
            raise ValueError(f"{called(name)} is a path or a PIL image, got {type(image).__name__}")
        return cls(path, pixels.size, images.digest(image if path else pixels)[:16], pixels)

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": format_size(self.size), "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> "Picture":
        """The picture of a `to_dict`, checked. Raises ValueError."""
        path, size, digits = (_dictionary("image", values).get(name) for name in ("path", "size", "sha256"))
        if path is not None and (not isinstance(path, str) or "\0" in path or not 0 < len(path) <= LONGEST_PATH):
            raise ValueError(f"the path of an image must be text, got {quoted(path)}")
        return cls(path, geometry.parse_size(text("size", size)), text("sha256", digits))


@dataclass(frozen=True)
class Request:
    """One video. `framing` holds its sizes in pixels.

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
    guidance: Guidance
    solver: str
    seed: int
    fps: int
    boundary: float | None = None
    noise_device: str = "default"
    image: Picture | None = None
    last_image: Picture | None = None
    fit: str = "area"

    def __post_init__(self) -> None:
        for name, convert in TYPES.items():
            object.__setattr__(self, name, convert(name, getattr(self, name)))
        if not self.prompt.strip() and self.shape_image is None:
            raise ValueError(f"the prompt is empty: {self.task} has nothing else to go by; describe the video in it")
        if self.steps < 1:
            raise ValueError(f"{called('steps')} must be at least 1, got {self.steps}; try 1, or leave it to the task")
        if self.shift <= 0:
            raise ValueError(f"{called('shift')} must be above 0, got {self.shift:g}; 1 leaves the schedule as it is")
        if not 1 / MAX_SHIFT <= self.shift <= MAX_SHIFT:
            raise ValueError(f"{called('shift')} must lie in {1 / MAX_SHIFT}..{MAX_SHIFT}, got {self.shift:g}")
        if not all(0 <= scale <= MAX_GUIDANCE for scale in self.guidance):
            guidance = format_guidance(self.guidance)
            raise ValueError(f"{called('guidance')} must be 0 or more (to 3e38), got {guidance}; 1 means no guidance")
        for name, value, choices in (
            ("solver", self.solver, SOLVERS),
            ("noise_device", self.noise_device, NOISE_DEVICES),
            ("fit", self.fit, FITS),
        ):
            if value not in choices:
                raise ValueError(f"unknown {called(name)} {quoted(value)}; choose one of {', '.join(choices)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(
                f"{called('seed')} must lie in 0..{MAX_SEED} (or be negative for a random one), got {quoted(self.seed)}"
            )
        media.check_fps(self.fps)
        if self.boundary is not None and not 0 <= self.boundary <= 1:
            raise ValueError(
                f"{called('boundary')} is a share of the timesteps and must lie in 0..1, got {self.boundary:g}"
            )
        if self.image is not None and self.last_image is not None and self.frame_num == 1:
            raise ValueError(
                f"{called('frame_num')} 1 has no room for both {called('image')} and {called('last_image')}; leave one "
                "out, or try 5"
            )

    def check_task(self, config: TaskConfig) -> None:
        """Raise ValueError, with the nearest valid choice, for values that cannot work with the models of a task."""
        geometry.check_frame_num(self.frame_num, config.vae_stride[0])
        if self.steps > config.num_train_timesteps:
            raise ValueError(f"{called('steps')} can be at most {config.num_train_timesteps}, got {quoted(self.steps)}")
        if config.boundary is None and self.boundary is not None:
            raise ValueError(
                f"{called('boundary')} divides the work of two experts, and {config.name} has one model; leave it out"
            )
        low, high = self.guidance
        if config.boundary is None and low != high:
            raise ValueError(
                f"{called('guidance')} {format_guidance(self.guidance)} is for two experts, and {config.name} has one "
                f"model; try {low:g}"
            )
        _check_images(config, [name for name in ("image", "last_image") if getattr(self, name)])

    @property
    def shape_image(self) -> Picture | None:
        """The image whose shape decides the size of the video: the first frame, or the last when that is missing."""
        return self.image or self.last_image

    def given_frame(self, picture: Picture) -> Tensor:
        """The pixels [3, H, W] of a picture of this request, as a frame of the video."""
        model_type = get_config(self.task).model_type
        return framing.given_frame(picture.pixels, self.framing, self.fit, model_type, self.shape_image.size)

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
        if prompt is None:
            prompt = "" if pictures else config.prompt  # the example describes another picture
        if seed is None or whole("seed", seed) < 0:
            seed = draw_seed()
        request = cls(
            task=config.name,
            prompt=prompt,
            negative_prompt=config.sample_neg_prompt if negative_prompt is None else negative_prompt,
            framing=_framing(config, fit, size, max_area, next(iter(pictures.values()), None)),
            frame_num=config.frame_num if frame_num is None else frame_num,
            steps=config.sample_steps if steps is None else steps,
            shift=config.sample_shift if shift is None else shift,
            guidance=config.guidance if guidance is None else guidance,
            solver=solver,
            seed=seed,
            fps=config.sample_fps if fps is None else fps,
            boundary=config.boundary if boundary is None else boundary,
            noise_device=noise_device,
            fit=fit,
            **pictures,
        )
        request.check_task(config)
        return request

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
    def from_dict(cls, values: Any) -> "Request":
        """The request of a `to_dict`, checked as if it was new: a stranger may have written it.

        Unknown keys are ignored. Raises ValueError, whose text names the fields of a request.
        """
        with named({}):
            values = _dictionary("the request", values)
            needed = {field.name for field in fields(cls) if field.default is MISSING} - {"framing"} | {"size"}
            if missing := needed - set(values):
                raise ValueError(f"the stored request lacks {', '.join(sorted(missing))}")
            for name, kind in STORED_BESIDE.items():
                if not isinstance(values.get(name), (kind, type(None))):
                    raise ValueError(f"{name} must be {kind.__name__}, got {quoted(values[name])}")
            if (dtype := values.get("dtype")) not in (None, *DTYPES):
                raise ValueError(f"unknown dtype {quoted(dtype)}; choose one of {', '.join(DTYPES)}")
            config = get_config(text("task", values["task"]))
            known = {field.name for field in fields(cls)}
            sizes = [
                geometry.parse_size(text(name, values.get(name, values["size"]))) for name in ("size", "used", "saved")
            ]
            changes = {
                name: Picture.from_dict(values[name])
                for name in ("image", "last_image")
                if values.get(name) is not None
            }
            given = {key: value for key, value in values.items() if key in known}
            request = cls(**given | changes | {"framing": Framing(*sizes)})
            request.check_task(config)
            framing.check_together(request.framing, config.vae_stride, config.patch_size)
            return request

    def to_json(self, **extra: Any) -> str:
        """`to_dict` and the `extra` values as one line of JSON."""
        return json.dumps(self.to_dict() | extra, ensure_ascii=False)


def picture_bytes(request: Request) -> int:
    """Host memory of the pictures of a request while it runs: all that were read, and the work of placing one of them.

    Reading one takes up to twice as much for a while as it keeps (WebP four times, JPEG 2000 five times).
    """
    width, height = request.framing.used
    pictures = [picture for picture in (request.image, request.last_image) if picture is not None]

    def work(picture: Picture) -> int:
        is_cut = request.shape_image is not picture
        scaled = 3 * 4 * width * (picture.size[1] + height)  # float32: the columns are scaled, then the rows
        return scaled + is_cut * images.kept_bytes(picture.size) + min(images.BAND_BYTES, 48 * math.prod(picture.size))

    return sum(images.kept_bytes(picture.size) for picture in pictures) + max(map(work, pictures), default=0)


def check_supported_size(config: TaskConfig, size: Size) -> None:
    """Refuse a size that is not in the table of the task, naming the one nearest in shape and area."""
    if size in [geometry.parse_size(known) for known in config.sizes]:
        return
    is_nano, asked = config.family == "nano", format_size(size)
    who = f"the nano model of {config.name}" if is_nano else config.name
    released = is_nano and asked in get_config(config.name).sizes
    raise ValueError(
        f"{called('size')} {asked} is not one that {who} makes; try {nearest_size(config, size)} "
        f"(it has {', '.join(config.sizes)}"
        + (f"); the released model has {asked}: give its folder with --ckpt_dir" if released else ")")
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


def _check_images(config: TaskConfig, given: list[str]) -> None:
    for name in given:
        if name not in config.images:
            raise ValueError(f"{config.name} is not made from {called(name)}; leave it out")
    if config.needs_image and not given:
        first, *others = (called(name) for name in config.images)
        file = " FILE" if first.startswith("--") else ""
        also = "".join(f" (or {name}{file})" for name in others)
        raise ValueError(f"{called('task')} {config.name} needs {first}{file}{also}")


def _pictures(config: TaskConfig, **images: Any) -> dict[str, Picture]:
    """The images that were given, read, if they are what the task takes."""
    given = {name: image for name, image in images.items() if image is not None}
    _check_images(config, list(given))
    return {name: Picture.of(image, name) for name, image in given.items()}


def _framing(config: TaskConfig, fit: str, size: Size | None, max_area: int | None, image: Picture | None) -> Framing:
    if fit not in FITS:
        raise ValueError(f"unknown {called('fit')} {quoted(fit)}; choose one of {', '.join(FITS)}")
    if image is None and fit != "area":
        raise ValueError(f"{called('fit')} {fit} is about an image, and none was given; leave it out")
    if fit != "area" and size is None and max_area is not None:
        raise ValueError(f"{called('fit')} {fit} needs a size, (width, height); an area alone does not say its shape")
    asked = geometry.parse_size(config.size) if size is None else _sides(size)
    tokens = config.vae_stride, config.patch_size
    if image is None:
        return framing.plain(asked, *tokens)
    if fit != "area":
        return framing.of_size(fit, asked, image.size, *tokens)
    area = asked[0] * asked[1] if max_area is None else whole("max_area", max_area)
    used = framing.of_area(config.model_type, area, image.size, *tokens)
    return Framing(asked if max_area is None else used, used, used)


def _sides(size: Any) -> Size:
    """(width, height) in pixels, from two whole numbers or as it is typed, "832*480"."""
    if isinstance(size, str):
        return geometry.parse_size(size)
    try:
        width, height = (whole("size", side) for side in size)
    except (TypeError, ValueError):
        width = height = 0
    if width < 1 or height < 1:
        raise ValueError(
            f"{called('size')} is (width, height) in whole pixels, for example (1280, 720), got {quoted(size)}"
        )
    return width, height


def _dictionary(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be a dictionary, got {quoted(values)}")
    return values


# How each field of a request is checked and converted; images and sizes are built of checked parts.
TYPES = {
    **dict.fromkeys(("task", "prompt", "negative_prompt", "solver", "noise_device", "fit"), text),
    **dict.fromkeys(("frame_num", "steps", "seed", "fps"), whole),
    "shift": real,
    "guidance": Guidance.of,
    "boundary": lambda name, value: None if value is None else real(name, value),
}
# What programs store in the same dictionary, and its types.
STORED_BESIDE = {"checkpoint": str, "device": str, "dtype": str, "convert_model_dtype": bool, "versions": dict}

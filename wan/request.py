"""Request: all values that describe a video, checked before any weight is read."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from torch import Tensor

from wan import framing, geometry, images, media
from wan.arguments import knows, tasks_with
from wan.choices import DTYPES, NOISE_DEVICES, QUANTIZED, SOLVERS
from wan.configs import TaskConfig, check_available, get_config
from wan.framing import FITS, Framing
from wan.geometry import Size, format_size
from wan.guidance import Guidance, format_guidance
from wan.inputs import Film, Input, Picture, Sound
from wan.parallel import Parallel
from wan.performance import Performance
from wan.utils.flow import checked_sigmas
from wan.values import called, counted, dictionary, flag, named, quoted, rate, real, reals, text, whole

MAX_SEED = 2**63 - 1
OVERLAPS = (1, 5)  # frames that a clip of an animation shares with the one before: those of training
MAX_SHIFT, MAX_GUIDANCE = 1000, 3e38  # float32 ends above the latter


@dataclass(frozen=True)
class Request:
    """Request for one video. `framing` holds its sizes in pixels.

    `original_prompt` is the user's, where a language model wrote `prompt` out; None elsewhere.
    `boundary` is the share of the timesteps from which the high-noise expert works, None for tasks with one model.
    `image` is the first frame and `last_image` the last; `fit` brings an image to the size that was asked.
    `sigmas` are the noise levels of the steps, falling from at most 1, in place of a schedule by `steps` and `shift`.
    `guidance_until` is the share of the steps that have guidance: those after it follow the prompt alone, at half the
    cost. `reuse` is a threshold of `modules.block_cache`; 0 computes everything.
    `noise_device` "default" draws the noise where the model runs; "cpu" makes it equal on every machine.

    Speech-to-video: `audio` is heard from `audio_start` on, for `audio_len` seconds or to its end, and decides the
    length of the video, which has at most `num_clip` clips of `frame_num` frames. `pose_video` shows the poses.
    `start_from_ref` begins with the image itself. `as_upstream` makes upstream's choices where ours are others.

    Character animation: `performance` drives the character of its picture, in clips of at most `frame_num` frames that
    share `refert_num` with the one before. With `replace_flag` the character takes the place of the person,
    `use_relighting_lora` fits it to the light, and `composite` keeps the pixels around it. `match_color` keeps colours
    from drifting from clip to clip. `sound` is heard with the video.

    Raises ValueError, in the user's words, for values that no model can take.
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
    fps: Fraction
    boundary: float | None = None
    sigmas: tuple[float, ...] | None = None
    guidance_until: float = 1.0
    reuse: float = 0.0
    noise_device: str = "default"
    original_prompt: str | None = None
    image: Picture | None = None
    last_image: Picture | None = None
    fit: str = "area"
    audio: Sound | None = None
    audio_start: float = 0.0
    audio_len: float | None = None
    pose_video: Film | None = None
    num_clip: int | None = None
    start_from_ref: bool = False
    as_upstream: bool = False
    performance: Performance | None = None
    refert_num: int = 1
    replace_flag: bool = False
    use_relighting_lora: bool = False
    sound: Sound | None = None
    composite: bool = False
    match_color: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            check, value = CHECKS.get(self.kinds()[field.name]), getattr(self, field.name)
            if check and not (value is None and field.default is None):
                object.__setattr__(self, field.name, check(field.name, value))
        if not self.prompt.strip() and not self.inputs:
            raise ValueError("the prompt is empty, and no other input is given; describe the video in it")
        if self.steps < 1:
            raise ValueError(f"{called('steps')} must be at least 1, got {self.steps}; try 1, or leave it to the task")
        if self.shift <= 0:
            raise ValueError(f"{called('shift')} must be above 0, got {self.shift:g}; 1 leaves the schedule as it is")
        if not 1 / MAX_SHIFT <= self.shift <= MAX_SHIFT:
            raise ValueError(f"{called('shift')} must lie in {1 / MAX_SHIFT}..{MAX_SHIFT}, got {self.shift:g}")
        if self.sigmas is not None:
            self._check_sigmas()
        for name, share in (("guidance_until", self.guidance_until), ("reuse", self.reuse)):
            if not 0 <= share <= 1:
                raise ValueError(f"{called(name)} is a share and must lie in 0..1, got {share:g}")
        if not all(0 <= scale <= MAX_GUIDANCE for scale in self.guidance):
            guidance = format_guidance(self.guidance)
            raise ValueError(f"{called('guidance')} must be 0 or more (to 3e38), got {guidance}; 1 means no guidance")
        if min(self.guidance) < (least := get_config(self.task).least_guidance):
            object.__setattr__(self, "guidance", Guidance(*(max(scale, least) for scale in self.guidance)))
        for name, value, choices in (
            ("solver", self.solver, SOLVERS),
            ("noise_device", self.noise_device, NOISE_DEVICES),
            ("fit", self.fit, FITS),
            ("refert_num", self.refert_num, OVERLAPS),
        ):
            if value not in choices:
                among = ", ".join(map(str, choices))
                raise ValueError(f"unknown {called(name)} {quoted(value)}; choose one of {among}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(
                f"{called('seed')} must lie in 0..{MAX_SEED} (or be negative for a random one), got {quoted(self.seed)}"
            )
        media.check_fps(self.fps)
        if self.num_clip is not None and self.num_clip < 1:
            raise ValueError(
                f"{called('num_clip')} must be at least 1, got {self.num_clip}; leave it out for all clips"
            )
        if self.audio is not None:
            _ = self.heard  # refuses a part that is not there
        elif self.audio_start or self.audio_len is not None:
            name = "audio_start" if self.audio_start else "audio_len"
            raise ValueError(f"{called(name)} needs {called('audio')}; leave it out")
        if self.performance is not None and self.frame_num < 2 * self.refert_num:
            raise ValueError(
                f"{called('frame_num')} {self.frame_num} is too short to share {counted(self.refert_num, 'frame')} "
                f"({called('refert_num')}) with the next clip; try {4 * -(-self.refert_num // 2) + 1}"
            )
        if self.composite and not self.replace_flag:
            raise ValueError(f"{called('composite')} needs {called('replace_flag')}: else there is no background")
        if self.boundary is not None and not 0 <= self.boundary <= 1:
            raise ValueError(
                f"{called('boundary')} is a share of the timesteps and must lie in 0..1, got {self.boundary:g}"
            )
        if self.image is not None and self.last_image is not None and self.frame_num == 1:
            raise ValueError(
                f"{called('frame_num')} 1 has no room for both {called('image')} and {called('last_image')}; leave one "
                "out, or try 5"
            )

    def _check_sigmas(self) -> None:
        try:
            checked_sigmas(self.sigmas)
        except ValueError as error:
            raise ValueError(f"{called('sigmas')}: {error}") from None
        if self.steps != len(self.sigmas):
            raise ValueError(
                f"{called('sigmas')} are {len(self.sigmas)} steps, and {called('steps')} is {self.steps}; leave one out"
            )
        if self.shift != 1:
            raise ValueError(
                f"{called('sigmas')} are the noise levels themselves, and {called('shift')} {self.shift:g} would move "
                "them; leave one out"
            )

    def check_task(self, config: TaskConfig) -> None:
        """Raise ValueError, with the nearest valid choice, for values that the models of a task cannot take."""
        config.check_frame_num(self.frame_num)
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
        _check_inputs(config, self.inputs)
        for field in fields(self):
            if not knows(self.task, field.name) and getattr(self, field.name) != field.default:
                raise ValueError(f"{called(field.name)} is not a setting of {self.task}; leave it out")

    def check_parallel(self, parallel: Parallel) -> None:
        """Raise ValueError, with the nearest valid choice, for values that cannot be divided among processes so."""
        if self.reuse and parallel.cfg_size > 1:
            raise ValueError(
                f"{called('reuse')} keeps values of both branches of guidance, and --cfg_parallel computes one in each "
                f"process; use --ulysses_size {parallel.replica_size} in place of --cfg_parallel"
            )

    @classmethod
    def of_task(cls, task: str) -> type[Request]:
        """Return the class of requests of a task, which may have fields of its own."""
        return REQUESTS.get(task, cls)

    @classmethod
    @cache
    def kinds(cls) -> dict[str, type]:
        """Map each field to its type; None of an optional field is left out."""
        hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cls).items()}
        return {name: next(kind for kind in kinds if kind is not NoneType) for name, kinds in hints.items()}

    @classmethod
    @cache
    def input_kinds(cls) -> dict[str, type[Input]]:
        """Map the fields of inputs, from which a video is made besides text, to their types."""
        return {name: kind for name, kind in cls.kinds().items() if issubclass(kind, Input)}

    @property
    def inputs(self) -> dict[str, Input]:
        """Inputs from which the video is made besides text, by field."""
        return {name: value for name in self.input_kinds() if (value := getattr(self, name)) is not None}

    @property
    def shape_image(self) -> Picture | None:
        """Image whose shape decides the size of the video: the first frame, else the last."""
        return self.image or self.last_image

    @property
    def heard(self) -> Sound:
        """Part of `audio` that is heard."""
        return self.audio.part(self.audio_start, self.audio_len)

    def given_frame(self, picture: Picture) -> Tensor:
        """Make the pixels [3, H, W] of a picture of this request, as a frame of the video."""
        model_type = get_config(self.task).model_type + "_upstream" * self.as_upstream
        shape = (self.shape_image or picture).size
        return framing.given_frame(picture.pixels, self.framing, self.fit, model_type, shape)

    @classmethod
    def create(cls, config: TaskConfig, *, size: Any = None, max_area: Any = None, **given: Any) -> Request:
        """Make a request of `given` values of fields; those that are missing or None are taken from `config`.

        A seed that is missing or below 0 is drawn. Inputs, for example `image` and `last_image`, are paths or PIL
        images, and are read here. With an image and fit "area", `max_area` replaces the area of `size`. An empty prompt
        is refused unless there is an input; an empty negative prompt is accepted. Raises ValueError with the nearest
        valid choice, and FileNotFoundError for a missing file.
        """
        config.check()
        check_available(config.name)
        cls = cls.of_task(config.name)
        if unknown := given.keys() - cls.kinds():
            raise TypeError(f"a request has no {', '.join(sorted(unknown))}; it has {', '.join(cls.kinds())}")
        given = {name: value for name, value in given.items() if value is not None}
        inputs = {name: kind for name, kind in cls.input_kinds().items() if name in given}
        _check_inputs(config, inputs)
        inputs = {name: kind.of(given[name], name) for name, kind in inputs.items()}
        if "seed" in given and whole("seed", given["seed"]) < 0:
            del given["seed"]
        usual = {
            "prompt": "" if inputs and config.has_example else config.prompt,  # an example describes another picture
            "negative_prompt": config.sample_neg_prompt,
            "frame_num": config.frame_num,
            "steps": config.sample_steps,
            "shift": config.sample_shift,
            "guidance": config.guidance,
            "solver": "unipc",
            "seed": draw_seed(),
            "fps": config.sample_fps,
            "boundary": config.boundary,
        }
        if given.get("sigmas") is not None:
            usual |= {"steps": len(reals("sigmas", given["sigmas"])), "shift": 1.0}
        shape_image = inputs.get("image") or inputs.get("last_image")
        if performance := inputs.get("performance"):
            performance.check(given.get("replace_flag", False), given.get("as_upstream", False))
            if "sound" not in inputs:
                _ = performance.sound  # refuses one that cannot be read
            size = performance.size
            usual["fps"] = performance.rate
        sizes = _framing(config, given.get("fit", "area"), size, max_area, shape_image)
        request = cls(task=config.name, framing=sizes, **(usual | given | inputs))
        request.check_task(config)
        return request

    def given(self) -> dict[str, Any]:
        """Return the values from which `create` makes this request again; inputs have no content if it was stored."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["task"], values["framing"]
        if self.shape_image is None:
            del values["fit"]  # without an image it has no meaning
        return values if self.performance is not None else values | {"size": self.framing.asked}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; `from_dict` reverses it, except that inputs lose their content."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if knows(self.task, field.name)}
        sizes = values.pop("framing")
        sizes = {"size": sizes.asked, "used": sizes.used, "saved": sizes.saved}
        return (
            values
            | {name: value.to_dict() for name, value in self.inputs.items()}
            | {name: format_size(size) for name, size in sizes.items()}
            | {"guidance": list(self.guidance), "fps": _plain_rate(self.fps)}
        )

    @classmethod
    def from_dict(cls, values: Any) -> Request:
        """Make the request of a `to_dict`. It may come from any file, so it is checked like a new one.

        Unknown keys are ignored. Raises ValueError that names fields of a request.
        """
        with named({}):
            values = dictionary("the request", values)
            config = get_config(text("task", values["task"])) if "task" in values else None
            cls = cls.of_task(config.name) if config else cls
            needed = {field.name for field in fields(cls) if field.default is MISSING} - {"framing"} | {"size"}
            if missing := needed - set(values):
                raise ValueError(f"the stored request lacks {', '.join(sorted(missing))}")
            for name, kind in STORED_BESIDE.items():
                if not isinstance(values.get(name), (kind, type(None))):
                    raise ValueError(f"{name} must be {kind.__name__}, got {quoted(values[name])}")
            if (dtype := values.get("dtype")) not in (None, *DTYPES):
                raise ValueError(f"unknown dtype {quoted(dtype)}; choose one of {', '.join(DTYPES)}")
            if (kind := values.get("quantize")) not in (None, *QUANTIZED):
                raise ValueError(f"unknown quantize {quoted(kind)}; choose one of {', '.join(QUANTIZED)}")
            sizes = (values.get(name, values["size"]) for name in ("size", "used", "saved"))
            parsed = [geometry.parse_size(text("size", size)) for size in sizes]
            known = {name: values[name] for name in cls.kinds() if name in values}
            for name, kind in cls.input_kinds().items():
                if known.get(name) is not None:
                    known[name] = kind.from_dict(known[name])
            if isinstance(known["fps"], list):
                known["fps"] = _stored_rate(known["fps"])
            request = cls(**known | {"framing": Framing(*parsed)})
            request.check_task(config)
            framing.check_together(request.framing, config.vae_stride, config.patch_size, config.model_type)
            return request

    def to_json(self, **extra: Any) -> str:
        """Write `to_dict` and the `extra` values as one line of JSON."""
        return json.dumps(self.to_dict() | extra, ensure_ascii=False)


def overridden(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of fields, with those that are given in their places; noise levels stand for steps and shift."""
    schedule = {"sigmas", "steps", "shift"} if given.keys() & {"sigmas", "steps", "shift"} else set()
    if schedule and "sigmas" not in given and values.get("sigmas") is None:
        schedule = set()  # steps and shift can be changed one by one
    return {name: value for name, value in values.items() if name not in schedule} | dict(given)


def picture_bytes(request: Request) -> int:
    """Host memory in bytes of the pictures of a request: of all pictures, and of the work of placing one of them.

    While a picture is read, it takes up to twice as much for a while (WebP four times, JPEG 2000 five times).
    """
    width, height = request.framing.used
    pictures = [picture for picture in request.inputs.values() if isinstance(picture, Picture)]

    def work(picture: Picture) -> int:
        is_cut = request.shape_image is not picture
        scaled = 3 * 4 * width * (picture.size[1] + height)  # float32: the columns are scaled, then the rows
        return scaled + is_cut * images.kept_bytes(picture.size) + min(images.BAND_BYTES, 48 * math.prod(picture.size))

    return sum(images.kept_bytes(picture.size) for picture in pictures) + max(map(work, pictures), default=0)


def _plain_rate(fps: Fraction) -> int | list[int]:
    """Write a rate for JSON: a whole number, or a pair whose ratio it is."""
    return fps.numerator if fps.denominator == 1 else [fps.numerator, fps.denominator]


def _stored_rate(pair: list[Any]) -> Fraction:
    if len(pair) != 2 or not all(type(number) is int and number > 0 for number in pair):
        raise ValueError(f"fps must be a finite number, or two whole ones whose ratio it is, got {quoted(pair)}")
    return Fraction(*pair)


def check_supported_size(config: TaskConfig, size: Size) -> None:
    """Refuse a size that is not in the table of the task; the error names the one nearest in shape and area."""
    if size in [geometry.parse_size(known) for known in config.sizes]:
        return
    is_nano, asked = config.family == "nano", format_size(size)
    who = f"the nano model of {config.name}" if is_nano else config.name
    released = is_nano and asked in get_config(config.name).sizes
    raise ValueError(
        f"{called('size')} {asked} is not one that {who} makes; try {nearest_size(config, size)}"
        + (f" (it has {', '.join(config.sizes)})" if len(config.sizes) > 1 else "")
        + (f"; the released model has {asked}: give its folder with --ckpt_dir" if released else "")
    )


def nearest_size(config: TaskConfig, size: Size) -> str:
    """Find the supported size whose sides differ least from `size`, in ratios."""

    def distance(known: str) -> float:
        sides = geometry.parse_size(known)
        return sum(math.log(a / b) ** 2 for a, b in zip(sides, size, strict=True))

    return min(config.sizes, key=distance)


def draw_seed() -> int:
    """Draw a random seed in 0..2**63-1 from the operating system."""
    return random.SystemRandom().randint(0, MAX_SEED)


def _check_inputs(config: TaskConfig, given: Mapping[str, Any]) -> None:
    for name in given:
        if config.name not in tasks_with(name):
            raise ValueError(f"{config.name} is not made from {called(name)}; leave it out")
    for names in config.needs:
        if not given.keys() & set(names):
            ways = [(called(name), getattr(Request.input_kinds().get(name), "place", "FILE")) for name in names]
            if by_flags := ways[0][0].startswith("--"):
                ways = [(flag, "--tts_text TEXT" if flag == "--enable_tts" else place) for flag, place in ways]
                ways += [("--video", "FILE --image FILE")] * (names == ("performance",))
            first, *others = (f"{name} {place}" if by_flags else name for name, place in ways)
            also = "".join(f" (or {name})" for name in others)
            raise ValueError(f"{called('task')} {config.name} needs {first}{also}")


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
        return framing.of_size(fit, asked, image.size, *tokens, config.model_type)
    area = asked[0] * asked[1] if max_area is None else whole("max_area", max_area)
    used = framing.of_area(config.model_type, area, image.size, *tokens)
    return Framing(asked if max_area is None else used, used, used)


def _sides(size: Any) -> Size:
    """Read (width, height) in pixels from two whole numbers, or from a text like "832*480"."""
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


# The check and conversion of each type of field; sizes and inputs are built of checked parts.
CHECKS = {str: text, int: whole, float: real, bool: flag, Fraction: rate, Guidance: Guidance.of}
CHECKS[tuple[float, ...]] = reals
# Requests of tasks that have fields of their own.
REQUESTS: dict[str, type[Request]] = {}
# What programs store in the same dictionary, and its types.
STORED_BESIDE = {
    **dict.fromkeys(("checkpoint", "device", "dtype", "quantize"), str),
    "convert_model_dtype": bool,
    "versions": dict,
}

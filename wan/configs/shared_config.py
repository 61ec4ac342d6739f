"""TaskConfig: the defaults, files and sizes of a task. The values are in one file per task."""

# ruff: noqa: RUF001 - the full-width commas are data

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from wan.geometry import check_frame_num
from wan.guidance import Guidance
from wan.values import quoted, real, text, whole

DEFAULT_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)

KNOWN_SIZES = ("720*1280", "1280*720", "480*832", "832*480", "704*1280", "1280*704", "1024*704", "704*1024")


class Dtype:
    """Field that holds a torch.dtype. Its default is imported when it is read, so that help needs no torch."""

    def __init__(self, default: str):
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Settings | None, owner: type | None = None) -> Any:
        value = self if config is None else vars(config)[self.name]  # the dataclass takes the former for its default
        return getattr(import_module("torch"), value.default) if config and isinstance(value, Dtype) else value

    def __set__(self, config: Settings, value: Any) -> None:
        vars(config)[self.name] = value


def _dtype(name: str, value: Any) -> None:
    if not isinstance(value, Dtype) and not isinstance(value, import_module("torch").dtype):
        raise ValueError


# Type of a field -> its check (a function that raises ValueError, or a class), and its name in errors.
KINDS: dict[Any, tuple[Any, str]] = {
    int: (whole, "a whole number"),
    float: (real, "a finite number"),
    str: (text, "text"),
    bool: (bool, "True or False"),
    Dtype: (_dtype, "a torch.dtype"),
    NoneType: (NoneType, "None"),
}


class Settings(MutableMapping[str, Any]):
    """Values under fixed names, read and changed as attributes or as items: `cfg.dim`, `cfg["dim"]`, `dict(cfg)`.

    This is the base of dataclasses. A wrong name is refused at once, with the nearest one. A wrong value is refused by
    `check`, which users of the settings call. Lists become tuples.
    """

    def check(self) -> None:
        """Raise ValueError for a value of another type than its field."""
        for name, hint in get_type_hints(type(self)).items():
            value = vars(self)[name]
            if not _fits(value, hint):
                raise ValueError(f"{name} of the config must be {_in_words(hint)}, got {quoted(value)}")

    def copy(self, **changes: Any) -> Any:
        """Copy with some fields changed; the result must be valid."""
        other = copy.copy(self)
        if changes:
            other.update(changes)
            other.check()
        return other

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the protocols of Python, asked for at each copy
            raise AttributeError(name)
        raise AttributeError(self._unknown(name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self:
            raise AttributeError(self._unknown(name))
        object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def __contains__(self, name: object) -> bool:
        return name in type(self).__dataclass_fields__

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(self._unknown(name))
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            raise KeyError(self._unknown(name))
        setattr(self, name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name} can be changed, but not removed")

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(type(self).__dataclass_fields__)

    def __len__(self) -> int:
        return len(type(self).__dataclass_fields__)

    def _unknown(self, name: str) -> str:
        nearest = get_close_matches(str(name), self, n=1)
        return f"the config has no {name!r}" + "".join(f"; did you mean {other!r}?" for other in nearest)


@dataclass(kw_only=True)
class SharedConfig(Settings):
    """Defaults that all tasks share; `wan_shared_cfg` holds them under upstream's name."""

    t5_model: str = "umt5_xxl"
    t5_dtype: Dtype = Dtype("bfloat16")
    text_len: int = 512
    param_dtype: Dtype = Dtype("bfloat16")
    num_train_timesteps: int = 1000
    sample_fps: int = 16
    sample_neg_prompt: str = DEFAULT_NEGATIVE_PROMPT
    frame_num: int = 81


wan_shared_cfg = SharedConfig()


@dataclass(kw_only=True)
class TaskConfig(SharedConfig):
    """Defaults and file names of one task, under upstream's attribute names.

    `sizes` are `W*H` texts. `vae_stride` and `patch_size` are (frames, rows, columns). `sample_guide_scale` is one
    number, or the pair (low-noise expert, high-noise expert). `boundary` is the share of `num_train_timesteps` from
    which the high-noise expert works; None for tasks with one model, which have no expert folders either.
    One input of each group in `needs` must be given. The number of frames of a clip is a multiple of the stride in time
    plus `frame_rest`: 1, because the autoencoders encode a first frame alone, or 0 if another clip comes before it. It
    is at most `longest_clip`, if that is set. A clip sees `motion_frames` frames of the video before it.
    Guidance below `least_guidance` counts as this.
    Files may be in a folder beside the checkpoint (`../name/file`); `checkpoint.layout.part` finds them. The
    architecture fields are used when a checkpoint has no `config.json`.
    """

    name: str
    sizes: tuple[str, ...]
    prompt: str  # used when the caller gives none; an example, unless `has_example` is False
    vae_checkpoint: str
    vae_stride: tuple[int, int, int]
    z_dim: int
    model_type: str
    in_dim: int
    out_dim: int
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    sample_shift: float
    sample_steps: int
    sample_guide_scale: float | tuple[float, float]

    size: str = "1280*720"  # used when the caller gives none
    has_example: bool = True  # the prompt describes one picture, and not what a task always shows
    family: str = "wan2.2"  # "nano" for the embedded miniatures
    needs: tuple[tuple[str, ...], ...] = ()
    frame_rest: int = 1
    longest_clip: int | None = None
    motion_frames: int = 0
    least_guidance: float = 0.0
    boundary: float | None = None
    low_noise_checkpoint: str | None = None
    high_noise_checkpoint: str | None = None
    t5_checkpoint: str = "models_t5_umt5-xxl-enc-bf16.pth"
    t5_tokenizer: str = "google/umt5-xxl"
    clip_checkpoint: str | None = None
    lora_checkpoint: str | None = None  # merged into the transformer if `uses_lora`
    uses_lora: bool = False
    speech_checkpoint: str | None = None
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    window_size: tuple[int, int] = (-1, -1)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ValueError for values that contradict each other, or that no model of the family has."""
        super().check()
        for name in ("t5_model", "window_size", "qk_norm", "cross_attn_norm"):
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is {getattr(type(self), name)!r} in every model, got {getattr(self, name)!r}")
        if min(*self.vae_stride, *self.patch_size) < 1:
            raise ValueError(
                f"{self.name}: vae_stride and patch_size count from 1, got {self.vae_stride} {self.patch_size}"
            )
        if self.size not in self.sizes:
            raise ValueError(f"{self.name}: the default size {self.size} is none of {', '.join(self.sizes)}")
        self.check_frame_num(self.frame_num)
        has_experts = bool(self.low_noise_checkpoint and self.high_noise_checkpoint)
        if has_experts != (self.boundary is not None):
            raise ValueError(f"{self.name}: a boundary and the two expert folders belong together")
        if self.boundary is not None and not 0 <= self.boundary <= 1:
            raise ValueError(f"{self.name}: boundary must lie in 0..1, got {self.boundary}")

    def check_frame_num(self, frame_num: int) -> None:
        """Raise ValueError, with the nearest valid choices, for a number of frames that the task cannot make."""
        check_frame_num(frame_num, self.vae_stride[0], self.frame_rest, self.longest_clip)

    @property
    def experts(self) -> tuple[str, ...]:
        """Folders of the diffusion models, (low noise, high noise); (".",) for a task with one model."""
        return tuple(e for e in (self.low_noise_checkpoint, self.high_noise_checkpoint) if e) or (".",)

    @property
    def guidance(self) -> Guidance:
        """Default guidance of each expert, also when `sample_guide_scale` is one number."""
        return Guidance.of("sample_guide_scale", self.sample_guide_scale)

    def architecture(self) -> dict[str, Any]:
        """Return the fields of a transformer's `config.json`, for checkpoints that have none."""
        names = ("model_type", "in_dim", "out_dim", "dim", "ffn_dim", "num_heads", "num_layers")
        names += ("freq_dim", "text_dim", "text_len", "patch_size", "eps")
        return {name: getattr(self, name) for name in names}


# The 14B models and their autoencoder.
SIZES_14B: dict[str, Any] = {
    "vae_checkpoint": "Wan2.1_VAE.pth",
    "vae_stride": (4, 8, 8),
    "z_dim": 16,
    "out_dim": 16,
    "dim": 5120,
    "ffn_dim": 13824,
    "num_heads": 40,
    "num_layers": 40,
}


class Presets(Mapping[str, TaskConfig]):
    """Configs by the names of their tasks. Each lookup returns a copy, so that a change stays in that copy."""

    def __init__(self, *configs: TaskConfig):
        self._configs = {config.name: config.copy() for config in configs}

    def add(self, config: TaskConfig) -> None:
        self._configs[config.name] = config.copy()

    def __getitem__(self, task: str) -> TaskConfig:
        if task not in self._configs:
            raise KeyError(f"unknown task {task!r}; the tasks are {', '.join(self)}")
        return self._configs[task].copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the type that a field of a dataclass declares."""
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kinds:  # a union
        return any(_fits(value, kind) for kind in kinds)
    check = KINDS[hint][0]
    if isinstance(check, type):
        return isinstance(value, check)
    try:
        check("", value)
    except ValueError:
        return False
    return True


def _in_words(hint: Any) -> str:
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        return f"({', '.join('...' if kind is ... else _in_words(kind) for kind in kinds)})"
    return " or ".join(map(_in_words, kinds)) if kinds else KINDS[hint][1]

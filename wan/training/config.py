"""Settings of a training run, checked before anything is read: the loop, the flow objective, the data, the model."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from wan.geometry import check_frame_num
from wan.values import quoted, real, text, whole

SIGMA_DISTRIBUTIONS = ("uniform", "logit_normal")
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon", "muon-conv")
FAMILIES = ("wan2.2", "nano")
READERS = {int: whole, float: real, str: text}


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the optimisation of any model. Counts are optimiser steps."""

    steps: int
    batch_size: int = 1
    accumulation: int = 1
    optimizer: str = "adamw"  # or Muon for hidden matrices ("muon") or kernels ("muon-conv"), AdamW for the rest
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0  # at the end of the cosine decay
    warmup_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: str = "float32"  # bfloat16 runs the objective under autocast; weights stay float32
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    preview_every: int = 0  # 0: never

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "preview_every"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        _require(self.grad_clip > 0, f"grad_clip must be positive, got {self.grad_clip}; 1.0 is usual")
        _require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}; 0.999 is usual")
        _require(self.warmup_steps < self.steps, f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        _choice("precision", self.precision, PRECISIONS)
        _choice("optimizer", self.optimizer, OPTIMIZERS)


@dataclass(frozen=True)
class FlowConfig:
    """Settings of flow matching: timesteps from 0 (data) to 1000 (noise), dropped text, image mode."""

    shift: float = 5.0
    sigma_distribution: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    t_min: float = 0.0
    t_max: float = 1000.0
    text_dropout: float = 0.1
    dropped_inputs: tuple[str, ...] = ()  # named inputs that are zeros where the text is dropped: S2V's audio_input
    first_frame_share: float = 0.0  # of samples whose first latent frame is clean, at timestep 0: TI2V's image mode
    channels: int | None = None  # only so many first latent channels are trained; the others have no loss
    loss_bins: int = 10

    def __post_init__(self):
        _choice("sigma_distribution", self.sigma_distribution, SIGMA_DISTRIBUTIONS)
        _require(self.shift > 0, f"shift must be positive, got {self.shift}; 1 leaves the distribution as it is")
        _require(self.logit_std > 0, f"logit_std must be positive, got {self.logit_std}")
        _require(
            0 <= self.t_min < self.t_max <= 1000,
            f"0 <= t_min < t_max <= 1000 is needed, got t_min {self.t_min} and t_max {self.t_max}; "
            "the experts of A14B train on 875-1000 (high noise) and 0-875 (low noise)",
        )
        _require(0 <= self.text_dropout < 1, f"text_dropout must be in [0, 1), got {self.text_dropout}; 0.1 is usual")
        _require(0 <= self.first_frame_share <= 1, f"first_frame_share must be in [0, 1], got {self.first_frame_share}")
        _require(self.channels is None or self.channels >= 1, f"channels must be at least 1, got {self.channels}")
        _require(self.loss_bins >= 1, f"loss_bins must be at least 1, got {self.loss_bins}")


@dataclass(frozen=True)
class DataConfig:
    """Folder of videos with captions beside them (`clip.mp4`, `clip.txt`), and the size and length of samples."""

    videos: Path
    cache: Path
    size: tuple[int, int]  # width, height
    frame_num: int = 81
    fps: float | None = None  # resample to this rate; None keeps every frame

    def __post_init__(self):
        object.__setattr__(self, "videos", Path(self.videos))
        object.__setattr__(self, "cache", Path(self.cache))
        object.__setattr__(self, "size", tuple(self.size))
        _require(len(self.size) == 2, f"size must be [width, height], got {list(self.size)}")
        for side in self.size:
            _require(side > 0 and side % 16 == 0, f"width and height must be multiples of 16, got {self.size}")
        check_frame_num(self.frame_num)
        _require(self.fps is None or self.fps > 0, f"fps must be positive, got {self.fps}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `python -m wan.training`: the part of a checkpoint to train, the data, the folder of the result."""

    checkpoint: Path  # a folder in the released layout: VAE and text encoder are read from it
    output: Path
    data: DataConfig
    loop: LoopConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    task: str = "t2v-A14B"
    family: str = "wan2.2"  # or "nano": its defaults decide the text length and previews
    expert: str = "low_noise_model"  # sub-folder with the DiT to start from, and the name of the result
    architecture: dict[str, Any] | None = None  # a config.json as a table: train this DiT from scratch
    device: str = "cpu"
    preview_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        object.__setattr__(self, "output", Path(self.output))
        object.__setattr__(self, "preview_prompts", tuple(self.preview_prompts))
        _choice("family", self.family, FAMILIES)
        _require(
            not self.loop.preview_every or bool(self.preview_prompts),
            "preview_every is set but preview_prompts is empty; give at least one prompt",
        )
        _require(all(map(str.strip, self.preview_prompts)), "one of preview_prompts is empty; describe a video in it")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Build from nested tables as a TOML file gives them; unknown and missing names raise ValueError."""
        tables = {"data": DataConfig, "loop": LoopConfig, "flow": FlowConfig}
        values = {k: _build(tables[k], v, f"[{k}]") if k in tables else v for k, v in values.items()}
        return _build(cls, values, "the top level")

    @classmethod
    def from_toml(cls, path: Path | str) -> "TrainConfig":
        """Read a TOML file; relative paths in it are relative to the current directory."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}; python -m wan.training reads a TOML file")
        with open(path, "rb") as file:
            try:
                return cls.from_dict(_toml().load(file))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table, got {values!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    _require(not unknown, f"unknown name in {where}: {', '.join(unknown)}; known: {', '.join(known)}")
    needed = [
        n
        for n, f in known.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in values
    ]
    _require(not needed, f"missing in {where}: {', '.join(needed)}")
    kinds = get_type_hints(cls)
    return cls(**{name: _typed(name, value, kinds[name]) for name, value in values.items()})


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Convert a value to the type of a field. Raises ValueError for another type."""
    parts = get_args(kind)
    if type(None) in parts:  # TOML has no null
        return _typed(name, value, parts[0])
    if get_origin(kind) is tuple:
        endless = parts[-1] is ...
        _require(isinstance(value, (list, tuple)), f"{name} must be a list, got {quoted(value)}")
        _require(endless or len(value) == len(parts), f"{name} must have {len(parts)} values, got {quoted(value)}")
        return tuple(_typed(name, item, parts[0]) for item in value)
    if kind in READERS:
        return READERS[kind](name, value)
    if kind is Path:
        return Path(value if isinstance(value, Path) else text(name, value)).expanduser()
    wanted = get_origin(kind) or kind
    what = {bool: "true or false", dict: "a table"}.get(wanted, "a table")
    _require(isinstance(value, wanted), f"{name} must be {what}, got {quoted(value)}")
    return value


def _toml():
    try:
        import tomllib  # Python 3.11
    except ModuleNotFoundError:
        import tomli as tomllib
    return tomllib


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")

"""Sizes of a diffusion transformer, read from a `config.json` or built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

from wan.checkpoint.loading import read_config
from wan.files import shown

# The largest value of each field: far beyond any model, yet small enough to build a model without weights.
LARGEST = {
    "dim": 1 << 16,
    "ffn_dim": 1 << 20,
    "num_heads": 1 << 10,
    "num_layers": 1000,
    "in_dim": 1 << 12,
    "out_dim": 1 << 12,
    "text_len": 1 << 16,
    "freq_dim": 1 << 16,
    "text_dim": 1 << 16,
}


@dataclass(frozen=True)
class WanModelConfig:
    """Shape of a diffusion transformer. A released `config.json` has the first ten fields."""

    model_types: ClassVar[tuple[str, ...]] = ("t2v", "i2v", "ti2v", "s2v", "animate")
    needed: ClassVar[int] = 10  # first fields, which a file must have, or a task

    model_type: str = "t2v"
    dim: int = 2048
    ffn_dim: int = 8192
    num_heads: int = 16
    num_layers: int = 32
    in_dim: int = 16
    out_dim: int = 16
    text_len: int = 512
    freq_dim: int = 256
    eps: float = 1e-6
    text_dim: int = 4096
    patch_size: tuple[int, int, int] = (1, 2, 2)  # frames, rows, columns
    window_size: tuple[int, int] = (-1, -1)  # only global attention exists in this family
    qk_norm: bool = True
    cross_attn_norm: bool = True

    def __post_init__(self):
        def normalize(name: str, kind: type, is_valid: Callable[[Any], bool], rule: str) -> None:
            value = getattr(self, name)
            if not is_valid(value):
                raise ValueError(f"{name} must be {rule}, got {shown(repr(value), 60)}")
            object.__setattr__(self, name, kind(value))

        if self.model_type not in (known := self.model_types):
            raise ValueError(f"model_type {shown(repr(self.model_type), 60)} is not one of {', '.join(known)}")
        for name, largest in LARGEST.items():
            rule = f"a whole number from 1 to {largest}"
            normalize(name, int, lambda n, largest=largest: _is_whole(n) and 1 <= n <= largest, rule)
        normalize("eps", float, lambda x: _is_number(x) and 1e-12 <= x <= 0.1, "a number from 1e-12 to 0.1")
        normalize("patch_size", tuple, _is_patch, "three whole numbers from 1 to 16")
        normalize("window_size", tuple, lambda pair: _is_list(pair) and all(map(_is_whole, pair)), "two whole numbers")
        for name in ("qk_norm", "cross_attn_norm"):
            normalize(name, bool, lambda flag: isinstance(flag, bool), "true or false")
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"dim / num_heads must be even for rotary embedding, got {self.head_dim}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
        if self.window_size != (-1, -1):
            raise ValueError(f"only global attention, window_size (-1, -1), is supported; got {self.window_size}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], task: Mapping[str, Any] | None = None) -> WanModelConfig:
        """Make it from the fields of a `config.json`. Unknown fields (`_class_name`, ...) are ignored.

        Missing fields are those of the task (`TaskConfig.architecture`). Without a task, a missing field that released
        files have raises ValueError: a default could silently make another model of the same tensors.
        """
        names = [field.name for field in fields(cls)]
        if not values.keys() & set(names):
            raise ValueError("it has none of a model's fields: it belongs to something else")
        known = {name: source[name] for source in (task or {}, values) for name in names if name in source}
        if lacking := [name for name in names[: cls.needed] if name not in known]:
            released = ", ".join(names[: cls.needed])
            raise ValueError(f"it lacks {', '.join(lacking)}; a released config.json carries all of {released}")
        return cls(**known)

    @classmethod
    def read(cls, path: str | Path, task: Mapping[str, Any] | None = None) -> WanModelConfig:
        """Read the `config.json` of a model folder or single file; `task` as in `from_dict`. Errors name the file."""
        values = read_config(path, **({"text_len": task["text_len"]} if task else {}))
        try:
            return cls.from_dict(values, task)
        except ValueError as error:
            folder = Path(path) if Path(path).is_dir() else Path(path).parent
            raise ValueError(f"{folder / 'config.json'}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_patch(value: Any) -> bool:
    return _is_list(value) and len(value) == 3 and all(_is_whole(n) and 1 <= n <= 16 for n in value)

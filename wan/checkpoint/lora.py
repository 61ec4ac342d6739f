"""Low-rank adapters (LoRA): each adds scale * up @ down to a matrix of a model.

An adapter is merged into the weights while they are loaded, in float32, or applied beside them by the modules. Every
tensor of its file is used, or the file is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from wan.checkpoint.formats import Shapes
from wan.checkpoint.loading import MAX_CONFIG_BYTES, READABLE, problem
from wan.checkpoint.source import TensorSource
from wan.files import read_json, shown

log = logging.getLogger(__name__)

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Dialect:
    """Names in the files of a program: a prefix, the name of a layer, and one of three suffixes.

    With `flat` the dots in the name of a layer are underscores.
    """

    prefixes: tuple[str, ...]  # the longest first
    down: str
    up: str
    alpha: str = ".alpha"
    flat: bool = False


DIALECTS = {
    "PEFT": Dialect(("base_model.model.", ""), ".lora_A.weight", ".lora_B.weight"),
    "kohya": Dialect(("lora_unet_",), ".lora_down.weight", ".lora_up.weight", flat=True),
}

# Scale of an adapter, by what its files say: `alpha` is a number, and the rank that of the adapter itself.
SCALES: dict[str, Callable[[float, int], float]] = {
    "alpha": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
    "none": lambda alpha, rank: 1.0,
}


class Pair(NamedTuple):
    """Adapter of one layer: names of its factors in the file, and its scale."""

    down: str  # [rank, in]
    up: str  # [out, rank]
    scale: float


class Lora:
    """Adapters of the layers of a model. `str` says how many layers of the adapted part of the model have one."""

    def __init__(self, path: str | Path, weights: Shapes):
        """Open a file, or a folder of PEFT, for a model whose tensors have these names and shapes.

        Only names, shapes and scales are read. Raises FileNotFoundError, and ValueError that lists by name all that
        cannot be used.
        """
        path = Path(path)
        file = path / PEFT_WEIGHTS if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"there is no LoRA {file}")
        self.source, self.description = TensorSource({file: None}, str(file)), str(file)
        layers = {
            name.removesuffix(".weight"): shape
            for name, shape in weights.items()
            if name.endswith(".weight") and len(shape) == 2
        }
        kind, alpha = _declared_scale(file.parent)
        self.pairs = self._match(layers, SCALES[kind], alpha)
        adapted = {layer.split(".")[0] for layer in self.pairs}
        self.num_layers = sum(layer.split(".")[0] in adapted for layer in layers)

    def __str__(self) -> str:
        return f"{len(self.pairs)} of {self.num_layers} layers"

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """Add the adapter of the weight `name`, in float32: the `change` of `loading.load_module`."""
        layer = name.removesuffix(".weight")
        if layer == name or layer not in self.pairs:
            return tensor
        down, up, scale = self.factors(layer)
        return tensor.float().addmm(up, down, alpha=scale)

    def factors(self, layer: str) -> tuple[Tensor, Tensor, float]:
        """Read the adapter of a layer: down [rank, in], up [out, rank], both float32, and the scale."""
        down, up, scale = self.pairs[layer]
        return self.source.get(down).float(), self.source.get(up).float(), scale

    def _match(self, layers: Shapes, scale_of: Callable[[float, int], float], alpha: float) -> dict[str, Pair]:
        """Find the adapter of each layer. Raises ValueError with everything in the file that belongs to none."""
        shapes = self.source.shapes()
        found: dict[str, dict[str, str]] = {}  # layer -> part of an adapter -> name in the file
        strange, homeless, repeated = [], [], []
        flat = {layer.replace(".", "_"): layer for layer in layers}
        for name, places in ((name, list(_places(name, flat))) for name in shapes):
            layer, part = next((place for place in places if place[0] in layers), (None, ""))
            if layer is None:
                (homeless if places else strange).append(name)
            elif found.setdefault(layer, {}).setdefault(part, name) != name:
                repeated.append(name)
        halves = [name for parts in found.values() if not {"down", "up"} <= parts.keys() for name in parts.values()]
        whole = {layer: parts for layer, parts in found.items() if {"down", "up"} <= parts.keys()}
        wrong, details = [], {}
        for layer, parts in whole.items():
            if misfit := self._misfit(layers[layer], {part: shapes[name] for part, name in parts.items()}):
                wrong.append(parts["up"])
                details[parts["up"]] = misfit
        types = [name for name in shapes if self.source.dtype(name) not in READABLE]
        problems = [
            *problem("of layers that the model does not have", homeless),
            *problem("of a form that this version does not know", strange),
            *problem("of a layer that has another one", repeated),
            *problem("without their counterpart", halves),
            *problem("of another shape", wrong, details.__getitem__),
            *problem("of a type this version does not read", types, lambda name: f": {self.source.dtype(name)}"),
        ]
        if problems:
            head = f"{shown(self.description)} is refused: not all of its {len(shapes)} tensors can be used"
            raise ValueError("\n".join([f"{head}:", *problems]))
        if not whole:
            raise ValueError(f"{shown(self.description)} holds no LoRA")
        return {layer: self._pair(parts, scale_of, alpha) for layer, parts in whole.items()}

    def _misfit(self, weight: tuple[int, ...], given: Shapes) -> str | None:
        """Say how the shapes of an adapter differ from what a weight [out, in] needs; None when they fit."""
        (out, into), down, up = weight, given["down"], given["up"]
        if len(down) == len(up) == 2 and (up[0], down[1]) == (out, into) and up[1] == down[0] > 0:
            return None if math.prod(given.get("alpha", ())) == 1 else ": its alpha is not one number"
        return f" {list(up)} and the other factor {list(down)}: [{out}, rank] and [rank, {into}] are needed"

    def _pair(self, parts: Mapping[str, str], scale_of: Callable[[float, int], float], alpha: float) -> Pair:
        rank = self.source.shape(parts["down"])[0]
        if "alpha" in parts:
            scale_of, alpha = SCALES["alpha"], self.source.get(parts["alpha"]).item()
            if not math.isfinite(alpha):
                raise ValueError(f"{shown(self.description)}: {shown(parts['alpha'])} is {alpha}, not a number")
            if not alpha:
                log.warning("%s: %s is 0, so that its adapter has no effect", self.description, parts["alpha"])
        return Pair(parts["down"], parts["up"], scale_of(alpha, rank))


def _places(name: str, flat: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """List what a name may mean, by the dialects: a layer, which need not exist, and a part of its adapter.

    `flat` maps the names of layers with underscores to those with dots: a name with underscores does not tell them.
    """
    for dialect in DIALECTS.values():
        for part in ("down", "up", "alpha"):
            suffix = getattr(dialect, part)
            for prefix in dialect.prefixes:
                if name.startswith(prefix) and name.endswith(suffix):
                    layer = name[len(prefix) : len(name) - len(suffix)]
                    yield flat.get(layer, layer) if dialect.flat else layer, part


def _declared_scale(folder: Path) -> tuple[str, float]:
    """Read which scale PEFT's config beside the weights says: a row of `SCALES`, and alpha. Raises ValueError."""
    file = folder / PEFT_CONFIG
    if not file.is_file():
        return "none", 1.0
    config = read_json(file, MAX_CONFIG_BYTES)
    if not isinstance(config, dict) or not isinstance(alpha := config.get("lora_alpha"), int | float):
        raise ValueError(f"{shown(file)} must give lora_alpha as a number")
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(name):
            raise ValueError(f"{shown(file)} has {name} {shown(config[name], 60)}, which this version does not know")
    return "rslora" if config.get("use_rslora") else "alpha", float(alpha)

"""Picture to tokens: CLIP's vision tower of Transformers, with the weights of the released open-CLIP file.

Of that file only the names below `visual.` are read, without the last block, whose output nothing uses.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan.checkpoint.formats import Shapes, describe_contents
from wan.checkpoint.loading import check_fits, load_module
from wan.checkpoint.source import TensorSource, open_source
from wan.framing import resize_first_frame
from wan.program import install_command

VISUAL = "visual."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of red, green and blue
RULES = (
    (r"^visual\.cls_embedding$", "tower.embeddings.class_embedding"),
    (r"^visual\.pos_embedding$", "tower.embeddings.position_embedding.weight"),
    (r"^visual\.patch_embedding\.", "tower.embeddings.patch_embedding."),
    (r"^visual\.pre_norm\.", "tower.pre_layrnorm."),
    (r"^visual\.transformer\.", "tower.encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.attn\.to_qkv\.", ".self_attn.{}_proj."),  # three in one: see `VisualSource`
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
)
BLOCK = ("norm1", "attn.to_qkv", "attn.proj", "norm2", "mlp.0", "mlp.2")
AXES = {"visual.cls_embedding": -1, "visual.pos_embedding": -2}  # stored with axes of length 1 in front


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a vision tower; `num_layers` are those that are computed."""

    image_size: int = 224
    patch_size: int = 14
    dim: int = 1280
    mlp_dim: int = 5120
    num_heads: int = 16
    num_layers: int = 31

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a picture: one of the whole, and those of the patches."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_state(cls, shapes: Shapes, num_heads: int = 16) -> ClipConfig:
        """Infer the sizes from the shapes of a released file; they do not tell the number of heads."""
        sized = {"visual.patch_embedding.weight": 4, "visual.pos_embedding": 3, "visual.transformer.0.mlp.0.weight": 2}
        if any(len(shapes.get(name, ())) != axes for name, axes in sized.items()):
            contents = describe_contents(shapes) or "nothing that this version knows"
            raise ValueError(f"the tensors are not those of CLIP's vision tower; they look like {contents}")
        dim, _, patch, _ = shapes["visual.patch_embedding.weight"]
        layers = {int(found[1]) for name in shapes if (found := re.match(r"visual\.transformer\.(\d{1,3})\.", name))}
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{dim} channels of CLIP cannot be divided into {num_heads} heads")
        side = math.isqrt(max(0, shapes["visual.pos_embedding"][1] - 1))
        mlp_dim = shapes["visual.transformer.0.mlp.0.weight"][0]
        return cls(side * patch, patch, dim, mlp_dim, num_heads, max(1, len(layers) - 1))


class ClipVision(nn.Module):
    """Vision tower, with the output of its last computed layer, without a norm; float32."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        transformers, self.config = _transformers(), config
        sizes = {"hidden_size": config.dim, "intermediate_size": config.mlp_dim, "hidden_act": "gelu"}
        counts = {"num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads}
        pixels = {"image_size": config.image_size, "patch_size": config.patch_size}
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, **counts, **pixels))
        self.tower = getattr(model, "vision_model", model)  # transformers 4 has the tower inside
        self.tower.post_layernorm = nn.Identity()  # of an output that is not used
        self.tower.embeddings.position_ids = torch.arange(config.num_tokens, device="cpu")[None]  # which no file fills

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, S, S] of `preprocess` -> tokens [B, 1 + patches, dim]."""
        return self.tower(pixel_values=pixels).last_hidden_state

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Make the tokens [1, 1 + patches, dim] of one picture [3, H, W] in [-1, 1]."""
        return self(preprocess(image, self.config.image_size).to(self.tower.embeddings.class_embedding))


def preprocess(image: Tensor, size: int) -> Tensor:
    """Stretch a picture [3, H, W] in [-1, 1] to CLIP's size and normalise its colours, [1, 3, size, size].

    The interpolation is bicubic, neither antialiased nor clamped, as in training.
    """
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (MEAN, STD))
    return ((resize_first_frame(image, size, size) * 0.5 + 0.5 - mean) / std)[None]


def load_clip(path: str | Path, num_heads: int = 16, device: torch.device | str = "cpu") -> ClipVision:
    """Load the vision tower of a released file, strictly. Raises ValueError and FileNotFoundError naming the file."""
    source, config = open_clip(path, num_heads)
    return load_module(lambda: ClipVision(config), source, dtype=torch.float32, device=device).to(device)


def check_clip(path: str | Path, num_heads: int = 16) -> ClipConfig:
    """Check names and shapes of a released file without reading weights. Raises the errors of `load_clip`."""
    source, config = open_clip(path, num_heads)
    check_fits(lambda: ClipVision(config), source)
    return config


def open_clip(path: str | Path, num_heads: int = 16) -> tuple[TensorSource, ClipConfig]:
    """Open the vision tower of a released file, and infer its sizes."""
    source = open_source(path, below=VISUAL)
    config = source.inferred(lambda shapes: ClipConfig.from_state(shapes, num_heads))
    return VisualSource(source, config.num_layers), config


class VisualSource(TensorSource):
    """Tensors of a released file under the names and in the shapes of `ClipVision`.

    Queries, keys and values lie below each other in one tensor of the file, and are read as three.
    """

    def __init__(self, source: TensorSource, num_layers: int):
        self.description, self.source = source.description, source
        self.places: dict[str, tuple[str, int | None]] = {}  # name -> that in the file, and the third of its rows
        for stored in source.names():
            layer = re.match(r"visual\.transformer\.(\d+)\.", stored)
            if (layer and int(layer[1]) >= num_layers) or re.match(r"visual\.(head$|post_norm\.)", stored):
                continue
            name = own_name(stored)
            parts = {name.format(letter): third for third, letter in enumerate("qkv")} if "{}" in name else {name: None}
            self.places |= {part: (stored, third) for part, third in parts.items()}

    def names(self) -> list[str]:
        return list(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        stored, third = self.places[name]
        shape = self.source.shape(stored)
        if third is not None:
            return (shape[0] // 3, *shape[1:])
        return shape[AXES[stored] :] if stored in AXES else shape

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(self.places[name][0])

    def get(self, name: str) -> Tensor:
        stored, third = self.places[name]
        tensor = self.source.get(stored)
        return tensor.view(self.shape(name)) if third is None else tensor.unflatten(0, (3, -1))[third]


def released_state(vision: ClipVision) -> dict[str, Tensor]:
    """Give the tensors of a tower the names and shapes of a released file, which has one more block of any values."""
    layers = vision.config.num_layers
    blocks = (f"transformer.{n}.{part}" for n in range(layers + 1) for part in BLOCK)
    names = [f"{part}.{kind}" for part in ("pre_norm", *blocks) for kind in ("weight", "bias")]
    state, found = {}, vision.state_dict()
    for stored in (f"{VISUAL}{name}" for name in ("cls_embedding", "pos_embedding", "patch_embedding.weight", *names)):
        own = own_name(stored).replace(f".layers.{layers}.", f".layers.{layers - 1}.")
        tensor = torch.cat([found[own.format(letter)] for letter in "qkv"]) if "{}" in own else found[own].clone()
        state[stored] = tensor.view(1, -1, tensor.shape[-1]) if stored in AXES else tensor
    return state


def own_name(stored: str) -> str:
    """Turn a name of a released file into that of `ClipVision`, with {} where one tensor is three."""
    for pattern, replacement in RULES:
        stored = re.sub(pattern, replacement, stored)
    return stored


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"CLIP needs the package transformers ({error}): {install_command('animate')}") from None
    return transformers

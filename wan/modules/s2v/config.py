"""Sizes of the transformer of speech-to-video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from wan.files import shown
from wan.modules.model_config import WanModelConfig

# Fields of a config.json that choose parts of which no weights were released, and the value that was.
ONLY: dict[str, Any] = {
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_motioner": False,
    "add_last_motion": True,
    "enable_tsm": False,
    "trainable_token_pos_emb": False,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
}


@dataclass(frozen=True)
class S2VModelConfig(WanModelConfig):
    """Shape of a speech-to-video transformer. Audio is injected behind the blocks `audio_inject_layers`."""

    model_types: ClassVar[tuple[str, ...]] = ("s2v",)

    model_type: str = "s2v"
    cond_dim: int = 16
    audio_dim: int = 1024  # width of the speech encoder
    audio_layers: int = 25  # states of the speech encoder: those of each layer, and of the input
    num_audio_token: int = 4  # for each latent frame; one more is learned
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    enable_adain: bool = True
    adain_mode: str = "attn_norm"
    zero_timestep: bool = True
    enable_motioner: bool = False
    add_last_motion: bool = True
    enable_tsm: bool = False
    trainable_token_pos_emb: bool = False
    enable_framepack: bool = True
    framepack_drop_mode: str = "padd"

    def __post_init__(self):
        super().__post_init__()
        for name, value in ONLY.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} is {shown(repr(getattr(self, name)), 60)}, and models with weights have {value!r}: this "
                    "variant was never released"
                )
        for name in ("cond_dim", "audio_dim", "audio_layers", "num_audio_token"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 1 << 16:
                raise ValueError(f"{name} must be a whole number from 1 to {1 << 16}, got {shown(repr(value), 60)}")
        layers = self.audio_inject_layers
        if not isinstance(layers, list | tuple) or not all(type(n) is int and 0 <= n < self.num_layers for n in layers):
            raise ValueError(
                f"audio_inject_layers must list blocks from 0 to {self.num_layers - 1}, got {shown(repr(layers), 60)}"
            )
        if len(set(layers)) < len(layers):
            raise ValueError(f"audio_inject_layers names a block twice: {shown(repr(layers), 60)}")
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {self.dim}: the audio encoder starts with a quarter")
        if tuple(self.patch_size) != (1, 2, 2):
            raise ValueError(f"patch_size must be (1, 2, 2), got {self.patch_size}: the history is packed by it")
        object.__setattr__(self, "audio_inject_layers", tuple(layers))

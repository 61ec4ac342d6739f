"""Sizes of the transformer of character animation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from wan.files import shown
from wan.modules.model_config import WanModelConfig

IMAGE_TOKENS = 257  # of CLIP: one of the whole picture, and one for each of 16 x 16 patches
CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
SIZES = (
    "image_dim",
    "motion_style_dim",
    "motion_dim",
    "motion_encoder_dim",
    "face_encoder_hidden_dim",
    "face_encoder_num_heads",
    "face_adapter_interval",
)


@dataclass(frozen=True)
class AnimateModelConfig(WanModelConfig):
    """Shape of a transformer of character animation; the defaults are those of the released model.

    A released `config.json` has no `model_type`, and lacks what the release never varies. The motion encoder reads
    square faces of `motion_encoder_size` pixels; `motion_encoder_channels` are its channels at each size of its layers.
    """

    model_types: ClassVar[tuple[str, ...]] = ("animate",)
    needed: ClassVar[int] = 0

    model_type: str = "animate"
    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 36
    use_img_emb: bool = True  # the blocks read image tokens
    image_dim: int = 1280  # width of CLIP
    motion_encoder_size: int = 512
    motion_encoder_channels: Mapping[int, int] = field(default_factory=CHANNELS.copy)
    motion_style_dim: int = 512
    motion_dim: int = 20  # directions of motion
    motion_encoder_dim: int = 512
    face_encoder_hidden_dim: int = 1024
    face_encoder_num_heads: int = 4
    face_adapter_interval: int = 5  # blocks for each adapter

    def __post_init__(self):
        super().__post_init__()
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 1 << 16:
                raise ValueError(f"{name} must be a whole number from 1 to {1 << 16}, got {shown(repr(value), 60)}")
        if not isinstance(self.use_img_emb, bool):
            raise ValueError(f"use_img_emb must be true or false, got {shown(repr(self.use_img_emb), 60)}")
        if self.num_layers % self.face_adapter_interval:
            raise ValueError(
                f"num_layers {self.num_layers} must be a multiple of face_adapter_interval {self.face_adapter_interval}"
            )
        if self.motion_dim > self.motion_encoder_dim:
            raise ValueError(f"motion_dim {self.motion_dim} is more than motion_encoder_dim {self.motion_encoder_dim}")
        object.__setattr__(self, "motion_encoder_channels", self._channels())

    def _channels(self) -> dict[int, int]:
        """Check the sizes of the motion encoder, whose layers halve a face down to 4 x 4 pixels."""
        size, given = self.motion_encoder_size, self.motion_encoder_channels
        if type(size) is not int or not 4 <= size <= 1024 or size & (size - 1):
            raise ValueError(f"motion_encoder_size must be a power of two from 4 to 1024, got {shown(repr(size), 60)}")
        try:
            channels = {int(pixels): count for pixels, count in given.items()}  # JSON has texts for names
        except (AttributeError, TypeError, ValueError):
            channels: dict[int, Any] = {}
        for pixels in (1 << n for n in range(2, size.bit_length())):
            count = channels.get(pixels)
            if type(count) is not int or not 1 <= count <= 1 << 16:
                raise ValueError(
                    f"motion_encoder_channels must give a whole number for {pixels} pixels, as for every power of two "
                    f"from 4 to {size}, got {shown(repr(given), 60)}"
                )
        return channels

"""TaskConfig: everything a task fixes before a user speaks. The values are in one file per task."""


# ruff: noqa: RUF001 - the full-width commas are data

from dataclasses import dataclass
from typing import Any

import torch

DEFAULT_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)

KNOWN_SIZES = ("720*1280", "1280*720", "480*832", "832*480", "704*1280", "1280*704", "1024*704", "704*1024")


@dataclass(frozen=True)
class TaskConfig:
    """Defaults and file names of one task, under the attribute names upstream's users know.

    `sizes` are `W*H` texts. `vae_stride` and `patch_size` are (frames, rows, columns). `sample_guide_scale` is one
    number, or the pair (low-noise expert, high-noise expert). `boundary` is the share of `num_train_timesteps` from
    which the high-noise expert works; None for tasks with one model, which have no expert folders either.
    `images` are the pictures a video can be made from; with `needs_image` one of them must be given. The files may lie
    in a folder beside the checkpoint (`../name/file`); `checkpoint.layout.part` finds them. The architecture fields are
    used when a checkpoint carries no `config.json`.
    """

    name: str
    sizes: tuple[str, ...]
    prompt: str  # used when the caller gives none
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
    family: str = "wan2.2"  # "nano" for the embedded miniatures
    images: tuple[str, ...] = ()  # of "image" (the first frame) and "last_image"
    needs_image: bool = False
    boundary: float | None = None
    low_noise_checkpoint: str | None = None
    high_noise_checkpoint: str | None = None
    frame_num: int = 81
    sample_fps: int = 16
    sample_neg_prompt: str = DEFAULT_NEGATIVE_PROMPT
    num_train_timesteps: int = 1000
    t5_checkpoint: str = "models_t5_umt5-xxl-enc-bf16.pth"
    t5_tokenizer: str = "google/umt5-xxl"
    t5_dtype: torch.dtype = torch.bfloat16
    vae_dim: int = 96  # width of the VAE at full resolution, see memory.decode_bytes; only estimates read it
    text_len: int = 512
    text_dim: int = 4096
    param_dtype: torch.dtype = torch.bfloat16
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.size not in self.sizes:
            raise ValueError(f"{self.name}: the default size {self.size} is none of {', '.join(self.sizes)}")
        if self.frame_num % self.vae_stride[0] != 1:
            raise ValueError(f"{self.name}: frame_num must be {self.vae_stride[0]}n+1, got {self.frame_num}")
        has_experts = bool(self.low_noise_checkpoint and self.high_noise_checkpoint)
        if has_experts != (self.boundary is not None):
            raise ValueError(f"{self.name}: a boundary and the two expert folders belong together")
        if self.boundary is not None and not 0 <= self.boundary <= 1:
            raise ValueError(f"{self.name}: boundary must lie in 0..1, got {self.boundary}")
        if isinstance(self.sample_guide_scale, tuple) and len(self.sample_guide_scale) != 2:
            raise ValueError(f"{self.name}: guidance is one number or (low, high), got {self.sample_guide_scale}")

    @property
    def experts(self) -> tuple[str, ...]:
        """Sub-folders of the diffusion models, noisiest first; one entry, ".", for a task with one model."""
        return tuple(e for e in (self.high_noise_checkpoint, self.low_noise_checkpoint) if e) or (".",)

    @property
    def guidance(self) -> tuple[float, float]:
        """The default guidance as (low-noise expert, high-noise expert), also when it is one number."""
        scale = self.sample_guide_scale
        return scale if isinstance(scale, tuple) else (scale, scale)

    def architecture(self) -> dict[str, Any]:
        """The fields of a transformer's `config.json`, for checkpoints that carry none."""
        names = ("model_type", "in_dim", "out_dim", "dim", "ffn_dim", "num_heads", "num_layers")
        names += ("freq_dim", "text_dim", "text_len", "patch_size", "eps")
        return {name: getattr(self, name) for name in names}

"""The old public helpers under their old names and arguments, for scripts that import them from here."""

from pathlib import Path

from torch import Tensor

from wan import geometry, media
from wan.arguments import str2bool
from wan.geometry import best_output_size

__all__ = ["best_output_size", "masks_like", "save_image", "save_video", "str2bool"]


def save_video(
    tensor: Tensor, save_file: str | Path, fps: int = 30, *, value_range: tuple[float, float] = (-1, 1)
) -> None:
    """Write one video [1, 3, F, H, W] (or [3, F, H, W]) as mp4, replacing an existing file; raises when it cannot."""
    clip = tensor[0] if tensor.ndim == 5 else tensor
    media.write_video(media.to_uint8(_unit_range(clip, value_range)), save_file, fps, overwrite=True)


def save_image(tensor: Tensor, save_file: str | Path, *, value_range: tuple[float, float] = (-1, 1)) -> None:
    """Write one image [1, 3, H, W] (or [3, H, W]) in the format of the suffix, replacing an existing file."""
    image = tensor[0] if tensor.ndim == 4 else tensor
    media.save_image(media.to_uint8(_unit_range(image, value_range)[:, None])[0], save_file)


def masks_like(tensor: list[Tensor], zero: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Two equal lists of masks of the shapes of latents [C, F, H, W]: ones, with frame 0 cleared when `zero`."""
    masks = [geometry.first_frame_mask(latent.shape, zero).to(latent) for latent in tensor]
    return masks, [mask.clone() for mask in masks]


def _unit_range(x: Tensor, value_range: tuple[float, float]) -> Tensor:
    low, high = value_range
    return (x.float().clamp(low, high) - low) / (high - low) * 2 - 1

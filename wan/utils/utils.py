"""Upstream's public helpers with upstream's names and arguments, for scripts that import them from here."""

import os
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from wan import audio, geometry, media
from wan.arguments import str2bool
from wan.geometry import best_output_size
from wan.values import real

__all__ = ["best_output_size", "masks_like", "merge_video_audio", "rand_name", "save_image", "save_video", "str2bool"]

ValueRange = tuple[float, float]


def rand_name(length: int = 8, suffix: str = "") -> str:
    """Return `length` random bytes in hexadecimal, followed by a dot and the suffix, if there is one."""
    return os.urandom(length).hex() + (f".{suffix.removeprefix('.')}" if suffix else "")


def save_video(
    tensor: Tensor,
    save_file: str | Path | None = None,
    fps: float = 30,
    suffix: str = ".mp4",
    nrow: int = 8,
    normalize: bool = True,
    value_range: ValueRange = (-1, 1),
) -> str:
    """Write videos [B, 3, F, H, W], or one [3, F, H, W], as mp4, several as a grid with `nrow` in a row.

    `value_range` is black to white; with `normalize=False` it is 0 to 1. Replaces an existing file. Without `save_file`
    a random name with `suffix` in the temporary folder is taken. Returns the name; raises when writing fails.
    """
    pixels = _grid(tensor if tensor.ndim == 5 else tensor[None], nrow, value_range if normalize else (0, 1))
    path = _path(save_file, suffix)
    media.write_video(pixels, path, Fraction(real("fps", fps)).limit_denominator(), overwrite=True)
    return path


def save_image(
    tensor: Tensor,
    save_file: str | Path | None = None,
    nrow: int = 8,
    normalize: bool = True,
    value_range: ValueRange = (-1, 1),
) -> str:
    """Write images [B, 3, H, W], or one [3, H, W], like `save_video`. The suffix decides the format; without, png."""
    pixels = _grid(tensor if tensor.ndim == 4 else tensor[None], nrow, value_range if normalize else (0, 1))
    path = _path(save_file, ".png")
    media.save_image(pixels, path)
    return path


def merge_video_audio(video_path: str | Path, audio_path: str | Path) -> None:
    """Add the sound of the other file to the mp4; both end with the shorter one. The same as `audio.add_audio`."""
    audio.add_audio(video_path, audio_path)


def masks_like(tensor: list[Tensor], zero: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Return two equal lists of masks shaped like latents [C, F, H, W]: ones, with frame 0 cleared when `zero`."""
    masks = [geometry.first_frame_mask(latent.shape, zero).to(latent) for latent in tensor]
    return masks, [mask.clone() for mask in masks]


def _path(save_file: str | Path | None, suffix: str) -> str:
    return os.path.join(tempfile.gettempdir(), rand_name(suffix=suffix)) if save_file is None else str(save_file)


def _grid(batch: Tensor, columns: int, value_range: ValueRange) -> np.ndarray:
    """[B, 3 or 1, ..., H, W] -> uint8 [..., H', W', 3]: scaled to 0..255 and truncated; one alone has no border."""
    low, high = value_range
    if batch.shape[1] not in (1, 3):
        raise ValueError(
            f"pixels have 1 or 3 channels, in the dimension before frames, height and width; got {list(batch.shape)}"
        )
    if not low < high:
        raise ValueError(f"value_range is (low, high), got {value_range}")
    if not batch.isfinite().all():
        raise ValueError("the tensor has values that are not finite; there is no picture of them")
    unit = (batch.float().clamp(low, high) - low) / (high - low)
    pixels = (unit * 255).byte().movedim(1, -1)
    pixels = pixels.expand(*pixels.shape[:-1], 3).cpu().numpy()
    return pixels[0] if len(pixels) == 1 else media.side_by_side(pixels, columns)

"""Sizes of pixels, latents and tokens that the pipelines derive from a request.

Sizes of the user are (width, height) in pixels; tensors are always (..., height, width).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from wan.files import shown
from wan.values import called

if TYPE_CHECKING:
    from torch import Tensor

PATCH_SIZE = (1, 2, 2)  # frames, rows, columns of latent positions in one token
VAE_STRIDE = (4, 8, 8)  # frames, rows, columns of pixels in one latent position
MAX_POSITION = 1024  # tokens along one axis: the rotary tables of the models end there

Size = tuple[int, int]
Stride = tuple[int, int, int]
LatentShape = tuple[int, int, int, int]


def parse_size(text: str) -> Size:
    """'1280*720' or '1280x720' -> (width, height) in pixels."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*[*xX]\s*(\d{1,9})\s*", text)
    if not match or not all(int(side) for side in match.groups()):
        sides = re.findall(r"\d+", text)
        meant = len(sides) == 2 and all(len(side) < 6 and int(side) for side in sides)
        hint = f"; try {'*'.join(sides)}" if meant else ""
        raise ValueError(f"size must be WIDTH*HEIGHT in pixels, for example 1280*720, got {shown(text, 60)!r}{hint}")
    width, height = match.groups()
    return int(width), int(height)


def format_size(size: Size) -> str:
    """(1280, 720) -> '1280*720'; `parse_size` reverses it."""
    return f"{size[0]}*{size[1]}"


def token_size(vae_stride: Stride = VAE_STRIDE, patch: Stride = PATCH_SIZE) -> Size:
    """Size (width, height) of a token in pixels."""
    return vae_stride[2] * patch[2], vae_stride[1] * patch[1]


def check_frame_num(frame_num: int, stride: int = VAE_STRIDE[0], rest: int = 1, longest: int | None = None) -> None:
    """Refuse numbers other than n * `stride` + `rest`; `rest` is 1 if the first frame has a latent of its own."""
    longest = longest or stride * (MAX_POSITION - 1) + rest
    if frame_num > longest:
        raise ValueError(f"{called('frame_num')} can be at most {longest}, got {shown(frame_num, 40)}")
    if frame_num < 1 or (frame_num - rest) % stride:
        lowest = rest or stride
        lower = max(lowest, (frame_num - rest) // stride * stride + rest)
        choices = f"{lower} or {lower + stride}" if frame_num > 0 else str(lowest)
        rule = f"{stride}n+{rest}" if rest else f"a multiple of {stride} from {stride} on"
        raise ValueError(f"{called('frame_num')} must be {rule}, got {frame_num}; try {choices}")


def check_size(size: Size, vae_stride: Stride = VAE_STRIDE, patch: Stride = PATCH_SIZE) -> None:
    """Refuse a size (width, height) that is not whole tokens."""
    steps = token_size(vae_stride, patch)
    if any(side < step or side % step for side, step in zip(size, steps, strict=True)):
        nearest = [max(1, int(side / step + 0.5)) * step for side, step in zip(size, steps, strict=True)]
        raise ValueError(
            f"{called('size')} {format_size(size)} is not possible: the width must be a multiple of {steps[0]} and the "
            f"height of {steps[1]}; try {nearest[0]}*{nearest[1]}"
        )


def check_extent(size: Size, steps: Size) -> None:
    """Refuse sides (width, height) other than one to 1024 tokens, of `steps` = (width, height) pixels."""
    if any(not step <= side <= step * MAX_POSITION for side, step in zip(size, steps, strict=True)):
        nearest = [min(max(side, step), step * MAX_POSITION) for side, step in zip(size, steps, strict=True)]
        raise ValueError(
            f"{called('size')} {format_size(size)} is not possible: the width must be {steps[0]} to "
            f"{steps[0] * MAX_POSITION} and the height {steps[1]} to {steps[1] * MAX_POSITION}; try "
            f"{nearest[0]}*{nearest[1]}"
        )


def check_area(area: int, steps: Size, least_tokens: int = 1) -> None:
    """Refuse an area in pixels other than that of 1 to 1024 tokens on both axes, of `steps` = (width, height) pixels.

    Sides may be at least `least_tokens`.
    """
    least = steps[0] * steps[1] * least_tokens**2
    most = steps[0] * steps[1] * MAX_POSITION**2
    if not least <= area <= most:
        raise ValueError(
            f"an area of {area} pixels is not possible: it must be {least} to {most}; try {min(max(area, least), most)}"
        )


def latent_shape(size: Size, frame_num: int, vae_stride: Stride = VAE_STRIDE, z_dim: int = 16) -> LatentShape:
    """Shape (channels, frames, rows, columns) of the latent of a video of `size` (width, height) and `frame_num`."""
    check_frame_num(frame_num, vae_stride[0])
    check_size(size, vae_stride, (1, 1, 1))
    width, height = size
    frames = (frame_num - 1) // vae_stride[0] + 1
    return z_dim, frames, height // vae_stride[1], width // vae_stride[2]


def token_count(latent: LatentShape, patch: Stride = PATCH_SIZE) -> int:
    """Count the tokens of a latent (channels, frames, rows, columns)."""
    if any(length % step for length, step in zip(latent[1:], patch, strict=True)):
        raise ValueError(
            f"a latent of {tuple(latent[1:])} frames, rows, columns does not divide into patches of {patch}"
        )
    return math.prod(length // step for length, step in zip(latent[1:], patch, strict=True))


def i2v_latent_size(
    width: int, height: int, max_area: int, vae_stride: Stride = VAE_STRIDE, patch: Stride = PATCH_SIZE
) -> Size:
    """Size (rows, columns) of the latent that keeps the aspect ratio of an image within `max_area` pixels."""
    _check_image(width, height)
    aspect = height / width
    rows = int(math.sqrt(max_area * aspect) // vae_stride[1] // patch[1]) * patch[1]
    columns = int(math.sqrt(max_area / aspect) // vae_stride[2] // patch[2]) * patch[2]
    if not rows or not columns:
        raise too_elongated((width, height), max_area)
    return rows, columns


def best_output_size(width: int, height: int, step_w: int, step_h: int, expected_area: int) -> Size:
    """Find (width, height) in multiples of the steps, of about `expected_area`, closest to the shape of an image.

    The width or the height is rounded down first; the width-first candidate wins only when it is strictly closer.
    """
    _check_image(width, height)
    ratio = width / height
    ideal_width = math.sqrt(expected_area * ratio)
    ideal_height = expected_area / ideal_width

    first_w, first_h = _floor(ideal_width, step_w), _floor(ideal_height, step_h)
    width_first = (first_w, _floor(expected_area / first_w, step_h)) if first_w else (0, 0)
    height_first = (_floor(expected_area / first_h, step_w), first_h) if first_h else (0, 0)
    # Height first, because min() keeps the earlier of two equals.
    candidates = [size for size in (height_first, width_first) if all(size)]
    if not candidates:
        raise too_elongated((width, height), expected_area)
    return min(candidates, key=lambda size: max(ratio / (size[0] / size[1]), size[0] / size[1] / ratio))


def largest_scaled_size(width: int, height: int, steps: Size, area: int) -> Size:
    """Scale an image down to at most `area`, with sides rounded up to multiples of `steps`: (width, height).

    The first of 100 scales that fits is taken, as upstream does in speech-to-video. An image is not enlarged. The
    smallest scale solves a quadratic equation, in which upstream has the factor 2 in place of 4.
    """
    _check_image(width, height)
    pixels, largest, smallest = width * height, 1.0, 0.1
    if pixels > area:
        more = steps[0] - 1  # pixels that rounding adds to a side at most
        largest, rounding, rest = math.sqrt(area / pixels), more * (width + height), more**2 - area
        smallest = (math.sqrt(rounding**2 - 2 * pixels * rest) - rounding) / (2 * pixels)
    for number in range(100):
        scale = largest - (largest - smallest) * number / 100
        size = tuple(-(-int(side * scale) // step) * step for side, step in zip((width, height), steps, strict=True))
        if all(size) and size[0] * size[1] <= area:
            return size
    raise too_elongated((width, height), area)


def first_frame_mask(shape: LatentShape, zero: bool = True) -> Tensor:
    """Make ones of `shape` [C, F, H, W], with zeros at latent frame 0 if `zero`; 1 marks generated positions."""
    import torch

    mask = torch.ones(shape)
    if zero:
        mask[:, 0] = 0
    return mask


def _floor(length: float, step: int) -> int:
    return int(length // step) * step


def _check_image(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"an image must have at least one pixel, got {width}x{height}")


def too_elongated(image: Size, area: int, size: str = "larger") -> ValueError:
    return ValueError(
        f"an image of {image[0]}x{image[1]} pixels is too elongated for a video of {area} pixels; crop the image, ask "
        f"for a {size} size, or use {called('fit')} crop"
    )

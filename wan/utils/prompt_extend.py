"""Prompt extension: the sizes at which an image is shown to a vision-language model."""

import math

from wan.geometry import Size

MAX_ELONGATION = 200  # the longest side over the shortest that Qwen-VL accepts


def cloud_image_size(width: int, height: int, max_pixels: int = 512 * 512) -> Size:
    """(width, height) for a hosted model: shrunk to about `max_pixels`, never enlarged."""
    if width * height <= max_pixels:
        return width, height
    return round(math.sqrt(max_pixels * width / height)), round(math.sqrt(max_pixels * height / width))


def qwen_vl_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of `factor`, near the given ones, within the pixel limits where both fit."""
    if max(height, width) > MAX_ELONGATION * min(height, width):
        raise ValueError(f"the sides of an image may differ by a factor of {MAX_ELONGATION}, got {width}x{height}")
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]

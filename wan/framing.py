"""From the size that was asked to the size that is generated and the size that is saved, for videos made of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan import geometry
from wan.geometry import Size, Stride, format_size

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# area  the aspect ratio of the image in about the area that was asked, by the rule of the task
# crop  exactly the size that was asked; the image fills it and is cut
# pad   exactly the size that was asked; the whole image is in it, between black borders
# exact exactly the size that was asked; the image is stretched to it
FITS = ("area", "crop", "pad", "exact")


@dataclass(frozen=True)
class Framing:
    """Three sizes (width, height): what was asked, what the model generates and what the file holds."""

    asked: Size
    used: Size
    saved: Size

    def __str__(self) -> str:
        return " -> ".join(f"{name} {format_size(getattr(self, name))}" for name in ("asked", "used", "saved"))

    @property
    def content(self) -> Size:
        """The part of what is generated that is saved."""
        return min(self.used[0], self.saved[0]), min(self.used[1], self.saved[1])

    def finish(self, frames: Tensor) -> Tensor:
        """Frames [..., H, W] of the used size in [-1, 1] -> of the saved size: centre cut out, black borders added."""
        from torch.nn.functional import pad

        left, _, top, _ = _margins(self.used, self.content)
        width, height = self.content
        frames = frames[..., top : top + height, left : left + width]
        return pad(frames, _margins(self.saved, self.content), value=-1.0)


def plain(size: Size, vae_stride: Stride, patch: Stride) -> Framing:
    """A size that is generated and saved as it was asked. Raises ValueError, naming the nearest that is possible."""
    geometry.check_size(size, vae_stride, patch)
    geometry.check_extent(size, geometry.token_size(vae_stride, patch))
    return Framing(size, size, size)


def within_area(image: Size, area: int, vae_stride: Stride, patch: Stride) -> Size:
    """The size for an image in image-to-video: both sides are rounded down, and the image stretched to them."""
    rows, columns = geometry.i2v_latent_size(*image, area, vae_stride, patch)
    return columns * vae_stride[2], rows * vae_stride[1]


def closest_aspect(image: Size, area: int, vae_stride: Stride, patch: Stride) -> Size:
    """The size for an image in text-image-to-video: what is left over of the image is cut off."""
    return geometry.best_output_size(*image, *geometry.token_size(vae_stride, patch), area)


# The area rule of each kind of model that starts from an image.
AREA_RULES: dict[str, Callable[[Size, int, Stride, Stride], Size]] = {"i2v": within_area, "ti2v": closest_aspect}


def of_area(model_type: str, area: int, image: Size, vae_stride: Stride, patch: Stride) -> Size:
    """The size that a model generates for an image (width, height) in about `area` pixels."""
    steps = geometry.token_size(vae_stride, patch)
    geometry.check_area(area, steps)
    used = AREA_RULES[model_type](image, area, vae_stride, patch)
    try:
        geometry.check_extent(used, steps)
    except ValueError:
        raise geometry.too_elongated(image, area, "smaller") from None
    return used


def of_size(fit: str, asked: Size, image: Size, vae_stride: Stride, patch: Stride) -> Framing:
    """The framing of the fits that save the size that was asked, whatever the image; odd sides grow by one pixel.

    "pad" generates the aspect ratio of the image, rounded to whole tokens; the others the next size in whole tokens.
    """
    steps = geometry.token_size(vae_stride, patch)
    geometry.check_extent(asked, steps)
    saved = _even(asked)
    if fit == "pad":
        return Framing(asked, _inscribed(image, asked, steps), saved)
    used = tuple(-(-side // step) * step for side, step in zip(saved, steps, strict=True))
    geometry.check_extent(used, steps)
    return Framing(asked, used, saved)


def check_together(framing: Framing, vae_stride: Stride, patch: Stride) -> None:
    """Refuse three sizes that no fit gives: `used` is whole tokens, `saved` is as used, or as asked with even sides."""
    steps = geometry.token_size(vae_stride, patch)
    geometry.check_size(framing.used, vae_stride, patch)
    geometry.check_extent(framing.used, steps)
    if framing.saved != framing.used:
        geometry.check_extent(framing.asked, steps)
        if framing.saved != _even(framing.asked):
            raise ValueError(f"the sizes do not belong together: {framing}")


def place(image: Image, framing: Framing, fit: str) -> Image:
    """The image at the used size, with what is to be saved of it in the centre, and mirrored in what is cut off."""
    import numpy as np
    from PIL import Image

    width, height = framing.content
    scale = max(width / image.width, height / image.height)
    shown = (width / scale, height / scale) if fit == "crop" else image.size
    left, top = (image.width - shown[0]) / 2, (image.height - shown[1]) / 2
    box = left, top, min(left + shown[0], image.width), min(top + shown[1], image.height)
    placed = image.resize((width, height), Image.Resampling.LANCZOS, box)
    left, right, top, bottom = _margins(framing.used, framing.content)
    return Image.fromarray(np.pad(np.asarray(placed), ((top, bottom), (left, right), (0, 0)), mode="symmetric"))


def crop_to_aspect(image: Image, like: Size) -> Image:
    """The largest centred part of an image with the aspect ratio of `like`; the image itself when it has that."""
    width = min(image.width, round(image.height * like[0] / like[1])) or 1
    height = min(image.height, round(image.width * like[1] / like[0])) or 1
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _even(size: Size) -> Size:
    """A size that H.264 has as every player knows it."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _inscribed(image: Size, within: Size, steps: Size) -> Size:
    """The largest size in whole tokens within a size, with the aspect ratio of an image up to rounding."""
    most = [side // step for side, step in zip(within, steps, strict=True)]  # tokens
    scale = min(side / length for side, length in zip(within, image, strict=True))
    tokens = [min(round(length * scale / step), n) for length, step, n in zip(image, steps, most, strict=True)]
    if not all(tokens):
        raise geometry.too_elongated(image, within[0] * within[1])
    return tokens[0] * steps[0], tokens[1] * steps[1]


def _margins(outer: Size, inner: Size) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) around the centre; what cannot be halved is at the right and at the bottom."""
    wide, high = outer[0] - inner[0], outer[1] - inner[1]
    return wide // 2, wide - wide // 2, high // 2, high - high // 2

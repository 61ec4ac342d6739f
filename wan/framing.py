"""Framing: the sizes asked, generated and saved, and the placement of images in them.

The help imports this file, so torch and numpy are imported where pixels are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from wan import geometry
from wan.geometry import Size, Stride, format_size

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor


PACKED_TOKENS = 4  # rows and columns of tokens that speech-to-video packs into one for the oldest frames


@dataclass(frozen=True)
class Framing:
    """Three sizes (width, height): that of the request, of the generated frames and of the saved ones."""

    asked: Size
    used: Size
    saved: Size

    def __str__(self) -> str:
        return " -> ".join(f"{name} {format_size(getattr(self, name))}" for name in ("asked", "used", "saved"))

    @property
    def content(self) -> Size:
        """Size of the part of the generated frames that is saved."""
        return min(self.used[0], self.saved[0]), min(self.used[1], self.saved[1])

    def finish(self, frames: Tensor) -> Tensor:
        """Bring frames [..., H, W] in [-1, 1] to the saved size: cut out the centre, add black borders."""
        from torch.nn.functional import pad

        left, _, top, _ = _margins(self.used, self.content)
        width, height = self.content
        frames = frames[..., top : top + height, left : left + width]
        return pad(frames, _margins(self.saved, self.content), value=-1.0)


def plain(size: Size, vae_stride: Stride, patch: Stride) -> Framing:
    """Frame a size that is generated and saved as it was asked. Raises ValueError that names the nearest one."""
    geometry.check_size(size, vae_stride, patch)
    geometry.check_extent(size, geometry.token_size(vae_stride, patch))
    return Framing(size, size, size)


def within_area(image: Size, area: int, vae_stride: Stride, patch: Stride) -> Size:
    """Size for an image in image-to-video: both sides are rounded down, and the image is stretched to them."""
    rows, columns = geometry.i2v_latent_size(*image, area, vae_stride, patch)
    return columns * vae_stride[2], rows * vae_stride[1]


def closest_aspect(image: Size, area: int, vae_stride: Stride, patch: Stride) -> Size:
    """Size for an image in text-image-to-video: the image is cut to its shape."""
    return geometry.best_output_size(*image, *geometry.token_size(vae_stride, patch), area)


def scaled_down(image: Size, area: int, vae_stride: Stride, patch: Stride) -> Size:
    """Size for an image in speech-to-video: sides are whole groups of tokens, and the image is not enlarged."""
    return geometry.largest_scaled_size(*image, geometry.token_size(vae_stride, _packed(patch, "s2v")), area)


def of_area(model_type: str, area: int, image: Size, vae_stride: Stride, patch: Stride) -> Size:
    """Size that a model generates for an image (width, height) in about `area` pixels."""
    steps, row = geometry.token_size(vae_stride, patch), AREA_FITS[model_type]
    geometry.check_area(area, steps, row.tokens)
    used = row.used(image, area, vae_stride, patch)
    try:
        geometry.check_extent(used, steps)
    except ValueError:
        raise geometry.too_elongated(image, area, "smaller") from None
    return used


def of_size(fit: str, asked: Size, image: Size, vae_stride: Stride, patch: Stride, model_type: str = "") -> Framing:
    """Frame an image for a fit that saves exactly the size that was asked; odd sides grow by one pixel."""
    steps = geometry.token_size(vae_stride, patch)
    geometry.check_extent(asked, steps)
    used = SIZE_FITS[fit].used(image, asked, geometry.token_size(vae_stride, _packed(patch, model_type)))
    geometry.check_extent(used, steps)
    return Framing(asked, used, _even(asked))


def check_together(framing: Framing, vae_stride: Stride, patch: Stride, model_type: str = "") -> None:
    """Refuse sizes that no fit gives. `used` must be whole tokens, `saved` must be as used, or as asked but even."""
    steps = geometry.token_size(vae_stride, patch)
    geometry.check_size(framing.used, vae_stride, _packed(patch, model_type))
    geometry.check_extent(framing.used, steps)
    if framing.saved != framing.used:
        geometry.check_extent(framing.asked, steps)
        if framing.saved != _even(framing.asked):
            raise ValueError(f"the sizes do not belong together: {framing}")


def given_frame(image: Image, framing: Framing, fit: str, model_type: str, shape: Size) -> Tensor:
    """Make the pixels [3, H, W], about -1 to 1, of a given frame. `shape` is that of the image that decides the size.

    With a fit that keeps the shape of that image, another image is first cut to the shape.
    """
    row = AREA_FITS[model_type] if fit == "area" else SIZE_FITS[fit]
    return row.place(crop_to_aspect(image, shape) if row.keeps_shape else image, framing)


def place(image: Image, framing: Framing, is_cut: bool) -> Image:
    """Place an image in the used size: the part that is saved in the centre, mirrored pixels around it.

    With `is_cut` the centre of the image fills the saved part; else the whole image is stretched to it.
    """
    import numpy as np
    from PIL import Image

    width, height = framing.content
    scale = max(width / image.width, height / image.height)
    shown = (width / scale, height / scale) if is_cut else image.size
    left, top = (image.width - shown[0]) / 2, (image.height - shown[1]) / 2
    box = left, top, min(left + shown[0], image.width), min(top + shown[1], image.height)
    placed = image.resize((width, height), Image.Resampling.LANCZOS, box)
    left, right, top, bottom = _margins(framing.used, framing.content)
    return Image.fromarray(np.pad(np.asarray(placed), ((top, bottom), (left, right), (0, 0)), mode="symmetric"))


def crop_to_aspect(image: Image, like: Size) -> Image:
    """Cut out the largest centred part of an image with the aspect ratio of `like`; returns an image that has it."""
    width = min(image.width, round(image.height * like[0] / like[1])) or 1
    height = min(image.height, round(image.width * like[1] / like[0])) or 1
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def cover(image: Image, size: Size) -> Image:
    """Scale (Lanczos) an image until it covers `size`, to whole pixels, and cut out the centre, as upstream does."""
    from PIL import Image

    width, height = size
    resized = image.resize(covering_size(image.size, size), Image.Resampling.LANCZOS)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def covering_size(image: Size, size: Size) -> Size:
    """Size in whole pixels of an image scaled until it covers `size`."""
    scale = max(wanted / side for wanted, side in zip(size, image, strict=True))
    return round(image[0] * scale), round(image[1] * scale)


def letterbox(image: Image, size: Size) -> Image:
    """Scale an image (bilinear) until its short side is that of `size`; cut it, or add black, to the size.

    Upstream does so in speech-to-video.
    """
    from PIL import Image, ImageOps

    image = image.resize(short_side_size(image.size, min(size)), Image.Resampling.BILINEAR)
    image = ImageOps.expand(image, letterbox_borders(image.size, size))
    left, top = (round((side - wanted) / 2) for side, wanted in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def short_side_size(image: Size, short: int) -> Size:
    """Size of an image scaled so that its short side has `short` pixels; the other one is rounded down."""
    return tuple(short if side == min(image) else int(short * side / min(image)) for side in image)


def letterbox_borders(image: Size, size: Size) -> tuple[int, int, int, int]:
    """Borders (left, top, right, bottom) that make an image at least as large as `size`, centred."""
    wide, high = (max(0, wanted - side) for side, wanted in zip(image, size, strict=True))
    return wide // 2, high // 2, wide - wide // 2, high - high // 2


def resize_first_frame(image: Tensor, height: int, width: int) -> Tensor:
    """[3, h, w] in [-1, 1] -> [3, height, width]: bicubic, neither antialiased nor clamped, as in training.

    Values overshoot [-1, 1]. Large photos alias; the fits that save an exact size are antialiased.
    """
    from torch.nn.functional import interpolate

    return interpolate(image[None], size=(height, width), mode="bicubic", align_corners=False)[0]


def resize_picture(image: Image, height: int, width: int) -> Tensor:
    """Do `resize_first_frame` of an RGB image, to the last bit, without a float32 copy of it, which takes gigabytes.

    First the columns of the rows that are read become `width`, a band at a time; then the rows become `height`. The sum
    is the same, because the weights of an axis that keeps its length are 0, 1, 0 and 0.
    """
    import numpy as np
    import torch

    from wan.images import bands
    from wan.media import from_uint8

    read = rows_read(image.height, height)
    rows = torch.zeros(3, image.height, width)
    for top, band in bands(image):
        wanted = read[(read >= top) & (read < top + band.height)]
        if len(wanted):
            pixels = from_uint8(torch.from_numpy(np.asarray(band)[wanted - top]))
            rows[:, wanted] = resize_first_frame(pixels, len(wanted), width)
    return resize_first_frame(rows, height, width)


def rows_read(length: int, wanted: int) -> np.ndarray:
    """Rows of `length` that bicubic scaling to `wanted` rows reads: four for each, and one more on either side."""
    import numpy as np

    center = np.floor((np.arange(wanted) + 0.5) * length / wanted - 0.5).astype(int)
    return np.unique((center[:, None] + np.arange(-2, 4)).clip(0, length - 1))


def _even(size: Size) -> Size:
    """Make both sides even: every player knows H.264 of such sizes."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _covering(image: Size, asked: Size, steps: Size) -> Size:
    """Round a size up to whole tokens."""
    return tuple(-(-side // step) * step for side, step in zip(_even(asked), steps, strict=True))


def _inscribed(image: Size, within: Size, steps: Size) -> Size:
    """Find the largest size in whole tokens within a size, with the aspect ratio of an image up to rounding."""
    most = [side // step for side, step in zip(within, steps, strict=True)]  # tokens
    scale = min(side / length for side, length in zip(within, image, strict=True))
    tokens = [min(round(length * scale / step), n) for length, step, n in zip(image, steps, most, strict=True)]
    if not all(tokens):
        raise geometry.too_elongated(image, within[0] * within[1])
    return tokens[0] * steps[0], tokens[1] * steps[1]


def _packed(patch: Stride, model_type: str) -> Stride:
    """Multiply a patch (frames, rows, columns) so that the sides of frames are multiples of it."""
    tokens = AREA_FITS[model_type].tokens if model_type in AREA_FITS else 1
    return patch[0], patch[1] * tokens, patch[2] * tokens


def _margins(outer: Size, inner: Size) -> tuple[int, int, int, int]:
    """Margins (left, right, top, bottom) around the centre; an odd pixel is at the right or at the bottom."""
    wide, high = outer[0] - inner[0], outer[1] - inner[1]
    return wide // 2, wide - wide // 2, high // 2, high - high // 2


def _pixels(image: Image) -> Tensor:
    import numpy as np
    import torch

    from wan.media import from_uint8

    return from_uint8(torch.from_numpy(np.array(image)))


class Fit(NamedTuple):
    """Fit of an image to the size that was asked: the rule of the generated size, and the placement of the image.

    With `keeps_shape` the video has the aspect ratio of the image. Sides of generated frames are multiples of `tokens`.
    """

    used: Callable[..., Size]
    place: Callable[[Image, Framing], Tensor]
    keeps_shape: bool
    tokens: int = 1


# "area", by model type: the aspect ratio of the image in about the area that was asked.
AREA_FITS = {
    "i2v": Fit(within_area, lambda image, framing: resize_picture(image, *reversed(framing.used)), True),
    "ti2v": Fit(closest_aspect, lambda image, framing: _pixels(cover(image, framing.used)), True),
    "s2v": Fit(scaled_down, lambda image, size: _pixels(cover(image, size.used)), True, PACKED_TOKENS),
    "s2v_upstream": Fit(
        scaled_down, lambda image, framing: _pixels(letterbox(image, framing.used)), True, PACKED_TOKENS
    ),
}
# Exactly the size that was asked: the image fills it and is cut, or is whole between black borders, or is stretched.
SIZE_FITS = {
    "crop": Fit(_covering, lambda image, framing: _pixels(place(image, framing, is_cut=True)), False),
    "pad": Fit(_inscribed, lambda image, framing: _pixels(place(image, framing, is_cut=False)), True),
    "exact": Fit(_covering, lambda image, framing: _pixels(place(image, framing, is_cut=False)), False),
}
FITS = ("area", *SIZE_FITS)

"""Read pictures of any origin: few formats, a limited size, upright, 8-bit sRGB."""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wan.containers import container_of
from wan.files import disk_named, no_file, parse_json, shown
from wan.geometry import Size

log = logging.getLogger(__name__)

# Formats that are looked for in a file of any name. Pillow starts a program for some of the others (EPS), and nobody
# keeps a first frame in the rest. TGA has no signature and comes last.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "QOI", "TGA")
STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")  # pictures in a container of films
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # by suffix
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
MAX_JPEG_COMMENT = 65_000  # of the 65,533 bytes of a segment
MAX_PIXELS = 178_956_970  # beyond this, Pillow takes a file for an attack
MAX_FILE_BYTES = 2**30
BAND_PIXELS = 2**20  # pixels that are converted at once
BAND_BYTES = 48 * BAND_PIXELS  # with its copies in float32
PIXEL_BYTES = 4  # of Pillow's RGB
HOLDING = ("WEBP", "AVIF")  # an open image keeps a decoder with two more pictures
GREY = ("1", "L", "LA", "I;16")
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # the mode of Pillow for the colours of an ICC profile
SAME = 2  # of 255: a profile that moves no colour further is sRGB


def read_image(path: str | Path) -> Any:
    """Read a picture file to an upright 8-bit RGB PIL image; changes that a user may not expect are logged.

    EXIF orientation is applied, colours are converted from the profile to sRGB, transparent parts become white, 16-bit
    values are scaled, and of several pictures the first is taken. Raises FileNotFoundError, and ValueError with the
    reason when the file cannot be read as a picture.
    """
    from PIL import Image

    name = shown(path)
    if not str(path).strip():
        raise ValueError("the name of the image is empty")
    if "://" in str(path):
        raise ValueError(f"nothing is fetched from the network; save {name} as a file and name that")
    if not Path(path).is_file():
        raise no_file(path, "image")
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{name} has more than {MAX_FILE_BYTES >> 20} MiB; scale the picture down first")
    with disk_named(Path(path)), open(path, "rb") as file:
        head = file.read(12)
    if not head:
        raise ValueError(f"{name} is empty; copy it again, or name another file")
    if container_of(head) and head[8:12] not in STILL_BRANDS:
        raise ValueError(f"{name} is a video or a sound, and a picture is wanted; of a video save a frame as PNG")
    with disk_named(Path(path)), damage_reported(name):
        Image.init()
        image = Image.open(path, formats=[format for format in FORMATS if format in Image.OPEN])
    with image:
        with damage_reported(name):
            if getattr(image, "is_animated", False):
                log.info("%s holds several pictures; the first one is used", name)
            image.seek(0)
        return _upright_rgb(image, name, in_place=True)


def upright_rgb(image: Any) -> Any:
    """Do as `read_image` for a PIL image that is in memory, or was opened and not read yet."""
    if image.format is not None and image.format not in FORMATS:  # None: made or changed in memory
        raise ValueError(f"the image is a file of the format {shown(image.format, 20)}; save it as PNG or JPEG")
    return _upright_rgb(image, "the image", in_place=False)


def write_image(pixels: np.ndarray, file: Path, kind: str, metadata: dict[str, str]) -> None:
    """Write uint8 [H, W, 3] RGB in a format of `WRITTEN`, with texts that `read_metadata` finds again."""
    from PIL import Image, PngImagePlugin

    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            texts.add_itxt(key, value)
        how = {"pnginfo": texts}
    else:
        exif = Image.Exif()
        comment = b"ASCII\0\0\0" + json.dumps(metadata).encode()
        if kind == "JPEG" and len(comment) > MAX_JPEG_COMMENT:
            log.warning("this request is too long for a JPEG and is not stored; a PNG can hold it")
        elif metadata:
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
        how = {"exif": exif} | ({"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0})
    Image.fromarray(pixels).save(file, kind, **how)


def read_metadata(path: Path) -> tuple[dict[str, str], Size]:
    """Read the texts that `write_image` put into a picture ({} for other pictures), and its size, without decoding."""
    from PIL import Image

    with damage_reported(shown(path)), Image.open(path, formats=tuple(WRITTEN.values())) as image:
        if image.format == "PNG":
            return {key: str(text) for key, text in image.text.items()}, image.size
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    try:
        texts = parse_json(bytes(comment).removeprefix(b"ASCII\0\0\0"))
    except (ValueError, TypeError):
        texts = {}  # a comment of another program
    return texts if isinstance(texts, dict) else {}, image.size


def bands(image: Any) -> Iterator[tuple[int, Any]]:
    """Yield an image in bands of whole rows, each with the number of its first row, for work in little memory."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def digest(image: Any) -> str:
    """SHA-256 of a picture: of the content of a file, or of the pixels of a PIL image."""
    state = hashlib.sha256()
    if isinstance(image, (str, Path)):
        with open(image, "rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                state.update(block)
    else:
        for _, band in bands(image):
            state.update(band.tobytes())
    return state.hexdigest()


def kept_bytes(size: Size) -> int:
    """Bytes that a picture (width, height) takes after it was read."""
    return size[0] * size[1] * PIXEL_BYTES


def _upright_rgb(image: Any, name: str, in_place: bool) -> Any:
    from PIL import Image, ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    # Pillow reads 16 bits as "I;16", of PGM and (older versions) PNG as "I"; from elsewhere that may hold anything
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode == "F" or (image.mode.startswith("I") and not sixteen_bits):
        kind = "floating point" if image.mode == "F" else "32-bit"
        raise ValueError(f"{name} has {kind} values, whose range is not known; save it as 8-bit PNG or JPEG")
    with damage_reported(name):
        image = ImageOps.exif_transpose(image, in_place=in_place) or image
        to_srgb = _profile(image, name)
        if image.mode == "RGB" and to_srgb is None and not image.has_transparency_data and image.format not in HOLDING:
            return image
        result, clear = Image.new("RGB", image.size), False
        for top, band in bands(image):
            colors, is_clear = _plain(_scaled_to_8_bits(band) if sixteen_bits else band, to_srgb)
            result.paste(colors, (0, top))
            clear = clear or is_clear
        if clear:
            log.info("%s is transparent in part; it is put on white", name)
        return result


def _plain(band: Any, to_srgb: Callable[[Any], Any] | None) -> tuple[Any, bool]:
    """Put colours on white, as RGB; also tell whether any of the white shows."""
    from PIL import Image

    if not band.has_transparency_data:
        return (to_srgb(band) if to_srgb else band).convert("RGB"), False
    colors = band.convert("RGBA")
    alpha = colors.getchannel("A")
    if to_srgb:
        colors = to_srgb(band)
        colors.putalpha(alpha)
    colors = Image.alpha_composite(Image.new("RGBA", band.size, "white"), colors)
    return colors.convert("RGB"), alpha.getextrema()[0] < 255


def _scaled_to_8_bits(image: Any) -> Any:
    """Scale a grey image of 16 bits, which Pillow would clip; the transparent grey level of a PNG becomes alpha."""
    from PIL import Image

    values = np.asarray(image)
    grey = Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _profile(image: Any, name: str) -> Callable[[Any], Any] | None:
    """Make the transform to sRGB by the ICC profile of an image; None when it is sRGB, missing or unusable."""
    if not (content := image.info.get("icc_profile")):
        return None
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        mode = PROFILE_MODES.get(profile.profile.xcolor_space.strip())
        fits = {"L": image.mode.startswith(GREY), "CMYK": image.mode == "CMYK"}
        if not fits.get(mode, mode == "RGB" and image.mode != "CMYK" and not image.mode.startswith(GREY)):
            raise ValueError("it is for other colours than the picture has")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
        if mode == "CMYK" or not _changes_little(transform, mode):
            log.info("%s has a colour profile; its colours are converted to sRGB", name)
            return lambda band: ImageCms.applyTransform(band.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.warning("the colour profile of %s cannot be used and is ignored (%s)", name, shown(error, 100))
    return None


def _changes_little(transform: Any, mode: str) -> bool:
    """Tell whether a transform hardly changes 729 RGB colours, or all greys."""
    from PIL import Image, ImageCms

    levels = np.arange(0, 257, 32).clip(0, 255).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    image = Image.fromarray(colors if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    moved = np.asarray(ImageCms.applyTransform(image, transform), np.int16) - np.asarray(image.convert("RGB"))
    return np.abs(moved).max() <= SAME


def _too_large(name: str) -> ValueError:
    from PIL import Image

    limit = min(MAX_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))  # a program may lower or lift Pillow's
    return ValueError(
        f"{name} has more than {limit / 1e6:.0f} million pixels, as files made to exhaust the memory do; scale it down "
        "first, 4096 pixels a side are plenty"
    )


@contextmanager
def damage_reported(name: str) -> Iterator[None]:
    """Turn every error of Pillow about a file into a ValueError that says what to do."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that Pillow can read
            yield
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that can be read; save it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except Exception as error:  # decoders raise any kind of error for a damaged file
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):  # of the disk or the rights
            raise
        raise ValueError(f"{name} is damaged or incomplete ({shown(error)}); save it again") from None

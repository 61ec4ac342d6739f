"""Reading pictures: formats, limits of size, colour profiles, and the memory it takes."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from wan import images
from wan.configs import WAN_CONFIGS
from wan.framing import resize_first_frame, resize_picture, rows_read
from wan.images import FORMATS, MAX_PIXELS, read_image, upright_rgb
from wan.media import from_uint8
from wan.request import Request, picture_bytes


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# ---------------------------------------------------------------- formats


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Install a `gs` that leaves a mark when it is started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\necho started >> {tmp_path}/mark\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "mark"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg", "a"])
def test_a_picture_that_is_eps_starts_no_program(tmp_path, ghostscript, name):
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(ValueError, match="is not an image that can be read; save it as PNG or JPEG"):
        read_image(tmp_path / name)
    with pytest.raises(ValueError, match="the image is a file of the format EPS; save it as PNG or JPEG"):
        upright_rgb(Image.open(tmp_path / name))
    assert not ghostscript.exists()


def test_only_the_formats_of_the_documentation_are_read(tmp_path):
    documented = (Path(__file__).parents[1] / "docs/images.md").read_text()
    assert ", ".join(FORMATS) in documented
    for kind in ("PCX", "ICO", "SGI", "XBM", "DDS", "ICNS", "MSP"):
        if kind in Image.SAVE:
            Image.new("1" if kind in ("XBM", "MSP") else "RGB", (32, 32)).save(tmp_path / "a.png", kind)
            with pytest.raises(ValueError, match="is not an image that can be read"):
                read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("MPO", "AVIF")])
def test_the_content_decides_and_not_the_suffix(tmp_path, kind):
    image = Image.new("RGB", (32, 32), (200, 40, 40))
    image.save(tmp_path / "a.txt", kind)
    assert np.abs(np.asarray(read_image(tmp_path / "a.txt"), int) - np.asarray(image)).max() < 8


# ---------------------------------------------------------------- size


def png(width, height, *chunks, bits=8):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    body = b"".join(chunk(*one) for one in chunks) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(width, height):
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + b"\0" * 100


def webp(width, height):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02D\x01\0;"
HUGE = {
    "a.png": png(40_000, 40_000),
    "wide.png": png(2**31 - 1, 1),
    "a.tiff": tiff(40_000, 40_000),
    "most.tiff": tiff(2**32 - 1, 2**32 - 1),
    "a.webp": webp(2**24, 2**24),
    "a.gif": b"GIF89a\xff\xff\xff\xff\0\0\0"
    + b","
    + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    + b"\x02\x02D\x01\0;",
    "frame.gif": b"GIF89a\1\0\1\0\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02D\x01\0;",
    "a.bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "a.ppm": b"P6 40000 40000 255\n\0",
    "a.qoi": b"qoif" + struct.pack(">IIBB", 40_000, 40_000, 3, 0),
    "a.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0) + b"\0" * 100,
    "text.png": png(4, 4, (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**27))),
    "icc.png": png(4, 4, (b"iCCP", b"a\0\0" + zlib.compress(b"x" * 2**27))),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("limit", ["pillow's", "lifted"])
def test_what_is_declared_is_bounded_before_it_is_decoded(tmp_path, monkeypatch, name, limit):
    resource = pytest.importorskip("resource")
    if limit == "lifted":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / name).write_bytes(HUGE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"million pixels|damaged or incomplete|not an image that can be read"):
        read_image(tmp_path / name)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 300e6


def test_the_bound_holds_for_images_in_memory_as_well(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(ValueError, match=r"the image has more than 0 million pixels"):
        upright_rgb(Image.new("RGB", (10, 10)))
    assert MAX_PIXELS == 178_956_970


def test_files_of_gigabytes_are_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.write(png(4, 4)[:40])
        file.truncate(2**40)  # takes no room
    with pytest.raises(ValueError, match=r"a\.png has more than 1024 MiB; scale the picture down first"):
        read_image(tmp_path / "a.png")


def test_an_animation_of_many_frames_is_not_walked(tmp_path, caplog):
    caplog.set_level("INFO")
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0"
    (tmp_path / "a.gif").write_bytes(b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 3 + b"broken" * 1000)
    assert read_image(tmp_path / "a.gif").size == (1, 1)
    assert "a.gif holds several pictures; the first one is used" in caplog.text


def test_names_of_strangers_are_escaped(tmp_path):
    path = tmp_path / "a\x1b[2J\n.png"
    path.write_text("text")
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert str(error.value).isprintable()


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_parts_of_rows_are_read_as_the_whole(tmp_path, monkeypatch, mode, rows):
    image = Image.fromarray(noise())
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise(seed=1)[..., 0]))
    image = Image.fromarray(noise().astype(np.uint16)[..., 0] * 257) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "a.tiff")
    whole = read_image(tmp_path / "a.tiff")
    monkeypatch.setattr(images, "BAND_PIXELS", rows * 60)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), whole)
    np.testing.assert_array_equal(upright_rgb(image), whole)


@pytest.mark.parametrize("size", [(40, 60), (1, 1), (1, 500), (500, 1), (300, 33), (16, 16), (719, 401), (1024, 1000)])
@pytest.mark.parametrize("wanted", [(16, 16), (48, 32), (112, 64), (720, 400)])
def test_the_resized_picture_is_the_same_to_the_last_bit(monkeypatch, size, wanted):
    monkeypatch.setattr(images, "BAND_PIXELS", 5000)
    pixels = noise(*size)
    whole = resize_first_frame(from_uint8(torch.from_numpy(pixels)), *wanted)
    assert torch.equal(resize_picture(Image.fromarray(pixels), *wanted), whole)


def test_a_small_part_of_a_large_picture_is_converted(monkeypatch):
    seen = []
    monkeypatch.setattr("wan.media.from_uint8", lambda pixels: seen.append(pixels.shape) or from_uint8(pixels))
    resize_picture(Image.new("RGB", (64, 20_000)), 160, 64)
    assert sum(shape[0] for shape in seen) == len(rows_read(20_000, 160)) <= 6 * 160


def test_a_picture_costs_what_is_said(tmp_path):
    """The picture has 20 million pixels; float32 copies would take 480 MB and more."""
    resource = pytest.importorskip("resource")
    if sys.platform != "linux":
        pytest.skip("the peak cannot be reset")
    Image.new("RGB", (5000, 4000), "teal").save(tmp_path / "a.png", compress_level=1)
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of other tests
    base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")
    request = Request.create(WAN_CONFIGS["i2v-A14B"], image=tmp_path / "a.png")
    assert request.given_frame(request.image).shape == (3, *request.framing.used[::-1])
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert first and int(peak.split()[1]) * 1024 - base < 1.1 * picture_bytes(request) < 220e6


def test_the_forecast_counts_all_pictures():
    big, small = Image.new("RGB", (400, 400)), Image.new("RGB", (40, 40))
    config = WAN_CONFIGS["i2v-A14B"]
    one = picture_bytes(Request.create(config, image=big))
    two = picture_bytes(Request.create(config, image=big, last_image=big))
    assert two - one >= 4 * 400 * 400
    assert picture_bytes(Request.create(config, image=small)) < one
    assert picture_bytes(Request.create(WAN_CONFIGS["t2v-A14B"])) == 0


# ---------------------------------------------------------------- colours


def profile(space: str, gamma: float = 1.8) -> bytes:
    """Make a small ICC profile: other primaries than sRGB (RGB), or a grey of another gamma (GRAY)."""

    def s15(*numbers):
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    xyz = lambda *numbers: b"XYZ " + bytes(4) + s15(*numbers)  # noqa: E731
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == "RGB ":  # those of ProPhoto
        tags |= {b"rXYZ": xyz(0.7977, 0.2880, 0), b"gXYZ": xyz(0.1352, 0.7119, 0), b"bXYZ": xyz(0.0313, 0.0001, 0.8249)}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    else:
        tags |= {b"kTRC": curve}
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content
    header = bytes(4) + b"lcms" + bytes([2, 0x40, 0, 0]) + b"mntr" + space.encode() + b"XYZ " + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + s15(0.9642, 1.0, 0.8249)
    content = header.ljust(128, b"\0") + table + data
    return struct.pack(">I", len(content)) + content[4:]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def converted(image, content, mode):
    source = ImageCms.ImageCmsProfile(io.BytesIO(content))
    relative, black = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", relative, black)
    return np.asarray(ImageCms.applyTransform(image.convert(mode), transform))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_colours_of_a_profile_become_srgb(tmp_path, caplog, name):
    caplog.set_level("INFO")
    image = Image.fromarray(noise())
    image.save(tmp_path / name, icc_profile=profile("RGB "))
    read = np.asarray(read_image(tmp_path / name))
    np.testing.assert_array_equal(read, converted(image, profile("RGB "), "RGB"))
    assert np.abs(read.astype(int) - noise()).max() > 20
    assert f"{name} has a colour profile; its colours are converted to sRGB" in caplog.text
    np.testing.assert_array_equal(upright_rgb(Image.open(tmp_path / name)), read)


@pytest.mark.parametrize("content", [None, SRGB])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_pictures_in_srgb_stay_as_they_are(tmp_path, caplog, mode, content):
    caplog.set_level("INFO")
    image = Image.fromarray(noise()).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image.convert("RGB"))
    assert not caplog.text


def test_grey_and_transparent_pictures_have_profiles_too(tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    grey.save(tmp_path / "a.png", icc_profile=profile("GRAY"))
    read = np.asarray(read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(read, converted(grey, profile("GRAY"), "L"))
    assert np.abs(read[..., 0].astype(int) - np.asarray(grey)).max() > 5
    clear = Image.fromarray(noise())
    clear.putalpha(Image.fromarray(noise(seed=1)[..., 0] // 128 * 255))
    clear.save(tmp_path / "a.png", icc_profile=profile("RGB "))
    expected = np.where(np.asarray(clear)[..., 3:] > 0, converted(clear, profile("RGB "), "RGB"), 255)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    "mode, content",
    [
        ("RGB", b"no profile"),
        ("RGB", b""),
        ("RGB", profile("RGB ")[:200]),
        ("RGB", profile("GRAY")),
        ("L", profile("RGB ")),
        ("CMYK", profile("RGB ")),
        ("RGB", SRGB[:16] + b"CMYK" + SRGB[20:]),
        ("RGB", SRGB[:16] + b"Lab " + SRGB[20:]),
    ],
)
def test_a_profile_of_no_use_is_ignored_with_a_remark(tmp_path, caplog, mode, content):
    image = Image.fromarray(noise()).convert(mode)
    image.save(tmp_path / "a.tiff", icc_profile=content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), image.convert("RGB"))
    assert not content or ("the colour profile of " in caplog.text and "cannot be used and is ignored" in caplog.text)

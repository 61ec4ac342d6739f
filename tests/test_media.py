"""Pixels in, pixels out: ranges, colours, tags, and files that appear whole or not at all."""

import os
import wave
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from PIL import Image

from wan.audio import add_audio
from wan.images import read_image, upright_rgb
from wan.media import (
    MAX_FPS,
    contact_sheet,
    frame_times,
    from_uint8,
    read_metadata,
    read_video,
    save_image,
    to_uint8,
    write,
    write_video,
    written,
)

COLORS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (226, 48, 48),
    (246, 205, 40),
    (18, 18, 20),
    (128, 128, 128),
    (255,) * 3,
]


def solid(colors, height=48, width=64):
    return np.stack([np.full((height, width, 3), color, np.uint8) for color in colors])


def test_to_uint8_clamps_and_truncates():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.9999, 1.0, 3.0])
    video = values.expand(3, 1, 1, -1)
    assert to_uint8(video)[0, 0, :, 0].tolist() == [0, 0, 63, 127, 254, 255, 255]


def test_to_uint8_puts_colour_last():
    video = torch.stack([torch.full((2, 4, 6), value) for value in (-1.0, 0.0, 1.0)])
    frames = to_uint8(video)
    assert frames.shape == (2, 4, 6, 3) and frames.dtype == torch.uint8
    assert frames[1, 2, 3].tolist() == [0, 127, 255]


def test_from_uint8_is_the_inverse_up_to_truncation():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert (to_uint8(from_uint8(pixels).transpose(0, 1)).int() - pixels.int()).abs().max() <= 1


def test_colours_survive_the_round_trip(tmp_path):
    write_video(solid(COLORS), tmp_path / "a.mp4", fps=8)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert fps == 8 and frames.shape == (len(COLORS), 48, 64, 3) and frames.dtype == torch.uint8
    assert np.abs(frames.numpy().astype(int) - solid(COLORS)).max() <= 4


def test_the_stored_planes_follow_bt709_limited_range(tmp_path):
    """They follow the formula of the standard, so that a player that reads the tags shows the right colours."""
    import av

    write_video(solid([(226, 48, 48)]), tmp_path / "a.mp4", fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        planes = next(container.decode(video=0)).to_ndarray()
    r, g, b = 226 / 255, 48 / 255, 48 / 255
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    expected = 16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748
    np.testing.assert_allclose((planes[0, 0], planes[50, 0], planes[-1, 0]), expected, atol=2)


def test_chunks_of_arrays_and_tensors_are_joined(tmp_path):
    frames = solid(COLORS)
    chunks = iter([frames[:1], torch.from_numpy(frames[1:5]), frames[5:]])
    assert write_video(chunks, tmp_path / "a.mp4", fps=16) == len(COLORS)
    assert len(read_video(tmp_path / "a.mp4")[0]) == len(COLORS)


@pytest.mark.parametrize("fps", [1, 1000, 1001, 2000, 70_000, MAX_FPS])
def test_files_play_at_every_rate(tmp_path, fps):
    for count in (1, 3, 4, 5):  # a file of few equal frames has them reordered
        write_video(np.zeros((count, 32, 32, 3), np.uint8), tmp_path / "a.mp4", fps, overwrite=True)
        frames, rate = read_video(tmp_path / "a.mp4")
        assert (len(frames), rate) == (count, fps)


@pytest.mark.parametrize("fps", [0, -1, MAX_FPS + 1, 10**12, "8", True, float("nan")])
def test_rates_that_do_not_play_are_refused(tmp_path, fps):
    with pytest.raises(ValueError, match=r"^fps (must|can) be "):
        write_video(np.zeros((1, 32, 32, 3), np.uint8), tmp_path / "a.mp4", fps)
    assert not list(tmp_path.iterdir())


def test_one_frame(tmp_path):
    write_video(solid(COLORS[:1]), tmp_path / "a.mp4", fps=16)
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1


def test_odd_sides_are_padded(tmp_path):
    write_video(solid(COLORS, 31, 45), tmp_path / "a.mp4", fps=8)
    assert read_video(tmp_path / "a.mp4")[0].shape[1:3] == (32, 46)


def test_metadata_round_trip(tmp_path):
    tags = {"wan_request": '{"prompt": "ein Bär; 熊 = \\"bear\\"\\n\\\\"}', "comment": "# one; two = three"}
    write_video(solid(COLORS), tmp_path / "a.mp4", fps=8, metadata=tags)
    assert tags.items() <= read_metadata(tmp_path / "a.mp4").items()


def test_the_index_comes_first(tmp_path):
    write_video(solid(COLORS), tmp_path / "a.mp4", fps=8)
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_existing_files_are_kept_unless_told(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"a\.mp4 exists already"):
        write_video(solid(COLORS), path, fps=8)
    assert path.read_text() == "precious"
    write_video(solid(COLORS), path, fps=8, overwrite=True)
    assert len(read_video(path)[0]) == len(COLORS)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.mp4"

    def frames():
        yield solid(COLORS)
        path.write_text("precious")

    with pytest.raises(FileExistsError, match="appeared while"):
        write_video(frames(), path, fps=8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"] and path.read_text() == "precious"


def test_a_failure_leaves_nothing(tmp_path):
    def frames():
        yield solid(COLORS)
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        write_video(frames(), tmp_path / "a.mp4", fps=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames, text",
    [(iter([]), "no frames"), (np.zeros((1, 8, 8, 3)), "uint8"), (np.zeros((8, 8, 3), np.uint8), "uint8")],
)
def test_what_is_no_video_is_refused(tmp_path, frames, text):
    with pytest.raises(ValueError, match=text):
        write_video(frames, tmp_path / "a.mp4", fps=8)
    assert list(tmp_path.iterdir()) == []


def test_reading_what_is_no_video(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_video(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_text("text")
    with pytest.raises(ValueError, match="is not a video that can be read"):
        read_video(tmp_path / "a.mp4")


def test_contact_sheet(tmp_path):
    contact_sheet(solid(COLORS), tmp_path / "a.png", columns=3)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (3 * 66 + 2, 3 * 50 + 2)
        assert sheet.getpixel((10, 10)) == COLORS[0] and sheet.getpixel((76, 10)) == COLORS[1]
        assert sheet.getpixel((10, 60)) == COLORS[3]


def test_save_image(tmp_path):
    save_image(torch.from_numpy(solid(COLORS)[3]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpixel((5, 5)) == COLORS[3]
    with pytest.raises(ValueError, match=r"a\.xyz does not end like an image; try a\.png"):
        save_image(torch.from_numpy(solid(COLORS)[3]), tmp_path / "a.xyz")


# ---------------------------------------------------------------- images


@pytest.fixture
def photo():
    """Picture that shows every turn: red at the left, blue at the right, a white pixel in the upper left corner."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0] = pixels[:, 15:, 2] = 200
    pixels[:4, :4] = 255
    return pixels


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.tiff", "a.gif"])
def test_images_of_every_format_are_read(tmp_path, photo, name):
    Image.fromarray(photo).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    image = read_image(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(image, photo)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photos_are_turned_upright(tmp_path, photo, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(photo, turn))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB"])
def test_other_kinds_of_colour_become_rgb(tmp_path, photo, mode):
    image = Image.fromarray(photo).convert(mode)
    image.save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), image.convert("RGB"))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name))[..., 0].ravel(), np.arange(256))


def test_a_transparent_grey_level_of_sixteen_bits_becomes_white(tmp_path):
    values = np.array([[0, 1000], [30_000, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png"))[..., 0], [[0, 255], [117, 255]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_become_white(tmp_path, mode, caplog):
    caplog.set_level("INFO")
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "a.png" if mode != "PA" else tmp_path / "a.tiff")
    read = read_image(next(tmp_path.iterdir()))
    assert (read.getpixel((0, 0)), read.getpixel((7, 7))) == ((255, 255, 255), (0, 0, 0))
    assert "is transparent in part; it is put on white" in caplog.text


def test_an_opaque_alpha_channel_is_not_worth_a_word(tmp_path, photo, caplog):
    caplog.set_level("INFO")
    Image.fromarray(photo).convert("RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)
    assert not caplog.text


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_picture_of_an_animation_is_used(tmp_path, caplog, name):
    caplog.set_level("INFO")
    first, *rest = (Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=rest)
    red, green, blue = read_image(tmp_path / name).getpixel((4, 4))
    assert red > 240 and max(green, blue) < 15
    assert f"{name} holds several pictures; the first one is used" in caplog.text


def test_images_that_cannot_be_used_say_why(tmp_path, photo, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*gone\.png"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="is a folder; name one image in it"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="the name of the image is empty"):
        read_image("")
    with pytest.raises(ValueError, match=r"nothing is fetched from the network; save http://a/b\.png as a file"):
        read_image("http://a/b.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not an image that can be read; save it as PNG or JPEG"):
        read_image(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="is empty"):
        read_image(tmp_path / "empty.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff has floating point values"):
        read_image(tmp_path / "float.tiff")
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "int.tiff")
    with pytest.raises(ValueError, match=r"int\.tiff has 32-bit values, whose range is not known; save it as 8-bit"):
        read_image(tmp_path / "int.tiff")
    Image.fromarray(photo).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"large\.png has more than 0 million pixels, .*; scale it down first"):
        read_image(tmp_path / "large.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tiff"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_incomplete_images_are_one_line(tmp_path, name, share):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"is damaged or incomplete|is not an image that can be read"):
        read_image(tmp_path / name)


def test_incomplete_images_that_were_opened_but_not_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"the image is damaged or incomplete .*; save it again"):
        upright_rgb(Image.open(tmp_path / "a.jpg"))


def test_random_bytes_after_a_header_never_escape_as_something_else(tmp_path, photo):
    generator = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.gif", "a.tiff", "a.webp", "a.bmp"):
        Image.fromarray(photo).save(tmp_path / name)
        content = bytearray((tmp_path / name).read_bytes())
        for _ in range(60):
            broken = bytearray(content)
            for place in generator.integers(8, len(content), 4):
                broken[place] = generator.integers(0, 256)
            (tmp_path / name).write_bytes(broken)
            try:
                assert read_image(tmp_path / name).mode == "RGB"
            except ValueError as error:
                assert name in str(error)


def write_tone(path, seconds, rate=16000, channels=1):
    samples = np.sin(np.arange(int(seconds * rate)) * (2 * np.pi * 440 / rate)) * 20000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype(np.int16).repeat(channels).tobytes())
    return path


def streams(path):
    """Return kind, codec and seconds of each stream, and the data of the video packets."""
    with av.open(str(path)) as container:
        found = [(s.type, s.codec_context.name, float(s.duration * s.time_base)) for s in container.streams]
        return found, [bytes(packet) for packet in container.demux(video=0)]


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (96000, 6), (5512, 1)])
def test_sound_is_added_and_the_pictures_stay(tmp_path, rate, channels):
    video = tmp_path / "a.mp4"
    write_video(np.random.default_rng(0).integers(0, 255, (32, 48, 64, 3), np.uint8), video, 16, {"wan_request": "{}"})
    (_, before), tags = streams(video), read_metadata(video)
    add_audio(video, write_tone(tmp_path / "a.wav", 3, rate, channels))
    (pictures, sound), packets = streams(video)
    assert packets == before, "pictures are copied"
    assert pictures == ("video", "h264", 2.0) and sound[:2] == ("audio", "aac") and abs(sound[2] - 2) < 0.1
    assert read_metadata(video)["wan_request"] == tags["wan_request"]
    with av.open(str(video)) as container:
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    crossings = sum(a < 0 <= b for a, b in pairwise(heard[rate // 2 : rate + rate // 2]))
    assert abs(crossings - 440) <= 2 and np.abs(heard[rate // 2 : rate]).max() > 0.55

    add_audio(video, video)  # AAC is copied
    assert streams(video) == ([pictures, sound], packets)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.wav"]


def test_the_shorter_one_ends_the_file(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(solid(COLORS * 4), video, 16)
    add_audio(video, write_tone(tmp_path / "a.wav", 1.0))
    (pictures, sound), _ = streams(video)
    assert 1 <= pictures[2] <= 1 + 4 / 16 and abs(sound[2] - 1) < 0.1, "up to what the last pictures are made from"
    assert read_video(video)[0].shape[0] in range(16, 20)


def test_what_has_no_sound_or_pictures_leaves_the_video_alone(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(solid(COLORS), video, 16)
    before, tone = video.read_bytes(), write_tone(tmp_path / "a.wav", 1.0)
    (tmp_path / "text.wav").write_text("no sound")
    for wrong, error, text in (
        ((video, video), ValueError, "a.mp4 has no sound in it"),
        ((tone, tone), ValueError, "a.wav has no video in it"),
        ((video, tmp_path / "text.wav"), ValueError, "text.wav is not a sound that can be read; convert it to wav"),
        ((video, tmp_path / "none.wav"), FileNotFoundError, "none.wav"),
        ((tmp_path / "none.mp4", tone), FileNotFoundError, "none.mp4"),
    ):
        with pytest.raises(error, match=text):
            add_audio(*wrong)
    assert video.read_bytes() == before


def test_a_stream_without_a_codec_is_refused_by_name(tmp_path):
    path, tone = tmp_path / "a.mp4", write_tone(tmp_path / "a.wav", 1.0)
    write_video(np.zeros((2, 32, 32, 3), np.uint8), path, 8)
    path.write_bytes(path.read_bytes().replace(b"avc1\0", b"\0\0\0\0\0").replace(b"avcC", b"free"))
    for read in (lambda: read_video(path), lambda: add_audio(path, tone)):
        with pytest.raises(ValueError, match=r"a\.mp4"):
            read()


@pytest.mark.parametrize("name, frames", [("a.mp4", 9), ("a.png", 1), ("a.jpg", 1), ("a.webp", 1)])
def test_a_file_that_was_cut_short_is_noticed(tmp_path, name, frames):
    path = tmp_path / name
    write(torch.randint(256, (frames, 32, 32, 3), dtype=torch.uint8), path, 8, {})
    assert written(path) == (frames, (32, 32))
    os.truncate(path, path.stat().st_size - 100)
    try:
        assert written(path)[0] < frames
    except ValueError as error:
        assert name in str(error)


def test_a_short_sound_ends_and_all_pictures_stay(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(solid(COLORS * 4), video, 16)
    (before, *_), packets = streams(video)
    add_audio(video, write_tone(tmp_path / "a.wav", 0.5), keeps_frames=True)
    (pictures, sound), after = streams(video)
    assert (pictures, after) == (before, packets) and abs(sound[2] - 0.5) < 0.1


def test_frames_that_an_edit_list_cuts_off_do_not_count(tmp_path):
    """Cutting a film without coding it again, as telephones do, leaves frames in the file that no player shows."""
    write_video(solid(COLORS * 3), tmp_path / "a.mp4", 16)
    with av.open(str(tmp_path / "a.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (t - int(5 / 16 / packet.time_base) for t in (packet.pts, packet.dts))
                packet.stream = stream
                out.mux(packet)
    shown = len(read_video(tmp_path / "cut.mp4")[0])
    times, end = frame_times(tmp_path / "cut.mp4")
    assert shown == len(COLORS) * 3 - 5 == written(tmp_path / "cut.mp4")[0] == len(times)
    assert times[0] == 0 and end == pytest.approx(shown / 16, abs=1 / 100)


@pytest.mark.parametrize("has_sound", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_film_that_is_cut_off_is_no_shorter_film(tmp_path, share, has_sound):
    video = tmp_path / "a.mp4"
    write_video(np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8), video, 16)
    if has_sound:
        add_audio(video, write_tone(tmp_path / "a.wav", 1.5))
    video.write_bytes(video.read_bytes()[: int(share * video.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.mp4 is cut off after \d+ frames: copy it again"):
        frame_times(video)

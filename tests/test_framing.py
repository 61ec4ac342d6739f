"""Any image and any size give legal sizes for the model and the asked size in the file, or a clear error."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from wan.framing import AREA_FITS, FITS, Framing, crop_to_aspect, of_area, of_size, place, plain
from wan.geometry import MAX_POSITION, check_size, format_size, token_size

MODELS = {"i2v": ((4, 8, 8), (1, 2, 2)), "ti2v": ((4, 16, 16), (1, 2, 2))}
MODELS |= dict.fromkeys(("s2v", "s2v_upstream"), MODELS["i2v"])
SIZED = [fit for fit in FITS if fit != "area"]


def random_sides(generator, count, largest):
    """Draw pairs of sides, evenly over the orders of magnitude."""
    return [tuple(round(largest ** generator.random()) for _ in range(2)) for _ in range(count)]


def gradient(width, height):
    """Make an image in which red tells the column and green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [columns * 255 / max(1, width - 1), rows * 255 / max(1, height - 1), np.full(rows.shape, 128)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def finished(image, framing):
    """Return the frame in the file, uint8 [H, W, 3], of an image that the model reproduces."""
    frame = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    return ((framing.finish(frame) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


# ---------------------------------------------------------------- any image, any size


@pytest.mark.parametrize("model_type", AREA_FITS)
def test_any_image_has_a_legal_size_in_the_area_or_is_refused_in_words(model_type):
    tokens = MODELS[model_type]
    steps, multiple = token_size(*tokens), AREA_FITS[model_type].tokens
    generator = random.Random(0)
    made = 0
    for image in random_sides(generator, 2000, 100_000):
        area = round(10 ** generator.uniform(1, 11))
        least, most = steps[0] * steps[1] * multiple**2, steps[0] * steps[1] * MAX_POSITION**2
        try:
            used = of_area(model_type, area, image, *tokens)
        except ValueError as error:
            elongated = f"an image of {image[0]}x{image[1]} pixels is too elongated for a video of {area} pixels"
            refused = f"an area of {area} pixels is not possible: it must be {least} to {most}"
            assert (elongated if least <= area <= most else refused) in str(error)
            continue
        made += 1
        check_size(used, *tokens)
        assert not any(side % (step * multiple) for side, step in zip(used, steps))
        assert max(side / step for side, step in zip(used, steps)) <= MAX_POSITION
        assert used[0] * used[1] <= area
    assert 400 < made < 1900, "both outcomes are tried"


@pytest.mark.parametrize("fit", SIZED)
@pytest.mark.parametrize("model_type", AREA_FITS)
def test_any_size_is_saved_as_asked_or_refused_in_words(model_type, fit):
    tokens = MODELS[model_type]
    steps, multiple = token_size(*tokens), AREA_FITS[model_type].tokens
    generator = random.Random(1)
    made = 0
    for asked, image in zip(random_sides(generator, 1000, 50_000), random_sides(generator, 1000, 50_000)):
        try:
            framing = of_size(fit, asked, image, *tokens, model_type)
        except ValueError as error:
            assert f"size {format_size(asked)} is not possible" in str(error) or "too elongated" in str(error)
            continue
        made += 1
        check_size(framing.used, *tokens)
        assert max(side / step for side, step in zip(framing.used, steps)) <= MAX_POSITION
        assert framing.asked == asked
        assert framing.saved == (asked[0] + asked[0] % 2, asked[1] + asked[1] % 2)
        for used, saved, step in zip(framing.used, framing.saved, steps):
            assert used % (step * multiple) == 0
            assert used <= saved if fit == "pad" else 0 <= used - saved < step * multiple
    assert 100 < made < 900


@pytest.mark.parametrize("model_type", AREA_FITS)
def test_pad_keeps_the_aspect_ratio_up_to_half_a_token(model_type):
    tokens = MODELS[model_type]
    generator = random.Random(2)
    for image in random_sides(generator, 200, 3000):
        try:
            used = of_size("pad", (1000, 700), image, *tokens).used
        except ValueError:
            continue
        scale = min(1000 / image[0], 700 / image[1])
        for side, length, step, most in zip(used, image, token_size(*tokens), (1000, 700)):
            assert abs(side - min(length * scale, most // step * step)) <= step / 2


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("fit", SIZED)
@pytest.mark.parametrize("asked", [(64, 64), (100, 70), (70, 100), (49, 33), (50, 34)])
@pytest.mark.parametrize("size", [(40, 40), (90, 30), (30, 90), (5, 5), (1, 1), (201, 133)])
def test_the_first_frame_in_the_file_is_the_image(fit, asked, size):
    """An ideal model returns its first frame as it was given; then the file must show the image as the fit promises."""
    image = gradient(*size)
    try:
        framing = of_size(fit, asked, size, *MODELS["i2v"])
    except ValueError as error:
        assert fit == "pad" and "too elongated" in str(error)
        return
    placed = place(image, framing, fit == "crop")
    assert placed.size == framing.used and placed.mode == "RGB"
    shown = finished(placed, framing)
    assert shown.shape == (framing.saved[1], framing.saved[0], 3)
    if fit == "exact":
        np.testing.assert_array_equal(shown, image.resize(framing.saved, Image.Resampling.LANCZOS))
    if fit == "pad":
        left, top = ((saved - used) // 2 for saved, used in zip(framing.saved, framing.used))
        inner = shown[top : top + framing.used[1], left : left + framing.used[0]]
        np.testing.assert_array_equal(inner, image.resize(framing.used, Image.Resampling.LANCZOS))
        assert shown.sum() == inner.sum(), "the borders are black"
    if fit == "crop":
        assert (shown[..., 2] == 128).all(), "no border anywhere"


def test_crop_shows_the_centre_undistorted():
    framing = of_size("crop", (64, 64), (192, 64), *MODELS["i2v"])
    shown = finished(place(gradient(192, 64), framing, True), framing)
    np.testing.assert_array_equal(shown, np.asarray(gradient(192, 64))[:, 64:128])


def test_what_is_cut_off_mirrors_the_image():
    framing = of_size("exact", (20, 20), (20, 20), *MODELS["i2v"])
    assert framing.used == (32, 32)
    pixels = np.asarray(place(gradient(20, 20), framing, False)).astype(int)
    np.testing.assert_array_equal(pixels[:, :6], pixels[:, 11:5:-1])
    np.testing.assert_array_equal(pixels[26:], pixels[25:19:-1])


def test_extreme_images_cost_no_more_memory_than_the_result():
    framing = of_size("crop", (64, 64), (60_000, 1), *MODELS["i2v"])
    assert place(Image.new("RGB", (60_000, 1), "red"), framing, True).getpixel((30, 30)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "like", "result"),
    [
        ((40, 40), (40, 40), (40, 40)),
        ((80, 40), (10, 10), (40, 40)),
        ((40, 80), (2, 1), (40, 20)),
        ((1, 9), (9, 1), (1, 1)),
    ],
)
def test_crop_to_aspect(size, like, result):
    assert crop_to_aspect(gradient(*size), like).size == result


def test_the_same_shape_is_not_cropped():
    image = gradient(37, 23)
    np.testing.assert_array_equal(crop_to_aspect(image, (37, 23)), image)


def test_speech_to_video_covers_the_frame_and_upstream_letterboxes_it():
    used = of_area("s2v", 1024 * 704, (832, 1104), *MODELS["s2v"])
    assert used == of_area("s2v_upstream", 1024 * 704, (832, 1104), *MODELS["s2v"]) == (704, 960)
    image, framing = Image.new("RGB", (832, 1104), "white"), Framing(used, used, used)
    pixels = {name: AREA_FITS[name].place(image, framing) for name in ("s2v", "s2v_upstream")}
    assert (pixels["s2v"] == 1).all()
    rows = pixels["s2v_upstream"].amax((0, 2))
    assert pixels["s2v_upstream"].shape == (3, 960, 704)
    assert rows.tolist() == [-1] * 13 + [1] * 934 + [-1] * 13


def test_speech_to_video_does_not_enlarge():
    assert of_area("s2v", 1024 * 704, (100, 50), *MODELS["s2v"]) == (128, 64)


# ---------------------------------------------------------------- the value and its texts


def test_a_plain_size_stays_what_it_is():
    framing = plain((1280, 704), *MODELS["ti2v"])
    assert framing == Framing((1280, 704), (1280, 704), (1280, 704))
    frames = torch.rand(3, 2, 704, 1280)
    assert torch.equal(framing.finish(frames), frames)


def test_the_three_sizes_are_told_in_one_line():
    assert str(Framing((1280, 720), (1248, 704), (1280, 720))) == ("asked 1280*720 -> used 1248*704 -> saved 1280*720")


@pytest.mark.parametrize(
    ("fit", "asked", "text"),
    [
        ("crop", (8, 64), "the width must be 16 to 16384 and the height 16 to 16384; try 16*64"),
        ("exact", (20_000, 64), "size 20000*64 is not possible: the width must be 16 to 16384"),
        ("pad", (64, 15), "try 64*16"),
    ],
)
def test_sizes_that_no_model_makes(fit, asked, text):
    with pytest.raises(ValueError) as error:
        of_size(fit, asked, (100, 100), *MODELS["i2v"])
    assert text in str(error.value)
    with pytest.raises(ValueError, match="is not possible"):
        plain((16, 20_000), *MODELS["i2v"])


@pytest.mark.parametrize(("area", "cure"), [(64 * 64, "larger"), (10**8, "smaller")])
def test_an_elongated_image_needs_a_size_with_room_for_it(area, cure):
    with pytest.raises(ValueError, match=f"1000x10 pixels is too elongated .*, ask for a {cure} size"):
        of_area("i2v", area, (1000, 10), *MODELS["i2v"])


@pytest.mark.parametrize(("area", "nearest"), [(-5, 256), (0, 256), (255, 256), (10**10, 2**28)])
def test_areas_that_no_model_makes(area, nearest):
    with pytest.raises(ValueError, match=f"an area of {area} pixels is not possible: it .*; try {nearest}"):
        of_area("i2v", area, (100, 100), *MODELS["i2v"])


def test_an_elongated_image_is_not_padded_to_nothing():
    with pytest.raises(ValueError, match=r"1000x10 pixels is too elongated .*; crop the image, .* or use fit crop"):
        of_size("pad", (64, 64), (1000, 10), *MODELS["i2v"])

"""Sizes are legal for the models and keep the aspect ratio; errors name the nearest legal choice."""

import pytest

from wan.geometry import (
    best_output_size,
    check_frame_num,
    check_size,
    i2v_latent_size,
    latent_shape,
    parse_size,
    token_count,
)

IMAGES = [(w, h) for w in (64, 333, 720, 1280, 4000) for h in (50, 480, 777, 1080, 3000)]
AREAS = [480 * 832, 720 * 1280]


@pytest.mark.parametrize("text", ["1280*720", "1280x720", " 1280 X 720 "])
def test_size_is_width_then_height(text):
    assert parse_size(text) == (1280, 720)


@pytest.mark.parametrize("text", ["", "1280", "1280*720*3", "0*720", "-1280*720", "wide"])
def test_size_that_cannot_be_read_shows_how_to_write_it(text):
    with pytest.raises(ValueError, match=r"1280\*720"):
        parse_size(text)


def test_latent_shape_and_tokens_of_released_sizes():
    shape = latent_shape((1280, 720), 81)
    assert shape == (16, 21, 90, 160)
    assert token_count(shape) == 75_600
    assert latent_shape((1280, 704), 121, (4, 16, 16), z_dim=48) == (48, 31, 44, 80)


def test_one_frame_is_one_latent_frame():
    assert latent_shape((64, 64), 1) == (16, 1, 8, 8)


@pytest.mark.parametrize(("frame_num", "choices"), [(80, "77 or 81"), (2, "1 or 5"), (0, "try 1"), (-3, "try 1")])
def test_frame_num_must_be_4n_plus_1(frame_num, choices):
    with pytest.raises(ValueError, match=rf"4n\+1, got {frame_num}; .*{choices}"):
        check_frame_num(frame_num)


@pytest.mark.parametrize(
    ("size", "choice"), [((1280, 725), r"1280\*720"), ((1, 1), r"16\*16"), ((856, 488), r"864\*496")]
)
def test_size_must_be_whole_tokens(size, choice):
    with pytest.raises(ValueError, match=rf"multiple of 16 .*try {choice}"):
        check_size(size)


def test_size_of_a_larger_stride():
    check_size((1280, 704), (4, 16, 16))
    with pytest.raises(ValueError, match=r"multiple of 32 .*try 1280\*(704|736)"):
        check_size((1280, 720), (4, 16, 16))


def test_latent_that_does_not_divide_into_patches_has_no_token_count():
    with pytest.raises(ValueError, match="does not divide"):
        token_count((16, 3, 5, 8))


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize(("width", "height"), IMAGES)
def test_image_sizes_are_legal_and_keep_the_aspect_ratio(width, height, area):
    rows, columns = i2v_latent_size(width, height, area)
    assert rows % 2 == 0 and columns % 2 == 0
    check_size((columns * 8, rows * 8))
    assert 0 < rows * columns * 64 <= area

    out_w, out_h = best_output_size(width, height, 32, 32, area)
    check_size((out_w, out_h), (4, 16, 16))
    assert out_w * out_h <= area

    ratio = width / height
    # One latent step of rounding on the shorter side is all that may be lost.
    assert abs(columns / rows / ratio - 1) <= 2 / min(rows, columns)
    assert abs(out_w / out_h / ratio - 1) <= 32 / min(out_w, out_h)


def test_landscape_and_portrait_mirror_each_other():
    for width, height in IMAGES:
        assert i2v_latent_size(width, height, 720 * 1280) == i2v_latent_size(height, width, 720 * 1280)[::-1]


@pytest.mark.parametrize(("width", "height"), [(100_000, 10), (10, 100_000)])
def test_extreme_images_are_refused_in_words(width, height):
    with pytest.raises(ValueError, match=f"{width}x{height} pixels is too elongated"):
        i2v_latent_size(width, height, 480 * 832)
    with pytest.raises(ValueError, match=f"{width}x{height} pixels is too elongated"):
        best_output_size(width, height, 32, 32, 704 * 1280)


@pytest.mark.parametrize(
    "function", [lambda w, h: i2v_latent_size(w, h, 4096), lambda w, h: best_output_size(w, h, 32, 32, 4096)]
)
def test_empty_image_is_refused(function):
    with pytest.raises(ValueError, match="at least one pixel"):
        function(0, 10)

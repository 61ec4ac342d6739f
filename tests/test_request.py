"""Requests: defaults, checks and their texts, round trips."""

import numpy as np
import pytest
import torch
from PIL import Image

from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.framing import Framing
from wan.guidance import format_guidance, parse_guidance
from wan.request import (
    MAX_SEED,
    Request,
    check_supported_size,
    draw_seed,
    nearest_size,
)
from wan.values import named

T2V = WAN_CONFIGS["t2v-A14B"]
NANO = NANO_CONFIGS["t2v-A14B"]
I2V, TI2V = WAN_CONFIGS["i2v-A14B"], WAN_CONFIGS["ti2v-5B"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    return path


def test_defaults_come_from_the_task():
    request = Request.create(T2V, seed=1)
    assert request == Request(
        task="t2v-A14B",
        prompt=T2V.prompt,
        negative_prompt=T2V.sample_neg_prompt,
        framing=Framing((1280, 720), (1280, 720), (1280, 720)),
        frame_num=81,
        steps=40,
        shift=12.0,
        guidance=(3.0, 4.0),
        solver="unipc",
        seed=1,
        fps=16,
        boundary=0.875,
    )
    nano = Request.create(NANO, seed=1)
    assert (nano.framing.used, nano.frame_num, nano.fps) == ((64, 64), 17, 8)


def test_an_empty_negative_prompt_is_meant():
    assert Request.create(T2V, negative_prompt="").negative_prompt == ""


@pytest.mark.parametrize("guidance, pair", [(3, (3.0, 3.0)), (2.5, (2.5, 2.5)), ((1, 4), (1.0, 4.0))])
def test_guidance_becomes_a_pair_of_floats(guidance, pair):
    assert Request.create(T2V, guidance=guidance).guidance == pair


@pytest.mark.parametrize("seed", [None, -1, -7])
def test_missing_and_negative_seeds_are_drawn(seed):
    seeds = {Request.create(T2V, seed=seed).seed for _ in range(4)}
    assert len(seeds) == 4 and all(0 <= seed <= MAX_SEED for seed in seeds)
    assert 0 <= draw_seed() <= MAX_SEED


@pytest.mark.parametrize(
    "values, text",
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"frame_num": 80}, "frame_num must be 4n+1, got 80; try 77 or 81"),
        ({"frame_num": 0}, "frame_num must be 4n+1, got 0; try 1"),
        ({"size": (1281, 720)}, "try 1280*720"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1001}, "steps can be at most 1000"),
        ({"shift": 0.0}, "shift must be above 0, got 0"),
        ({"shift": float("nan")}, "shift must be a finite number, got nan"),
        ({"guidance": -1.0}, "guidance must be 0 or more (to 3e38), got -1"),
        ({"guidance": (1.0, float("inf"))}, "guidance must be a finite number, got inf"),
        ({"guidance": (1.0, 2.0, 3.0)}, "one number or (low, high)"),
        ({"solver": "ddim"}, "unknown solver 'ddim'; choose one of unipc, dpm++, euler"),
        ({"seed": 2**63}, "seed must lie in 0..9223372036854775807"),
        ({"shift": 1e-4}, "shift must lie in 0.001..1000, got 0.0001"),
        ({"shift": 1001}, "shift must lie in 0.001..1000, got 1001"),
        ({"guidance": 3.1e38}, "guidance must be 0 or more (to 3e38), got 3.1e+38"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"fps": 1_000_000}, "fps can be at most 999999, got 1000000: faster files do not play"),
        ({"fps": 10**12}, "fps can be at most 999999"),
        ({"boundary": -0.1}, "must lie in 0..1, got -0.1"),
        ({"prompt": "x" * 100_001}, "prompt has 100001 characters; at most 100000 are taken"),
        ({"negative_prompt": "\udcba"}, r"negative_prompt holds bytes that are no text: '\udcba'"),
        ({"boundary": 1.5}, "boundary is a share of the timesteps and must lie in 0..1, got 1.5"),
        ({"noise_device": "gpu"}, "unknown noise_device 'gpu'; choose one of default, cpu"),
    ],
)
def test_errors_name_value_rule_and_choice(values, text):
    with pytest.raises(ValueError) as error:
        Request.create(T2V, **values)
    assert text in str(error.value)


def test_a_boundary_and_a_pair_of_guidances_need_two_experts():
    with pytest.raises(ValueError, match="has one model; leave it out"):
        Request.create(TI2V, boundary=0.5)
    with pytest.raises(ValueError, match="guidance 3,4 is for two experts, and ti2v-5B has one model; try 3"):
        Request.create(TI2V, guidance=(3, 4))
    assert Request.create(TI2V, guidance=(4, 4)).guidance == (4.0, 4.0)


def test_a_size_may_be_typed_or_computed():
    for size in ("832*480", np.array([832, 480]), [832, 480]):
        assert Request.create(T2V, size=size).framing.asked == (832, 480)


@pytest.mark.parametrize("frame_num", [1, 5, 81])
def test_lengths_of_4n_plus_1_are_taken(frame_num):
    assert Request.create(T2V, frame_num=frame_num).frame_num == frame_num


@pytest.mark.parametrize(
    "config, size, nearest",
    [
        (T2V, (1920, 1080), "1280*720"),
        (T2V, (640, 360), "832*480"),
        (T2V, (400, 800), "480*832"),
        (WAN_CONFIGS["ti2v-5B"], (1280, 720), "1280*704"),
        (NANO, (1280, 720), "64*64"),
    ],
)
def test_unknown_sizes_name_the_nearest(config, size, nearest):
    assert nearest_size(config, size) == nearest
    with pytest.raises(ValueError) as error:
        check_supported_size(config, size)
    assert f"try {nearest}" in str(error.value)


def test_known_sizes_pass():
    for config in (T2V, NANO):
        for size in config.sizes:
            check_supported_size(config, tuple(map(int, size.split("*"))))


def test_dictionary_round_trip():
    request = Request.create(T2V, prompt="ein Bär, 熊", seed=5, guidance=(1, 2), negative_prompt="")
    assert Request.from_dict(request.to_dict() | {"a later field": 1}) == request


NO_WHOLE = ["17", 2.5, 17.0, True, None, [17], {}, float("nan"), np.array([1, 2])]
NO_NUMBER = ["3", True, [], {}, float("nan"), float("inf"), 10**400, 1j]
NO_TEXT = [5, None, ["x"], {}, True, b"x"]
WRONG = {
    **dict.fromkeys(("frame_num", "steps", "seed"), NO_WHOLE),
    "fps": [*NO_NUMBER, None, [17], [0, 1], [1, 0], [30, 1.0], [1, 2, 3]],
    "shift": [*NO_NUMBER, None],
    "guidance": [*NO_NUMBER, None, [1], [1, 2, 3], [1, "2"], [True, 1]],
    "boundary": NO_NUMBER,
    **dict.fromkeys(("task", "prompt", "negative_prompt", "solver", "noise_device", "fit"), NO_TEXT),
}
PYTHON = {  # what `create` fills when it is None, or takes from its config
    "defaults": {"frame_num", "steps", "seed", "fps", "shift", "guidance", "boundary", "prompt", "negative_prompt"}
    | {"solver", "noise_device", "fit"},
    "elsewhere": {"task"},
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_another_type_are_refused_in_files_and_calls(name):
    stored = Request.create(T2V, seed=1).to_dict()
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=f"^(unknown )?{name} "):
            Request.from_dict(stored | {name: value})
        if name not in PYTHON["elsewhere"] and not (value is None and name in PYTHON["defaults"]):
            with pytest.raises(ValueError, match=f"^(unknown )?{name} "):
                Request.create(T2V, **{name: value})


@pytest.mark.parametrize(
    "change",
    [
        *({"size": size} for size in (5, None, [64, 64], "64", "0*64", "9" * 5000 + "*64")),
        *({"used": size} for size in (5, ["1280*720"], "1281*720", "64*99984", "0*0")),
        *({"saved": size} for size in (5, "999999999*999999999", "64*64", "1280*722")),
        *({"image": image} for image in (5, "photo.png", [], {"path": "a.png", "size": "64*64", "sha256": "0"})),
        *({"task": task} for task in ("", "t2v", "animate-14B", "x" * 10**6, "\x1b[2J")),
        *({"checkpoint": value} for value in (5, ["nano"])),
        *({"device": 5}, {"dtype": ["bf16"]}, {"convert_model_dtype": "yes"}, {"versions": "1"}),
        {"steps": 1001},
        {"frame_num": 16},
        {"frame_num": 10**4000},
        {"seed": -1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_stored_values_that_cannot_be_are_refused_in_a_line(change):
    with pytest.raises(ValueError) as error:
        Request.from_dict(Request.create(T2V, seed=1).to_dict() | change)
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


@pytest.mark.parametrize("values", [[], "text", None, 5, {}, [["task", "t2v-A14B"]]])
def test_what_is_no_dictionary_is_no_request(values):
    with pytest.raises(ValueError, match=r"must be a dictionary|lacks"):
        Request.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        *({"path": path} for path in (["x"], 5, "", "a\0b", "x" * 5000)),
        *({"size": size} for size in (None, 64, "0*0", [6, 4])),
        *({"sha256": digits} for digits in (None, 5, ["0"])),
    ],
)
@pytest.mark.parametrize("name", ["image", "last_image"])
def test_stored_images_of_another_type_are_refused(photo, name, change):
    stored = Request.create(I2V, image=photo, last_image=photo).to_dict()
    with pytest.raises(ValueError):
        Request.from_dict(stored | {name: stored[name] | change})


def test_a_stored_request_keeps_to_its_task(photo):
    stored = Request.create(TI2V, image=photo, seed=1).to_dict()
    for change in ({"boundary": 0.5}, {"guidance": [1, 2]}, {"last_image": stored["image"]}):
        with pytest.raises(ValueError, match=r"has one model|not made from last_image"):
            Request.from_dict(stored | change)
    with pytest.raises(ValueError, match="task i2v-A14B needs image"):
        Request.from_dict(stored | {"task": "i2v-A14B", "image": None, "prompt": "a fox"})


def test_numbers_of_numpy_and_tensors_are_numbers():
    request = Request.create(
        T2V,
        size=(np.int64(832), np.int32(480)),
        frame_num=np.int64(5),
        steps=torch.tensor(7),
        shift=np.float32(2.5),
        guidance=np.array([3, 4.5]),
        seed=np.uint8(9),
        fps=np.array(12),
        boundary=torch.tensor(0.5),
    )
    plain = Request.create(
        T2V, size=(832, 480), frame_num=5, steps=7, shift=2.5, guidance=(3, 4.5), seed=9, fps=12, boundary=0.5
    )
    assert request == plain and request.to_json() == plain.to_json()
    assert Request.create(T2V, guidance=np.float32(3)).guidance == (3.0, 3.0)
    assert Request.create(T2V, seed=np.int64(-1)).seed >= 0


def test_errors_go_by_the_names_of_the_caller():
    with named({"steps": "--sample_steps"}), pytest.raises(ValueError, match=r"^--sample_steps must be at least 1"):
        Request.create(T2V, steps=0)
    with pytest.raises(ValueError, match=r"^steps must be at least 1"):
        Request.create(T2V, steps=0)


def test_incomplete_dictionaries_are_refused():
    values = Request.create(T2V).to_dict()
    del values["steps"], values["boundary"]
    with pytest.raises(ValueError, match="lacks steps"):
        Request.from_dict(values)


@pytest.mark.parametrize("text, pair", [("5", (5.0, 5.0)), ("3,4", (3.0, 4.0)), ("3.5, 1", (3.5, 1.0))])
def test_guidance_texts(text, pair):
    assert parse_guidance(text) == pair
    assert parse_guidance(format_guidance(pair)) == pair


@pytest.mark.parametrize("text", ["", "a", "1,2,3", "3;4"])
def test_bad_guidance_texts(text):
    with pytest.raises(ValueError, match="one number or low,high"):
        parse_guidance(text)


# ---------------------------------------------------------------- images


def test_the_size_follows_the_image(photo):
    request = Request.create(I2V, image=photo, size=(832, 480), seed=1)
    assert request.framing == Framing((832, 480), (768, 512), (768, 512))
    assert (request.image.path, request.image.size) == (str(photo), (60, 40))
    request = Request.create(TI2V, image=str(photo))
    assert request.framing == Framing((1280, 704), (1152, 768), (1152, 768))
    assert Request.create(TI2V).framing.used == (1280, 704)


def test_an_area_takes_the_place_of_a_size(photo):
    assert Request.create(I2V, image=photo, max_area=480 * 832).framing.used == (768, 512)
    assert Request.create(TI2V, image=photo, size=(64, 64), max_area=704 * 1280).framing.used == (1152, 768)
    assert Request.create(TI2V, size=(64, 64), max_area=704 * 1280).framing.used == (64, 64)


@pytest.mark.parametrize("fit", ["crop", "pad", "exact"])
def test_other_fits_save_what_was_asked(photo, fit):
    request = Request.create(I2V, image=photo, size=(100, 100), fit=fit)
    assert request.framing.saved == (100, 100) and request.fit == fit
    assert request.framing.used == ((96, 64) if fit == "pad" else (112, 112))


def test_the_last_image_alone_decides_the_size(photo):
    request = Request.create(I2V, last_image=photo, size=(832, 480))
    assert request.framing.used == (768, 512) and request.shape_image is request.last_image
    both = Request.create(I2V, image=Image.new("RGB", (40, 40)), last_image=photo, size=(832, 480))
    assert both.framing.used == (624, 624) and both.shape_image is both.image


def test_an_image_may_do_without_a_prompt(photo):
    assert Request.create(I2V, prompt="", image=photo).prompt == ""
    assert Request.create(I2V, image=photo).prompt == "", "the example of the task describes another picture"
    assert Request.create(TI2V).prompt == TI2V.prompt
    with pytest.raises(ValueError, match="the prompt is empty"):
        Request.create(TI2V, prompt="")


def test_an_image_from_memory_is_as_good(photo):
    image = Image.open(photo)
    request = Request.create(I2V, image=image)
    assert request.image.path is None and request.image.size == (60, 40)
    np.testing.assert_array_equal(request.image.pixels, image)


def test_the_hash_recognises_a_file(photo, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.read_bytes())
    assert Request.create(I2V, image=copy).image.sha256 == Request.create(I2V, image=photo).image.sha256
    Image.new("RGB", (60, 40)).save(copy)
    assert Request.create(I2V, image=copy).image.sha256 != Request.create(I2V, image=photo).image.sha256


def test_dictionary_round_trip_with_images(photo):
    request = Request.create(I2V, image=photo, last_image=photo, fit="pad", size=(100, 90), seed=5)
    stored = Request.from_dict(request.to_dict())
    assert stored == request and stored.image.pixels is None
    plain = Request.create(T2V, seed=1).to_dict()
    assert not {"image", "last_image", "audio", "num_clip"} & plain.keys(), "it is not of that task"
    for later in ("used", "saved"):
        del plain[later]
    assert Request.from_dict(plain) == Request.create(T2V, seed=1), "as stored before there were images"


@pytest.mark.parametrize(
    "config, values, text",
    [
        (I2V, {}, "task i2v-A14B needs image (or last_image)"),
        (WAN_CONFIGS["animate-14B"], {"image": "photo"}, "animate-14B is not made from image; leave it out"),
        (WAN_CONFIGS["animate-14B"], {}, "task animate-14B needs performance"),
        (T2V, {"image": "photo"}, "t2v-A14B is not made from image; leave it out"),
        (TI2V, {"last_image": "photo"}, "ti2v-5B is not made from last_image; leave it out"),
        (I2V, {"image": "gone.png"}, "there is no image gone.png"),
        (I2V, {"image": 5}, "image is a path or a PIL image, got int"),
        (
            I2V,
            {"image": "photo", "last_image": "photo", "frame_num": 1},
            "frame_num 1 has no room for both image and last_image; leave one out, or try 5",
        ),
        (I2V, {"image": "photo", "fit": "zoom"}, "unknown fit 'zoom'; choose one of area, crop, pad, exact"),
        (TI2V, {"fit": "crop"}, "fit crop is about an image, and none was given; leave it out"),
        (I2V, {"image": "photo", "fit": "crop", "max_area": 4096}, "fit crop needs a size, (width, height)"),
        (I2V, {"image": "photo", "fit": "crop", "size": (8, 8)}, "size 8*8 is not possible"),
        (T2V, {"size": (16, 32_000)}, "size 16*32000 is not possible"),
        (I2V, {"image": "photo", "max_area": 0}, "an area of 0 pixels is not possible: it must be 256 to"),
        (TI2V, {"image": "photo", "max_area": -5}, "an area of -5 pixels is not possible: it must be 1024 to"),
        *(
            (config, {"image": "photo", "size": size}, f"whole pixels, for example (1280, 720), got {size!r}")
            for config in (I2V, TI2V)
            for size in ((0, 0), (832,), 832, (832, 480, 3), (832.5, 480), (-832, 480))
        ),
        (T2V, {"size": "832by480"}, "size must be WIDTH*HEIGHT in pixels, for example 1280*720, got '832by480'"),
        (T2V, {"frame_num": 4097}, "frame_num can be at most 4093, got 4097"),
    ],
)
def test_errors_about_images_and_sizes(photo, config, values, text):
    values = {name: photo if value == "photo" else value for name, value in values.items()}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Request.create(config, **values)
    assert text in str(error.value)

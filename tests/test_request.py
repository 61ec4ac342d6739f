"""What is asked: defaults, checks and their texts, round trips."""

import pytest

from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.framing import Framing
from wan.request import (
    MAX_SEED,
    Request,
    check_supported_size,
    draw_seed,
    format_guidance,
    nearest_size,
    parse_guidance,
)

T2V = WAN_CONFIGS["t2v-A14B"]
NANO = NANO_CONFIGS["t2v-A14B"]


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
        ({"steps": 0}, "sample_steps must be at least 1, got 0"),
        ({"steps": 1001}, "sample_steps can be at most 1000"),
        ({"shift": 0.0}, "sample_shift must be above 0, got 0"),
        ({"shift": float("nan")}, "sample_shift must be above 0, got nan"),
        ({"guidance": -1.0}, "sample_guide_scale must be 0 or more, got -1"),
        ({"guidance": (1.0, float("inf"))}, "got 1,inf"),
        ({"guidance": (1.0, 2.0, 3.0)}, "one number or (low, high)"),
        ({"solver": "ddim"}, "unknown sample_solver 'ddim'; choose one of unipc, dpm++, euler"),
        ({"seed": 2**63}, "the seed must lie in 0..9223372036854775807"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"boundary": 1.5}, "boundary is a share of the timesteps and must lie in 0..1, got 1.5"),
        ({"noise_device": "gpu"}, "unknown noise_device 'gpu'; choose one of default, cpu"),
    ],
)
def test_errors_name_value_rule_and_choice(values, text):
    with pytest.raises(ValueError) as error:
        Request.create(T2V, **values)
    assert text in str(error.value)


def test_a_boundary_needs_two_experts():
    with pytest.raises(ValueError, match="has one model; leave it out"):
        Request.create(WAN_CONFIGS["ti2v-5B"], boundary=0.5)


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

"""Remarks on a request that is too much for a toy model."""

import numpy as np
import pytest

from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.nano.remarks import expected_seconds, remarks, unknown_words, vocabulary
from wan.nano.worlds import BACKGROUNDS, COLORS, MOTIONS, SHAPES, caption, sample_scene
from wan.request import Request, check_supported_size
from wan.text2video import WanT2V

CONFIG = NANO_CONFIGS["t2v-A14B"]


def said(request):
    return list(remarks(CONFIG, request, [shape(request)]))


def shape(request):
    return WanT2V.latent_shape(CONFIG, request)


def request(prompt="a red circle moves right", **changes):
    return Request.create(CONFIG, prompt=prompt, seed=1, **changes)


def test_every_word_of_every_caption_is_known():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        assert unknown_words(caption(sample_scene(rng, "all"), rng)) == []
    for config in NANO_CONFIGS.values():
        assert unknown_words(config.prompt) == [] or not config.has_example


def test_words_that_it_does_not_know_are_named_once_with_those_it_knows():
    (line,) = said(request("a CAT and a cat dance on a red wall, 熊\x1b[2J"))
    assert "does not know 'cat', 'dance', '熊'" in line and line.count("'cat'") == 1 and line.isprintable()
    assert all(word in line for word in (*SHAPES, *COLORS, *BACKGROUNDS, *MOTIONS)) and vocabulary() in line
    (line,) = said(request(" ".join("bcdfghjklmnp")))
    assert "'k' and 4 more, and guesses" in line
    assert said(request()) == [] == said(request(CONFIG.prompt))


@pytest.mark.parametrize("changes", [{"frame_num": 4093}, {"size": (512, 512), "frame_num": 81}, {"steps": 1000}])
def test_far_beyond_its_size_it_says_how_long_that_takes(changes):
    (line,) = said(request(**changes))
    assert "far beyond the nano model" in line and ("minutes" in line or "hours" in line)
    long, usual = (expected_seconds(CONFIG, given, shape(given)) for given in (request(**changes), request()))
    assert long > 5 * usual


def test_a_size_of_the_released_model_is_said_to_be_one():
    with pytest.raises(ValueError, match=r"try 64\*64; the released model has 1280\*720: give its"):
        check_supported_size(CONFIG, (1280, 720))
    with pytest.raises(ValueError, match=r"try 64\*64$"):
        check_supported_size(CONFIG, (1000, 700))
    with pytest.raises(ValueError, match=r"try 1280\*720 \(it has [^)]*\)$"):
        check_supported_size(WAN_CONFIGS["t2v-A14B"], (1281, 720))

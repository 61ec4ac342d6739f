"""Text, with or without an image, to video on random miniatures: one model, and a first frame that stays."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import sample
from wan import WanTI2V
from wan.configs import NANO_CONFIGS
from wan.framing import cover
from wan.media import to_uint8
from wan.modules.model import time_features
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime

CONFIG = NANO_CONFIGS["ti2v-5B"]
FLOAT32 = Runtime.from_flags(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("random"), "ti2v-5B")
    return WanTI2V(CONFIG, folder, runtime=FLOAT32)


def photo(seed=0, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def request(**changes):
    values = {"prompt": "a red circle", "size": (96, 64), "frame_num": 9, "steps": 3, "seed": 1}
    return Request.create(CONFIG, **values | changes)


def calls_of(pipeline, asked):
    """Return the calls of the model while `asked` is sampled, and the final latent."""
    calls = []
    handle = pipeline.weights.get(".").register_forward_pre_hook(lambda _, args: calls.append(args))
    latent = sample(pipeline, asked)
    handle.remove()
    return calls, latent


# ---------------------------------------------------------------- the first frame


def test_the_first_latent_frame_is_the_image_after_every_step(pipeline):
    asked = request(image=photo())
    first = pipeline.vae.encode([asked.given_frame(asked.image)[:, None]])[0]
    seen = []
    sample(pipeline, asked, lambda done, total, latent: seen.append(latent.clone()))
    assert len(seen) == 3
    for latent in seen:
        assert torch.equal(latent[:, :1], first)
    assert not torch.equal(seen[0][:, 1:], seen[1][:, 1:])


def test_tokens_of_the_image_are_clean_and_the_others_carry_the_timestep(pipeline):
    calls, latent = calls_of(pipeline, request(image=photo()))
    assert len(calls) == 6, "two branches of guidance for each of three steps"
    rows, columns = (side // 2 for side in latent.shape[2:])
    for step in range(3):
        positive, negative = calls[2 * step : 2 * step + 2]
        assert torch.equal(positive[1], negative[1]) and torch.equal(positive[0][0], negative[0][0])
        features, prepared = positive[1:]
        assert torch.equal(features[1:], time_features(torch.tensor([0]), 256, features.device))
        assert (features[0] != features[1]).any() and prepared.num_timesteps == 2
        places = [(start, stop, rows.tolist()) for start, stop, rows in prepared.segments]
        assert places == [(0, rows * columns, [1]), (rows * columns, 3 * rows * columns, [0])]


def test_the_noise_of_an_image_is_that_of_a_text(pipeline):
    """The image takes the place of the noise of its frame; the other frames start from the same draw."""
    with_image, _ = calls_of(pipeline, request(image=photo(size=(96, 64))))
    without, _ = calls_of(pipeline, request())
    assert torch.equal(with_image[0][0][0][:, 1:], without[0][0][0][:, 1:])


def test_text_mode_is_an_ordinary_run(pipeline):
    calls, latent = calls_of(pipeline, request())
    assert all(prepared.num_timesteps == len(prepared.segments) == 1 for *_, prepared in calls)
    assert all(prepared.y is None for *_, prepared in calls)
    assert latent.shape == (48, 3, 4, 6)


def test_guidance_one_is_one_call_per_step(pipeline):
    calls, _ = calls_of(pipeline, request(image=photo(), guidance=1.0))
    assert len(calls) == 3


# ---------------------------------------------------------------- pixels and sizes


def test_cover_cuts_the_centre_out_of_the_scaled_image():
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (50, 0, 150, 100))
    assert cover(image, (100, 100)).getcolors() == [(10_000, (0, 0, 255))]
    assert cover(image, (200, 100)).tobytes() == image.tobytes()


@pytest.mark.parametrize("fit", ["crop", "pad", "exact"])
def test_the_model_sees_what_is_saved_of_the_image(fit):
    asked = request(image=photo(), fit=fit, size=(90, 70))
    frame = asked.given_frame(asked.image)
    assert frame.shape == (3, *asked.framing.used[::-1])
    assert to_uint8(asked.framing.finish(frame)[:, None]).shape == (1, 70, 90, 3)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (96, 64)),
        ({"img": photo()}, (160, 96)),
        ({"img": photo(size=(40, 60)), "max_area": 64 * 96}, (64, 96)),
        ({"img": photo(), "fit": "crop", "size": (50, 40)}, (50, 40)),
        ({"img": photo(), "fit": "pad", "size": (50, 70)}, (50, 70)),
        ({"img": photo(), "fit": "exact", "size": (33, 41)}, (34, 42)),
    ],
)
def test_generate_saves_the_size_that_the_fit_promises(pipeline, options, size):
    values = {"size": (96, 64), "max_area": 128 * 128, "frame_num": 5, "sampling_steps": 2, "seed": 3} | options
    video = pipeline.generate("a red circle", **values)
    assert video.shape == (3, 5, size[1], size[0]) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1


def test_one_frame_is_the_image_itself(pipeline):
    asked = request(image=photo(), frame_num=1)
    latent = sample(pipeline, asked)
    assert torch.equal(latent, pipeline.vae.encode([asked.given_frame(asked.image)[:, None]])[0])


def test_the_two_modes_by_upstreams_names(pipeline):
    values = {"frame_num": 5, "sampling_steps": 2, "seed": 3, "shift": 5.0, "guide_scale": 5.0}
    text = pipeline.t2v("a red circle", (96, 64), 5, 5.0, "unipc", 2, 5.0, "", 3)
    assert torch.equal(text, pipeline.generate("a red circle", size=(96, 64), **values))
    image = pipeline.i2v("a red circle", photo(), 128 * 128, 5, 5.0, "unipc", 2, 5.0, "", 3)
    assert torch.equal(image, pipeline.generate("a red circle", photo(), max_area=128 * 128, **values))
    with pytest.raises(ValueError, match="i2v needs img, an image or the path of one; t2v needs none"):
        pipeline.i2v("a red circle", None)

"""Image-to-video on random miniatures: the condition, its way to the model, and the sizes of the video."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import sample
from wan import WanI2V
from wan.conditioning import condition_clip, condition_mask
from wan.configs import NANO_CONFIGS, WAN_CONFIGS, nano_checkpoint
from wan.media import to_uint8
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Runtime

CONFIG = NANO_CONFIGS["i2v-A14B"]
FLOAT32 = Runtime.from_flags(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("random"), "i2v-A14B")


@pytest.fixture(scope="module")
def pipeline(folder):
    return WanI2V(CONFIG, folder, runtime=FLOAT32)


def photo(seed=0, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def request(**changes):
    values = {"prompt": "a red circle", "size": (64, 64), "frame_num": 5, "steps": 2, "seed": 1, "image": photo()}
    return Request.create(CONFIG, **values | changes)


# ---------------------------------------------------------------- the condition


@pytest.mark.parametrize(
    ("given", "frame_num", "rows"),
    [
        ([0], 9, ["111100000000"]),
        ([8], 9, ["000000000001"]),
        ([0, 8], 9, ["111100000001"]),
        ([0], 1, ["1111"]),
        ([3], 9, ["000000100000"]),
    ],
)
def test_the_mask_groups_video_frames_by_four(given, frame_num, rows):
    mask = condition_mask(given, frame_num, (len(rows[0]) // 4, 2, 3))
    assert mask.shape == (4, len(rows[0]) // 4, 2, 3)
    assert (mask == mask[:, :, :1, :1]).all()
    assert "".join(str(int(value)) for value in mask[:, :, 0, 0].T.flatten()) == rows[0]


def test_a_mask_per_pixel_gives_each_position_its_upper_left_pixel():
    keep = torch.rand(9, 32, 48)
    mask = condition_mask(keep, 9, (3, 4, 6))
    assert mask.shape == (4, 3, 4, 6)
    assert torch.equal(mask[:, 0], keep[:1, ::8, ::8].expand(4, -1, -1)), "the first frame is there four times"
    for latent_frame in (1, 2):
        start = 4 * (latent_frame - 1) + 1
        assert torch.equal(mask[:, latent_frame], keep[start : start + 4, ::8, ::8])
    whole = torch.zeros(9, 32, 48)
    whole[[0, 8]] = 1
    assert torch.equal(condition_mask(whole, 9, (3, 4, 6)), condition_mask([0, 8], 9, (3, 4, 6)))


def test_the_clip_holds_the_given_frames_and_grey():
    first, last = torch.rand(2, 3, 4, 6)
    clip = condition_clip({0: first, 8: last}, 9)
    assert torch.equal(clip[:, 0], first) and torch.equal(clip[:, 8], last) and not clip[:, 1:8].any()


def test_a_last_image_of_another_shape_is_cut_to_the_first_one():
    square = Image.new("RGB", (40, 40), "red")
    square.paste("blue", (0, 10, 40, 30))
    asked = request(image=Image.new("RGB", (80, 40)), last_image=square)
    assert asked.framing.used == (80, 32)
    frame = asked.given_frame(asked.last_image)
    assert frame.shape == (3, 32, 80)
    assert (frame[2] > 0.99).all() and (frame[0] < -0.99).all(), "only the blue half is in it"


@pytest.mark.parametrize("fit", ["area", "crop", "pad", "exact"])
def test_a_loop_starts_and_ends_with_the_same_pixels(fit):
    asked = request(last_image=photo(), fit=fit)
    assert torch.equal(asked.given_frame(asked.image), asked.given_frame(asked.last_image))


@pytest.mark.parametrize("fit", ["crop", "pad", "exact"])
def test_the_model_sees_what_is_saved_of_the_image(fit):
    asked = request(fit=fit, size=(50, 34))
    frame = asked.given_frame(asked.image)
    assert frame.shape == (3, *asked.framing.used[::-1])
    shown = to_uint8(asked.framing.finish(frame)[:, None])[0]
    assert shown.shape == (34, 50, 3)
    whole = photo().resize(asked.framing.content, Image.Resampling.LANCZOS)
    if fit == "exact":
        assert np.abs(shown.numpy().astype(int) - np.asarray(whole)).max() <= 1


# ---------------------------------------------------------------- where it arrives


def test_experts_and_branches_get_the_same_condition(pipeline):
    seen = []
    handles = [
        pipeline.weights.get(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.append((name, args[2].y[0]))
        )
        for name in CONFIG.experts
    ]
    asked = request(steps=3, boundary=0.875)
    sample(pipeline, asked)
    for handle in handles:
        handle.remove()
    assert [name for name, _ in seen] == ["high_noise_model"] * 2 + ["low_noise_model"] * 4
    y = seen[0][1]
    assert all(other is y for _, other in seen)
    width, height = asked.framing.used
    assert y.shape == (20, 2, height // 8, width // 8)
    assert y[:4, 0].eq(1).all() and not y[:4, 1].any()
    clip = condition_clip({0: asked.given_frame(asked.image)}, 5)
    torch.testing.assert_close(y[4:], pipeline.vae.encode([clip])[0])


def test_every_image_makes_a_difference(pipeline):
    latents = [
        sample(pipeline, request(**changes))
        for changes in (
            {},
            {"image": photo(1)},
            {"last_image": photo(1)},
            {"image": None, "last_image": photo()},
            {"prompt": ""},
        )
    ]
    assert len({tuple(latent.flatten()[:8].tolist()) for latent in latents}) == len(latents)
    assert torch.equal(sample(pipeline, request()), latents[0])


# ---------------------------------------------------------------- the public class


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (64, 48)),
        ({"max_area": 128 * 128}, (144, 96)),
        ({"size": (128, 128)}, (144, 96)),  # before max_area
        ({"fit": "crop", "size": (50, 40)}, (50, 40)),
        ({"fit": "pad", "size": (50, 70)}, (50, 70)),
        ({"fit": "exact", "size": (33, 41)}, (34, 42)),
        ({"img": None, "last_image": photo()}, (64, 48)),
        ({"img": photo(size=(3, 2))}, (64, 48)),
    ],
)
def test_generate_saves_the_size_that_the_fit_promises(pipeline, options, size):
    values = {"img": photo(), "max_area": 64 * 64, "frame_num": 5, "sampling_steps": 2, "seed": 3} | options
    video = pipeline.generate("a red circle", **values)
    assert video.shape == (3, 5, size[1], size[0]) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    assert list(pipeline.phases) == ["encode", "denoise", "decode"]


def test_files_and_images_are_the_same(pipeline, tmp_path):
    photo().save(tmp_path / "a.png")
    values = {"max_area": 64 * 64, "frame_num": 1, "sampling_steps": 1, "seed": 3}
    from_file = pipeline.generate("", tmp_path / "a.png", **values)
    assert torch.equal(from_file, pipeline.generate("", photo(), **values))


def test_an_image_is_needed_before_anything_is_loaded(folder):
    pipeline = WanI2V(CONFIG, folder, runtime=FLOAT32)
    with pytest.raises(ValueError, match=r"^task i2v-A14B needs img \(or last_image\)$"):
        pipeline.generate("a red circle")
    with pytest.raises(FileNotFoundError, match="there is no image gone"):
        pipeline.generate("a red circle", "gone.png")
    assert not pipeline.weights._modules and pipeline._vae is None and pipeline._text_encoder is None


def test_python_callers_read_the_names_of_arguments(folder):
    pipeline = WanI2V(CONFIG, folder, runtime=FLOAT32)
    for call, text in (
        ({}, "task i2v-A14B needs img (or last_image)"),
        ({"input_prompt": None, "img": photo()}, "input_prompt must be text, got None"),
        ({"input_prompt": 5, "img": photo()}, "input_prompt must be text, got 5"),
        ({"img": 5}, "img is a path or a PIL image, got int"),
        ({"img": photo(), "sampling_steps": 2.5}, "sampling_steps must be a whole number, got 2.5"),
        ({"img": photo(), "guide_scale": "3"}, "guide_scale must be a finite number, got '3'"),
        ({"img": photo(), "sample_solver": "ddim"}, "unknown sample_solver 'ddim'"),
        ({"img": photo(), "max_area": True}, "max_area must be a whole number, got True"),
        ({"img": photo(), "n_prompt": 5}, "n_prompt must be text, got 5"),
        (
            {"img": photo(), "last_image": photo(), "frame_num": 1},
            "no room for both img and last_image",
        ),
    ):
        with pytest.raises(ValueError) as error:
            pipeline.generate(**{"input_prompt": "a fox"} | call)
        assert text in str(error.value) and "--" not in str(error.value)


def test_a_nano_folder_with_the_released_config_is_told_its_own():
    with pytest.raises(ValueError, match=r"holds a model of the nano family; its config is wan\.configs\.get_config\("):
        WanI2V(WAN_CONFIGS["i2v-A14B"], nano_checkpoint("i2v-A14B"), runtime=FLOAT32)

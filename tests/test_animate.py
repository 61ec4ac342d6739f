"""Clips of character animation with stand-in networks: our choices, where upstream's are others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parity.animate_pipeline import StillFrames, Velocity, recorded_pipeline
from wan.animate import clips_of
from wan.clips import ClipSampled, FramesDecoded
from wan.configs import WAN_CONFIGS
from wan.framing import plain
from wan.performance import Footage, Performance
from wan.request import Request


def frames(count, height=32, width=48, seed=0):
    return StillFrames(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def request(count=20, faces=20, **changes):
    reference = changes.pop("reference", frames(1, 40, 40).frames[0])
    surroundings = frames(count, seed=3), changes.pop("mask", frames(count, seed=4))
    footage = Footage(frames(count), frames(faces, 16, 16), reference, *surroundings)
    config = WAN_CONFIGS["animate-14B"]
    values = {"frame_num": 9, "steps": 2, "shift": 5.0, "guidance": (1.0, 1.0), "solver": "unipc", "seed": 5, "fps": 30}
    return Request(
        task="animate-14B",
        prompt="a person moves",
        negative_prompt="",
        framing=plain((48, 32), config.vae_stride, config.patch_size),
        performance=Performance.of(footage),
        **values | {"as_upstream": False} | changes,
    )


def make(request, face_size=16, kept=()):
    """Make a video; return its frames, the sampled clips, the stand-in for the model, and the pictures for CLIP."""
    images, model = [], Velocity()
    pipeline = recorded_pipeline(images, face_size)
    pipeline.weights.add(".", lambda: model)
    events = list(pipeline.run(request, kept))
    video = torch.cat([event.frames for event in events if isinstance(event, FramesDecoded)], dim=1)
    return video, [event.clip for event in events if isinstance(event, ClipSampled)], model, images


@pytest.mark.parametrize(("count", "overlap"), [(1, 1), (2, 5), (9, 1), (10, 1), (20, 1), (23, 5)])
@pytest.mark.parametrize("as_upstream", [False, True])
def test_a_video_has_the_frames_of_its_pose(count, overlap, as_upstream):
    wanted = request(count, 3, frame_num=13, refert_num=overlap, as_upstream=as_upstream)
    video, clips, *_ = make(wanted)
    assert video.shape == (3, count, 32, 48) and len(clips) == len(clips_of(wanted))
    length = 13 if as_upstream else len(clips_of(wanted)[0])
    assert {clip.latent.shape[1] for clip in clips} == {1 + (length - 1) // 4 + 1}, "the first one is the reference"


def test_the_reference_is_encoded_once_for_all_clips():
    _, clips, model, images = make(request(20))
    assert len(clips) == 3 and len(images) == 1
    first, *others = (prepared.y[4:, 0] for prepared in model.prepared)
    assert all(torch.equal(first, other) for other in others)


def test_a_clip_begins_with_the_end_of_the_one_before():
    video, _, model, _ = make(request(20))
    for prepared, clip in zip(model.prepared[1:], clips_of(request(20))[1:]):
        assert torch.equal(prepared.y[:4, 1], torch.ones(4, 4, 6)), "the mask of the first latent frame"
        assert not prepared.y[:4, 2:].any()
        cells = torch.nn.functional.avg_pool2d(video[:, clip.start], 8)
        torch.testing.assert_close(prepared.y[4, 1], cells[0] / 16)


def test_each_clip_has_noise_of_its_own_seed():
    """So a clip does not depend on how many were made before it."""
    pipeline = recorded_pipeline([], 16)
    given = request(20)
    noises = [pipeline.noise(given, pipeline.clip(given, index, torch.zeros(3, 1, 32, 48))) for index in range(3)]
    assert not torch.equal(noises[0], noises[1])
    later = replace(given, seed=6)
    assert torch.equal(pipeline.noise(later, pipeline.clip(later, 0, None)), noises[1])


def test_a_run_that_goes_on_makes_the_same_video():
    for as_upstream in (False, True):
        wanted = request(20, as_upstream=as_upstream)
        video, clips, *_ = make(wanted)
        again, more, *_ = make(wanted, kept=clips[:2])
        assert torch.equal(again, video) and len(more) == len(clips) - 2


def test_masks_are_thresholded_and_upstreams_are_soft():
    mask = StillFrames(np.full((9, 32, 48, 3), 100, np.uint8))
    mask.frames[:, :16] = 250
    for as_upstream, levels in ((False, [0, 1]), (True, [1 - 250 / 255, 1 - 100 / 255])):
        _, _, model, _ = make(request(9, mask=mask, replace_flag=True, as_upstream=as_upstream))
        keep = model.prepared[0].y[:4, 1:]
        assert torch.equal(model.prepared[0].y[:4, 0], torch.ones(4, 4, 6)), "the reference is known"
        torch.testing.assert_close(keep.unique(), torch.tensor(levels, dtype=torch.float32))
        torch.testing.assert_close(keep[:, :, :2], torch.full((4, 3, 2, 6), levels[0], dtype=torch.float32))


def test_replacement_sees_the_background_and_animation_grey():
    given = request(9, replace_flag=True)
    background = torch.from_numpy(given.performance.footage.background.frames).movedim(-1, 0) / 127.5 - 1
    for flag, wanted in ((True, background), (False, torch.zeros(3, 9, 32, 48))):
        _, _, model, _ = make(replace(given, replace_flag=flag))
        cells = torch.nn.functional.avg_pool2d(wanted[:, 0], 8)
        torch.testing.assert_close(model.prepared[0].y[4:7, 1], cells * torch.tensor([1, 2, 3])[:, None, None] / 16)


def test_faces_of_another_size_are_resized():
    _, _, model, _ = make(request(9, 9), face_size=8)
    given = torch.from_numpy(request(9, 9).performance.footage.face.frames).float() / 127.5 - 1
    torch.testing.assert_close(model.prepared[0].faces, given.mean(dim=(1, 2, 3)), atol=0.05, rtol=0)


def test_large_pictures_are_antialiased():
    stripes = np.zeros((320, 480, 3), np.uint8)
    stripes[:, ::2] = 255
    spread = {}
    for as_upstream in (False, True):
        given = request(9, as_upstream=as_upstream, reference=stripes[:, 7:])
        [image] = make(given)[3]
        spread[as_upstream] = image[:, 2:-2, 2:-2].std()
    assert spread[False] < 0.1 < 0.2 < spread[True]


def test_guidance_has_a_blank_face_and_the_negative_prompt():
    _, _, model, _ = make(request(20, guidance=(2.0, 2.0)))
    assert len(model.prepared) == 6
    for positive, negative in zip(model.prepared[::2], model.prepared[1::2]):
        assert negative.faces.tolist() == [-1] and len(positive.faces) == len(clips_of(request(20))[0])
        assert torch.equal(positive.y, negative.y) and positive.context.mean() == 0.5 == -negative.context.mean()

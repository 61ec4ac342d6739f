"""Training data of character animation, and the files that the recipe writes."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wan.modules.animate.clip import ClipConfig, ClipVision, load_clip, released_state
from wan.nano import puppet_videos, puppets
from wan.nano.recipes import animate, watcher
from wan.training.data import CacheWriter


@pytest.fixture(scope="module")
def shots() -> list[animate.Shot]:
    return list(animate.shots(5, 3))


def test_two_of_five_shots_have_surroundings_and_the_others_nothing(shots):
    for index, shot in enumerate(shots):
        (video, keep), _ = shot.known
        assert video.shape == (33, 64, 64, 3) and keep.shape == (33, 64, 64)
        if index < 2:
            changed = np.abs(shot.video.astype(float) - video).mean(-1)
            assert 0.1 < keep.mean() < 0.95 and changed[keep > 0].mean() < 4, "what is kept is the ground"
            assert video[keep == 0].mean() < 10, "and the place of the figure is black"
        else:
            assert (video == 127.5).all() and not keep.any()


def test_later_clips_know_their_first_frames(shots):
    for shot in shots:
        (first, kept), (later, keep) = shot.known
        whole = keep.all((1, 2))
        count = int(whole.sum()) if not kept.all((1, 2)).any() else 0
        assert count in animate.TAILS and whole[:count].all()
        assert np.abs(later[:count] - shot.video[:count]).mean() < 25
        assert np.array_equal(later[count:], first[count:]) and np.array_equal(keep[count:], kept[count:])


def test_the_pose_is_that_of_the_video(shots):
    for shot in shots:
        lit = (shot.pose > 60).any(-1)
        moved = np.abs(np.diff(shot.video.astype(float), axis=0)).mean(-1) > 8
        near = puppet_videos.grown(lit[1:] | lit[:-1], 4, "grown")
        assert lit.any((1, 2)).all() and moved[~near].mean() < 0.1 * max(moved[near].mean(), 1e-6) + 0.02


def test_faces_have_the_size_of_the_motion_encoder(shots):
    assert all(face.shape == (33, 32, 32, 3) for shot in shots for face in shot.faces)


def test_cut_faces_look_like_drawn_ones():
    rng = np.random.default_rng(0)
    puppet, motion = puppets.sample_puppet(rng), puppets.sample_motion(rng, 3)
    box = puppets.face_box(puppet, motion, puppets.joints(puppet, motion))
    drawn = puppet_videos.render(puppet, motion, 32, box).video.astype(float)
    found = watcher.cut(puppet_videos.render(puppet, motion, 256).video, box, 32)
    assert np.abs(found - drawn).mean() < 6


def test_a_share_of_samples_has_neither_text_nor_face(tmp_path):
    writer = CacheWriter(tmp_path)
    inputs = {"face_pixel_values": torch.stack([torch.full((5, 4), 1.0), torch.full((5, 4), 2.0)])}
    writer.add(torch.zeros(2, 3, 4, 4), ["a caption"], [torch.ones(1, 3, 4, 4)], inputs)
    writer.close()
    batch = animate.Drawn(tmp_path, torch.full((4,), -1.0)).draw(400, 0, 0)
    faces = batch.inputs["face_pixel_values"][:, 0, 0]
    assert batch.inputs["face_pixel_values"].shape == (400, 5, 4)
    assert set(faces.tolist()) == {-1.0, 1.0, 2.0} and 20 < (faces == -1).sum() < 60
    assert [caption == "" for caption in batch.captions] == (faces == -1).tolist()


def test_stored_videos_lose_colours_in_two_of_three_draws():
    rng = np.random.default_rng(1)
    video = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    made = [animate.stored(rng, video) for _ in range(40)]
    assert 6 < sum(np.array_equal(one, video) for one in made) < 28
    light = np.array([0.2126, 0.7152, 0.0722])
    changed = next(one for one in made if not np.array_equal(one, video))
    assert changed.dtype == np.float32 and changed.min() >= 0 and changed.max() <= 255
    grey = np.repeat(video[..., :1], 3, axis=-1)
    assert np.abs(animate.stored(rng, grey) @ light - grey @ light).mean() < 6


def test_a_tower_is_found_again_under_the_released_names(tmp_path):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = ClipVision(ClipConfig(image_size=8, patch_size=4, dim=16, mlp_dim=24, num_heads=16, num_layers=2))
    save_file(
        {name: tensor.contiguous() for name, tensor in released_state(vision).items()}, tmp_path / "clip.safetensors"
    )
    again = load_clip(tmp_path / "clip.safetensors")
    assert again.config == vision.config
    picture = torch.rand(3, 20, 12) * 2 - 1
    torch.testing.assert_close(again.encode(picture), vision.encode(picture))

"""Training data of speech-to-video: every part of a sample belongs to the same time."""

import numpy as np
import torch
from torch import nn

from wan.nano import faces
from wan.nano.recipes import s2v
from wan.training.data import CacheWriter, LatentCache

LAST = 1 + s2v.FRAMES // 4


def counted(frames: int) -> torch.Tensor:
    """Latents whose values are their own numbers."""
    return torch.arange(frames).float().view(1, -1, 1, 1).expand(2, frames, 2, 2)


def cut(length: int, pose: torch.Tensor | None) -> list:
    features = torch.arange(s2v.FRAMES).float().expand(2, 3, s2v.FRAMES)
    rng = np.random.default_rng(0)
    return list(s2v.clips(counted(LAST), 100 + counted(LAST), pose, features, length, rng))


def test_a_first_clip_has_no_history():
    latent, inputs = cut(s2v.WHOLE, None)[0]
    assert latent[0, :, 0, 0].tolist() == list(range(1, 21))
    assert set(inputs) == {"ref_latents", "audio_input"} and not inputs["ref_latents"].any()
    assert inputs["audio_input"][0, 0].tolist() == list(range(80))


def test_speech_pose_and_history_of_a_later_clip_fit_its_frames():
    later = cut(s2v.SHORT, counted(LAST - 1))[1:]
    assert len(later) == s2v.STARTS[s2v.SHORT]
    for latent, inputs in later:
        start = int(latent[0, 0, 0, 0])  # its frames are 4 * start - 3 and following, behind the reference picture
        assert inputs["audio_input"][0, 0].tolist() == list(range(4 * start - 4, 4 * start + 28))
        assert inputs["cond_states"][0, :, 0, 0].tolist() == list(range(start - 1, start + 7))
        history = inputs["motion_latents"][0, :, 0, 0].tolist()
        assert history == [100 + start - 19, *range(start - 18, start)]  # the first one is a picture of its own


class Deaf(nn.Module):
    """Speech encoder whose states are the numbers of their samples' windows."""

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        states = torch.arange((len(samples) - 400) // 320 + 1).float()
        return states.view(1, -1, 1).expand(2, len(states), 3)


def test_faces_talk_three_frames_behind_their_sound_and_every_second_one_follows_a_pose():
    made = list(s2v.talks(5, 3, Deaf(), 32))
    assert [talk.pose is not None for talk in made] == [True, True, False, False, False]
    for talk in made:
        assert talk.video.shape == (33, 64, 64, 3) and talk.features.shape == (2, 3, 32)
        heard = talk.features[0, 0]
        assert torch.equal(heard[:4], heard[:1].expand(4)) and (heard[4:].diff() > 0).all()
        mouth = faces.opening(talk.video[1:])
        assert np.allclose(mouth[:4], mouth[0], atol=0.1)


def test_samples_go_through_the_cache(tmp_path):
    writer = CacheWriter(tmp_path)
    for pose in (None, counted(LAST - 1)):
        for latent, inputs in cut(s2v.SHORT, pose):
            writer.add(latent, ["a"], inputs=inputs)
    writer.close()
    names = {tuple(sorted(LatentCache(tmp_path).draw(2, 0, index).inputs)) for index in range(40)}
    assert len(names) == 4  # with and without history, with and without a pose

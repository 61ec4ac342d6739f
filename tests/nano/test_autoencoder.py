"""The recipes' training of an autoencoder."""

import numpy as np
import pytest
import torch

from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config
from wan.nano.recipes import autoencoder, common
from wan.nano.worlds import contrast, sample_scene

TINY = VAE2_2Config(dim=4, dec_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1, temporal_downsample=(False, True, True))


@pytest.mark.parametrize("encoder", [False, True])
def test_outlines_leave_out_channels_that_carry_nothing(tmp_path, monkeypatch, encoder):
    monkeypatch.setattr(autoencoder, "compile_parts", lambda vae: None)
    vae = CausalVAE2_2(TINY)
    vae.init_weights(torch.Generator().manual_seed(0))
    vae.requires_grad_(False)
    vae.conv2.weight[:, 16:] = 0
    vae.conv1.weight[16:] = 0
    vae.conv1.bias[16:] = 0.5
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    videos = np.random.default_rng(0).integers(0, 255, (2, 5, 32, 32, 3), np.uint8)
    autoencoder.train_outlines(vae, videos, (1.0, 5, 32, 1), 2, tmp_path, encoder=encoder)
    after = vae.state_dict()
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == ({"decoder", "conv2", "encoder", "conv1"} if encoder else {"decoder", "conv2"})
    assert not vae.conv2.weight[:, 16:].any()
    assert (vae.conv2.weight != before["conv2.weight"])[:, :16].any()
    assert not vae.conv1.weight[16:].any()
    torch.testing.assert_close(vae.conv1.bias[16:], before["conv1.bias"][16:], atol=1e-6, rtol=0)  # weight decay


def test_faint_videos_are_of_faint_scenes(tmp_path):
    rng = np.random.default_rng(3)
    faint = [scene for scene in (sample_scene(rng, "train") for _ in range(40)) if contrast(scene) < 140][:2]
    videos = common.rendered(tmp_path / "faint.npy", 2, "train", seed=3, size=32, contrast=140.0)
    for video, scene in zip(videos, faint, strict=True):
        assert contrast(scene) < 140
        np.testing.assert_array_equal(video, common.worlds.render(scene, common.FRAMES, 32))

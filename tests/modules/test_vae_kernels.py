"""The CPU kernels equal padding, concatenation and PyTorch's convolutions."""

import pytest
import torch
import torch.nn.functional as F

from wan.modules import vae_inference, vae_kernels
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config
from wan.modules.vae_inference import prepare
from wan.modules.vae_kernels import causal_conv3d, upsample_conv2d


@pytest.fixture(autouse=True)
def inference(monkeypatch):
    """Switch gradients off; make bands of few rows, so that small frames have several; allow small frames."""
    monkeypatch.setattr(vae_kernels, "BAND_BYTES", 3000)
    monkeypatch.setattr(vae_inference, "MIN_POSITIONS", 1)
    with torch.no_grad():
        yield


def convolution(channels: int, out: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(out, channels, 3, 3, 3) / (27 * channels) ** 0.5, torch.randn(out)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("has_history", [False, True])
@pytest.mark.parametrize("height", [1, 11, 38])  # one band, and several of which the last is cut short
def test_causal_convolution(frames, has_history, height):
    x, history = torch.randn(2, 24, frames, height, 5), torch.randn(2, 24, 2, height, 5)
    weight, bias = convolution(24, 40)
    before = history if has_history else torch.zeros_like(history)
    sequence = torch.cat([before, x], dim=2)
    y, moved = causal_conv3d(x, history.clone() if has_history else None, weight, bias)
    torch.testing.assert_close(y, F.conv3d(sequence, weight, bias, padding=(0, 1, 1)), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(moved, sequence[:, :, -2:])


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_norm_residual_and_overwriting_belong_to_the_same_pass(frames):
    x = torch.randn(1, 16, frames, 9, 7).contiguous(memory_format=torch.channels_last_3d)
    x[:, :, :, 3, 3] = 0  # a zero vector stays zero
    history, residual, gain = torch.randn(1, 16, 2, 9, 7), torch.randn(1, 16, frames, 9, 7), torch.rand(16)
    weight, bias = convolution(16, 16)
    activated = F.silu(F.normalize(x, dim=1, eps=1e-12) * gain.view(-1, 1, 1, 1))
    sequence = torch.cat([history, activated], dim=2)
    expected = F.conv3d(sequence, weight, bias, padding=(0, 1, 1)) + residual
    y, moved = causal_conv3d(x, history, weight, bias, gain=gain, residual=residual, overwrite=True)
    torch.testing.assert_close(y, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(moved, sequence[:, :, -2:], atol=1e-6, rtol=1e-5)
    assert y.data_ptr() == x.data_ptr()


def test_upsampling_convolution_without_the_doubled_image():
    x, weight, bias = torch.randn(3, 8, 5, 7), torch.randn(4, 8, 3, 3) / 9, torch.randn(4)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(upsample_conv2d(x, weight, bias), expected, atol=1e-5, rtol=1e-4)


MODELS = [
    lambda: CausalVAE2_1(VAEConfig(64, 64, (1, 2), 1, (True,))),
    lambda: CausalVAE2_2(VAE2_2Config(64, 64, (2, 2), 1, (True,), dec_dim=32)),
]


def built(build):
    model = build()
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels that run, in order."""
    names = []
    for kernel in (causal_conv3d, upsample_conv2d):

        def counted(*args, kernel=kernel, **options):
            names.append(kernel.__name__)
            return kernel(*args, **options)

        monkeypatch.setattr(vae_inference, kernel.__name__, counted)
    return names


@pytest.mark.parametrize("build", MODELS, ids=["2.1", "2.2"])
def test_a_whole_model_gives_what_its_plain_blocks_give(build, calls):
    model = built(build)
    z, video = torch.randn(2, 64, 6, 5, 3), torch.randn(2, 3, 9, 12, 8)
    decoded, mean, names = model.decode(z), model.encode(video), list(model.state_dict())
    assert calls == []
    prepare(model, torch.device("cpu"))
    for chunk in (None, 1, 4):
        torch.testing.assert_close(model.decode(z, chunk), decoded, atol=1e-4, rtol=1e-4)
    assert set(calls) == {"causal_conv3d", "upsample_conv2d"}
    torch.testing.assert_close(model.encode(video, 4), mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(z, 4, tile=3), decoded, atol=1e-4, rtol=1e-4)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("build", MODELS, ids=["2.1", "2.2"])
def test_a_model_with_kernels_still_trains_as_the_plain_one(build, calls):
    model, plain = built(build), built(build)
    prepare(model, torch.device("cpu"))
    z, video = torch.randn(1, 64, 2, 4, 4), torch.randn(1, 3, 5, 8, 8)
    with torch.enable_grad():
        for network in (model.train(), plain.train()):
            (network.decode(z).square().mean() + network.encode(video).square().mean()).backward()
    assert calls == []
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_wrapper_has_them_on_a_cpu_however_it_is_made(tmp_path, calls):
    model = CausalVAE2_1(VAEConfig(64, 16, (1, 1, 1, 1), 1))
    torch.save(model.state_dict(), tmp_path / "vae.pth")
    latent = torch.randn(16, 1, 2, 2)
    for vae in (Wan2_1_VAE(model=model), Wan2_1_VAE(vae_pth=tmp_path / "vae.pth")):
        vae.decode([latent])
        assert set(calls) == {"causal_conv3d", "upsample_conv2d"}
        calls.clear()


@pytest.mark.parametrize("build", MODELS, ids=["2.1", "2.2"])
def test_input_is_never_changed(build):
    model = build().eval()
    prepare(model, torch.device("cpu"))
    z, video = torch.randn(1, 64, 3, 4, 4), torch.randn(1, 3, 5, 8, 8)
    copies = z.clone(), video.clone()
    model.decode(z, 4)
    model.encode(video, 4)
    assert torch.equal(z, copies[0]) and torch.equal(video, copies[1])


def test_only_float32_inference_on_a_cpu_is_meant():
    x, weight = torch.zeros(1, 64, 1, 4, 4), torch.zeros(64, 64, 3, 3, 3)
    assert vae_inference.suits(x, weight)
    assert not vae_inference.suits(x.bfloat16(), weight)
    assert not vae_inference.suits(x.to("meta"), weight)
    assert not vae_inference.suits(x[:, :8], weight[:, :8])
    with torch.enable_grad():
        assert not vae_inference.suits(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not vae_inference.suits(x, weight)

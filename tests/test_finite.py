"""Values that are not finite end a run, in every stage."""

import logging
from pathlib import Path

import pytest
import torch

from tests.command_line import NANO, files
from tests.runs import sample
from tests.test_pipeline import FLOAT32, folder, pipeline, request  # noqa: F401 - fixtures
from wan import cli, output, planning
from wan.finite import FiniteCheck
from wan.memory import Weights
from wan.modules.t5 import T5Encoder
from wan.modules.vae_wrapper import VideoVAE

NAN, INF = float("nan"), float("inf")


def test_the_answer_is_read_one_step_later():
    check = FiniteCheck()
    check.read()
    check.note(torch.zeros(2), "step 1")
    check.read()
    check.note(torch.tensor([0, -INF]), "step 2")
    with pytest.raises(FloatingPointError, match="step 2 gave values that are not finite"):
        check.read()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "expert, boundary, stage",
    [("high_noise_model", 0.0, "step 1 of 3"), ("low_noise_model", 0.9, "step [23] of 3")],
)
def test_a_broken_expert_ends_the_run_with_the_step(pipeline, value, expert, boundary, stage):  # noqa: F811
    pipeline.weights.get(expert).head.head.bias.fill_(value)
    with pytest.raises(FloatingPointError, match=f"denoising {stage} gave values that are not finite"):
        sample(pipeline, request(boundary=boundary))


def test_the_last_step_counts_too(pipeline):  # noqa: F811
    pipeline.weights.get("low_noise_model").head.head.bias.fill_(NAN)
    with pytest.raises(FloatingPointError, match="denoising step 1 of 1"):
        sample(pipeline, request(steps=1, boundary=1.0))


def test_a_guidance_that_overflows(pipeline):  # noqa: F811
    with pytest.raises(FloatingPointError, match="the guidance too high"):
        sample(pipeline, request(guidance=1e38))


def test_a_broken_text_encoder_is_named(pipeline, monkeypatch):  # noqa: F811
    usual = T5Encoder.forward
    monkeypatch.setattr(T5Encoder, "forward", lambda *args: usual(*args) * NAN)
    with pytest.raises(FloatingPointError, match="the text encoder gave values"):
        sample(pipeline, request())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_decoding_is_checked_before_values_are_clamped(pipeline, value):  # noqa: F811
    latent = torch.randn(16, 2, 4, 4)
    pipeline.vae.model.decoder.head[2].bias.fill_(value)
    with pytest.raises(FloatingPointError, match="decoding gave values that are not finite"):
        list(pipeline.decode(latent))


def test_encoding_an_image_is_checked(pipeline):  # noqa: F811
    pipeline.vae.model.conv1.bias.fill_(NAN)
    with pytest.raises(FloatingPointError, match="encoding by the VAE"):
        pipeline.vae.encode([torch.zeros(3, 1, 16, 16)])


def test_one_flat_colour_is_warned_about(pipeline, caplog):  # noqa: F811
    list(pipeline.decode(torch.randn(16, 2, 4, 4)))
    assert "one flat colour" not in caplog.text
    pipeline.vae.model.decoder.head[2].weight.mul_(1e-6)
    list(pipeline.decode(torch.zeros(16, 2, 4, 4)))
    assert "one flat colour" not in caplog.text, "the latent is flat as well"
    list(pipeline.decode(torch.randn(16, 9, 4, 4)))
    assert caplog.text.count("one flat colour, and the latent has not") == 1


@pytest.fixture
def nano(monkeypatch, tmp_path, folder):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: folder)


def test_the_command_ends_with_1_and_keeps_nothing(nano, monkeypatch, capsys):
    usual = Weights.get

    def get(self, name):
        module = usual(self, name)
        if name == "low_noise_model":
            module.head.head.bias.data.fill_(NAN)
        return module

    monkeypatch.setattr(Weights, "get", get)
    assert cli.main([*NANO, "--frame_num", "1", "--sample_steps", "4", "--save_file", "a.mp4"]) == cli.FAILED
    error = capsys.readouterr().err
    assert "denoising step" in error and "Traceback" not in error and files() == []


def test_a_latent_stays_when_only_decoding_is_bad(nano, monkeypatch, capsys, caplog):
    caplog.set_level(logging.ERROR)
    usual = VideoVAE._next

    def broken(self, steps):
        chunk = usual(self, steps)
        return None if chunk is None else chunk * INF

    with monkeypatch.context() as patch:
        patch.setattr(VideoVAE, "_next", broken)
        assert cli.main([*NANO, "--frame_num", "5", "--sample_steps", "2", "--save_file", "a.mp4"]) == cli.FAILED
    assert "decoding gave values" in capsys.readouterr().err and files() == ["a.latent.safetensors"]
    assert bool(output.load_clip(Path("a.latent.safetensors")).latent.isfinite().all())
    assert cli.main(["--resume", "a.latent.safetensors", "--device", "cpu"]) == cli.DONE and files() == ["a.mp4"]

"""The speech-to-video transformer: what each input changes, what is computed once, what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.modules.s2v.tiny import CONFIG, SIZE, call, clip_inputs, randn, tiny_model
from wan.modules.model import time_features
from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.config import ONLY, S2VModelConfig

MANIFEST = Path(__file__).parents[2] / "data" / "state_dict" / "wan_s2v_14B.json"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_released_config_makes_the_names_and_shapes_of_the_released_checkpoint():
    manifest = json.loads(MANIFEST.read_text())
    config = S2VModelConfig.from_dict(manifest["about"]["config"])
    with torch.device("meta"):
        model = WanModel_S2V(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == manifest["tensors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameter_count"]
    assert config == S2VModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)


@pytest.mark.parametrize("field", ONLY)
def test_a_variant_without_weights_is_refused_by_the_name_of_its_field(field):
    other = not ONLY[field] if isinstance(ONLY[field], bool) else "another"
    with pytest.raises(ValueError, match=f"^{field} is {other!r}, and models with weights have {ONLY[field]!r}"):
        S2VModelConfig.from_dict(vars(CONFIG) | {field: other})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_inject_layers": (0, 3)}, r"audio_inject_layers must list blocks from 0 to 2, got \(0, 3\)"),
        ({"audio_inject_layers": (1, 1)}, "names a block twice"),
        ({"audio_inject_layers": 4}, "must list blocks"),
        ({"audio_dim": 0}, "audio_dim must be a whole number from 1"),
        ({"audio_layers": "25"}, "audio_layers must be a whole number"),
        ({"patch_size": (1, 4, 4)}, "patch_size must be"),
        ({"model_type": "t2v"}, "'t2v' is not one of s2v"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize("name", ["ref_latents", "motion_latents", "cond_states", "audio_input"])
def test_every_input_changes_the_velocity(model, name):
    given = clip_inputs()[name]
    other = given + 1 if name == "audio_input" else [given[0] + 1]
    assert not torch.allclose(call(model), call(model, **{name: other}), atol=1e-3)


def test_audio_changes_the_frames_that_hear_it_alone(model):
    """Frame j hears the audio frames 4j - 5 to 4j + 3; one block has no attention that could spread it."""
    one = tiny_model(replace(CONFIG, num_layers=1, audio_inject_layers=(0,)))
    size, audio = (4, 8, 8), clip_inputs((4, 8, 8))["audio_input"]
    for heard in (0, 5, 9, 15):
        changed = audio.clone()
        changed[..., heard] += 1
        moved = (call(one, size=size) - call(one, size=size, audio_input=changed)).abs().amax(dim=(0, 2, 3)) > 1e-6
        start = 0 if heard == 0 else 4
        hears = [(start and heard in range(4 * j - 5, 4 * j + 4)) or (not start and 4 * j - 5 <= 0) for j in range(4)]
        assert moved.tolist() == hears


def test_no_pose_is_a_pose_of_zeros_and_dropped_history_is_none(model):
    zeros = [torch.zeros(16, *SIZE)]
    torch.testing.assert_close(call(model, cond_states=None), call(model, cond_states=zeros))
    torch.testing.assert_close(call(model, drop_motion_frames=True), call(model, motion_latents=None))
    assert not torch.allclose(call(model, motion_latents=None), call(model), atol=1e-3)


def test_a_batch_equals_its_samples(model):
    samples = [(randn(16, *SIZE, seed=i), randn(5, 10, seed=i + 5), clip_inputs(seed=i)) for i in (0, 7)]
    joined = {name: [inputs[name][0] for *_, inputs in samples] for name in samples[0][2]}
    joined["audio_input"] = torch.cat([inputs["audio_input"] for *_, inputs in samples])
    together = model([x for x, *_ in samples], torch.tensor([700, 3]), [c for _, c, _ in samples], None, **joined)
    for t, seed, found in zip((700, 3), (0, 7), together, strict=True):
        torch.testing.assert_close(found, call(model, t, seed=seed), atol=1e-5, rtol=1e-5)


def test_a_loop_computes_once_what_depends_on_no_timestep(model):
    calls, hooks = Counter(), []
    once = ("text_embedding", "casual_audio_encoder", "frame_packer", "cond_encoder", "trainable_cond_mask")
    for name in (*once, "patch_embedding", "blocks.0", "audio_injector.injector.1"):
        count = lambda *_, name=name: calls.update([name])  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_hook(count))
    tables = []
    model.rope = lambda *args: tables.append(args) or WanModel_S2V.rope(model, *args)
    prepared = model.prepare([randn(5, 10, seed=5)], [SIZE], **clip_inputs())
    steps = torch.tensor([700, 0, 300, 0, 100, 0])
    for features in time_features(steps, CONFIG.freq_dim, torch.device("cpu")).unflatten(0, (3, 2)):
        [found] = model([randn(16, *SIZE)], features, prepared)
    for hook in hooks:
        hook.remove()
    del model.rope
    assert calls == Counter(
        dict.fromkeys(once, 1) | {"blocks.0": 3, "audio_injector.injector.1": 3, "patch_embedding": 4}
    )
    assert len(tables) == 1
    torch.testing.assert_close(found, call(model, 100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (31, 8, 8)}, "at most 30 latent frames, got 31"),
        ({"size": (2, 12, 8)}, "multiples of 8, got 12 and 8"),
        ({"audio_input": randn(1, 3, 8, 7)}, r"audio_input must be \[B, 3, 8, 8\], got \[1, 3, 8, 7\]"),
        ({"audio_input": randn(1, 2, 8, 8)}, r"audio_input must be \[B, 3, 8, 8\]"),
        ({"add_last_motion": 1}, "add_last_motion must be 2, got 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        call(model, **changes)


def test_timesteps_per_token_are_refused(model):
    with pytest.raises(ValueError, match="one timestep for each sample"):
        model([randn(16, *SIZE)], torch.tensor([[1.0] * 64]), [randn(5, 10)], None, **clip_inputs())


def test_audio_is_encoded_in_float32_and_injected_in_half_precision():
    half, audio = tiny_model().bfloat16(), []
    half.casual_audio_encoder.register_forward_hook(lambda *call: audio.extend(call[2]))
    velocity = call(half)
    assert velocity.dtype == torch.float32 and [part.dtype for part in audio] == [torch.float32] * 2
    expected = call(tiny_model())
    assert (velocity - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_the_history_encoder_sees_the_last_19_frames(model):
    long = clip_inputs()["motion_latents"][0]
    more = torch.cat([randn(16, 6, 8, 16, seed=9), long], dim=1)
    torch.testing.assert_close(call(model, motion_latents=[more]), call(model))
    short = torch.cat([torch.zeros(16, 14, 8, 16), long[:, -5:]], dim=1)
    torch.testing.assert_close(call(model, motion_latents=[long[:, -5:]]), call(model, motion_latents=[short]))

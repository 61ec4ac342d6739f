"""The transformer of character animation: what each input changes, what is computed once, what is refused."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.modules.animate.tiny import CONFIG, SIZE, call, clip_inputs, randn, tiny_model
from wan.modules.animate import WanAnimateModel
from wan.modules.animate.config import AnimateModelConfig
from wan.modules.animate.model import BlankFace
from wan.modules.model import WanModelConfig, time_features


@pytest.fixture(scope="module")
def model():
    return tiny_model()


RELEASED = {  # fields of the released config.json
    "patch_size": [1, 2, 2],
    "text_len": 512,
    "in_dim": 36,
    "dim": 5120,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "text_dim": 4096,
    "out_dim": 16,
    "num_heads": 40,
    "num_layers": 40,
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "motion_encoder_dim": 512,
    "use_context_parallel": False,
    "use_img_emb": True,
}


def test_a_released_config_has_no_model_type_and_may_lack_any_other_field():
    assert AnimateModelConfig.from_dict(RELEASED) == AnimateModelConfig() == AnimateModelConfig.from_dict({"dim": 5120})
    with pytest.raises(ValueError, match="it lacks model_type"):
        WanModelConfig.from_dict(RELEASED)
    with pytest.raises(ValueError, match="none of a model's fields"):
        AnimateModelConfig.from_dict({"hidden_size": 5120})


def test_a_config_is_the_same_after_a_file():
    assert AnimateModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 5}, "num_layers 5 must be a multiple of face_adapter_interval 2"),
        ({"motion_encoder_size": 12}, "motion_encoder_size must be a power of two from 4 to 1024, got 12"),
        ({"motion_encoder_channels": {4: 6}}, "must give a whole number for 8 pixels"),
        ({"motion_encoder_channels": [6, 4]}, "must give a whole number for 4 pixels"),
        ({"motion_dim": 9}, "motion_dim 9 is more than motion_encoder_dim 8"),
        ({"image_dim": 0}, "image_dim must be a whole number from 1"),
        ({"face_encoder_num_heads": "4"}, "face_encoder_num_heads must be a whole number"),
        ({"use_img_emb": "yes"}, "use_img_emb must be true or false"),
        ({"model_type": "i2v"}, "'i2v' is not one of animate"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize("name", ["y", "clip_fea", "pose_latents", "face_pixel_values"])
def test_every_input_changes_the_velocity(model, name):
    given = clip_inputs()[name]
    other = [given[0] + 1] if name == "y" else given.flip(-1)
    assert not torch.allclose(call(model), call(model, **{name: other}), atol=1e-3)


def frames_moved(model, name: str, index: int) -> list[bool]:
    """Tell for each latent frame whether a change of frame `index` of an input moves what it predicts."""
    size = (4, 4, 6)
    changed = clip_inputs(size)[name].clone()
    changed[:, :, index] += 0.5
    moved = (call(model, size=size) - call(model, size=size, **{name: changed})).abs().amax(dim=(0, 2, 3)) > 1e-6
    return moved.tolist()


def test_pose_and_face_change_the_frames_that_they_belong_to_alone(model):
    """Tokens are mixed by self-attention alone, whose output is switched off here."""
    apart = tiny_model()
    for block in apart.blocks:
        block.self_attn.o.weight.zero_()
    for pose in range(3):
        assert frames_moved(apart, "pose_latents", pose) == [frame == pose + 1 for frame in range(4)]
    for face in range(9):  # latent frame j of the video sees the faces 4j - 8 to 4j
        heard = [4 * j - 8 <= face <= 4 * j for j in range(3)]
        assert frames_moved(apart, "face_pixel_values", face) == [False, *heard]


def test_the_reference_frame_gets_no_pose_not_even_the_bias():
    one = tiny_model()
    seen = []
    one.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].x))
    call(one)
    one.pose_patch_embedding.bias.add_(1)
    call(one)
    torch.testing.assert_close(seen[1][:, :6], seen[0][:, :6], rtol=0, atol=0)
    torch.testing.assert_close(seen[1][:, 6:], seen[0][:, 6:] + 1)


def test_blocks_without_image_tokens():
    config = replace(CONFIG, use_img_emb=False)
    names = dict(WanAnimateModel(config).named_parameters())
    assert not [name for name in names if "_img" in name and "img_emb" not in name] and "img_emb.proj.0.weight" in names
    without = tiny_model(config)
    torch.testing.assert_close(call(without), call(without, clip_fea=randn(1, 257, 12, seed=9)), rtol=0, atol=0)


def test_a_batch_equals_its_samples(model):
    samples = [(randn(16, *SIZE, seed=i), randn(5, 10, seed=i + 5), clip_inputs(seed=i)) for i in (0, 7)]
    joined = {
        name: [inputs["y"][0] for *_, inputs in samples] if name == "y" else torch.cat([s[2][name] for s in samples])
        for name in samples[0][2]
    }
    contexts = [context for _, context, _ in samples]
    together = model([x for x, *_ in samples], torch.tensor([700, 3]), context=contexts, **joined)
    for t, seed, found in zip((700, 3), (0, 7), together, strict=True):
        torch.testing.assert_close(found, call(model, t, seed=seed), atol=1e-5, rtol=1e-5)


ONCE = (
    "text_embedding",
    "img_emb",
    "pose_patch_embedding",
    "motion_encoder",
    "face_encoder",
    "face_adapter.fuser_blocks.0.linear1_kv",
    "face_adapter.fuser_blocks.1.linear1_kv",
)
EVERY = ("patch_embedding", "blocks.0", "face_adapter.fuser_blocks.1", "head")


def count_calls(model) -> Counter:
    calls = Counter()
    for name in (*ONCE, *EVERY):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def sample(model, **changes) -> torch.Tensor:
    """Predict velocities as a loop does at three steps; return the last one."""
    inputs = clip_inputs() | changes
    prepared = model.prepare([randn(5, 10, seed=5)], [SIZE], **inputs)
    steps = torch.tensor([700, 0, 300, 0, 100, 0])
    for features in time_features(steps, CONFIG.freq_dim, torch.device("cpu")).unflatten(0, (3, 2)):
        [found] = model([randn(16, *SIZE)], features, prepared)
    return found


def test_a_loop_computes_once_what_depends_on_no_timestep():
    model = tiny_model()
    calls, tables = count_calls(model), []
    model.rope = lambda *args: tables.append(args) or WanAnimateModel.rope(model, *args)
    found = sample(model)
    assert calls == Counter(dict.fromkeys(ONCE, 1) | dict.fromkeys(EVERY, 3)) and len(tables) == 1
    torch.testing.assert_close(found, call(tiny_model(), 100))


def test_a_blank_face_is_computed_from_one_frame_once_for_all_clips():
    model, blank, shapes = tiny_model(), BlankFace(), []
    calls = count_calls(model)
    model.motion_encoder.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    found = [sample(model, face_pixel_values=blank) for _ in range(2)]
    assert (calls["motion_encoder"], calls["face_encoder"], calls["img_emb"]) == (1, 1, 2)
    assert shapes == [(1, 3, 8, 8)]
    black = torch.full((1, 3, 5, 8, 8), -1.0)
    for velocity in found:
        torch.testing.assert_close(velocity, call(tiny_model(), 100, face_pixel_values=black))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_fea": randn(1, 256, 12)}, r"clip_fea must be \[B, 257, 12\], got \[1, 256, 12\]"),
        ({"pose_latents": randn(1, 16, 3, 4, 6)}, r"pose_latents must be \[B, 16, 2, 4, 6\]"),
        ({"face_pixel_values": randn(1, 3, 9, 8, 8)}, r"face_pixel_values must be \[B, 3, 5, 8, 8\]"),
        ({"face_pixel_values": randn(1, 3, 5, 16, 16)}, r"must be \[B, 3, 5, 8, 8\], got \[1, 3, 5, 16, 16\]"),
        ({"face_pixel_values": None}, "face_pixel_values are all needed"),
        ({"y": None}, "is y, the image condition, missing"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        call(model, **changes)


def test_sizes_and_timesteps_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="one of the video or more, got 1 latent frame"):
        model.prepare([randn(5, 10)], [(1, 4, 6)], **clip_inputs())
    with pytest.raises(ValueError, match="need one size"):
        model.prepare([randn(5, 10)] * 2, [SIZE, (3, 4, 4)], **clip_inputs())
    with pytest.raises(ValueError, match="one timestep for each sample"):
        model([randn(16, *SIZE)], torch.ones(1, 18), context=[randn(5, 10)], **clip_inputs())


def test_faces_are_encoded_in_float32_and_added_in_half_precision():
    half, faces = tiny_model().bfloat16(), []
    half.face_encoder.register_forward_hook(lambda *call: faces.append(call[-1]))
    velocity = call(half)
    assert velocity.dtype == torch.float32 and faces[0].dtype == torch.float32
    expected = call(tiny_model())
    assert (velocity - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_weights_for_training_keep_the_variance_of_the_motion_encoder():
    model = WanAnimateModel(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    assert 0.8 < model.motion_encoder.enc["fc"][0].weight.std() < 1.2
    assert torch.isfinite(call(model)).all()


def test_filters_of_a_file_are_not_used(model):
    other = tiny_model()
    for name, buffer in other.named_buffers():
        assert name.endswith(".kernel")
        buffer.fill_(torch.nan)
    torch.testing.assert_close(call(other), call(model), rtol=0, atol=0)

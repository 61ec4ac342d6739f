import json
from dataclasses import replace

import pytest
import torch

from wan.checkpoint.loading import save_safetensors_folder
from wan.modules.model import WanCrossAttention, WanModel, WanModelConfig, segment_timesteps, time_features

CONFIG = WanModelConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_len=12, text_dim=10, freq_dim=16
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    module = WanModel(CONFIG)
    module.init_weights(torch.Generator().manual_seed(0))
    for i, parameter in enumerate(module.parameters()):  # what starts at zero must take part here
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    return module.requires_grad_(False).eval()


def sample(frames=2, rows=4, columns=6, length=7, seed=0):
    return randn(16, frames, rows, columns, seed=seed), randn(length, 10, seed=seed + 100)


def test_samples_of_a_ragged_batch_equal_themselves_alone(model):
    samples = [sample(2, 4, 6, 7, 1), sample(1, 4, 4, 12, 2), sample(3, 2, 2, 1, 3)]
    t = torch.tensor([900, 13, 500])
    together = model([x for x, _ in samples], t, [c for _, c in samples])
    for i, (x, context) in enumerate(samples):
        alone = model([x], t[i : i + 1], [context])[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


def test_one_timestep_per_sample_equals_one_per_token(model):
    x, context = sample()
    per_sample = model([x, x], torch.tensor([700, 40]), [context, context])
    per_token = model([x, x], torch.tensor([[700] * 12, [40] * 12]), [context, context], 12)
    for a, b in zip(per_sample, per_token, strict=True):
        torch.testing.assert_close(a, b)


def test_a_clean_first_frame_is_two_segments(model):
    x, context = sample(3, 4, 4)
    t = torch.tensor([[0.0] * 4 + [700.0] * 8])
    segments, values = segment_timesteps(t, 12)
    assert values.tolist() == [0, 700] and plain(segments) == [(0, 4, [0]), (4, 12, [1])]
    clean, noisy = (model([x], torch.tensor([v]), [context])[0] for v in (0.0, 700.0))
    mixed = model([x], t, [context])[0]
    assert not torch.allclose(mixed, clean, atol=1e-3) and not torch.allclose(mixed, noisy, atol=1e-3)


def plain(segments):
    return [(segment.start, segment.stop, segment.rows.tolist()) for segment in segments]


def test_segments_cover_every_token_of_a_batch():
    t = torch.tensor([[7, 7, 0, 0, 7], [3, 3, 3, 3, 3], [0, 0, 3, 1, 0]])
    segments, values = segment_timesteps(t, 4)
    assert values.tolist() == [0, 1, 3, 7]
    assert plain(segments) == [(0, 2, [3, 2, 0]), (2, 3, [0, 2, 2]), (3, 4, [0, 2, 1])]
    rebuilt = torch.cat([values[rows][:, None].expand(-1, stop - start) for start, stop, rows in segments], dim=1)
    assert torch.equal(rebuilt, t[:, :4])


def test_clean_first_frames_in_part_of_a_batch_need_two_segments():
    t = torch.tensor([500.0, 900.0, 20.0])[:, None].repeat(1, 12)
    t[1, :4] = 0
    assert [segment[:2] for segment in segment_timesteps(t, 12)[0]] == [(0, 4), (4, 12)]


def test_segments_written_in_place_equal_those_of_training(model):
    x, context = sample(3, 4, 4)
    t = torch.tensor([[0.0] * 4 + [700.0] * 5 + [0.0] * 3])
    with torch.enable_grad():
        expected = model([x], t, [context])[0]
    with torch.no_grad():
        torch.testing.assert_close(model([x], t, [context])[0], expected.detach())


def test_the_time_mlp_runs_once_per_distinct_timestep(model):
    rows = []
    hook = model.time_embedding.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    x, context = sample(3, 4, 4)
    model([x], torch.tensor([[0.0] * 4 + [700.0] * 8]), [context])
    model([x, x], torch.tensor([[9.0] * 12] * 2), [context, context])
    hook.remove()
    assert rows == [2, 2]


@pytest.mark.parametrize("segments", [None, [(4, 1), (8, 0)], [(12, 1), (0, 0)]])
def test_a_loop_prepares_once_and_gets_the_velocities_of_the_public_call(model, segments):
    size = (3, 4, 4)
    context, y, rows = randn(7, 10), randn(4, *size), []
    model_with_y = WanModel(replace(CONFIG, in_dim=20))
    model_with_y.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model_with_y.head.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    hook = model_with_y.text_embedding.register_forward_hook(lambda *call: rows.append(1))
    with torch.no_grad():
        prepared = model_with_y.prepare([context], [size], segments, [y])
        features = time_features(torch.tensor([900, 0, 250, 0]), CONFIG.freq_dim, torch.device("cpu")).unflatten(
            0, (2, 2)
        )
        for t, rows_of_step in zip((900, 250), features, strict=True):
            x = randn(16, *size, seed=t)
            found = model_with_y([x], rows_of_step, prepared)[0]
            clean = 0 if segments is None else segments[0][0]
            per_token = torch.tensor([[0] * clean + [t] * (12 - clean)])
            hook.remove()
            torch.testing.assert_close(found, model_with_y([x], per_token, [context], y=[y])[0])
    assert len(rows) == 1


def test_padding_beyond_the_tokens_is_never_computed(model):
    x, context = sample()
    shapes = []
    hook = model.blocks[0].register_forward_hook(lambda module, inputs, output: shapes.append(output.x.shape))
    padded = model([x], torch.tensor([500]), [context], 40)
    hook.remove()
    assert shapes == [(1, 12, 48)]
    assert torch.equal(padded[0], model([x], torch.tensor([500]), [context])[0])


def test_text_padding_is_zero_before_the_mlp_and_not_after(model):
    states = model.embed_text([randn(3, 10)])
    assert states.shape == (1, 12, 48)
    assert states[0, 3].abs().sum() > 0 and torch.equal(states[0, 3], states[0, 11])


def test_bfloat16_weights_keep_a_float32_stream_and_output(model):
    half = WanModel(CONFIG)
    half.load_state_dict(model.state_dict())
    half.requires_grad_(False)
    for name, parameter in half.named_parameters():
        if not WanModel.keeps_float32(name):
            parameter.data = parameter.data.bfloat16()
    streams = []
    half.blocks[0].register_forward_hook(lambda module, inputs, output: streams.append((inputs[0].x, output.x)))
    x, context = sample()
    out = half([x], torch.tensor([500]), [context])[0]
    assert streams[0][0].dtype == torch.bfloat16 and streams[0][1].dtype == torch.float32
    assert out.dtype == torch.float32
    exact = model([x], torch.tensor([500]), [context])[0]
    assert (out - exact).square().mean().sqrt() < 0.02 * exact.std()


def test_the_trunk_runs_through_one_replaceable_loop(model):
    x, context = sample()
    expected = model([x], torch.tensor([500]), [context])[0]
    seen = []

    def counted(steps, tokens, cond):
        for step in steps:
            seen.append(step)
            tokens = step.run(tokens, cond)
        return tokens

    other = WanModel(CONFIG)
    other.load_state_dict(model.state_dict())
    other.run_blocks = counted
    assert torch.equal(other.requires_grad_(False)([x], torch.tensor([500]), [context])[0], expected)
    assert [step.run for step in seen] == [other.embed_patches, *other.blocks, other.predict_patches]
    visited = {id(p) for step in seen for module in step.modules for p in module.parameters()}
    left = {name.split(".")[0] for name, parameter in other.named_parameters() if id(parameter) not in visited}
    assert left == {"text_embedding", "time_embedding", "time_projection"}, "weights of no token belong to no step"


class PictureAttention(WanCrossAttention):
    """Attends to the first rows of the context, of a picture, and to the others, of the text."""

    def forward(self, x, context):
        return super().forward(x, context[:, :2]) + super().forward(x, context[:, 2:])


def test_another_cross_attention_is_a_class_attribute(model):
    class Other(WanModel):
        cross_attention_class = PictureAttention

        def prepare(self, context, sizes, segments=None, y=None, *, picture):
            prepared = super().prepare(context, sizes, segments, y)
            return replace(prepared, context=torch.cat([picture, prepared.context], dim=1))

    other = Other(CONFIG)
    other.load_state_dict(model.state_dict())
    x, context = sample()
    features = time_features(torch.tensor([500, 0]), CONFIG.freq_dim, other.device)
    found = [
        other.requires_grad_(False)(
            [x], features, other.prepare([context], [x.shape[1:]], picture=randn(1, 2, 48, seed=i))
        )
        for i in range(2)
    ]
    assert not torch.allclose(found[0][0], found[1][0], atol=1e-3)


def test_every_parameter_learns_and_training_starts_at_zero_velocity():
    module = WanModel(CONFIG)
    module.init_weights(torch.Generator().manual_seed(0))
    x, context = sample()
    out = module([x], torch.tensor([500]), [context])[0]
    assert not out.any()
    torch.nn.init.normal_(module.head.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    module([x], torch.tensor([500]), [context])[0].square().sum().backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, c: m([x[:3]], torch.tensor([1]), [c]), "takes 16 channels, got 3"),
        (lambda m, x, c: m([x[:, :, :3]], torch.tensor([1]), [c]), r"no multiple of patch \(1, 2, 2\)"),
        (lambda m, x, c: m([x], torch.tensor([1]), [c], 4), "seq_len 4 is shorter than the longest sample, 12 tokens"),
        (
            lambda m, x, c: m([x], torch.tensor([1]), [c.repeat(2, 1)]),
            "a context has 14 rows; the model reads at most 12",
        ),
        (lambda m, x, c: m([x, x], torch.tensor([1]), [c, c]), "2 samples need as many"),
    ],
)
def test_wrong_calls_are_named(model, call, message):
    x, context = sample()
    with pytest.raises(ValueError, match=message):
        call(model, x, context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "must be a multiple of num_heads"),
        ({"model_type": "v2v"}, "'v2v' is not one of"),
        ({"window_size": (8, 8)}, "only global attention"),
        ({"num_layers": 0}, "num_layers must be a whole number from 1 to 1000, got 0"),
    ],
)
def test_impossible_configs_fail_before_any_weight(change, message):
    with pytest.raises(ValueError, match=message):
        WanModelConfig.from_dict(CONFIG.to_dict() | change)


def test_one_timestep_per_sample_is_one_segment():
    segments, values = segment_timesteps(torch.tensor([5, 6])[:, None].expand(2, 9), 9)
    assert plain(segments) == [(0, 9, [0, 1])] and values.tolist() == [5, 6]


def test_loading_takes_the_dtype_under_both_of_its_names(model, tmp_path):
    save_safetensors_folder(model.state_dict(), tmp_path / "new" / "sub", model.config.to_dict())
    by_either = [
        WanModel.from_pretrained(tmp_path / "new", "sub", **{name: torch.bfloat16}).state_dict()
        for name in ("dtype", "torch_dtype")
    ]
    for name, tensor in by_either[0].items():
        assert torch.equal(tensor, by_either[1][name])
        assert tensor.dtype == (torch.float32 if WanModel.keeps_float32(name) else torch.bfloat16)


def test_sizes_are_attributes_of_the_model(model):
    for name, value in model.config.to_dict().items():
        assert getattr(model, name) == value
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert not {"dim", "num_layers"} & set(model.state_dict())


def test_a_saved_model_is_loaded_as_it_was(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = WanModel.from_pretrained(tmp_path / "saved")
    assert loaded.config == model.config
    assert all(torch.equal(loaded.get_parameter(name), value) for name, value in model.named_parameters())
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["_class_name"] == "WanModel"


def test_a_model_without_some_of_its_parameters_is_not_saved(tmp_path):
    packed = WanModel(CONFIG)
    packed.blocks[0].ffn = torch.nn.Identity()  # as packing does: the weights are no parameters any more
    with pytest.raises(ValueError, match=r"4 parameters .* blocks.0.ffn.0.bias, are packed for inference"):
        packed.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()

import json
from pathlib import Path

import pytest
import torch

from tests.modules.test_tokenizers import write_tokenizer
from wan.modules.t5 import (
    Packing,
    T5Config,
    T5Encoder,
    T5EncoderModel,
    T5Norm,
    clamp_overflow,
    load_t5,
    relative_buckets,
    umt5_xxl,
)

MANIFEST = Path(__file__).parents[1] / "data" / "state_dict" / "umt5_xxl_encoder.json"
CONFIG = T5Config(vocab_size=90, dim=48, dim_attn=32, dim_ffn=64, num_heads=4, num_layers=3)


def make_encoder(config: T5Config = CONFIG, seed: int = 0) -> T5Encoder:
    model = T5Encoder(config)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for module in model.modules():
        if isinstance(module, T5Norm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.2, generator=generator)
    for block in model.blocks:  # a bias that matters as much as the scores do
        torch.nn.init.normal_(block.pos_embedding.embedding.weight, generator=generator)
    return model.eval().requires_grad_(False)


def draw_ids(*shape: int) -> torch.Tensor:
    return torch.randint(2, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def prefix_mask(lengths: list[int], total: int) -> torch.Tensor:
    return (torch.arange(total) < torch.tensor(lengths)[:, None]).long()


def test_padded_batch_equals_trimmed_samples():
    model, lengths = make_encoder(), [170, 1, 40]
    ids = draw_ids(3, 200)
    padded = model(ids, prefix_mask(lengths, 200))
    for row, sample, length in zip(padded, ids, lengths):
        torch.testing.assert_close(row[:length], model(sample[None, :length])[0], rtol=0, atol=1e-5)


def test_masked_tokens_do_not_influence_the_others():
    model, mask = make_encoder(), torch.ones(1, 12, dtype=torch.long)
    mask[0, [3, 11]] = 0  # the mask need not be a prefix
    ids = draw_ids(1, 12)
    other = ids.clone()
    other[0, [3, 11]] = 5
    kept = mask[0].bool()
    assert torch.equal(model(ids, mask)[0, kept], model(other, mask)[0, kept])
    assert not torch.allclose(model(ids)[0, kept], model(other)[0, kept])


def test_packing_drops_padding_and_puts_zeros_back():
    x, mask = torch.arange(1.0, 13.0).view(2, 3, 2), torch.tensor([[1, 1, 0], [0, 1, 0]])
    packing = Packing.of(torch.zeros(2, 3), mask)
    packed = packing.pack(x)
    assert packed.tolist() == [[1, 2], [3, 4], [9, 10]]
    assert torch.equal(packing.unpack(packed), x * mask[..., None])


def test_all_ones_mask_equals_no_mask():
    model, ids = make_encoder(), draw_ids(2, 9)
    torch.testing.assert_close(model(ids, torch.ones_like(ids)), model(ids), rtol=0, atol=1e-6)


def test_bias_depends_on_the_signed_distance_only():
    attention_bias = make_encoder().blocks[0].pos_embedding
    length = 40
    buckets = relative_buckets(torch.arange(1 - length, length), CONFIG.num_buckets, CONFIG.max_distance)
    bias = attention_bias(buckets)
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]  # key - query
    direct = attention_bias.embedding(relative_buckets(distance, CONFIG.num_buckets, CONFIG.max_distance))
    assert torch.equal(bias[0], direct.permute(2, 0, 1))


def test_every_layer_owns_its_bias():
    model = make_encoder()
    tables = {block.pos_embedding.embedding.weight.data_ptr() for block in model.blocks}
    assert len(tables) == CONFIG.num_layers


@pytest.mark.parametrize(
    ("position", "bucket"),
    [(0, 0), (-7, 7), (7, 23), (-8, 8), (8, 24), (-127, 15), (128, 31), (-100000, 15), (100000, 31)],
)
def test_buckets_at_their_limits(position, bucket):
    assert relative_buckets(torch.tensor(position), 32, 128).item() == bucket


def test_bfloat16_stays_close_to_float32():
    ids, mask = draw_ids(2, 64), prefix_mask([64, 30], 64)
    exact = make_encoder()(ids, mask)
    rounded = make_encoder().bfloat16()(ids, mask)
    assert rounded.dtype == torch.bfloat16
    valid = mask.bool()
    error = (rounded.float() - exact)[valid].norm() / exact[valid].norm()
    assert error < 0.02  # a few roundings of 2^-9 each


def test_norm_rounds_before_the_weight_and_keeps_float32_statistics():
    norm = T5Norm(64, 1e-6).bfloat16()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).bfloat16() * 100
    statistics = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    expected = (x.double() * statistics).bfloat16() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=2**-7, atol=0)
    assert (norm(x) == expected).float().mean() > 0.99


def test_float16_overflow_is_clamped_only_when_it_happens():
    largest = torch.finfo(torch.float16).max
    finite = torch.tensor([largest, -largest, 1.0], dtype=torch.float16)
    assert torch.equal(clamp_overflow(finite), finite)
    overflowed = torch.tensor([float("inf"), float("-inf"), largest, 1.0], dtype=torch.float16)
    limit = largest - 1000
    expected = torch.tensor([limit, -limit, limit, 1.0], dtype=torch.float16)
    assert torch.equal(clamp_overflow(overflowed), expected)
    unbounded = torch.tensor([float("inf")], dtype=torch.bfloat16)
    assert torch.equal(clamp_overflow(unbounded), unbounded)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_receives_a_gradient(autocast):
    model = make_encoder().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(draw_ids(2, 10), prefix_mask([10, 6], 10))
    assert out.dtype == torch.float32
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradients_through_attention_and_position_bias_are_exact():
    block = make_encoder(T5Config(20, 8, 8, 12, 2, 1, num_buckets=8, max_distance=16)).double().blocks[0]
    table = block.pos_embedding.embedding.weight
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    buckets, packing = relative_buckets(torch.arange(-5, 6), 8, 16), Packing.of(torch.zeros(1, 6), prefix_mask([5], 6))

    def attend(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bias = torch.func.functional_call(block.pos_embedding, {"embedding.weight": weight}, (buckets,))
        return block.attn(x, bias, packing)

    assert torch.autograd.gradcheck(attend, (x.requires_grad_(), table.requires_grad_()))


def test_init_is_seeded_and_keeps_unit_scale():
    a, b = T5Encoder(CONFIG), T5Encoder(CONFIG)
    a.init_weights(torch.Generator().manual_seed(3))
    b.init_weights(torch.Generator().manual_seed(3))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert 0.5 < a(draw_ids(2, 16)).std() < 2


def test_released_names_and_shapes():
    manifest = json.loads(MANIFEST.read_text())
    config = T5Config.from_state(manifest["tensors"])
    about = manifest["about"]["config"]
    assert about.pop("shared_pos") is False
    assert config == T5Config(**about)
    with torch.device("meta"):
        model = T5Encoder(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == manifest["tensors"]
    assert sum(p.numel() for p in model.parameters()) == manifest["parameter_count"]


def test_config_errors():
    with pytest.raises(ValueError, match=r"not a umT5 text encoder.*token_embedding\.weight"):
        T5Config.from_state({"blocks.0.attn.q.weight": (4, 4)})
    with pytest.raises(ValueError, match="dim_attn 30 must be a multiple of num_heads 4"):
        T5Config(10, 8, 30, 8, 4, 1)
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        T5Config(10, 8, 8, 8, 4, 0)


def test_equals_transformers():
    transformers = pytest.importorskip("transformers")
    from benchmarks.t5 import transformers_config, transformers_state

    ours = make_encoder()
    theirs = transformers.UMT5EncoderModel(transformers.UMT5Config(**transformers_config(CONFIG))).eval()
    missing, unexpected = theirs.load_state_dict(transformers_state(ours.state_dict()), strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}  # tied to `shared`
    lengths = [200, 31]
    ids, mask = draw_ids(2, 200), prefix_mask(lengths, 200)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    valid = mask.bool()
    torch.testing.assert_close(ours(ids, mask)[valid], expected[valid], rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[Path, Path]:
    """Miniature of the released layout: (weights file, tokenizer folder)."""
    root = tmp_path_factory.mktemp("t5")
    torch.save(make_encoder().state_dict(), root / "models_t5_umt5-xxl-enc-bf16.pth")
    return root / "models_t5_umt5-xxl-enc-bf16.pth", write_tokenizer(root / "google" / "umt5-xxl")


def load(released: tuple[Path, Path], text_len: int = 32, **kwargs) -> T5EncoderModel:
    return T5EncoderModel(text_len, checkpoint_path=released[0], tokenizer_path=released[1], **kwargs)


def test_names_of_transformers_load_as_well(tmp_path):
    from benchmarks.t5 import transformers_state

    state = make_encoder().state_dict()
    torch.save(transformers_state(state), tmp_path / "t5.pth")
    loaded = load_t5(tmp_path / "t5.pth", torch.float32, "cpu")
    assert loaded.config == CONFIG
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_text_encoder_returns_the_valid_rows_of_the_padded_result(released):
    encoder = load(released, dtype=torch.float32)
    texts = ["a red circle moves right", "", "a cat"]
    ids, mask = encoder.tokenizer(texts, return_mask=True)
    assert ids.shape == (3, 32)
    padded = encoder.model(ids, mask)
    states = encoder(texts, "cpu")
    assert len(states) == 3
    for state, row, text in zip(states, padded, texts):
        assert state.shape == (encoder.tokenizer.count(text), CONFIG.dim)
        torch.testing.assert_close(state, row[: len(state)], rtol=0, atol=1e-5)


def test_text_encoder_batch_equals_single_prompts(released):
    encoder = load(released, dtype=torch.float32)
    texts = ["a cat sits on a mat", "the green square"]
    for state, text in zip(encoder(texts, "cpu"), texts):
        torch.testing.assert_close(state, encoder([text], torch.device("cpu"))[0], rtol=0, atol=1e-5)


def test_text_encoder_truncates_to_text_len(released):
    encoder = load(released, text_len=6)
    text = "a red circle moves right over a blue background"
    assert encoder.tokenizer.count(text) > 6
    assert encoder([text], "cpu")[0].shape == (6, CONFIG.dim)


def test_text_encoder_is_frozen_and_in_the_dtype_asked_for(released):
    encoder = load(released)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.bfloat16}
    assert not encoder.model.training
    state = encoder(["a cat"], "cpu")[0]
    assert state.dtype == torch.bfloat16 and not state.requires_grad


def test_text_encoder_is_sharded_while_it_is_empty(released):
    seen = []

    def shard(model):
        seen.append((model, all(p.is_meta for p in model.parameters())))
        return model

    encoder = load(released, shard_fn=shard)
    assert seen == [(encoder.model, True)] and not any(p.is_meta for p in encoder.model.parameters())


def test_text_encoder_refuses_a_tokenizer_of_another_checkpoint(released, tmp_path):
    config = T5Config(vocab_size=10, dim=16, dim_attn=16, dim_ffn=16, num_heads=2, num_layers=1)
    torch.save(make_encoder(config).state_dict(), tmp_path / "t5.pth")
    with pytest.raises(ValueError, match="belong to different checkpoints"):
        load((tmp_path / "t5.pth", released[1]))


def test_the_released_size_under_upstreams_name():
    model = umt5_xxl(encoder_only=True, dtype=torch.bfloat16, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 5_680_910_336 and len(model.state_dict()) == 242
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for wrong in ({}, {"encoder_only": True, "return_tokenizer": True}):
        with pytest.raises(ValueError, match="only the encoder was released"):
            umt5_xxl(**wrong)

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from wan.modules.attention import attention
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.t5 import T5Config, T5Encoder
from wan.training.config import FlowConfig, LoopConfig
from wan.training.data import CacheWriter, LatentCache
from wan.training.loop import fit
from wan.training.objective import (
    FlowBatch,
    StoredText,
    TrainedText,
    flow_objective,
    matmul_attention,
    prepare_model,
)

DIT = WanModelConfig(dim=24, ffn_dim=48, num_heads=2, num_layers=1, in_dim=4, out_dim=4, text_dim=8, text_len=6)
T5 = T5Config(vocab_size=128, dim=8, dim_attn=8, dim_ffn=16, num_heads=2, num_layers=1)


def models() -> tuple[WanModel, T5Encoder]:
    generator = torch.Generator().manual_seed(0)
    dit, encoder = WanModel(DIT), T5Encoder(T5)
    dit.init_weights(generator)
    encoder.init_weights(generator)
    return dit, encoder


def letters(text: str) -> list[int]:
    return [*(ord(c) for c in text), 1]


def test_one_tiny_sample_is_learnt(tmp_path):
    dit, encoder = models()
    both = torch.nn.ModuleDict({"dit": dit, "text": encoder})
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1)).expand(16, -1, -1, -1, -1)
    objective = flow_objective(dit, TrainedText(encoder, letters), FlowConfig(shift=3.0, text_dropout=0.1))
    batch = FlowBatch(latents, ["red"] * 16)
    losses = []

    def recorded(batch, generator):
        loss = objective(batch, generator)
        losses.append(loss.total.item())
        return loss

    embedding = encoder.token_embedding.weight.detach().clone()
    fit(both, recorded, lambda index: batch, LoopConfig(steps=250, learning_rate=5e-3), tmp_path)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert not torch.equal(embedding, encoder.token_embedding.weight)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_model_learns_to_leave_silent_channels_alone(tmp_path, optimizer):
    dit, encoder = models()
    torch.nn.init.normal_(dit.head.head.weight, std=0.1, generator=torch.Generator().manual_seed(2))
    text = TrainedText(encoder.requires_grad_(False), letters)
    objective = flow_objective(dit, text, FlowConfig(channels=2))
    batch = FlowBatch(torch.randn(4, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1)), ["red"] * 4)
    before = dit.head.head.weight.detach().clone()
    fit(dit, objective, lambda index: batch, LoopConfig(steps=5, learning_rate=1e-2, optimizer=optimizer), tmp_path)
    assert not torch.equal(before, dit.head.head.weight)
    latent = batch.latents[0].clone()
    with torch.no_grad():
        velocity, t, context = [], torch.tensor([500]), text(["red"])
        for _ in range(2):
            velocity.append(dit([latent], t, context)[0])
            latent[2:] += 1
    assert torch.equal(*velocity) and (velocity[0][2:] == 0).all() and velocity[0][:2].abs().min() > 0


def test_dropped_captions_become_the_empty_prompt():
    dit, _ = models()
    seen = []

    def text(captions):
        seen.extend(captions)
        return [torch.zeros(1, 8)] * len(captions)

    batch = FlowBatch(torch.zeros(400, 4, 1, 2, 2), ["red"] * 400)
    flow_objective(dit, text, FlowConfig(text_dropout=0.25))(batch, torch.Generator().manual_seed(0))
    assert 0.15 < seen.count("") / 400 < 0.35 and set(seen) == {"", "red"}


def test_trained_text_states_equal_prompts_alone():
    _, encoder = models()
    together = TrainedText(encoder, letters)(["red", "", "green"])
    for caption, states in zip(["red", "", "green"], together, strict=True):
        alone = encoder(torch.tensor([letters(caption)]))[0]
        torch.testing.assert_close(states[: len(alone)], alone)
        assert not states[len(alone) :].any()


def test_stored_text_states_come_back(tmp_path):
    states = {"": torch.zeros(1, 8), "a 'quoted' \"phrase\"": torch.randn(3, 8)}
    StoredText.write(tmp_path / "text.safetensors", list(states), states.__getitem__)
    stored = StoredText(tmp_path / "text.safetensors")
    for caption, value in states.items():
        assert torch.equal(stored([caption])[0], value)


@pytest.mark.parametrize("kv_lens", [None, [3, 5]])
def test_matmul_attention_equals_attention(kv_lens):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, 3, 8, generator=generator) for _ in range(3))
    torch.testing.assert_close(matmul_attention(q, k, v, kv_lens), attention(q, k, v, kv_lens))


@pytest.mark.parametrize("text_len, lengths", [(6, (2, 5)), (80, (2, 5)), (80, (31, 32))])
def test_prepared_model_computes_the_same(text_len, lengths):
    dit = WanModel(replace(DIT, text_len=text_len))
    dit.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(dit.head.head.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(dit.text_embedding[0].bias, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    x = [torch.randn(4, 1, 4, 4, generator=generator) for _ in lengths]
    context = [torch.randn(n, 8, generator=generator) for n in lengths]
    t = torch.tensor([500.0, 900.0])
    before = dit(x, t, context)
    prepare_model(dit, LoopConfig(steps=1))
    after = dit(x, t, context)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_the_image_condition_and_a_clean_first_frame_reach_the_model():
    image, clean = (
        WanModel(replace(DIT, in_dim=6, **flags)) for flags in ({"model_type": "i2v"}, {"model_type": "ti2v"})
    )
    calls = []
    for dit in (image, clean):
        dit.forward = lambda x, t, context, y=None: calls.append((t, y)) or [torch.zeros_like(v) for v in x]
    context = lambda captions: [torch.zeros(1, 8)] * len(captions)  # noqa: E731
    y = torch.randn(5, 2, 3, 4, 4)
    batch = FlowBatch(torch.zeros(5, 4, 3, 4, 4), ["red"] * 5, y)
    flow_objective(image, context, FlowConfig())(batch, torch.Generator())
    assert calls[0][0].shape == (5,) and torch.equal(torch.stack(calls[0][1]), y)
    batch = FlowBatch(torch.zeros(5, 6, 3, 4, 4), ["red"] * 5)
    flow_objective(clean, context, FlowConfig(first_frame_share=1.0))(batch, torch.Generator())
    t, y = calls[1]
    assert y is None and t.shape == (5, 12) and not t[:, :4].any() and t[:, 4:].all()


def test_cache_draws_conditions_by_weight(tmp_path):
    writer = CacheWriter(tmp_path)
    for value in range(4):
        kinds = [torch.full((2, 1, 2, 2), float(10 * value + kind)) for kind in range(3)]
        writer.add(torch.full((4, 1, 2, 2), float(value)), [""], kinds)
    writer.close()
    with pytest.raises(ValueError, match="2 weights do not fit"):
        LatentCache(tmp_path, (1, 1))
    batch = LatentCache(tmp_path, (3, 1, 0)).draw(400, 0, 0)
    assert batch.latents.shape == (400, 4, 1, 2, 2) and batch.conditions.shape == (400, 2, 1, 2, 2)
    kinds = batch.conditions[:, 0, 0, 0, 0] - 10 * batch.latents[:, 0, 0, 0, 0]
    assert 250 < (kinds == 0).sum() < 350 and (kinds == 0).sum() + (kinds == 1).sum() == 400


def test_cache_draws_faint_samples_more_often(tmp_path):
    writer = CacheWriter(tmp_path)
    wave = torch.tensor([-1.0, 1.0]).repeat(4, 1, 2, 1)  # standard deviation 1
    for scale in (1.0, 2.0, 0.0):
        writer.add(scale * wave, [f"{scale}"], [torch.randn(2, 1, 2, 2)])
    writer.close()
    captions = LatentCache(tmp_path, evenness=1.0).draw(7000, 0, 0).captions
    counts = np.array([captions.count(c) for c in ("1.0", "2.0", "0.0")])  # contrasts 1, 2, and 1/4 at least
    np.testing.assert_allclose(counts / 1000, [7 / 5.5, 7 / 11, 7 / 5.5 * 4], rtol=0.1)


def test_cache_groups_by_shape_and_draws_repeatably(tmp_path):
    writer = CacheWriter(tmp_path)
    for value in range(6):
        shape = (4, 1, 2, 2) if value < 4 else (4, 2, 2, 2)
        writer.add(torch.full(shape, float(value)), [f"{value}", f"number {value}"])
    with pytest.raises(ValueError, match="no latent cache"):
        LatentCache(tmp_path)  # not closed yet
    writer.close()
    cache = LatentCache(tmp_path)
    assert len(cache) == 6 and len(cache.captions()) == 12
    seen = set()
    for index in range(40):
        batch = cache.draw(3, 0, index)
        for latent, caption in zip(batch.latents, batch.captions, strict=True):
            assert caption.split()[-1] == str(int(latent[0, 0, 0, 0]))
        seen.update(batch.captions)
        assert torch.equal(batch.latents, cache.draw(3, 0, index).latents)
    assert len(seen) == 12
    with pytest.raises(ValueError, match="at least one caption"):
        CacheWriter(tmp_path / "other").add(torch.zeros(1), [])


def test_cache_keeps_named_inputs_of_other_shapes(tmp_path):
    writer = CacheWriter(tmp_path)
    for value in range(6):
        inputs = {"audio_input": torch.full((2, 3, 8), float(value))}
        if value % 2:
            inputs["motion_latents"] = torch.arange(4 * 19 * 4.0).view(4, 19, 2, 2) + value
        writer.add(torch.full((4, 2, 2, 2), float(value)), [""], inputs=inputs)
    writer.close()
    cache = LatentCache(tmp_path, evenness=1.0)
    seen = [cache.draw(5, 0, index) for index in range(12)]
    assert {tuple(sorted(batch.inputs)) for batch in seen} == {("audio_input",), ("audio_input", "motion_latents")}
    for batch in seen:
        values = batch.latents[:, 0, 0, 0, 0]
        assert torch.equal(batch.inputs["audio_input"], values.view(-1, 1, 1, 1).expand(-1, 2, 3, 8))
        if "motion_latents" in batch.inputs:
            wanted = torch.arange(4 * 19 * 4.0).view(1, 4, 19, 2, 2) + values.view(-1, 1, 1, 1, 1)
            assert torch.equal(batch.inputs["motion_latents"], wanted)


@pytest.mark.parametrize("name", ["audio_input", "../x"])
def test_a_cache_whose_inputs_do_not_fit_its_files_is_refused(tmp_path, name):
    writer = CacheWriter(tmp_path)
    writer.add(torch.zeros(4, 2, 2, 2), [""], inputs={"audio_input": torch.zeros(2, 3)})
    writer.close()
    index = json.loads((tmp_path / "index.json").read_text())
    for bucket in index.values():
        bucket["inputs"] = {name: [2, 3 if name.startswith(".") else 4]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="does not describe the files"):
        LatentCache(tmp_path)


def test_named_inputs_reach_the_model_and_are_dropped_with_the_text():
    dit, calls = WanModel(DIT), []

    def forward(x, t, context, **inputs):
        calls.append((context, inputs))
        return [torch.zeros_like(v) for v in x]

    dit.forward = forward
    inputs = {"audio_input": torch.ones(200, 2, 3), "motion_latents": torch.ones(200, 4, 19, 2, 2)}
    batch = FlowBatch(torch.zeros(200, 4, 1, 2, 2), ["red"] * 200, inputs=inputs)
    context = lambda captions: [torch.full((1, 8), float(c == "red")) for c in captions]  # noqa: E731
    config = FlowConfig(text_dropout=0.5, dropped_inputs=("audio_input",))
    flow_objective(dit, context, config)(batch, torch.Generator().manual_seed(0))
    texts, given = calls[0]
    shown = torch.stack(texts)[:, 0, 0]
    assert 60 < shown.sum() < 140
    assert torch.equal(given["audio_input"], shown.view(-1, 1, 1).expand(-1, 2, 3))
    assert torch.equal(given["motion_latents"], inputs["motion_latents"])

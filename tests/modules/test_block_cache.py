"""Blocks of a transformer whose result of an earlier step is used again."""

from dataclasses import replace

import pytest
import torch

from wan.modules.block_cache import BlockCache
from wan.modules.model import WanModel, WanModelConfig, time_features
from wan.modules.steps import run_blocks

CONFIG = WanModelConfig(
    model_type="t2v", in_dim=4, out_dim=4, dim=32, ffn_dim=64, num_heads=2, num_layers=4, text_dim=8, freq_dim=16
)
SIZE = (3, 4, 4)


@pytest.fixture(scope="module")
def model():
    model = WanModel(CONFIG)
    model.init_weights(torch.Generator().manual_seed(1))
    for block in model.blocks:
        torch.nn.init.normal_(block.modulation, std=0.3, generator=torch.Generator().manual_seed(2))
    torch.nn.init.normal_(model.head.head.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    return model.requires_grad_(False)


@pytest.fixture
def latent():
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(4))


def prepared(model, cache=None):
    context = [torch.randn(5, 8, generator=torch.Generator().manual_seed(5))]
    made = model.prepare(context, [SIZE])
    return replace(made, through=cache.run) if cache else made


def called(model, latent, t, values):
    return model([latent], time_features(torch.tensor([t, 0]), 16, torch.device("cpu")), values)[0]


def counting(model, monkeypatch):
    """Count the blocks that run."""
    ran = []
    for number, block in enumerate(model.blocks):
        forward = type(block).forward

        def counted(tokens, cond, block=block, number=number, forward=forward):
            ran.append(number)
            return forward(block, tokens, cond)

        monkeypatch.setattr(block, "forward", counted)
    return ran


def test_at_threshold_0_every_value_is_that_of_the_model(model, latent):
    cache = BlockCache(0.0, torch.float32)
    values = prepared(model, cache)
    for t in (900, 700, 500):
        torch.testing.assert_close(called(model, latent * t / 900, t, values),
                                   called(model, latent * t / 900, t, prepared(model)), rtol=0, atol=0)  # fmt: skip
    assert (cache.calls, cache.reused) == (3, 0)


def test_the_same_input_needs_the_first_block_alone(model, latent, monkeypatch):
    cache = BlockCache(1e-3, torch.float32)
    values, whole = prepared(model, cache), called(model, latent, 900, prepared(model))
    ran = counting(model, monkeypatch)
    first, again = (called(model, latent, 900, values) for _ in range(2))
    assert ran == [0, 1, 2, 3, 0] and cache.reused == 1
    torch.testing.assert_close(first, whole, rtol=0, atol=0)
    torch.testing.assert_close(again, whole)


def test_a_changed_input_is_computed(model, latent, monkeypatch):
    cache = BlockCache(0.05, torch.float32)
    values, other = prepared(model, cache), torch.randn_like(latent)
    called(model, latent, 900, values)
    ran = counting(model, monkeypatch)
    changed = called(model, other, 900, values)
    assert ran == [0, 1, 2, 3]
    torch.testing.assert_close(changed, called(model, other, 900, prepared(model)), rtol=0, atol=0)


def test_changes_add_up_from_the_last_time_that_all_blocks_ran(model, latent):
    """Each step is near the one before, and the last is far from the first."""
    cache, direction = BlockCache(0.1, torch.float32), torch.randn_like(latent)
    values = prepared(model, cache)
    for step in range(30):
        called(model, latent + 0.05 * step * direction, 900, values)
    assert 3 <= cache.calls - cache.reused < 30


def test_another_transformer_begins_anew(model, latent):
    cache, other = BlockCache(1.0, torch.float32), WanModel(CONFIG)
    other.load_state_dict(model.state_dict())
    called(model, latent, 900, prepared(model, cache))
    called(other, latent, 800, prepared(other, cache))
    assert cache.reused == 0
    called(other, latent, 800, prepared(other, cache))
    assert cache.reused == 1


def test_kept_values_are_of_the_given_precision(model, latent):
    cache = BlockCache(1.0, torch.bfloat16)
    values = prepared(model, cache)
    exact = called(model, latent, 900, values)
    near = called(model, latent, 900, values)
    assert not torch.equal(exact, near) and (exact - near).norm() < 0.01 * exact.norm()


def test_steps_are_run_by_the_function_of_the_model(model, latent, monkeypatch):
    """So that sharding and streaming hold for a cached model, too."""
    seen = []
    monkeypatch.setattr(
        model, "run_blocks", lambda steps, tokens, cond: seen.append(len(steps)) or run_blocks(steps, tokens, cond)
    )
    cache = BlockCache(1e-3, torch.float32)
    values = prepared(model, cache)
    called(model, latent, 900, values)
    called(model, latent, 900, values)
    assert seen == [1, 1, 3, 1, 1, 1, 1]

"""CLIP's vision tower from the released file: what is read of it, and what is refused."""

import sys

import pytest
import torch

from tests.checkpoint.published import manifest
from tests.checkpoint.test_manifests import ManifestSource
from tests.modules.animate.tiny import clip_state, randn
from wan.checkpoint import source
from wan.checkpoint.loading import match_names
from wan.modules.animate.clip import ClipConfig, ClipVision, VisualSource, check_clip, load_clip, preprocess

needs_transformers = pytest.mark.usefixtures("transformers")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def file(tmp_path):
    torch.save(clip_state(), tmp_path / "clip.pth")
    return tmp_path / "clip.pth"


@needs_transformers
def test_the_released_file_fits_on_the_meta_device():
    published = {name: shape for name, shape in manifest("clip_xlm_roberta_vit_h_14").items() if "visual." in name}
    config = ClipConfig.from_state(published)
    assert config == ClipConfig(image_size=224, patch_size=14, dim=1280, mlp_dim=5120, num_heads=16, num_layers=31)
    with torch.device("meta"):
        tower = ClipVision(config)
    reader = VisualSource(ManifestSource(published), config.num_layers)
    assert match_names(tower, reader) == {name: name for name in reader.names()}
    unread = published.keys() - {place for place, _ in reader.places.values()}
    last = {name for name in published if name.startswith("visual.transformer.31.")}
    assert unread == last | {"visual.head", "visual.post_norm.weight", "visual.post_norm.bias"}


@needs_transformers
def test_only_the_entries_of_the_tower_are_read(file, monkeypatch):
    read = []
    monkeypatch.setattr(source.TensorSource, "get", record(read, source.TensorSource.get))
    tower = load_clip(file, num_heads=2)
    assert all(name.startswith("visual.") for name in read)
    assert not [name for name in read if "transformer.2." in name or "head" in name or "post_norm" in name]
    tokens = tower.encode(randn(3, 20, 30).tanh())
    assert tokens.shape == (1, 5, 8) and not tokens.requires_grad
    changed = clip_state() | {"visual.head": torch.ones(8, 6), "textual.token_embedding.weight": ["of", "anything"]}
    other = saved(changed, file)
    assert torch.equal(load_clip(other, num_heads=2).encode(randn(3, 20, 30).tanh()), tokens)


def saved(state, file):
    """Write a file beside `file`: tensors of that one are views of it."""
    torch.save(state, file.with_name("other.pth"))
    return file.with_name("other.pth")


def record(read, get):
    return lambda self, name: read.append(name) or get(self, name)


@needs_transformers
@pytest.mark.parametrize("beside", [{}, {"textual.token_embedding.weight": torch.zeros(4, 4)}])
def test_a_file_without_a_text_tower_and_one_in_half_precision_load(file, beside):
    expected = load_clip(file, num_heads=2)
    state = {name: tensor.half() for name, tensor in clip_state().items() if name.startswith("visual.")}
    tower = load_clip(saved(state | beside, file), num_heads=2)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    image = randn(3, 20, 30).tanh()
    torch.testing.assert_close(tower.encode(image), expected.encode(image), rtol=0.02, atol=0.02)


@needs_transformers
def test_a_missing_tensor_is_named(file):
    state = clip_state()
    del state["visual.transformer.1.attn.to_qkv.bias"]
    state["visual.transformer.0.more"] = torch.ones(2)
    other = saved(state, file)
    with pytest.raises(ValueError) as caught:
        check_clip(other, 2)
    text = str(caught.value)
    assert str(other) in text and "missing:\n" in text and "tower.encoder.layers.1.self_attn.q_proj.bias" in text
    assert "unexpected:\n    tower.encoder.layers.0.more" in text


def test_another_file_is_refused_with_its_content(tmp_path):
    torch.save({"casual_audio_encoder.weights": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: the tensors are not those of CLIP's vision tower"):
        check_clip(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        check_clip(tmp_path / "absent.pth")


def test_numbers_of_heads_that_do_not_fit_are_refused(file):
    with pytest.raises(ValueError, match="8 channels of CLIP cannot be divided into 16 heads"):
        check_clip(file)


def test_without_transformers_the_error_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[animate\]'"):
        check_clip(file, 2)


def test_a_picture_is_stretched_to_the_size_of_the_tower():
    white = preprocess(torch.ones(3, 40, 20), 28)
    assert white.shape == (1, 3, 28, 28)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-4, rtol=0)

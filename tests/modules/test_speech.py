"""Speech features: as long as the speech, the same in windows and at once, and strictly loaded."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.published import manifest
from wan.checkpoint.formats import released_names
from wan.checkpoint.loading import empty
from wan.modules import speech
from wan.modules.speech import (
    REACH,
    STRIDE,
    SpeechEncoder,
    SpeechFeatures,
    bucket,
    check_speech_encoder,
    feature_index,
    interpolate,
    load_speech_encoder,
    num_features,
    num_speech_features,
    num_states,
    place_features,
    read_speech_config,
    save_speech_encoder,
)

CONFIG = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    **{"hidden_act": "gelu", "feat_extract_activation": "gelu", "feat_extract_norm": "layer", "layer_norm_eps": 1e-5},
    **{"conv_dim": [8] * 7, "conv_kernel": speech.KERNELS, "conv_stride": speech.STRIDES},
    **{"conv_bias": True, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
    "do_stable_layer_norm": True,
}


def local_encoder(samples):
    """States [2, T, 1] of exactly the samples that each of them may see: their mean and their first one."""
    seen = samples.unfold(0, REACH, STRIDE)
    return torch.stack([seen.mean(1), seen[:, 0]])[..., None]


def noise(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def encoder():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return SpeechEncoder(CONFIG).eval()


@pytest.fixture
def folder(encoder, tmp_path):
    save_speech_encoder(encoder, tmp_path)
    return tmp_path


def changed(file, **values):
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}))


# ---------------------------------------------------------------- counts and places


def test_states_are_those_of_the_convolutions():
    for samples in [1, 399, 400, 719, 720, 16_000, 80_257]:
        rest = samples
        for kernel, stride in zip(speech.KERNELS, speech.STRIDES):
            rest = max(0, (rest - kernel) // stride + 1)
        assert num_states(samples) == rest


def test_counts_round_in_double_precision_as_upstream():
    counts = range(20_000)
    less = [n for n in counts if speech.num_features(n) < n * 3 // 5]
    assert len(less) == 68 and {205, 410} <= set(less)


@pytest.mark.parametrize("samples", [1, 160, 399, 719, 720, 721, 16_000, 160_000])
def test_frames_with_speech_are_followed_by_zeros(samples):
    features = SpeechFeatures(local_encoder, noise(samples) + 3)
    assert features.count == num_speech_features(samples) >= 1
    spoken = int((feature_index(0, 400, features.count) >= 0).sum())
    clip = features.clip(0, 400)
    assert clip.shape == (1, 2, 1, 400)
    assert clip[..., :spoken].abs().amax(1).all() and not clip[..., spoken:].any()


def test_frames_before_the_first_repeat_it():
    features = SpeechFeatures(local_encoder, noise(50_000))
    clip = features.clip(-3, 20)
    assert torch.equal(clip[..., :3], clip[..., 3:4].expand(-1, -1, -1, 3))
    assert torch.equal(clip[..., 3:], features.clip(0, 17))


def test_the_first_and_last_feature_are_the_first_and_last_state():
    states = noise(3 * 61 * 4).view(3, 61, 4)
    features = interpolate(states, *place_features(torch.arange(36), 61, 36))
    assert torch.equal(features[:, 0], states[:, 0])
    torch.testing.assert_close(features[:, -1], states[:, -1])
    assert torch.equal(interpolate(states, *place_features(torch.arange(1), 61, 1)), states[:, :1])


@pytest.mark.parametrize("count", [2, 250, 1000, 5000])
def test_features_are_those_of_interpolation_in_float32(count):
    states, wanted = noise(4 * count).view(1, count, 4), num_features(count)
    expected = torch.nn.functional.interpolate(states.mT, size=wanted, align_corners=True, mode="linear").mT
    found = interpolate(states, *place_features(torch.arange(wanted), count, wanted))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("samples", [30_000, 100_000, 123_456])
def test_windows_give_what_the_whole_gives_where_the_encoder_looks_no_further(samples):
    wave = noise(samples) * 0.1 + 0.5
    whole = SpeechFeatures(local_encoder, wave)
    parts = SpeechFeatures(local_encoder, wave, window=100, margin=10)
    frames = math.ceil(samples / 1000) + 20
    assert torch.equal(parts.clip(-3, frames), whole.clip(-3, frames))
    for first in (40, 0, 7, 30):
        assert torch.equal(parts.clip(first, 9), whole.clip(first, 9)), "in any order"


def test_a_clip_encodes_its_own_windows_and_each_only_once():
    heard = []

    def listen(samples):
        heard.append(samples)
        return local_encoder(samples)

    wave = noise(320 * 1000 + 80)
    features = SpeechFeatures(listen, wave, window=100, margin=10)
    assert not heard
    for first in range(0, 320, 10):
        features.clip(first, 10)
        assert len(heard) <= first // 25 + 2, "no window before it is needed"
    assert len(heard) == 13
    assert {len(samples) for samples in heard} == {99 * STRIDE + REACH}
    assert features._kept[1].shape[1] < 40, "only what frames use is kept"
    variance, mean = torch.var_mean(wave, correction=0)
    torch.testing.assert_close(heard[0], ((wave - mean) / (variance + 1e-7).sqrt())[: len(heard[0])])


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize("samples", [speech.MIN_SAMPLES, 320 * 30 + 80, 320 * 61 + 399])
def test_convolutions_in_pieces_of_the_time_are_the_same(encoder, samples):
    front, wave = encoder.wav2vec2.feature_extractor, noise(samples)[None]
    lengths = []

    def convolve(part):
        lengths.append(part.shape[1])
        return type(front).forward(front, part)

    with torch.inference_mode():
        whole, pieces = (speech.in_pieces(convolve, wave, piece) for piece in (1000, 7))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)
    assert whole.shape[-1] == num_states(samples) and max(lengths[1:]) == min(samples // 320 * 320 + 80, 6 * 320 + 400)


@pytest.mark.parametrize("wave", [torch.zeros(20_000), torch.full((20_000,), 0.3), torch.zeros(1)])
def test_silence_has_finite_features(encoder, wave):
    assert SpeechFeatures(encoder, wave).clip(0, 24).isfinite().all()


def test_the_last_state_is_behind_the_final_norm(encoder):
    with torch.no_grad():
        encoder.wav2vec2.encoder.layer_norm.weight.zero_()
        encoder.wav2vec2.encoder.layer_norm.bias.fill_(7)
    states = encoder(noise(4000))
    assert states.shape == (3, 12, 16) == (encoder.num_layers, num_states(4000), encoder.width)
    assert (states[-1] == 7).all() and not (states[:-1] == 7).any()
    assert not states.requires_grad


def test_a_windowed_file_is_near_the_whole_one(encoder):
    wave = noise(320 * 600)
    whole, parts = (SpeechFeatures(encoder, wave, window=window, margin=50).clip(0, 180) for window in (600, 300))
    assert 0 < (parts - whole).norm() / whole.norm() < 0.05


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("names", ["old", "new"])
def test_a_released_folder_loads_under_both_names_of_the_kernel(encoder, folder, names):
    state = load_file(folder / "model.safetensors")
    if names == "old":
        kernel = "wav2vec2.encoder.pos_conv_embed.conv."
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            state[kernel + old] = state.pop(f"{kernel}parametrizations.weight.{new}")
        state |= {"lm_head.weight": torch.zeros(5, 16), "lm_head.bias": torch.zeros(5)}
        state["wav2vec2.masked_spec_embed"] = torch.zeros(16)
    save_file(state, folder / "model.safetensors")
    changed(folder / "config.json", vocab_size=5, mask_time_prob=0.05, attn_implementation="someone/kernel")
    assert check_speech_encoder(folder) == (3, 16)
    wave = noise(9000)
    torch.testing.assert_close(load_speech_encoder(folder)(wave), encoder(wave), rtol=0, atol=1e-6)


def test_half_precision_files_become_float32(folder):
    state = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    assert {p.dtype for p in load_speech_encoder(folder).parameters()} == {torch.float32}


def test_missing_and_unknown_tensors_are_named(folder):
    state = load_file(folder / "model.safetensors")
    state["wav2vec2.more"] = state.pop("wav2vec2.encoder.layer_norm.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing:\n.*encoder.layer_norm.bias\n(.|\n)*unexpected:\n.*wav2vec2.more"):
        check_speech_encoder(folder)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hidden_size": "16"}, "hidden_size must have type int, got '16'"),
        ({"hidden_size": "absent"}, "hidden_size must have type int, got None"),
        ({"hidden_size": 1 << 40}, "sizes must be 1 to"),
        ({"num_hidden_layers": 10**6}, "at most 1000 layers"),
        ({"hidden_size": 15}, "hidden_size 15 must be a multiple of the numbers of heads and groups"),
        ({"conv_dim": [8] * 6}, "conv_dim must have 7 sizes, got 6"),
        ({"conv_dim": [8] * 6 + ["x"]}, "sizes must be 1 to"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "conv_stride must be "),
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ({"feat_extract_norm": "group"}, "feat_extract_norm must be 'layer', got 'group'"),
        ({"add_adapter": True}, "add_adapter must be False or None, got True"),
    ],
)
def test_configurations_of_other_models_are_refused(folder, values, text):
    changed(folder / "config.json", **values)
    with pytest.raises(ValueError) as error:
        check_speech_encoder(folder)
    assert text in str(error.value) and str(folder / "config.json") in str(error.value)


def test_files_beside_the_weights_are_needed(folder):
    changed(folder / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(ValueError, match=r"preprocessor_config.json: sampling_rate must be 16000, got 8000"):
        read_speech_config(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json"):
        load_speech_encoder(folder)


def test_without_transformers_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[s2v\]'"):
        check_speech_encoder(folder)
    assert speech.num_speech_features(16_000) == 29, "counting needs no encoder"


def test_features_of_several_neighbours_lie_side_by_side():
    features = torch.arange(12.0).view(1, 12, 1)
    found = bucket(features, feature_index(0, 8, 12, around=2))
    assert found.shape == (1, 1, 5, 8)
    assert found[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2] and found[0, 0, :, 6].tolist() == [9, 10, 11, 11, 11]
    assert not found[..., 7].any()


def test_the_released_file_fits_on_the_meta_device():
    pytest.importorskip("transformers")
    names, _ = released_names(manifest("wav2vec2_large_xlsr_53_english"))
    config = CONFIG | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    config |= {"intermediate_size": 4096, "conv_dim": [512] * 7}
    config |= {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    shapes = {name: tuple(t.shape) for name, t in empty(lambda: SpeechEncoder(config)).state_dict().items()}
    assert shapes == {name: manifest("wav2vec2_large_xlsr_53_english")[stored] for name, stored in names.items()}

"""Speech as features for every frame of a video: hidden states of a pretrained wav2vec2 encoder (Transformers).

Time is counted in samples (16,000 a second), states (50), features (30) and frames (16).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from wan.checkpoint.loading import MAX_CONFIG_BYTES, check_fits, load_module
from wan.checkpoint.source import open_source
from wan.files import atomic_file, read_json, shown
from wan.inputs import SPEECH_RATE
from wan.program import install_command
from wan.values import dictionary, quoted

SAMPLE_RATE, STATE_RATE, FEATURE_RATE, FRAME_RATE = SPEECH_RATE, 50, 30, 16  # Hz
KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]  # of the convolutions in front of the encoder
STRIDE = 320  # samples between states
REACH = 400  # samples that one state is made from
MIN_SAMPLES = REACH + STRIDE  # shorter speech is padded with silence: one feature needs two states

WINDOW, MARGIN = 60 * STATE_RATE, 5 * STATE_RATE  # states encoded together, and those at its ends that are not used
PIECE = 10 * STATE_RATE  # states whose convolutions are computed together

# Fields of `config.json` that say what the encoder computes, with their types or possible values. All others are about
# training and other models.
FIELDS: dict[str, type | tuple[Any, ...]] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), int),
    **dict.fromkeys(("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"), int),
    **dict.fromkeys(("conv_bias", "do_stable_layer_norm"), bool),
    **dict.fromkeys(("hidden_act", "feat_extract_activation"), ("gelu",)),
    **{"feat_extract_norm": ("layer",), "layer_norm_eps": float, "conv_dim": list},
    **{"conv_kernel": (KERNELS,), "conv_stride": (STRIDES,), "add_adapter": (False, None)},
}
PREPROCESSED = {"sampling_rate": SAMPLE_RATE, "do_normalize": True}
NO_TRAINING = dict.fromkeys(("mask_time_prob", "mask_feature_prob", "layerdrop"), 0.0)
LARGEST, MOST_LAYERS = 1 << 20, 1000  # far beyond any encoder, yet small enough to build one without weights


class SpeechEncoder(nn.Module):
    """Encoder of normalised samples, without gradients. Parameters are float32, under the names of the released file.

    config: values of `FIELDS`. `num_layers` is the number of hidden states, one more than layers; `width` their size.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        wav2vec2 = _transformers().Wav2Vec2Config(**config, **NO_TRAINING)
        self.wav2vec2 = _transformers().Wav2Vec2Model(wav2vec2)
        self.num_layers, self.width = wav2vec2.num_hidden_layers + 1, wav2vec2.hidden_size
        front = self.wav2vec2.feature_extractor
        front.forward = partial(in_pieces, front.forward)

    @torch.inference_mode()
    def forward(self, samples: Tensor) -> Tensor:
        """samples [n] -> hidden states [layers + 1, T, C] on the device of the parameters.

        The first state enters the first layer. The last one is behind the final norm: transformers 5 lists it without.
        """
        device = next(self.parameters()).device
        result = self.wav2vec2(samples[None].to(device, torch.float32), output_hidden_states=True)
        return torch.cat([*result.hidden_states[:-1], result.last_hidden_state])


def load_speech_encoder(folder: str | Path, device: torch.device | str = "cpu") -> SpeechEncoder:
    """Load the encoder of a folder in the Hugging Face layout, strictly. Raises as `check_speech_encoder`."""
    config = read_speech_config(folder)
    return load_module(lambda: SpeechEncoder(config), folder, dtype=torch.float32, device=device)


def save_speech_encoder(encoder: SpeechEncoder, folder: str | Path) -> None:
    """Write an encoder as the released folder has it, without what only transcription needs."""
    from safetensors.torch import save_file

    folder = Path(folder)
    config = {name: getattr(encoder.wav2vec2.config, name) for name in FIELDS}
    written = {"config.json": {"model_type": "wav2vec2", **config}, "preprocessor_config.json": PREPROCESSED}
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in written.items():
        with atomic_file(folder / name, overwrite=True) as partial:
            partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic_file(folder / "model.safetensors", overwrite=True) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def check_speech_encoder(folder: str | Path) -> tuple[int, int]:
    """Check configuration, names and shapes of a folder without reading weights; returns `num_layers` and `width`.

    Raises FileNotFoundError or ValueError that names the file, and ValueError when transformers is not installed.
    """
    config = read_speech_config(folder)
    check_fits(lambda: SpeechEncoder(config), open_source(folder))
    return config["num_hidden_layers"] + 1, config["hidden_size"]


def read_speech_config(folder: str | Path) -> dict[str, Any]:
    """Read the `FIELDS` in `config.json`; they and `preprocessor_config.json` must be those of a 16 kHz encoder."""
    file = Path(folder) / "config.json"
    _checked(Path(folder) / "preprocessor_config.json", {name: (value,) for name, value in PREPROCESSED.items()})
    values = _checked(file, FIELDS)
    width, layers = values["hidden_size"], values["num_hidden_layers"]
    sizes = [values[name] for name, rule in FIELDS.items() if rule is int] + values["conv_dim"]
    if not all(type(n) is int and 1 <= n <= LARGEST for n in sizes) or layers > MOST_LAYERS:
        raise ValueError(f"{shown(file)}: sizes must be 1 to {LARGEST}, with at most {MOST_LAYERS} layers")
    if len(values["conv_dim"]) != len(KERNELS):
        raise ValueError(f"{shown(file)}: conv_dim must have {len(KERNELS)} sizes, got {len(values['conv_dim'])}")
    if any(width % values[name] for name in ("num_attention_heads", "num_conv_pos_embedding_groups")):
        raise ValueError(f"{shown(file)}: hidden_size {width} must be a multiple of the numbers of heads and groups")
    return values


def _checked(file: Path, rules: Mapping[str, type | tuple[Any, ...]]) -> dict[str, Any]:
    """Read the values of a JSON file that `rules` name, each of a type or one of several values."""
    values = dictionary(shown(file), read_json(file, MAX_CONFIG_BYTES))
    for name, rule in rules.items():
        value = values.get(name)
        if isinstance(rule, type):
            fits, wanted = type(value) is rule, f"have type {rule.__name__}"
        else:
            fits, wanted = value in rule, f"be {' or '.join(map(quoted, rule))}"
        if not fits:
            raise ValueError(f"{shown(file)}: {name} must {wanted}, got {quoted(value)}")
    return {name: values[name] for name in rules if name in values}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"speech needs the package transformers ({error}): {install_command('s2v')}") from None
    return transformers


# ---- from samples to frames ----


def num_states(samples: int) -> int:
    """Count the states of so many samples: those of seven convolutions without padding."""
    return max(0, (samples - REACH) // STRIDE + 1)


def in_pieces(convolve: Callable[[Tensor], Tensor], samples: Tensor, piece: int = PIECE) -> Tensor:
    """Convolve samples [1, n] to [1, C, T] in pieces of the time: the values are the same, in less memory.

    The first layer of the released encoder makes 0.4 GB of one minute, and its norm and activation as much again.
    """
    states = num_states(samples.shape[1])
    starts = range(0, states, piece)
    ends = [(min(start + piece, states) - 1) * STRIDE + REACH for start in starts]
    parts = [convolve(samples[:, start * STRIDE : end]) for start, end in zip(starts, ends, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def num_features(states: int, state_rate: float = STATE_RATE, feature_rate: float = FEATURE_RATE) -> int:
    """Count the features of so many states, in double precision and in this order, as upstream."""
    return int(states / float(state_rate) * feature_rate)


def num_speech_features(samples: int) -> int:
    """Count the features of so many samples, padded with silence where they are too few."""
    return num_features(num_states(max(samples, MIN_SAMPLES)))


def available_clips(features: int, infer_frames: int, fps: float = FRAME_RATE) -> int:
    """Count the clips of `infer_frames` frames that upstream makes of so many features; the last may be silent."""
    return int(features / (infer_frames * FEATURE_RATE / fps)) + 1


def feature_index(
    first: int, count: int, features: int, fps: float = FRAME_RATE, feature_rate: float = FEATURE_RATE, around: int = 0
) -> Tensor:
    """Index the features [count, 2 * around + 1] of frames `first` and following; -1 means zeros, past the end.

    Frames before 0 have the feature of frame 0. With `around` a frame also has that many neighbours on either side, a
    whole number of features apart.
    """
    frames = torch.arange(first, first + count, dtype=torch.float64).clamp(min=0)
    center = (frames / fps * feature_rate).round()[:, None]
    offsets = torch.arange(-around, around + 1) * int(feature_rate / fps)
    index = (center + offsets).long().clamp(0, max(0, features - 1))
    return index.masked_fill(center >= features, -1)


def place_features(index: Tensor, states: int, features: int) -> tuple[Tensor, Tensor]:
    """Place features between states: `index` [n] -> the state in front [n] and the share [n] of the one behind it.

    The first and last of both fall together. Places are float32, as those of `torch.nn.functional.interpolate`: in long
    sounds exact ones would give other features than upstream's.
    """
    place = index.float() * (torch.tensor(float(states - 1)) / max(1, features - 1))
    front = place.long().clamp(max=max(0, states - 2))
    return front, place - front


def interpolate(states: Tensor, front: Tensor, share: Tensor) -> Tensor:
    """states [L, T, C] -> features [L, n, C] at the places of `place_features`."""
    front, share = front.to(states.device), share.to(states)[:, None]
    return states[:, front] * (1 - share) + states[:, (front + 1).clamp(max=states.shape[1] - 1)] * share


def bucket(features: Tensor, index: Tensor) -> Tensor:
    """features [L, T, C], `index` [F, m] of `feature_index` -> those of every frame [1, L, m * C, F]; zeros for -1."""
    found = features[:, index.clamp(min=0)] * (index >= 0)[None, :, :, None].to(features)
    return found.flatten(2).transpose(1, 2)[None]


class SpeechFeatures:
    """Features for the frames of a whole speech, made as clips ask for them. `count` is their number.

    encoder: normalised samples [n] -> states [L, T, C]. samples [n]: float32 at 16 kHz; too few are padded with
    silence. fps: the rate of the video. A speech of up to `window` states is encoded as a whole. A longer one is
    encoded in windows of that many states; `margin` states at both ends only inform the others. Mean and variance are
    those of the whole speech. The features for the frames of one window are kept: 82 MB of the released encoder.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        samples: Tensor,
        fps: float = FRAME_RATE,
        window: int = WINDOW,
        margin: int = MARGIN,
    ):
        self.encoder, self.samples = encoder, pad(samples, (0, max(0, MIN_SAMPLES - len(samples))))
        self.states, self.window = num_states(len(self.samples)), window
        self.count, self.margin = num_features(self.states), margin
        self.core = window - 2 * margin if self.states > window else self.states
        variance, self.mean = torch.var_mean(self.samples, correction=0)
        self.scale = torch.rsqrt(variance + 1e-7)
        index = feature_index(0, math.ceil(self.count / FEATURE_RATE * fps) + 1, self.count, fps)
        self.front, self.share = place_features(index[index >= 0], self.states, self.count)  # of every frame
        self._kept: tuple[int, Tensor] | None = None

    def clip(self, first_frame: int, num_frames: int) -> Tensor:
        """Return the features [1, L, C, num_frames] of frames of the video; zeros past the end of the speech.

        Frames before 0 have the features of frame 0.
        """
        last = len(self.front) - 1
        frames = torch.arange(first_frame, first_frame + num_frames).clamp(min=0)
        windows = self.front[frames.clamp(max=last)] // self.core
        parts = []
        for number in windows.unique().tolist():
            start, features = self._of_window(number)
            part = frames[windows == number]
            index = (part - start).masked_fill(part > last, -1)
            parts.append(bucket(features, index[:, None]))
        return torch.cat(parts, dim=-1)

    def normalised(self, start: int, stop: int) -> Tensor:
        """Return a part of the samples as the encoder takes it."""
        return (self.samples[start:stop] - self.mean) * self.scale

    def _of_window(self, number: int) -> tuple[int, Tensor]:
        """Return the first frame of a window, and the features [L, n, C] of all its frames."""
        owned = (self.front // self.core == number).nonzero()[:, 0]
        if self._kept is None or self._kept[0] != number:
            start = max(0, min(number * self.core - self.margin, self.states - self.window))
            stop = min(start + self.window, self.states)
            states = self.encoder(self.normalised(start * STRIDE, (stop - 1) * STRIDE + REACH))
            self._kept = number, interpolate(states, self.front[owned] - start, self.share[owned])
        return int(owned[0]), self._kept[1]

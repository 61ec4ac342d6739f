"""Runners for the golden cases of speech: features of the encoder, and their places in the frames of a video."""

from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.parity import assert_equal, assert_near, under
from wan import framing, geometry
from wan.checkpoint.formats import released_names
from wan.modules import speech
from wan.modules.speech import SpeechEncoder, SpeechFeatures, feature_index, num_features
from wan.pose import GuidingFrames

Tensors = dict[str, Tensor]


def wav2vec2_features(case: dict, tensors: Tensors) -> None:
    pytest.importorskip("transformers")
    config = {name: case["config"][name] for name in speech.FIELDS if name in case["config"]}
    encoder = SpeechEncoder(config).eval()
    weights = under(tensors, "weights/")
    stored, _ = released_names(weights)
    encoder.load_state_dict({name: weights[key] for name, key in stored.items()})
    samples, expected = tensors["in/audio_16k"], tensors["out/features_30fps"]
    features = SpeechFeatures(encoder, samples)
    inputs = features.normalised(0, len(samples))
    assert_near(inputs[None], tensors["out/input_values"], 1e-4)
    states = encoder(inputs)
    assert_near(states, tensors["out/hidden_states"], 1e-4)
    assert len(states) == encoder.num_layers
    count = num_features(states.shape[1], case["input_fps"], case["output_fps"])
    assert_near(resampled(states, count), expected, 1e-4)
    frames = feature_index(0, count, count, feature_rate=case["output_fps"])
    assert_near(features.clip(0, count), speech.bucket(expected, frames), 1e-4)
    assert case["sample_rate"] == speech.SAMPLE_RATE and features.count == count


def audio_buckets(case: dict, tensors: Tensors) -> None:
    for i, run in enumerate(case["cases"]):
        states, m, fps = tensors[f"in/hidden_{i}"].float(), run.get("m", 0), run.get("fps", speech.FRAME_RATE)
        count = num_features(states.shape[1])
        assert [len(states), count] == [case["num_layers"], run["T30"]]
        assert speech.available_clips(count, run["infer_frames"], fps) == run["num_clips"]
        features = resampled(states, count)
        assert_near(features, tensors[f"out/features_30fps_{i}"], 1e-4)
        index = feature_index(0, run["total_frames"], count, fps, around=m)
        assert_near(speech.bucket(features, index), tensors[f"out/audio_embed_{i}"], 1e-4)


def resampled(states: Tensor, count: int) -> Tensor:
    return speech.interpolate(states, *speech.place_features(torch.arange(count), states.shape[1], count))


def clip_table(rows: list[dict]) -> None:
    for row in rows:
        states = speech.num_states(row["samples_16k"])
        count, frames = num_features(states), row["bucket_frames"]
        assert (states, count) == (row["wav2vec_frames"], row["features_30fps"])
        assert speech.num_speech_features(row["samples_16k"]) == count
        clips = speech.available_clips(count, row["infer_frames"])
        assert (clips, clips * row["infer_frames"]) == (row["num_clips"], frames)
        index = feature_index(0, frames, count)[:, 0]
        assert_equal(index, torch.tensor(row["feature_index"]))
        assert int((index >= 0).sum()) == row["frames_with_audio"] == frames - row["frames_zero_padded"]


def size_table(rows: list[dict]) -> None:
    for row in rows:
        (height, width), size = row["image_hw"], tuple(reversed(row["output_hw"]))
        used = framing.of_area(
            "s2v_upstream", row["max_area"], (width, height), geometry.VAE_STRIDE, geometry.PATCH_SIZE
        )
        assert used == size
        resized = framing.short_side_size((width, height), min(size))
        assert resized == tuple(reversed(row["resized"]))
        left, top, right, bottom = framing.letterbox_borders(resized, size)
        assert [top, left, bottom, right] == row["pad"]
        row_of, column_of = np.indices(resized[::-1])
        blocks = row_of // 256 * 16 + column_of // 256 + 1  # borders have 0
        image = Image.fromarray(np.stack([row_of % 256, column_of % 256, blocks], -1).astype(np.uint8))
        shown = np.asarray(framing.letterbox(image, size)).astype(int)
        low_row, low_column, block = shown[top, left]
        assert [low_row + (block - 1) // 16 * 256, low_column + (block - 1) % 16 * 256] == row["crop_origin"]
        assert shown.shape == (*row["output_hw"], 3) and not shown[:top].any() and not shown[:, :left].any()


def pose_index_table(rows: list[dict]) -> None:
    for row in rows:
        frames = [(Fraction(n), np.full((4, 4, 3), n)) for n in range(row["video_frames"])]
        with (
            mock.patch("wan.media.upright_frames", lambda _, frames=frames: iter(frames)),
            mock.patch("wan.media.frame_rate", lambda _, fps=row["video_fps"]: fps),
        ):
            film = GuidingFrames("recorded.mp4", (4, 4), row["target_fps"], as_upstream=True)
            found = [film._at(Fraction(n, row["target_fps"])) for n in range(row["n_frames"])]
        chosen = [int(pixels[0, 0, 0]) for pixels in found if pixels is not None]
        assert chosen == row["first_n"]
        assert all(pixels is None for pixels in found[len(chosen) :])


RUNNERS = {
    "audio_buckets": audio_buckets,
    "wav2vec2_features": wav2vec2_features,
}
TABLES = {"clip_table": clip_table, "size_table": size_table, "pose_index_table": pose_index_table}

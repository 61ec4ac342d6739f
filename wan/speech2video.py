"""Speech-to-video (S2V-14B): a picture speaks, clip after clip, as long as the sound is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan import geometry
from wan.checkpoint.layout import part
from wan.clips import Clip
from wan.configs import WAN_CONFIGS, TaskConfig
from wan.finite import require_finite
from wan.geometry import LatentShape
from wan.inputs import SPEECH_RATE, Sound
from wan.modules.speech import SpeechFeatures, available_clips, load_speech_encoder, num_speech_features
from wan.pipeline import ARGUMENTS, OnStep, WanPipeline
from wan.pose import GuidingFrames
from wan.request import MAX_SEED, Request
from wan.runtime import Runtime
from wan.tts import Spoken, speak
from wan.values import named

LONGEST_CLIP = WAN_CONFIGS["s2v-14B"].longest_clip
DROPPED = 3  # first frames of a video that has no history: the model was trained to have them left out
REFERENCE_FRAMES = 6  # of the history, with `start_from_ref`
MERGED = 10  # frames beyond the last full clip join it, if they are at most one of so many parts of it


@dataclass(frozen=True)
class Materials:
    """Inputs that all clips of a video share: the picture as a latent [z, 1, h, w] and as pixels [3, 1, H, W]."""

    reference: Tensor
    pixels: Tensor
    speech: SpeechFeatures
    pose: GuidingFrames | None


class WanS2V(WanPipeline):
    """Speech-to-video: `WanS2V(config, checkpoint_dir).generate(prompt, image, audio)` -> [3, F, H, W].

    See `WanPipeline`. A video is made of clips. The model sees the last frames before a clip as its history.
    """

    task = "s2v-14B"
    arguments = ARGUMENTS | {
        "image": "ref_image_path",
        "audio": "audio_path",
        "frame_num": "infer_frames",
        "num_clip": "num_repeat",
        "start_from_ref": "init_first_frame",
    }

    def generate(
        self,
        input_prompt: str,
        ref_image_path: Any,
        audio_path: Any = None,
        enable_tts: bool = False,
        tts_prompt_audio: str | None = None,
        tts_prompt_text: str | None = None,
        tts_text: str | None = None,
        num_repeat: int | None = None,
        pose_video: Any = None,
        max_area: int | None = None,
        infer_frames: int | None = None,
        shift: float | None = None,
        sample_solver: str | None = None,
        sampling_steps: int | None = None,
        guide_scale: float | None = None,
        n_prompt: str | None = None,
        seed: int | None = None,
        offload_model: bool | None = None,
        init_first_frame: bool = False,
        *,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        audio_start: float | None = None,
        audio_len: float | None = None,
        as_upstream: bool = False,
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, H, W] in [-1, 1], float32 on the CPU; argument names as upstream.

        None means the value of the config, as on the command line. Upstream's library has other defaults here:
        num_repeat=1, shift=5.0, guide_scale=5.0; pass them for its videos. ref_image_path: a path or a PIL image;
        audio_path: a sound or a video with sound; num_repeat: clips at most, None for as many as the sound is long;
        pose_video: a video whose poses are followed; infer_frames: frames of a clip, a multiple of 4; init_first_frame:
        begin with the picture itself. With `enable_tts` the sound is `tts_text`, spoken with the voice of
        `tts_prompt_audio`, and kept in `tts.wav`. `as_upstream` makes upstream's choices where ours are others. Size,
        `fit` and all others are as in `WanI2V.generate`. The video has no sound: `audio.add_audio` gives it one.
        """
        max_area = max_area if size is None else None
        if enable_tts:
            with named(self.arguments):
                spoken = Spoken(tts_text, tts_prompt_audio, tts_prompt_text)
                audio_path = speak(spoken, "tts.wav", device=self.device)
        return self.answer(locals())

    def _assemble(self, config: TaskConfig, checkpoint_dir: Path, runtime: Runtime) -> None:
        super()._assemble(config, checkpoint_dir, runtime)
        folder = part(checkpoint_dir, config.speech_checkpoint)
        self.weights.add("speech_encoder", lambda: load_speech_encoder(folder))

    # ---- the clips of a video ----

    @staticmethod
    def num_clips(request: Request) -> int:
        return len(clip_lengths(request))

    @staticmethod
    def num_frames(request: Request) -> int:
        made = sum(clip_lengths(request)) - dropped(request)
        return made if request.as_upstream else min(made, frames_of_sound(request))

    @staticmethod
    def sound(request: Request) -> Sound:
        return request.heard

    def tail_frames(self, request: Request) -> int:
        return self.config.motion_frames

    @classmethod
    def latent_shape(cls, config: TaskConfig, request: Request, index: int = 0) -> LatentShape:
        stride = config.vae_stride[0]  # all frames of a clip are in groups of so many: other frames are before them
        frames = clip_lengths(request)[index] // stride
        return geometry.latent_shape(request.framing.used, stride * (frames - 1) + 1, config.vae_stride, config.z_dim)

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        """Describe a clip by its speech, its pose, the reference picture and the history.

        The history is decoded in front of a clip, the reference picture in front of a first one without history.
        """
        given, lengths = self.materials(request), clip_lengths(request)
        before = self.config.motion_frames
        first, count = sum(lengths[:index]), lengths[index]
        has_history = index > 0 or request.start_from_ref
        motion = self.encoded(history(given.pixels, tail, before, request.start_from_ref)) if has_history else None
        heard = first - (0 if request.as_upstream else dropped(request))
        audio = given.speech.clip(heard, count)
        require_finite(audio, "the speech encoder")
        audio = audio.to(self.runtime.device)
        common = {
            "ref_latents": [given.reference],
            "motion_latents": None if motion is None else [motion],
            "cond_states": None if given.pose is None else [self.encoded_pose(given.pose.clip(heard, count))],
        }
        clip = super().clip(request, index, tail)
        return replace(
            clip,
            seed=(request.seed + index) % (MAX_SEED + 1),
            positive=common | {"audio_input": audio},
            negative=common | {"audio_input": torch.zeros_like(audio)},
            lead=motion if has_history else given.reference,
            drop=before if has_history else 1 + DROPPED,
        )

    def materials(self, request: Request) -> Materials:
        """Read and encode the inputs of a request that all of its clips share, once."""
        if self._materials is None or self._materials[0] is not request:
            self._materials = None
            pixels = request.given_frame(request.image)[:, None].to(self.runtime.device)
            pose = None
            if request.pose_video is not None:
                framing = request.framing
                pose = GuidingFrames(request.pose_video.path, framing.used, request.fps, request.as_upstream)
            self._materials = request, Materials(self.encoded(pixels), pixels, self.speech(request), pose)
        return self._materials[1]

    def speech(self, request: Request) -> SpeechFeatures:
        """Return the features of the sound, which are computed when clips ask for them."""
        return SpeechFeatures(self.encode_speech, request.heard.waveform, float(request.fps))

    def encode_speech(self, samples: Tensor) -> Tensor:
        """Encode normalised samples [n] to states [layers, T, C], on the CPU, by the speech encoder."""
        return self.weights.use("speech_encoder")(samples).cpu()

    def encoded(self, frames: Tensor) -> Tensor:
        """Encode frames [3, F, H, W] to a latent."""
        return self.vae.encode([frames.to(self.runtime.device)])[0]

    def encoded_pose(self, frames: Tensor) -> Tensor:
        """Encode the pose of a clip, [3, F, H, W] -> [z, F / 4, h, w]: the first frame has no latent of its own."""
        return self.encoded(torch.cat([frames[:, :1], frames], dim=1))[:, 1:]

    _materials: tuple[Request, Materials] | None = None


def history(pixels: Tensor, tail: Tensor | None, count: int, starts_from_reference: bool) -> Tensor:
    """Make the `count` frames before a clip: grey ones, the reference picture if asked for, the video so far."""
    start = pixels.new_zeros(pixels.shape[0], count, *pixels.shape[2:])
    if starts_from_reference:
        start[:, -REFERENCE_FRAMES:] = pixels
    return start if tail is None else torch.cat([start, tail.to(start)], dim=1)[:, -count:]


def dropped(request: Request) -> int:
    """Number of generated frames that are not part of the video, at its start."""
    return 0 if request.start_from_ref else DROPPED


def frames_of_sound(request: Request) -> int:
    """Number of frames that are as long as the sound."""
    return max(1, ceil(Fraction(request.heard.samples, SPEECH_RATE) * request.fps))


def clip_lengths(request: Request) -> list[int]:
    """Number of frames that each clip generates, those that are dropped included; multiples of 4.

    Clips are full, and the last one takes what is left. Upstream makes full clips only, also for silence at the end.
    """
    full = request.frame_num
    if request.as_upstream:
        count = available_clips(num_speech_features(request.heard.samples), full, float(request.fps))
        return [full] * min(count, request.num_clip or count)
    total = -(-(frames_of_sound(request) + dropped(request)) // 4) * 4
    total = min(total, full * (request.num_clip or total))
    count, rest = divmod(total, full)
    lengths = [full] * count
    if lengths and rest and rest <= full // MERGED and full + rest <= LONGEST_CLIP:
        lengths[-1] += rest
    elif rest:
        lengths.append(rest)
    return lengths

"""Character animation and replacement (Animate-14B): a character performs what a person does in a video."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from wan import geometry
from wan.checking import expert_config
from wan.checkpoint.layout import part
from wan.clips import Clip, back_and_forth, overlapping
from wan.colours import Colours, composited, matched
from wan.conditioning import condition_mask
from wan.configs import TaskConfig
from wan.finite import require_finite
from wan.geometry import LatentShape
from wan.inputs import Sound
from wan.letterbox import letterbox, resize_linear, resize_smooth
from wan.media import from_uint8
from wan.modules.animate.clip import ClipVision, load_clip
from wan.modules.animate.model import BlankFace
from wan.performance import Frames
from wan.pipeline import ARGUMENTS, OnStep, WanPipeline
from wan.request import MAX_SEED, Request
from wan.runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Materials:
    """Values that all clips of a video share: the reference as a latent [z, 1, h, w] and as CLIP's tokens [1, n, C]."""

    reference: Tensor
    tokens: Tensor
    blank: BlankFace


@dataclass(frozen=True)
class NumberedClip(Clip):
    """Clip that knows its place in the video."""

    index: int = 0


class WanAnimate(WanPipeline):
    """Character animation: `WanAnimate(config, checkpoint_dir).generate(src_root_path)` -> [3, F, H, W].

    See `WanPipeline`. The first latent frame of a clip is the reference picture, and is not decoded. A clip begins with
    the last frames of the one before, `refert_num` of them. With `replace_flag` the character stands in the background
    of the performance.
    """

    task = "animate-14B"
    arguments = ARGUMENTS | {"performance": "src_root_path", "frame_num": "clip_len"}

    def __init__(self, config: TaskConfig, *given: Any, use_relighting_lora: bool = False, **flags: Any):
        """Take the arguments of `WanPipeline`, and whether the relighting LoRA is merged into the weights.

        As upstream's, `use_relighting_lora` may also be the eleventh argument by position.
        """
        if len(given) == 10:
            *given, use_relighting_lora = given
        if use_relighting_lora and isinstance(config, TaskConfig):
            config = config.copy(uses_lora=True)
        super().__init__(config, *given, **flags)

    def generate(
        self,
        src_root_path: Any,
        replace_flag: bool = False,
        clip_len: int | None = None,
        refert_num: int = 1,
        shift: float | None = None,
        sample_solver: str | None = None,
        sampling_steps: int | None = None,
        guide_scale: float | None = None,
        input_prompt: str = "",
        n_prompt: str = "",
        seed: int | None = None,
        offload_model: bool | None = None,
        *,
        composite: bool = False,
        match_color: bool = False,
        as_upstream: bool = False,
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, H, W] in [-1, 1], float32 on the CPU; argument names as upstream.

        src_root_path: the folder that preprocessing wrote; replace_flag: the character takes the place of the person;
        clip_len: frames of a clip at most, 4n+1; refert_num: frames that a clip takes over from the one before, 1 or 5.
        None means the value of the config, as on the command line; upstream's library has another solver, dpm++. An
        empty prompt or negative prompt is the configured one. `composite`, `match_color` and `as_upstream` are those of
        a `Request`. The video has no sound, and the rate of the performance is not in it.
        """
        input_prompt = input_prompt or self.config.prompt
        use_relighting_lora = self.config.uses_lora
        return self.answer(locals())

    def _assemble(self, config: TaskConfig, checkpoint_dir: Path, runtime: Runtime) -> None:
        super()._assemble(config, checkpoint_dir, runtime)
        self.weights.add("clip", lambda: load_clip(part(checkpoint_dir, config.clip_checkpoint)))

    # ---- the clips of a video ----

    @staticmethod
    def num_clips(request: Request) -> int:
        return len(clips_of(request))

    @staticmethod
    def num_frames(request: Request) -> int:
        return request.performance.frames

    @staticmethod
    def sound(request: Request) -> Sound | None:
        return request.sound or request.performance.sound

    def tail_frames(self, request: Request) -> int:
        return request.refert_num

    @classmethod
    def latent_shape(cls, config: TaskConfig, request: Request, index: int = 0) -> LatentShape:
        frames = len(clips_of(request)[index]) + config.vae_stride[0]  # the reference frame is one more of the latent
        return geometry.latent_shape(request.framing.used, frames, config.vae_stride, config.z_dim)

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        """Describe a clip by its pose, its face and the reference; `y` tells what of the video is known."""
        given, shared, numbers = request.performance.footage, self.materials(request), clips_of(request)[index]
        known, keep = self.known_video(request, numbers, tail)
        latent, mask = self.encoded(known), torch.ones(4, 1, *shared.reference.shape[2:])
        mask = torch.cat([mask, condition_mask(keep, len(numbers), latent.shape[1:])], dim=1)
        common = {
            "clip_fea": shared.tokens,
            "pose_latents": self.encoded(pixels(given.pose, numbers))[None],
        }
        return NumberedClip(
            **vars(super().clip(request, index, tail))
            | {
                "seed": request.seed if request.as_upstream else (request.seed + index) % (MAX_SEED + 1),
                "y": torch.cat([mask.to(latent), torch.cat([shared.reference, latent], dim=1)]),
                "positive": common | {"face_pixel_values": self.faces(given.face, numbers)[None]},
                "negative": common | {"face_pixel_values": shared.blank},
                "skip": 1,
                "drop": request.refert_num if index else 0,
            },
            index=index,
        )

    def noise(self, request: Request, clip: NumberedClip) -> Tensor:
        """Draw the noise of a clip by its own seed; upstream's clips take turns at one generator."""
        if not request.as_upstream:
            return super().noise(request, clip)
        noise, generator = None, torch.Generator().manual_seed(clip.seed)
        for _ in range(clip.index + 1):  # all clips have one shape
            noise = torch.randn(clip.shape, generator=generator)
        return noise.to(self.runtime.device)

    def known_video(self, request: Request, numbers: range, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Make what is known of a clip, [3, F, H, W] with grey elsewhere, and what of it is kept, [F, H, W] in 0..1.

        That is the end of the clip before, and the background outside the place of the character.
        """
        given, (width, height) = request.performance.footage, request.framing.used
        if request.replace_flag:
            known = pixels(given.background, numbers)
            keep = 1 - mask_of(given.mask, numbers, request.as_upstream)
        else:
            known, keep = torch.zeros(3, len(numbers), height, width), torch.zeros(len(numbers), height, width)
        if tail is not None:
            known[:, : tail.shape[1]], keep[: tail.shape[1]] = tail, 1
        return known, keep

    # ---- after decoding ----

    def finished(self, request: Request, index: int, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        """Match the colours of a clip, put the background around the character, and report the drift of colours.

        Raises ValueError for a clip of a single colour: its weights or its inputs are wrong.
        """
        clips, found, wanted, given = clips_of(request), Colours(), Colours(), request.performance.footage
        if index == 0 or self._surroundings is None:
            self._surroundings = given.fresh()  # read on independently of what clips are made of
        first, count = clips[index].start + bool(index) * request.refert_num, len(clips)
        kept, low, high = [], torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
        for chunk in (decoded.cpu() for decoded in frames):
            numbers = range(first, first + chunk.shape[1])
            first = numbers.stop
            low, high = low.minimum(chunk.amin((1, 2, 3))), high.maximum(chunk.amax((1, 2, 3)))
            if request.replace_flag:  # around the character the background is right
                keep = 1 - mask_of(self._surroundings.mask, numbers, request.as_upstream)
                found.add(chunk, keep)
                wanted.add(pixels(self._surroundings.background, numbers), keep)
            else:
                found.add(chunk)
            if request.match_color:
                kept.append((numbers, chunk))  # the colours of a clip are known at its end
            else:
                yield self.composite(request, numbers, chunk)
        if bool((high == low).all()):
            raise ValueError(
                f"clip {index + 1} of {count} is of a single colour: weights or inputs are damaged, or the "
                "precision is too low; try --dtype fp32 or other weights"
            )
        if not request.replace_flag:
            self._first_colours = found if index == 0 else self._first_colours
            wanted = self._first_colours
        if found.count:  # else all is character, or another process has the frames
            of = "the background" if request.replace_flag else "the first clip"
            drift = found.drift_from(wanted)
            if index or request.replace_flag:
                log.info(
                    "clip %d of %d: its mean colour is %.1f (CIE Lab) from that of %s", index + 1, count, drift, of
                )
        for numbers, chunk in kept:
            yield self.composite(request, numbers, matched(chunk, found, wanted) if found.count else chunk)

    def composite(self, request: Request, numbers: range, frames: Tensor) -> Tensor:
        """Put the background around the character in frames [3, f, H, W], with `composite`."""
        if not request.composite:
            return frames
        mask = mask_of(self._surroundings.mask, numbers, request.as_upstream)
        return composited(frames, pixels(self._surroundings.background, numbers), mask)

    _first_colours: Colours | None = None
    _surroundings: Any = None  # `Footage`

    # ---- what clips are made of ----

    def materials(self, request: Request) -> Materials:
        """Encode the reference picture of a request, once."""
        if self._materials is None or self._materials[0] is not request:
            width, height = request.framing.used
            resize = resize_linear if request.as_upstream else resize_smooth
            picture = letterbox(request.performance.footage.reference, height, width, resize)
            image = from_uint8(torch.from_numpy(picture))
            tokens = self.clip_vision.encode(image.to(self.runtime.device))
            self.weights.done("clip")
            require_finite(tokens, "CLIP")
            self._materials = request, Materials(self.encoded(image[:, None]), tokens, BlankFace())
        return self._materials[1]

    def encoded(self, frames: Tensor) -> Tensor:
        """Encode frames [3, F, H, W] to a latent."""
        return self.vae.encode([frames.to(self.runtime.device)])[0]

    def faces(self, frames: Frames, numbers: range) -> Tensor:
        """Return the faces of a clip, [3, F, S, S] in the size of the motion encoder."""
        faces, size = pixels(frames, numbers), self.face_size
        if faces.shape[2:] == (size, size):
            return faces
        faces = interpolate(faces.transpose(0, 1), (size, size), mode="bilinear", antialias=True, align_corners=False)
        return faces.transpose(0, 1)

    @property
    def face_size(self) -> int:
        """Pixels of a side of the faces that the model reads."""
        return expert_config(self.checkpoint_dir, self.config, ".").motion_encoder_size

    @property
    def clip_vision(self) -> ClipVision:
        """CLIP, on the device."""
        return self.weights.use("clip")

    _materials: tuple[Request, Materials] | None = None


def clips_of(request: Request) -> list[range]:
    """Divide the video of a request into clips; upstream's all have the full length, whatever is left."""
    return overlapping(request.performance.frames, request.frame_num, request.refert_num, request.as_upstream)


def taken(frames: Frames, numbers: range) -> np.ndarray:
    """Take frames of a clip, uint8 [F, H, W, 3]; a video that is too short runs back and forth."""
    return frames.take(back_and_forth(len(frames), numbers.stop)[numbers.start :])


def mask_of(frames: Frames, numbers: range, is_soft: bool) -> Tensor:
    """Return the mask of frames, [f, H, W]: 1 in the place of the character."""
    mask = torch.from_numpy(taken(frames, numbers)[..., 0]) / 255
    return mask if is_soft else (mask >= 0.5).float()  # compression makes masks soft


def pixels(frames: Frames, numbers: range) -> Tensor:
    """Take frames of a clip as [3, F, H, W] in [-1, 1]."""
    return from_uint8(torch.from_numpy(taken(frames, numbers))).transpose(0, 1)

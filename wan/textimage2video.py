"""Text, or text and image, to video (TI2V-5B): the image becomes a clean first latent frame that stays fixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from wan import geometry
from wan.clips import Clip
from wan.geometry import Size
from wan.pipeline import OnStep, WanPipeline
from wan.request import Request
from wan.sampling import keep_first_frame


class WanTI2V(WanPipeline):
    """`WanTI2V(config, checkpoint_dir).generate(prompt, img)` -> video [3, F, H, W] in [-1, 1]; see `WanPipeline`."""

    task = "ti2v-5B"

    def generate(
        self,
        input_prompt: str,
        img: Any = None,
        size: tuple[int, int] = (1280, 704),
        max_area: int = 704 * 1280,
        frame_num: int = 81,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 50,
        guide_scale: float = 5.0,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool = True,
        *,
        fit: str = "area",
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, H, W] in [-1, 1], float32 on the CPU; argument names as upstream.

        img: the first frame, a PIL image or a path; without it the text alone decides, and the video has `size`,
        (width, height) in pixels. With it the size follows the aspect ratio of the image in about `max_area` pixels;
        the other fits of `wan.framing` save `size` exactly. frame_num: 4n+1; n_prompt: what to avoid, the task's
        default when empty; seed: negative for a random one. Raises ValueError and FileNotFoundError for what cannot
        work, before any weight is read.
        """
        request = self.asked(
            input_prompt,
            image=img,
            size=size,
            max_area=max_area,
            fit=fit,
            frame_num=frame_num,
            shift=shift,
            solver=sample_solver,
            steps=sampling_steps,
            guidance=guide_scale,
            negative_prompt=n_prompt or None,  # None: the default of the task
            seed=seed,
        )
        return self.video(request, offload_model=offload_model, on_step=on_step)

    def t2v(
        self, input_prompt: str, size: Size = (1280, 704), frame_num: int = 121, *settings: Any, **named: Any
    ) -> Tensor | None:
        """`generate` from text alone, with upstream's order of arguments: shift and what follows it come next."""
        return self.generate(input_prompt, None, size, 704 * 1280, frame_num, *settings, **named)

    def i2v(
        self,
        input_prompt: str,
        img: Any,
        max_area: int = 704 * 1280,
        frame_num: int = 121,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 40,
        *settings: Any,
        **named: Any,
    ) -> Tensor | None:
        """`generate` from an image, with upstream's order of arguments and its 40 steps: guide_scale comes next."""
        if img is None:
            raise ValueError("i2v needs img, an image or the path of one; t2v does without")
        schedule = shift, sample_solver, sampling_steps
        return self.generate(input_prompt, img, (1280, 704), max_area, frame_num, *schedule, *settings, **named)

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        """With an image: its latent is the first frame throughout, and the tokens of that frame are at timestep 0."""
        plain = super().clip(request, index, tail)
        if request.image is None:
            return plain
        latent = self.vae.encode([request.given_frame(request.image)[:, None]])[0]
        mask = geometry.first_frame_mask(plain.shape).to(latent)
        seq_len = geometry.padded_seq_len(plain.shape, self.config.patch_size)
        return replace(
            plain,
            keep=keep_first_frame(latent, mask),
            timesteps=lambda t: geometry.token_timesteps(mask, t, seq_len, self.config.patch_size),
        )

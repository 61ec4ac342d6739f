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
    """Hybrid: `WanTI2V(config, checkpoint_dir).generate(prompt, img)` -> [3, F, H, W]; see `WanPipeline`."""

    task = "ti2v-5B"

    def generate(
        self,
        input_prompt: str,
        img: Any = None,
        size: tuple[int, int] | None = None,
        max_area: int | None = None,
        frame_num: int | None = None,
        shift: float | None = None,
        sample_solver: str | None = None,
        sampling_steps: int | None = None,
        guide_scale: float | None = None,
        n_prompt: str | None = None,
        seed: int | None = None,
        offload_model: bool | None = None,
        *,
        fit: str | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, H, W] in [-1, 1], float32 on the CPU; argument names as upstream.

        None means the value of the config, as on the command line. Upstream's library has one other default here:
        frame_num=81; pass it for its videos. img: the first frame, a PIL image or a path; without it the text alone
        decides, and the video has `size`, (width, height) in pixels. With it the size follows the aspect ratio of the
        image in about `max_area` pixels, or the area of `size`; the other fits of `wan.framing` save `size` exactly.
        frame_num: 4n+1; n_prompt: things to avoid, the task's default when empty; seed: negative for a random one;
        offload_model: for this call, None leaves it to the runtime. Raises ValueError and FileNotFoundError for wrong
        values, before any weight is read.
        """
        return self.answer(locals())

    def t2v(
        self, input_prompt: str, size: Size | None = None, frame_num: int | None = None, *settings: Any, **named: Any
    ) -> Tensor | None:
        """Generate from text alone, with upstream's order of arguments: shift and the later ones come next."""
        return self.generate(input_prompt, None, size, None, frame_num, *settings, **named)

    def i2v(
        self,
        input_prompt: str,
        img: Any,
        max_area: int | None = None,
        frame_num: int | None = None,
        shift: float | None = None,
        sample_solver: str | None = None,
        sampling_steps: int | None = None,
        *settings: Any,
        **named: Any,
    ) -> Tensor | None:
        """Generate from an image, with upstream's order of arguments: guide_scale comes next.

        Upstream has sampling_steps=40 here; None means the config's number, 50.
        """
        if img is None:
            raise ValueError("i2v needs img, an image or the path of one; t2v needs none")
        schedule = shift, sample_solver, sampling_steps
        return self.generate(input_prompt, img, None, max_area, frame_num, *schedule, *settings, **named)

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        """Describe the clip. The latent of an image is always the first frame, and its tokens have timestep 0."""
        plain = super().clip(request, index, tail)
        if request.image is None:
            return plain
        latent = self.vae.encode([request.given_frame(request.image)[:, None]])[0]
        mask = geometry.first_frame_mask(plain.shape).to(latent)
        clean, total = (geometry.token_count(shape, self.config.patch_size) for shape in (latent.shape, plain.shape))
        return replace(plain, keep=keep_first_frame(latent, mask), segments=((clean, 1), (total - clean, 0)))

"""Image-to-video (I2V-A14B): a first frame, a last one or both become channels beside the latent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from wan.clips import Clip
from wan.conditioning import condition
from wan.pipeline import OnStep, WanPipeline
from wan.request import Request


class WanI2V(WanPipeline):
    """Image-to-video: `WanI2V(config, checkpoint_dir).generate(prompt, img)` -> [3, F, H, W]; see `WanPipeline`."""

    task = "i2v-A14B"

    def generate(
        self,
        input_prompt: str,
        img: Any = None,
        max_area: int | None = None,
        frame_num: int | None = None,
        shift: float | None = None,
        sample_solver: str | None = None,
        sampling_steps: int | None = None,
        guide_scale: float | tuple[float, float] | None = None,
        n_prompt: str | None = None,
        seed: int | None = None,
        offload_model: bool | None = None,
        *,
        last_image: Any = None,
        size: tuple[int, int] | None = None,
        fit: str | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, H, W] in [-1, 1], float32 on the CPU; argument names as upstream.

        None means the value of the config, as on the command line. Upstream's library has one other default here:
        guide_scale=5.0; pass it for its videos. img: the first frame, a PIL image or a path; last_image: the last one,
        with `img` or without it. The size follows the aspect ratio of the image within `max_area` pixels, or within
        the area of `size`, (width, height), when that is given; the other fits of `wan.framing` save `size` exactly.
        frame_num: 4n+1; guide_scale: one number, or (low-noise, high-noise expert); n_prompt: things to avoid, the
        task's default when empty; seed: negative for a random one; offload_model: for this call, None leaves it to the
        runtime. Raises ValueError and FileNotFoundError for wrong values, before any weight is read.
        """
        max_area = max_area if size is None else None
        return self.answer(locals())

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        """Describe the clip: `y` is the mask and the latent of a clip with the given frames, grey elsewhere."""
        places = (0, request.image), (request.frame_num - 1, request.last_image)
        frames = {place: request.given_frame(image) for place, image in places if image is not None}
        y = condition(self.vae.encode, frames, request.frame_num)
        return replace(super().clip(request, index, tail), y=y)

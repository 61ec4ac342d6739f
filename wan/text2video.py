"""Text-to-video (T2V-A14B): noise, two experts, one latent, frames."""

from __future__ import annotations

from torch import Tensor

from wan.pipeline import OnStep, WanPipeline


class WanT2V(WanPipeline):
    """Text-to-video: `WanT2V(config, checkpoint_dir).generate(prompt)` -> [3, F, H, W]; see `WanPipeline`."""

    task = "t2v-A14B"

    def generate(
        self,
        input_prompt: str,
        size: tuple[int, int] | None = None,
        frame_num: int | None = None,
        shift: float | None = None,
        sample_solver: str | None = None,
        sampling_steps: int | None = None,
        guide_scale: float | tuple[float, float] | None = None,
        n_prompt: str | None = None,
        seed: int | None = None,
        offload_model: bool | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, height, width] in [-1, 1], float32 on the CPU; argument names as upstream.

        None means the value of the config, as on the command line. Upstream's library has other defaults here:
        size=(1280, 720), frame_num=81, shift=5.0, sampling_steps=50, guide_scale=5.0; pass them for its videos.
        size: (width, height) in pixels; frame_num: 4n+1; guide_scale: one number, or (low-noise, high-noise expert);
        n_prompt: things to avoid, the task's default when empty; seed: negative for a random one; offload_model: for
        this call, None leaves it to the runtime. Raises ValueError for wrong values, before any weight is read.
        """
        return self.answer(locals())

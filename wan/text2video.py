"""Text-to-video (T2V-A14B): noise, two experts, one latent, frames."""

from __future__ import annotations

from torch import Tensor

from wan.pipeline import OnStep, WanPipeline


class WanT2V(WanPipeline):
    """`WanT2V(config, checkpoint_dir).generate(prompt)` -> video [3, F, H, W] in [-1, 1]; see `WanPipeline`."""

    task = "t2v-A14B"

    def generate(
        self,
        input_prompt: str,
        size: tuple[int, int] = (1280, 720),
        frame_num: int = 81,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 50,
        guide_scale: float | tuple[float, float] = 5.0,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool = True,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, height, width] in [-1, 1], float32 on the CPU; argument names as upstream.

        size: (width, height) in pixels; frame_num: 4n+1; guide_scale: one number, or (low-noise, high-noise expert);
        n_prompt: what to avoid, the task's default when empty; seed: negative for a random one. Raises ValueError for
        values that cannot work, before any weight is read.
        """
        request = self.asked(
            input_prompt,
            size=size,
            frame_num=frame_num,
            shift=shift,
            solver=sample_solver,
            steps=sampling_steps,
            guidance=guide_scale,
            negative_prompt=n_prompt or None,  # None: the default of the task
            seed=seed,
        )
        return self.video(request, offload_model=offload_model, on_step=on_step)

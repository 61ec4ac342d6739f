"""Previews of a training run: videos of a few prompts, made by the run of the pipelines."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from wan.clips import Clip
from wan.configs import TaskConfig
from wan.media import contact_sheet, to_uint8
from wan.modules.model import WanModel
from wan.pipeline import WanPipeline
from wan.request import Request
from wan.runtime import Runtime
from wan.training.config import TrainConfig
from wan.training.objective import FlowBatch, TextStates


class Preview(WanPipeline):
    """Pipeline of one expert in training, with text states and a condition that are computed already."""

    def __init__(self, config: TrainConfig, settings: TaskConfig, model: WanModel, text: TextStates, y: Tensor | None):
        self._assemble(settings, config.checkpoint, Runtime.from_flags(device=config.device, dtype="fp32"))
        for expert in settings.experts:
            self.weights.add(expert, lambda: model)
        self.text, self.y = text, y

    def encode_prompts(self, request: Request) -> tuple[Tensor, Tensor]:
        """Return the text states of the prompt and of the empty one."""
        prompt, empty = self.text([request.prompt, ""])
        return prompt, empty

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        return replace(super().clip(request, index, tail), y=self.y)


def previewer(
    config: TrainConfig, settings: TaskConfig, model: WanModel, text: TextStates, first: FlowBatch
) -> Callable[[int], None]:
    """Make a function that writes contact sheets of the preview prompts after a step.

    Image-to-video starts them all from the condition of the batch `first`.
    """
    y = None if first.conditions is None else first.conditions[0].to(config.device)
    settings = settings.copy(needs=())  # the condition is there already
    pipeline = Preview(config, settings, model, text, y)
    asked = {"size": config.data.size, "frame_num": config.data.frame_num, "noise_device": "cpu"}
    asked["guidance"] = settings.guidance[config.expert == settings.high_noise_checkpoint]

    def preview(step: int) -> None:
        for seed, prompt in enumerate(config.preview_prompts):
            video = pipeline.video(Request.create(settings, prompt=prompt, seed=seed, **asked))
            contact_sheet(to_uint8(video), config.output / "previews" / f"{step:07d}-{seed}.png")

    return preview

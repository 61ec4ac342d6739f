"""Runs of a pipeline for tests: the latent alone, or its frames."""

import torch
from torch import Tensor

from wan.clips import ClipSampled, StepDone
from wan.modules.model import time_features


def sample(pipeline, request, on_step=None):
    """Sample the latent [z, T, H, W] of the first clip; the run is cancelled after it."""
    for event in pipeline.run(request):
        if isinstance(event, StepDone) and on_step is not None:
            on_step(event.step, event.steps, event.latent)
        elif isinstance(event, ClipSampled):
            return event.clip.latent


def timesteps_of(features: Tensor) -> Tensor:
    """Compute the timesteps, whole numbers [S], of features [S, freq_dim] that a model was given."""
    known = time_features(torch.arange(1001), features.shape[1], features.device)
    return (features[:, None] == known).all(dim=2).int().argmax(dim=1)

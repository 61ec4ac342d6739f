"""Runs of a pipeline as tests need them: the latent alone, or the frames of one."""

from wan.clips import ClipSampled, StepDone


def sample(pipeline, request, on_step=None):
    """The latent [z, T, H, W] of the first clip; the run is cancelled after it."""
    for event in pipeline.run(request):
        if isinstance(event, StepDone) and on_step is not None:
            on_step(event.step, event.steps, event.latent)
        elif isinstance(event, ClipSampled):
            return event.clip.latent

"""Remarks on flags that have no effect in a run, so that nobody waits for one."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from wan.configs import get_config
from wan.guidance import format_guidance
from wan.program import shell_word
from wan.request import Request
from wan.runtime import Runtime
from wan.utils.solvers import make_solver

# Flags of preprocessing a video.
OF_PREPROCESSING = {"retarget_flag", "person", "masks", "pose_backend", "keep_inputs", "smooth"}
# Flags that change the sampling of a latent, and nothing after it.
SAMPLING_ONLY = ("dtype", "attention", "compile", "t5_cpu", "convert_model_dtype", "quantize", "t5_fsdp", "dit_fsdp",
                 "offload", "offload_model", "progress")  # fmt: skip


def without_effect(args: argparse.Namespace, request: Request, runtime: Runtime, samples: bool) -> Iterator[str]:
    """Yield a sentence for each given flag without effect; `samples`: something is still to be sampled."""
    given = {flag.removeprefix("--") for flag in args.typed}
    if not samples:
        if idle := [f"--{flag}" for flag in SAMPLING_ONLY if flag in given]:
            yield f"{', '.join(idle)} has no effect: --resume only decodes what is sampled already"
    else:
        yield from _sampling(args, given, request)
    if runtime.device.type == "cpu":
        if args.offload_model or args.offload == "model":
            flag = "offload_model" if args.offload_model else "offload model"
            yield f"--{flag} has no effect: on the CPU there is nowhere to move a model to"
        if args.t5_cpu and samples:
            yield "--t5_cpu has no effect: everything runs on the CPU"
    if runtime.vae_tile is not None and runtime.vae_tile >= max(request.framing.used):
        yield f"--vae_tile {runtime.vae_tile} has no effect: whole frames are no larger"
    if args.prompt and os.path.isfile(args.prompt):
        name = shell_word(args.prompt)
        yield f'--prompt {name} is taken as the text itself, the file is not read; for its text: "$(cat {name})"'
    if args.output_dir and args.save_file and Path(args.save_file).is_absolute():
        yield "--output_dir has no effect: --save_file is a whole path"
    if args.source:
        yield "--source has no effect without --download"
    yield from _extension(args, given, request)
    if "video" not in given and (idle := sorted(given & OF_PREPROCESSING)):
        yield f"--{', --'.join(idle)} has no effect without --video: the performance is prepared already"
    if not args.enable_tts and (idle := sorted(flag for flag in given if flag.startswith("tts_"))):
        yield f"--{', --'.join(idle)} has no effect without --enable_tts"


def _extension(args: argparse.Namespace, given: set[str], request: Request) -> Iterator[str]:
    idle = sorted(flag for flag in given if flag.startswith("prompt_extend_"))
    if not args.use_prompt_extend:
        if idle:
            yield f"--{', --'.join(idle)} has no effect without --use_prompt_extend"
    elif args.resume:
        yield "--use_prompt_extend has no effect: with --resume the prompt is the one that was sampled"
    elif request.original_prompt is not None:
        yield "--use_prompt_extend has no effect: the stored prompt is written out already; give --prompt for another"
    else:
        if "prompt_extend_url" in given and args.prompt_extend_method != "openai":
            yield "--prompt_extend_url has no effect without --prompt_extend_method openai"
        if "prompt_extend_timeout" in given and args.prompt_extend_method == "local_qwen":
            yield "--prompt_extend_timeout has no effect: a model on this machine has all the time that it needs"


def _sampling(args: argparse.Namespace, given: set[str], request: Request) -> Iterator[str]:
    guidance = format_guidance(request.guidance)
    least = get_config(request.task).least_guidance
    if "sample_guide_scale" in given and min(args.sample_guide_scale) < least:
        yield f"--sample_guide_scale {format_guidance(args.sample_guide_scale)} counts as {guidance} for {request.task}"
    if "negative_prompt" in given and request.negative_prompt and set(request.guidance) == {1}:
        yield f"--negative_prompt has no effect at guidance {guidance}; try --sample_guide_scale 5, or leave it out"
    if request.prompt and set(request.guidance) == {0}:
        yield "the prompt has no effect at guidance 0; 1 follows it, larger values more strongly"
    if request.guidance_until < 1 and set(request.guidance) == {1}:
        yield f"--cfg_until {request.guidance_until:g} has no effect at guidance 1: no step has two branches"
    if request.boundary is not None and given & {"boundary", "sample_guide_scale"}:
        steps = make_solver(request.solver, request.steps, request.shift, sigmas=request.sigmas).timesteps
        high = int((steps >= request.boundary * 1000).sum())
        if high in (0, request.steps):
            idle = "low-noise" if high else "high-noise"
            settings = f"boundary {request.boundary:g}, {request.steps} steps and shift {request.shift:g}"
            settings = f"boundary {request.boundary:g} and these noise levels" if request.sigmas else settings
            yield f"the {idle} expert makes no step with {settings}; its guidance has no effect"

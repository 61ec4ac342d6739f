"""The command line: arguments become one checked Job (`wan.planning`), a Job becomes a file."""

import contextlib
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from wan import geometry, media, memory, output
from wan.arguments import build_parser
from wan.checkpoint.layout import part
from wan.checkpoint.loading import read_config
from wan.checkpoint.source import open_source
from wan.geometry import format_size
from wan.image2video import WanI2V
from wan.planning import Job, plan
from wan.request import format_guidance
from wan.runtime import Offload
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.version import VERSION

log = logging.getLogger(__name__)

PIPELINES = {pipeline.task: pipeline for pipeline in (WanT2V, WanI2V, WanTI2V)}
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; wrong arguments are one line on stderr, without a traceback."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or the error
        return int(stop.code or 0)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(levelname)s: %(message)s", datefmt="%H:%M:%S")
    try:
        job = plan(args)
    except (ValueError, OSError) as error:
        print(f"generate.py: error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return INTERRUPTED
    return run(job)


def run(job: Job) -> int:
    """Sample, keep the latent, decode into the file; the exit code. A failure after sampling says how to resume."""
    kept = job.latent
    try:
        describe(job)
        pipeline = PIPELINES[job.config.name](job.config, job.checkpoint, runtime=job.runtime)
        if job.latent is None:
            with reporter(job.progress) as on_step:
                latent = pipeline.sample(job.request, on_step)
            kept = _keep(latent, job)
        else:
            latent = output.load_latent(job.latent)[0]
        start = time.perf_counter()
        frames = (media.to_uint8(chunk) for chunk in pipeline.decode(latent, job.request.framing))
        count = media.write_video(frames, job.video, job.request.fps, _tags(job), job.overwrite)
        if kept is not None:
            kept.unlink()
    except KeyboardInterrupt:
        print("generate.py: interrupted" + (_how_to_resume(job, kept) or "; nothing was written"), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # the outermost frame of the program: report and leave
        _report_failure(error)
        if hint := _how_to_resume(job, kept):
            print(f"generate.py: the sampled video is not lost{hint}", file=sys.stderr)
        return FAILED
    _summarize(job, pipeline.phases, count, time.perf_counter() - start)
    return DONE


def _keep(latent: Tensor, job: Job) -> Path | None:
    """Save the latent beside the video until that is written. A full disk does not end the run: the video may fit."""
    path = output.latent_path(job.video)
    try:
        output.save_latent(latent, path, _stored_request(job))
    except (OSError, SafetensorError) as error:
        log.warning("the latent could not be kept (%s): if decoding fails too, the run is lost", error)
        return None
    return path


def describe(job: Job) -> None:
    """Log what is about to happen, in full: nothing that decides the result is left out."""
    request, runtime = job.request, job.runtime
    if job.latent is not None:
        log.info("decoding %s with %s on %s into %s", job.latent, job.checkpoint, runtime.device, job.video)
        return
    log.info(
        "%s (%s): %s, %d frames at %d fps, %d steps of %s, shift %g, guidance %s, seed %d",
        request.task,
        "nano" if job.config.family == "nano" else job.checkpoint,
        format_size(request.framing.used),
        request.frame_num,
        request.fps,
        request.steps,
        request.solver,
        request.shift,
        format_guidance(request.guidance),
        request.seed,
    )
    log.info(
        "on %s in %s, attention %s, offload %s, expected memory about %.1f GiB -> %s",
        runtime.device,
        runtime.dtype_name,
        runtime.attention,
        runtime.offload.value,
        expected_bytes(job) / 2**30,
        job.video,
    )
    if request.shape_image is not None:
        log.info("size: %s (fit %s)", request.framing, request.fit)
    for name in ("image", "last_image"):
        if picture := getattr(request, name):
            log.info("%s: %s, %s", name.replace("_", " "), picture.path, format_size(picture.size))
    log.info("prompt: %s", request.prompt)


def expected_bytes(job: Job) -> int:
    """Peak memory to expect, from file headers and shapes: of the device, or on a CPU of the whole process."""
    config, runtime = job.config, job.runtime
    experts = config.experts
    shapes = open_source(job.checkpoint / experts[0]).shapes().values()
    expert_bytes = sum(map(math.prod, shapes)) * runtime.dtype.itemsize
    text, vae = (part(job.checkpoint, name) for name in (config.t5_checkpoint, config.vae_checkpoint))
    text_bytes = text.stat().st_size if runtime.t5_device == runtime.device else 0
    vae_bytes = vae.stat().st_size

    model = read_config(job.checkpoint / experts[0])
    size = job.request.framing.used
    latent = geometry.latent_shape(size, job.request.frame_num, config.vae_stride, config.z_dim)
    tokens = geometry.token_count(latent, config.patch_size)
    denoise = memory.denoise_bytes(0, tokens, model["dim"], model["ffn_dim"], runtime.dtype)
    decode = memory.decode_bytes(0, *size, config.vae_dim)
    if runtime.offload is Offload.NONE:
        resident = text_bytes + len(experts) * expert_bytes + vae_bytes + max(denoise, decode)
    else:
        resident = max(text_bytes, expert_bytes + denoise, vae_bytes + decode)
    program = (memory.peak_memory(runtime.device) or 0) if runtime.device.type == "cpu" else 0
    return resident + program


@contextlib.contextmanager
def reporter(progress: str) -> Iterator[Callable[[int, int, Tensor], None] | None]:
    """What to call after every denoising step: a bar with the time left, plain lines about every tenth, or nothing."""
    if progress == "none":
        yield None
    elif progress == "plain":
        yield _plain_lines()
    else:
        from tqdm import tqdm

        with tqdm(desc="denoising", unit="step", dynamic_ncols=True) as bar:
            yield lambda done, total, latent: _advance(bar, done, total)


def _advance(bar: Any, done: int, total: int) -> None:
    if done == 1:  # the first step includes loading; the time left is reckoned from the second on
        bar.reset(total)
        bar.initial = 1
    bar.update(done - bar.n)


def _plain_lines() -> Callable[[int, int, Tensor], None]:
    second_step_from = 0.0

    def on_step(done: int, total: int, latent: Tensor) -> None:
        nonlocal second_step_from
        now = time.perf_counter()
        if done == 1:
            second_step_from = now
            log.info("step 1/%d", total)
        elif done == total or done % max(1, total // 10) == 0:
            left = (now - second_step_from) / (done - 1) * (total - done)
            log.info("step %d/%d, %.0f s left", done, total, left)

    return on_step


def _stored_request(job: Job) -> str:
    return job.request.to_json(
        checkpoint=job.config.family,
        device=job.runtime.device.type,
        dtype=job.runtime.dtype_name,
        convert_model_dtype=job.runtime.convert_model_dtype,
        versions={"wan": VERSION, "torch": torch.__version__},
    )


def _tags(job: Job) -> dict[str, str]:
    if not job.metadata:
        return {}
    comment = f"{job.request.prompt} ({job.request.task}, seed {job.request.seed}, wan {VERSION})"
    return {output.REQUEST_KEY: _stored_request(job), "comment": comment}


def _how_to_resume(job: Job, kept: Path | None) -> str:
    if kept is None or not kept.exists():
        return ""
    ckpt = "" if job.config.family == "nano" else f" --ckpt_dir {shlex.quote(str(job.checkpoint))}"
    return f"; finish it with: python generate.py --resume {shlex.quote(str(kept))}{ckpt}"


def _report_failure(error: Exception) -> None:
    """One line for what the world does (disk, memory, values); a traceback as well for what only a defect can do."""
    expected = isinstance(error, (OSError, ValueError, MemoryError, FloatingPointError, torch.OutOfMemoryError))
    if not expected:
        log.error("this is a defect, please report it with the following lines", exc_info=error)
    print(f"generate.py: failed: {str(error) or type(error).__name__}", file=sys.stderr)


def _summarize(job: Job, phases: dict[str, Any], count: int, decode_and_write: float) -> None:
    seconds = {name: stats.seconds for name, stats in phases.items() if name != "decode"}
    seconds["decode and write"] = decode_and_write
    peaks = [stats.peak_bytes for stats in phases.values() if stats.peak_bytes]
    log.info(
        "saved %s: %d frames, %s; %s%s",
        job.video,
        count,
        format_size(job.request.framing.saved),
        ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        f"; peak memory {max(peaks) / 2**30:.2f} GiB" if peaks else "",
    )

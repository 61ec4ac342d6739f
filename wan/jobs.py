"""A job: one checked request becomes one file. The command line and servers run jobs; nothing here parses or exits."""

import contextlib
import logging
import math
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan import geometry, media, output
from wan.checking import expert_config
from wan.configs import TaskConfig
from wan.distributed.util import get_rank
from wan.files import check_writable, shown
from wan.forecast import expected_bytes
from wan.geometry import format_size
from wan.guidance import format_guidance
from wan.image2video import WanI2V
from wan.interrupts import put_off
from wan.memory import total_memory
from wan.pipeline import WanPipeline
from wan.program import command_line
from wan.progress import reporter
from wan.request import MAX_SEED, Request
from wan.runtime import Runtime, resolve_device
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.version import VERSION

log = logging.getLogger(__name__)

PIPELINES: dict[str, type[WanPipeline]] = {pipeline.task: pipeline for pipeline in (WanT2V, WanI2V, WanTI2V)}
VIDEO_BYTES_PER_PIXEL = 0.1  # of a quiet H.264 file; more than that may be needed, less hardly


@dataclass(frozen=True)
class Job:
    """One run, complete and checked: nothing in it can be refused any more. `latent` is set to resume a decode.

    With `num_videos` the run makes the video and variants of it, each with the next seed; `variant` is one of them.
    """

    config: TaskConfig
    checkpoint: Path
    request: Request
    runtime: Runtime
    video: Path
    overwrite: bool
    metadata: bool
    progress: str
    latent: Path | None = None
    num_videos: int = 1
    ckpt_dir: str | None = None  # as it was given
    fingerprint: str = ""  # of the checkpoint's weights
    stays: bool = False  # the latent, when it is decoded with weights that did not sample it

    def variant(self, number: int) -> "Job":
        """The job of one video, 0 <= number < num_videos."""
        if self.num_videos == 1:
            return self
        seed = (self.request.seed + number) % (MAX_SEED + 1)
        video = self.video.with_name(f"{self.video.stem}-{number + 1}{self.video.suffix}")
        return replace(self, request=replace(self.request, seed=seed), video=video, num_videos=1)

    def variants(self) -> "list[Job]":
        return [self.variant(number) for number in range(self.num_videos)]


def video_bytes(request: Request) -> int:
    """About the least that the file of a request takes."""
    return int(math.prod(request.framing.saved) * request.frame_num * VIDEO_BYTES_PER_PIXEL)


def latent_shape(request: Request, config: TaskConfig) -> geometry.LatentShape:
    return geometry.latent_shape(request.framing.used, request.frame_num, config.vae_stride, config.z_dim)


@dataclass
class Outcome:
    """The files that a run has brought to disk so far: what to say when it ends early."""

    job: Job  # of the video that is being made
    latent: Path | None = None  # keeps that video until its file is complete
    sampled: Tensor | None = None  # what that file holds, or should
    videos: list[Path] = field(default_factory=list)

    def in_words(self) -> str:
        """Say what was written and how to finish the rest; empty when there is nothing."""
        parts = [f"written: {', '.join(shown(video) for video in self.videos)}"] if self.videos else []
        if self.sampled is not None and not (self.latent and self.latent.exists()):  # its folder is gone or was full
            self.latent = _keep(self.sampled, self.job)
        if self.latent is not None:
            parts.append(f"the sampled video is not lost; finish it with: {how_to_resume(self.job, self.latent)}")
        return "; ".join(parts)


def make(outcome: Outcome, pipeline: WanPipeline) -> None:
    """Sample, keep the latent, decode into the file, check the file; only then the latent goes."""
    job = outcome.job
    if job.latent is None:
        with reporter(job.progress if get_rank() == 0 else "none") as on_step:
            latent = pipeline.sample(job.request, on_step)
            if pipeline.replica.is_first:  # before anything else can fail, and that includes a progress bar
                with put_off():
                    outcome.latent, outcome.sampled = _keep(latent, job), latent
    else:
        latent = output.load_latent(job.latent)[0]
        outcome.latent, outcome.sampled = job.latent, latent
    start = time.perf_counter()
    frames = (media.to_uint8(chunk) for chunk in pipeline.decode(latent, job.request.framing))
    if pipeline.replica.is_first:
        count = media.write(frames, job.video, job.request.fps, _tags(job), job.overwrite)
        _check_written(job)
        with put_off():
            outcome.videos.append(job.video)
            if outcome.latent is not None and not job.stays:
                _remove(outcome.latent)
            outcome.latent = outcome.sampled = None
        _summarize(job, pipeline.phases, count, time.perf_counter() - start)
    else:
        for _ in frames:  # there are none for this process, but it shares the work
            pass


def _keep(latent: Tensor, job: Job) -> Path | None:
    """Save the latent until the video is written. That it cannot be kept does not end the run: the video may fit."""
    try:
        path = output.keep_latent(latent, job.video, _stored_request(job, video=job.video.name))
    except OSError as error:
        log.warning("the latent could not be kept (%s): if decoding fails too, the run is lost", error)
        return None
    if path.parent != job.video.parent:
        log.warning("the latent is kept in %s until the video is written", path)
    return path


def _remove(latent: Path) -> None:
    try:
        latent.unlink(missing_ok=True)
    except OSError as error:  # in the folder of another user
        log.warning("the latent is of no use any more and could not be removed (%s)", error)


def _check_written(job: Job) -> None:
    """Make sure that the file on disk is what was asked for; raises OSError, and the latent stays."""
    found, wanted = media.written(job.video), (job.request.frame_num, job.request.framing.saved)
    if found != wanted:
        raise OSError(f"{job.video} holds {found[0]} frames of {found[1]}, and {wanted[0]} of {wanted[1]} were written")


def how_to_resume(job: Job, latent: Path) -> str:
    """The command that makes the video from its latent, as a shell reads it."""
    video = _place(job)
    words = ["--resume", _argument(latent)]
    if job.ckpt_dir is not None:
        words += ["--ckpt_dir", _argument(job.ckpt_dir)]
    if job.runtime.device != resolve_device(None):
        words += ["--device", str(job.runtime.device)]
    if job.runtime.vae_tile is not None:
        words += ["--vae_tile", str(job.runtime.vae_tile)]
    if not job.metadata:
        words += ["--no_metadata"]
    if job.latent is not None:  # a rate of its own may have been asked for
        words += ["--fps", str(job.request.fps)]
    if os.path.lexists(video):
        words += ["--overwrite"]
    if job.latent is not None or video != job.video or latent.parent != video.parent:  # else the latent knows it
        words += ["--save_file", _argument(video)]
    return command_line(*words)


def _place(job: Job) -> Path:
    """Name of the video that can be written now: its own, the next free one, or one in the temporary folder."""
    replaces = job.overwrite and not job.video.is_dir()
    video = job.video if replaces else output.free_path(job.video)
    try:
        check_writable(video, job.overwrite, video_bytes(job.request))
    except (ValueError, OSError):
        with contextlib.suppress(OSError):
            return output.free_path(Path(tempfile.gettempdir(), video.name))
    return video


def _argument(path: str | Path) -> str:
    """A path that cannot be read as a flag, nor as somebody's home folder."""
    return f"./{path}" if str(path).startswith(("-", "~")) else str(path)


def describe(job: Job) -> None:
    """Log what is about to happen, in full: nothing that decides the result is left out."""
    request, runtime = job.request, job.runtime
    if job.latent is not None:
        log.info("decoding %s with %s on %s into %s", job.latent, job.checkpoint, runtime.device, job.video)
        return
    log.info(
        "%s (%s): %s, %s at %d fps, %s of %s, shift %g, guidance %s, seed %d",
        request.task,
        "nano" if job.config.family == "nano" else job.checkpoint,
        format_size(request.framing.used),
        counted(request.frame_num, "frame"),
        request.fps,
        counted(request.steps, "step"),
        request.solver,
        request.shift,
        format_guidance(request.guidance),
        request.seed,
    )
    gib = expected_bytes(job.config, job.checkpoint, request, runtime) / 2**30
    have = (total_memory(runtime.device) or math.inf) / 2**30
    log.info(
        "on %s in %s, attention %s, offload %s, expected memory about %.1f GiB -> %s",
        runtime.device,
        runtime.dtype_name,
        runtime.attention,
        runtime.offload.value,
        gib,
        job.video,
    )
    if gib > have:
        log.warning("%s has only %.1f GiB; a smaller --size or --frame_num needs less", runtime.device, have)
    if job.num_videos > 1:
        log.info("%d videos with this seed and the following ones: %s ...", job.num_videos, job.variant(0).video)
    if runtime.parallel.world_size > 1:
        guided = any(scale != 1 for scale in request.guidance)
        log.info("%s", runtime.parallel.describe(guided))
        num_heads = expert_config(job.checkpoint, job.config, job.config.experts[0]).num_heads
        tiled = runtime.vae_tile is not None
        for remark in runtime.parallel.remarks(
            num_videos=job.num_videos, num_heads=num_heads, guided=guided, tiled=tiled
        ):
            log.warning("%s", remark)
    if request.shape_image is not None:
        log.info("size: %s (fit %s)", request.framing, request.fit)
    for name in ("image", "last_image"):
        if picture := getattr(request, name):
            log.info("%s: %s, %s", name.replace("_", " "), shown(picture.path), format_size(picture.size))
    log.info("prompt: %s", shown(request.prompt, 1000) or "(empty)")
    log.info("reading the weights in %s; the first step waits for them", job.checkpoint)


def _stored_request(job: Job, **extra: str) -> str:
    return job.request.to_json(
        **extra,
        checkpoint=job.config.family,
        checkpoint_dir=str(job.checkpoint) if job.ckpt_dir is not None else None,
        fingerprint=job.fingerprint,
        device=job.runtime.device.type,
        dtype=job.runtime.dtype_name,
        convert_model_dtype=job.runtime.convert_model_dtype,
        versions={"wan": VERSION, "torch": torch.__version__},
    )


def _tags(job: Job) -> dict[str, str]:
    if not job.metadata:
        return {}
    comment = f"{job.request.prompt} ({job.request.task}, seed {job.request.seed}, wan {VERSION})"
    return {output.REQUEST_KEY: output.encodable(_stored_request(job)), "comment": output.encodable(comment)}


def counted(number: int, noun: str) -> str:
    """`1 frame`, `17 frames`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _summarize(job: Job, phases: dict[str, Any], count: int, decode_and_write: float) -> None:
    seconds = {name: stats.seconds for name, stats in phases.items() if name != "decode"}
    seconds["decode and write"] = decode_and_write
    peaks = [stats.peak_bytes for stats in phases.values() if stats.peak_bytes]
    log.info(
        "saved %s: %s, %s; %s%s",
        job.video,
        counted(count, "frame"),
        format_size(job.request.framing.saved),
        ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        f"; peak memory {max(peaks) / 2**30:.2f} GiB" if peaks else "",
    )

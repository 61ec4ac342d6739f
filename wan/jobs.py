"""Job: one checked request, which becomes one file. The command line and servers run jobs; nothing here exits."""

import contextlib
import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from wan import audio, media, output
from wan.animate import WanAnimate
from wan.checking import expert_config, expert_lora
from wan.clips import ClipSampled, Event, FramesDecoded, SampledClip
from wan.configs import TaskConfig
from wan.distributed.util import get_rank
from wan.extension import Extension
from wan.files import check_writable, shown
from wan.forecast import expected_bytes
from wan.geometry import LatentShape, format_size
from wan.guidance import format_guidance
from wan.handover import used_beside
from wan.image2video import WanI2V
from wan.interrupts import put_off
from wan.memory import PhaseStats, total_memory
from wan.pipeline import WanPipeline
from wan.planner import Plan, summary
from wan.program import command_line
from wan.progress import reporter
from wan.request import MAX_SEED, Request
from wan.runtime import Runtime, resolve_device
from wan.speech2video import WanS2V
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.values import counted
from wan.version import VERSION

log = logging.getLogger(__name__)

PIPELINES: dict[str, type[WanPipeline]] = {
    pipeline.task: pipeline for pipeline in (WanT2V, WanI2V, WanTI2V, WanS2V, WanAnimate)
}
VIDEO_BYTES_PER_PIXEL = 0.1  # of an H.264 file with little motion; few files have less


@dataclass(frozen=True)
class Job:
    """Run that is complete and checked: nothing in it can be refused any more. `latent` is set to resume one.

    With `num_videos` the run makes the video and variants of it, each with the next seed.
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
    keep_clips: bool = False  # each clip also becomes a file
    extension: Extension | None = None  # of the prompt, until it is done
    plan: Plan | None = None  # of its memory

    def variant(self, number: int) -> "Job":
        """Make the job of one video, 0 <= number < num_videos."""
        if self.num_videos == 1:
            return self
        seed = (self.request.seed + number) % (MAX_SEED + 1)
        video = self.video.with_name(f"{self.video.stem}-{number + 1}{self.video.suffix}")
        return replace(self, request=replace(self.request, seed=seed), video=video, num_videos=1)

    def variants(self) -> "list[Job]":
        return [self.variant(number) for number in range(self.num_videos)]

    @property
    def pipeline(self) -> type[WanPipeline]:
        return PIPELINES[self.config.name]

    def clip_file(self, index: int) -> Path:
        """Name the file of a clip, with `keep_clips`."""
        return self.video.with_name(f"{self.video.stem}-clip{index + 1:03d}.mp4")

    @property
    def num_frames(self) -> int:
        return self.pipeline.num_frames(self.request)

    @property
    def video_bytes(self) -> int:
        """Bytes that the file of the video takes at least, roughly."""
        return int(math.prod(self.request.framing.saved) * self.num_frames * VIDEO_BYTES_PER_PIXEL)

    @property
    def clip_shapes(self) -> list[LatentShape]:
        """Shapes of the latents of all clips of the video."""
        count = self.pipeline.num_clips(self.request)
        return [self.pipeline.latent_shape(self.config, self.request, index) for index in range(count)]

    @property
    def samples(self) -> bool:
        """Tell whether any clip is not sampled yet."""
        return self.latent is None or len(output.kept_clips(self.latent)) < len(self.clip_shapes)


@dataclass
class Outcome:
    """Files that a run has written so far, for the message when it ends early."""

    job: Job  # of the video that is being made
    kept: Path | None = None  # place of its sampled clips until its file is complete
    clips: list[SampledClip] = field(default_factory=list)  # the clips that are, or should be, there
    videos: list[Path] = field(default_factory=list)

    def keep(self, clip: SampledClip) -> None:
        """Save a clip that was sampled. A failure does not end the run: there may be room for the video."""
        self.clips.append(clip)
        index, before = len(self.clips) - 1, self.kept
        stored = stored_request(self.job, video=self.job.video.name)
        try:
            if before is not None and index and len(output.kept_clips(before)) == index:
                output.add_clip(clip, before, index, stored)
            else:
                self.kept = output.keep_clips(self.clips, self.job.video, stored, len(self.job.clip_shapes))
        except OSError as error:
            log.warning("the latent could not be kept (%s): if decoding fails too, the run is lost", error)
            self.kept = None
        if self.kept not in (None, before) and self.kept.parent != self.job.video.parent:
            log.warning("the latent is kept in %s until the video is written", self.kept)

    def done(self) -> None:
        """Note that the video is complete, and remove its clips, unless other weights had sampled them."""
        self.videos.append(self.job.video)
        if self.kept is not None and not self.job.stays:
            try:
                output.remove_clips(self.kept)
            except OSError as error:  # in the folder of another user
                log.warning("the latent is not needed any more, but could not be removed (%s)", error)
        self.kept, self.clips = None, []

    def in_words(self) -> str:
        """Tell which files were written and how to finish the rest; empty when there is nothing."""
        parts = [f"written: {', '.join(shown(video) for video in self.videos)}"] if self.videos else []
        if self.clips and not (self.kept and len(output.kept_clips(self.kept)) >= len(self.clips)):
            self.keep(self.clips.pop())  # the folder is gone or was full
        if self.kept is not None:
            kept, count = len(output.kept_clips(self.kept)), len(self.job.clip_shapes)
            what = "the sampled video is not lost; finish it"
            if kept < count:
                what = f"{kept} of {count} clips are sampled and not lost; go on"
            parts.append(f"{what} with: {how_to_resume(self.job, self.kept)}")
        return "; ".join(parts)


def make(outcome: Outcome, pipeline: WanPipeline) -> None:
    """Make one video of a job. Each sampled clip is kept on disk until the file is written and checked."""
    job = outcome.job
    with reporter(job.progress if get_rank() == 0 else "none") as report:
        start, frames = time.perf_counter(), _frames(outcome, pipeline, report)
        first = next(frames, None)  # the file is opened after the first clip was sampled
        if first is None:  # frames are for the first of several processes; the others share the work
            return

        def write(chunks: Iterator[Tensor]) -> int:
            return media.write(chunks, job.video, job.request.fps, tags(job), job.overwrite)

        count = used_beside(chain([first], frames), write)
    _check_written(job)
    if (sound := job.pipeline.sound(job.request)) is not None:
        audio.add_audio(job.video, sound.path, sound.start, sound.length, job.request.performance is not None)
    with put_off():
        outcome.done()
    _summarize(job, pipeline.phases, count, time.perf_counter() - start)
    if spared := in_words(pipeline.calls):
        log.info("saved work: %s", spared)


def _frames(outcome: Outcome, pipeline: WanPipeline, report: Callable[[Event], None]) -> Iterator[Tensor]:
    """Yield the frames of a run, uint8 [f, H, W, 3], as they are decoded; sampled clips are kept meanwhile."""
    job = outcome.job
    kept = [] if job.latent is None else map(output.load_clip, output.kept_clips(job.latent))
    outcome.kept = job.latent
    clip = ClipFile(job)
    for event in pipeline.run(job.request, (outcome.clips.append(clip) or clip for clip in kept)):
        if isinstance(event, ClipSampled) and pipeline.replica.is_first:
            with put_off():  # before anything else can fail, and that includes a progress bar
                outcome.keep(event.clip)
        report(event)
        if isinstance(event, FramesDecoded):
            frames = media.to_uint8(event.frames).cpu()
            if job.keep_clips:
                clip = clip.with_frames(event.index, frames)
            yield frames
    clip.write()


@dataclass
class ClipFile:
    """Frames of one clip, which become a file of its own, with its part of the sound, when the clip is complete."""

    job: Job
    index: int = 0
    start: int = 0  # frames of the video before it
    frames: list[Tensor] = field(default_factory=list)

    def with_frames(self, index: int, frames: Tensor) -> "ClipFile":
        """Take frames of clip `index`; if they are of the next clip, the file of this one is written first."""
        if index == self.index:
            self.frames.append(frames)
            return self
        self.write()
        return ClipFile(self.job, index, self.start + sum(map(len, self.frames)), [frames])

    def write(self) -> None:
        if self.frames:
            path, fps = self.job.clip_file(self.index), self.job.request.fps
            count = media.write(self.frames, path, fps, {}, overwrite=True)
            if (sound := self.job.pipeline.sound(self.job.request)) is not None:
                keeps_frames = self.job.request.performance is not None  # the sound of others decides on their length
                audio.add_audio(path, sound.path, sound.start + self.start / fps, count / fps, keeps_frames)


def _check_written(job: Job) -> None:
    """Check that the file on disk has the frames and size of the request. Raises OSError; the latent then stays."""
    found, wanted = media.written(job.video), (job.num_frames, job.request.framing.saved)
    if found != wanted:
        raise OSError(f"{job.video} holds {found[0]} frames of {found[1]}, and {wanted[0]} of {wanted[1]} were written")


def how_to_resume(job: Job, latent: Path) -> str:
    """Write the command, for a shell, that makes the video from its latent."""
    video = _place(job)
    words = ["--resume", _argument(latent)]
    if job.ckpt_dir is not None:
        words += ["--ckpt_dir", _argument(job.ckpt_dir)]
    if job.runtime.device != resolve_device(None):
        words += ["--device", str(job.runtime.device)]
    words += job.runtime.vae_flags
    if len(output.kept_clips(latent)) < len(job.clip_shapes):  # the others are to be sampled alike
        words += ["--attention", job.runtime.attention]
        if job.runtime.compile or job.runtime.device.type == "cuda":
            words += ["--compile", str(bool(job.runtime.compile)).lower()]
        words += ["--quantize", job.runtime.quantize] if job.runtime.quantize else []
    if not job.metadata:
        words += ["--no_metadata"]
    words += ["--keep_clips"] * job.keep_clips
    if job.latent is not None:  # a rate of its own may have been asked for
        words += ["--fps", str(job.request.fps)]
    if os.path.lexists(video):
        words += ["--overwrite"]
    if job.latent is not None or video != job.video or latent.parent != video.parent:  # else the latent knows it
        words += ["--save_file", _argument(video)]
    return command_line(*words)


def _place(job: Job) -> Path:
    """Find a name under which the video can be written: its own, the next free one, or in the temporary folder."""
    replaces = job.overwrite and not job.video.is_dir()
    video = job.video if replaces else output.free_path(job.video)
    try:
        check_writable(video, job.overwrite, job.video_bytes)
    except (ValueError, OSError):
        with contextlib.suppress(OSError):
            return output.free_path(Path(tempfile.gettempdir(), video.name))
    return video


def _argument(path: str | Path) -> str:
    """Write a path so that it cannot be read as a flag or as a home folder."""
    return f"./{path}" if str(path).startswith(("-", "~")) else str(path)


def describe(job: Job) -> None:
    """Log the plan of a run, with everything that decides the result."""
    request, runtime = job.request, job.runtime
    if job.latent is not None:
        kept, count = len(output.kept_clips(job.latent)), len(job.clip_shapes)
        what = f"going on after {kept} of {count} clips in" if job.samples else "decoding"
        log.info("%s %s with %s on %s into %s", what, job.latent, job.checkpoint, runtime.device, job.video)
        if not job.samples:
            if runtime.device.type != "cpu":
                log.info("plan: %s", summary(job.plan))
            return
    who = "nano" if job.config.family == "nano" else job.checkpoint
    video = f"{format_size(request.framing.used)}, {counted(job.num_frames, 'frame')} at {float(request.fps):g} fps"
    steps = f"{counted(request.steps, 'step')} of {request.solver}"
    steps += f" at {', '.join(f'{s:.3g}' for s in request.sigmas)}" if request.sigmas else f", shift {request.shift:g}"
    guidance = format_guidance(request.guidance)
    guidance += f" in {request.guidance_until:.0%} of the steps" if request.guidance_until < 1 else ""
    guidance += f", blocks reused at changes up to {request.reuse:g}" if request.reuse else ""
    log.info("%s (%s): %s, %s, guidance %s, seed %d", request.task, who, video, steps, guidance, request.seed)
    gib = expected_bytes(job.config, job.checkpoint, request, runtime, max(job.clip_shapes)) / 2**30
    have = (total_memory(runtime.device) or math.inf) / 2**30
    how = f"{runtime.dtype_name}, attention {runtime.attention}, offload {runtime.offload.value}"
    log.info("on %s in %s, expected memory about %.1f GiB -> %s", runtime.device, how, gib, job.video)
    if job.plan is not None and runtime.device.type != "cpu":
        log.info("plan: %s", summary(job.plan))
    elif gib > have:
        log.warning("%s has only %.1f GiB; a smaller --size or --frame_num needs less", runtime.device, have)
    if job.num_videos > 1:
        log.info("%d videos with this seed and the following ones: %s ...", job.num_videos, job.variant(0).video)
    if runtime.parallel.world_size > 1:
        guided = any(scale != 1 for scale in request.guidance)
        log.info("%s", runtime.parallel.describe(guided))
        num_heads = expert_config(job.checkpoint, job.config, job.config.experts[0]).num_heads
        run = {"num_videos": job.num_videos, "guided": guided, "tiled": runtime.vae_tile is not None}
        for remark in runtime.parallel.remarks(num_heads=num_heads, **run):
            log.warning("%s", remark)
    if request.shape_image is not None:
        log.info("size: %s (fit %s)", request.framing, request.fit)
    for name, given in request.inputs.items():
        log.info("%s: %s, %s", name.replace("_", " "), shown(given.path), given)
    if job.config.uses_lora:
        log.info("relighting: %s", expert_lora(job.checkpoint, job.config, job.config.experts[0]))
    if request.performance is not None and (count := len(job.clip_shapes)) > 1:
        flags = "--match_color" + ", --composite" * request.replace_flag
        log.info("%d clips; against a drift of colours from clip to clip: %s", count, flags)
    log.info("prompt: %s", shown(request.prompt, 4000) or "(empty)")
    if request.original_prompt is not None:
        log.info("written out by a language model from: %s", shown(request.original_prompt, 1000) or "(empty)")
    log.info("reading the weights in %s; the first step waits for them", job.checkpoint)


def stored_request(job: Job, **extra: str) -> str:
    return job.request.to_json(
        **extra,
        checkpoint=job.config.family,
        checkpoint_dir=str(job.checkpoint) if job.ckpt_dir is not None else None,
        fingerprint=job.fingerprint,
        device=job.runtime.device.type,
        dtype=job.runtime.dtype_name,
        convert_model_dtype=job.runtime.convert_model_dtype,
        quantize=job.runtime.quantize,
        versions={"wan": VERSION, "torch": torch.__version__},
    )


def tags(job: Job) -> dict[str, str]:
    if not job.metadata:
        return {}
    comment = f"{job.request.prompt} ({job.request.task}, seed {job.request.seed}, wan {VERSION})"
    return {output.REQUEST_KEY: output.encodable(stored_request(job)), "comment": output.encodable(comment)}


def in_words(calls: Counter[str]) -> str:
    """Say what a run left out, "" for nothing."""
    total, parts = calls["whole"] + calls["reused"], []
    if calls["unguided"]:
        parts.append(f"guidance in {counted(calls['unguided'], 'step')}")
    if calls["reused"]:
        parts.append(f"all blocks but the first in {calls['reused']} of {counted(total, 'model call')}")
    return ", ".join(parts)


def _summarize(job: Job, phases: dict[str, PhaseStats], count: int, elapsed: float) -> None:
    seconds = {name: stats.seconds for name, stats in phases.items() if name != "decode"}
    seconds["decode and write"] = elapsed - sum(seconds.values())
    peaks = [stats.peak_bytes for stats in phases.values() if stats.peak_bytes]
    what = f"{counted(count, 'frame')}, {format_size(job.request.framing.saved)}"
    times = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    memory = f"; peak memory {max(peaks) / 2**30:.2f} GiB" if peaks else ""
    log.info("saved %s: %s; %s%s", job.video, what, times, memory)

"""The command line: arguments become one checked Job (`wan.planning`), a Job becomes a file."""

import argparse
import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before torch is imported
    from wan.program import share_cores

    share_cores()

import torch
from torch import Tensor

from wan import media, output
from wan.arguments import build_parser
from wan.checking import expert_config
from wan.distributed.util import broadcast_text, get_rank, is_first_failure, launched_rank, launched_size, local_rank
from wan.distributed.util import start as join_processes
from wan.distributed.util import stop as part_from_processes
from wan.distributed.watch import is_lost_contact
from wan.files import check_writable, shown
from wan.forecast import expected_bytes
from wan.geometry import format_size
from wan.guidance import format_guidance
from wan.image2video import WanI2V
from wan.interrupts import INTERRUPTED, as_interrupt, put_off
from wan.memory import total_memory
from wan.pipeline import WanPipeline
from wan.planning import Job, plan, video_bytes
from wan.program import OneLine, command_line, print_error
from wan.runtime import own_device, resolve_device
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.version import VERSION

log = logging.getLogger(__name__)

PIPELINES = {pipeline.task: pipeline for pipeline in (WanT2V, WanI2V, WanTI2V)}
DONE, FAILED, WRONG = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; wrong arguments are one line on stderr, without a traceback.

    Of several processes one shows an error, wherever it happened, and rank 0 logs. SIGTERM and SIGHUP end the run as
    Ctrl-C does.
    """
    with as_interrupt():
        try:
            return _main(argv)
        except KeyboardInterrupt as error:  # before planning, or while others still work
            if is_first_failure(error):
                print_error("interrupted")
            return INTERRUPTED
        except Exception as error:  # of several processes another may have ended while they met or parted
            if is_first_failure(error):
                _report_failure(error)
            return FAILED


def _main(argv: list[str] | None) -> int:
    try:
        rank = launched_rank()
        args = _parse(argv, is_quiet=rank > 0)
    except SystemExit as stop:  # argparse has printed help or the error
        return int(stop.code or 0)
    except ValueError as error:
        print_error(f"error: {error}")
        return WRONG
    level = logging.INFO if rank == 0 else logging.ERROR
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("[%(asctime)s] %(levelname)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])
    try:
        if launched_size() > 1:
            join_processes(own_device(args.device, local_rank()))
        job = agreed(plan(args))
    except (ValueError, OSError) as error:
        if is_first_failure(error):
            print_error(f"error: {error}")
        return WRONG
    except KeyboardInterrupt as error:
        if is_first_failure(error):
            print_error("interrupted; nothing was written")
        return INTERRUPTED
    code = run(job)
    if code == DONE:
        part_from_processes()
    return code


def _parse(argv: list[str] | None, is_quiet: bool) -> argparse.Namespace:
    with contextlib.ExitStack() as stack:
        if is_quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        return build_parser().parse_args(argv)


def agreed(job: Job) -> Job:
    """The job as rank 0 planned it: a seed may be drawn, a name contains the time."""
    mine = json.dumps({"seed": job.request.seed, "prompt": job.request.prompt, "video": str(job.video)})
    values = json.loads(broadcast_text(mine, job.runtime.device))
    request = replace(job.request, seed=values["seed"], prompt=values["prompt"])
    return replace(job, request=request, video=Path(values["video"]))


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


def run(job: Job) -> int:
    """Make all videos that fall to this process; the exit code. A failure after sampling says how to resume."""
    outcome = Outcome(job)
    try:
        describe(job)
        pipeline = PIPELINES[job.config.name](job.config, job.checkpoint, runtime=job.runtime)
        if pipeline.replica.is_first and get_rank() > 0:  # it will say what it has saved
            logging.getLogger().setLevel(logging.INFO)
        for outcome.job in job.variants()[pipeline.replica.index :: job.runtime.parallel.replicas]:
            make(outcome, pipeline)
    except KeyboardInterrupt as error:
        done = outcome.in_words()
        if is_first_failure(error) or done:
            print_error(f"interrupted; {done or 'nothing was written'}")
        return INTERRUPTED
    except Exception as error:  # the outermost frame of the program: report and leave
        if is_first_failure(error):
            _report_failure(error)
        if done := outcome.in_words():
            print_error(done)
        return FAILED
    return DONE


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


@contextlib.contextmanager
def reporter(progress: str) -> Iterator[Callable[[int, int, Tensor], None] | None]:
    """What to call after every denoising step: a bar with the time left, plain lines about every tenth, or nothing."""
    if progress == "none":
        yield None
    elif progress == "plain":
        yield _plain_lines()
    else:
        from tqdm import tqdm

        bar = tqdm(desc="denoising", unit="step", dynamic_ncols=True)
        try:
            yield lambda done, total, latent: _advance(bar, done, total)
        finally:
            with contextlib.suppress(OSError):
                bar.close()


def _advance(bar: Any, done: int, total: int) -> None:
    if done == 1:  # the first step includes loading; the time left is reckoned from the second on
        bar.reset(total)
        bar.initial = 1
    with contextlib.suppress(OSError):  # a terminal that has gone ends no run
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


def _report_failure(error: Exception) -> None:
    """One line for what the world does (disk, memory, values); a traceback as well for what only a defect can do."""
    where = f"rank {get_rank()}: " if launched_size() > 1 else ""
    if is_lost_contact(error):
        reason = str(error).partition(". ")[0]  # the rest is advice to programmers
        print_error(f"failed: {where}another process is gone, probably killed ({reason})")
        return
    expected = isinstance(error, (OSError, ValueError, MemoryError, FloatingPointError, torch.OutOfMemoryError))
    if not expected:
        log.error("this is a defect, please report it with the following lines", exc_info=error)
    print_error(f"failed: {where}{str(error) or type(error).__name__}")


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


if __name__ == "__main__":
    sys.exit(main())

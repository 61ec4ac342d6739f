"""The command line: arguments become one checked Job (`wan.planning`), a Job becomes a file."""

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from wan import media, output
from wan.arguments import build_parser
from wan.checkpoint.loading import read_config
from wan.distributed.util import broadcast_text, get_rank, is_first_failure, launched_rank, launched_size, local_rank
from wan.distributed.util import start as join_processes
from wan.distributed.util import stop as part_from_processes
from wan.distributed.watch import is_lost_contact
from wan.forecast import expected_bytes
from wan.geometry import format_size
from wan.image2video import WanI2V
from wan.pipeline import WanPipeline
from wan.planning import Job, plan
from wan.program import command_line, open_closed_streams, print_error
from wan.request import format_guidance
from wan.runtime import own_device
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.version import VERSION

log = logging.getLogger(__name__)

PIPELINES = {pipeline.task: pipeline for pipeline in (WanT2V, WanI2V, WanTI2V)}
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; wrong arguments are one line on stderr, without a traceback.

    Of several processes one shows an error, wherever it happened, and rank 0 logs.
    """
    open_closed_streams()
    try:
        rank = launched_rank()
        args = _parse(argv, is_quiet=rank > 0)
    except SystemExit as stop:  # argparse has printed help or the error
        return int(stop.code or 0)
    except ValueError as error:
        print_error(f"error: {error}")
        return WRONG
    level = logging.INFO if rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="[%(asctime)s] %(levelname)s: %(message)s", datefmt="%H:%M:%S")
    try:
        if launched_size() > 1:
            join_processes(own_device(args.device, local_rank()))
        job = agreed(plan(args))
    except (ValueError, OSError) as error:
        if is_first_failure(error):
            print_error(f"error: {error}")
        return WRONG
    except KeyboardInterrupt as error:
        is_first_failure(error)
        return INTERRUPTED
    except Exception as error:  # of several processes another may have ended before all had planned
        if is_first_failure(error):
            _report_failure(error)
        return FAILED
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


def run(job: Job) -> int:
    """Make all videos that fall to this process; the exit code. A failure after sampling says how to resume."""
    current, kept = job, []
    try:
        describe(job)
        pipeline = PIPELINES[job.config.name](job.config, job.checkpoint, runtime=job.runtime)
        if pipeline.replica.is_first and get_rank() > 0:  # it will say what it has saved
            logging.getLogger().setLevel(logging.INFO)
        for current in job.variants()[pipeline.replica.index :: job.runtime.parallel.replicas]:
            make(current, pipeline, kept)
    except KeyboardInterrupt as error:
        hint = _how_to_resume(current, kept)
        if is_first_failure(error) or hint:
            print_error(f"interrupted{hint or '; nothing was written'}")
        return INTERRUPTED
    except Exception as error:  # the outermost frame of the program: report and leave
        if is_first_failure(error):
            _report_failure(error)
        if hint := _how_to_resume(current, kept):
            print_error(f"the sampled video is not lost{hint}")
        return FAILED
    return DONE


def make(job: Job, pipeline: WanPipeline, kept: list[Path]) -> None:
    """Sample, keep the latent, decode into the file. `kept` holds the latent while the video is not complete."""
    if job.latent is None:
        with reporter(job.progress if get_rank() == 0 else "none") as on_step:
            latent = pipeline.sample(job.request, on_step)
        if pipeline.replica.is_first:
            kept.append(output.latent_path(job.video))
            _keep(latent, kept[-1], job)
    else:
        kept.append(job.latent)
        latent = output.load_latent(job.latent)[0]
    start = time.perf_counter()
    frames = (media.to_uint8(chunk) for chunk in pipeline.decode(latent, job.request.framing))
    if pipeline.replica.is_first:
        count = media.write_video(frames, job.video, job.request.fps, _tags(job), job.overwrite)
        kept[-1].unlink(missing_ok=True)
        _summarize(job, pipeline.phases, count, time.perf_counter() - start)
    else:
        for _ in frames:  # there are none for this process, but it shares the work
            pass
    kept.clear()


def _keep(latent: Tensor, path: Path, job: Job) -> None:
    """Save the latent beside the video until that is written. A full disk does not end the run: the video may fit."""
    try:
        output.save_latent(latent, path, _stored_request(job))
    except (OSError, SafetensorError) as error:
        log.warning("the latent could not be kept (%s): if decoding fails too, the run is lost", error)


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
        expected_bytes(job.config, job.checkpoint, request, runtime) / 2**30,
        job.video,
    )
    if job.num_videos > 1:
        log.info("%d videos with this seed and the following ones: %s ...", job.num_videos, job.variant(0).video)
    if runtime.parallel.world_size > 1:
        guided = any(scale != 1 for scale in request.guidance)
        log.info("%s", runtime.parallel.describe(guided))
        num_heads = read_config(job.checkpoint / job.config.experts[0])["num_heads"]
        tiled = runtime.vae_tile is not None
        for remark in runtime.parallel.remarks(
            num_videos=job.num_videos, num_heads=num_heads, guided=guided, tiled=tiled
        ):
            log.warning("%s", remark)
    if request.shape_image is not None:
        log.info("size: %s (fit %s)", request.framing, request.fit)
    for name in ("image", "last_image"):
        if picture := getattr(request, name):
            log.info("%s: %s, %s", name.replace("_", " "), picture.path, format_size(picture.size))
    log.info("prompt: %s", request.prompt)


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


def _how_to_resume(job: Job, kept: list[Path]) -> str:
    if not kept or not kept[-1].exists():
        return ""
    ckpt = () if job.config.family == "nano" else ("--ckpt_dir", job.checkpoint)
    return f"; finish it with: {command_line('--resume', kept[-1], *ckpt)}"


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


if __name__ == "__main__":
    sys.exit(main())

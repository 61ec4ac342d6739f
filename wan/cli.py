"""The command line: arguments become one checked Job, a Job becomes a file."""

import argparse
import contextlib
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from wan import geometry, media, memory, output
from wan.arguments import OTHER_INPUTS, OTHER_SETTINGS, REQUEST_FLAGS, build_parser
from wan.checkpoint.layout import check_folder, part, repository
from wan.checkpoint.loading import read_config
from wan.checkpoint.source import open_source
from wan.configs import TaskConfig, get_config, nano_checkpoint
from wan.geometry import format_size
from wan.image2video import WanI2V
from wan.modules.attention import check_backend
from wan.modules.tokenizers import HuggingfaceTokenizer
from wan.request import Picture, Request, check_supported_size, format_guidance
from wan.runtime import Offload, Runtime
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.version import VERSION

log = logging.getLogger(__name__)

PIPELINES = {pipeline.task: pipeline for pipeline in (WanT2V, WanI2V, WanTI2V)}
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
METADATA_KEY = "wan_request"


@dataclass(frozen=True)
class Job:
    """One run, complete and checked: nothing in it can be refused any more. `latent` is set to resume a decode."""

    config: TaskConfig
    checkpoint: Path
    request: Request
    runtime: Runtime
    video: Path
    overwrite: bool
    metadata: bool
    progress: str
    latent: Path | None = None


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


# ---------------------------------------------------------------- arguments -> Job


def plan(args: argparse.Namespace) -> Job:
    """Fold the flags into a Job. Reads no weights; raises ValueError or OSError for what cannot work."""
    _refuse_what_comes_later(args)
    stored = _fill_from_stored(args)
    task = args.task or "t2v-A14B"
    config, checkpoint = _find_checkpoint(task, args.ckpt_dir, stored)
    _refuse_other_tasks_flags(args, task)
    request = _request(args, config, stored)
    runtime = Runtime.from_flags(
        device=args.device,
        dtype=args.dtype or "bf16",
        convert_model_dtype=args.convert_model_dtype,
        offload_model=args.offload_model,
        t5_cpu=args.t5_cpu,
        attention=args.attention,
        compile=args.compile,
        t5_fsdp=args.t5_fsdp,
        dit_fsdp=args.dit_fsdp,
        ulysses_size=args.ulysses_size,
    )
    check_backend(runtime.attention, runtime.device, runtime.dtype)
    latent = Path(args.resume) if args.resume else None
    video = _video_path(args, request, latent)
    check_folder(checkpoint, config)
    media.check_writable(video, args.overwrite)
    if latent is None:
        _warn_about_long_prompts(request, config, checkpoint)
        _warn_about_other_noise(request, runtime, stored)
        _warn_about_other_images(request, stored)
    progress = args.progress or ("bar" if sys.stderr.isatty() else "plain")
    return Job(config, checkpoint, request, runtime, video, args.overwrite, not args.no_metadata, progress, latent)


def _refuse_what_comes_later(args: argparse.Namespace) -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise ValueError(
            f"torchrun started {processes} processes, and several GPUs are not available yet; "
            "start one process: python generate.py ..."
        )
    if args.use_prompt_extend:
        raise ValueError("--use_prompt_extend is not available yet; leave it out and write a detailed prompt yourself")


def _refuse_other_tasks_flags(args: argparse.Namespace, task: str) -> None:
    for flag, tasks in OTHER_INPUTS.items():
        if getattr(args, flag) and task not in tasks:
            raise ValueError(f"--{flag} is not used by {task}, only by {', '.join(tasks)}; leave it out")
    for flag, tasks in OTHER_SETTINGS.items():
        if getattr(args, flag) not in (None, False) and task not in tasks:
            log.warning("--%s is not used by %s, only by %s; it changes nothing here", flag, task, ", ".join(tasks))


def _fill_from_stored(args: argparse.Namespace) -> dict[str, Any]:
    """The request stored in --from_video or --resume, {} without; flags that were not given take its values."""
    if args.resume:
        changed = [f"--{flag}" for flag in REQUEST_FLAGS if getattr(args, flag) is not None]
        changed += ["--from_video"] if args.from_video else []
        if changed:
            raise ValueError(f"--resume only decodes what was sampled already; {', '.join(changed)} cannot change it")
        stored = _parse_stored(output.load_latent(Path(args.resume))[1], args.resume)
    elif args.from_video:
        text = media.read_metadata(args.from_video).get(METADATA_KEY)
        if text is None:
            raise ValueError(f"{args.from_video} has no stored request: it was not made here, or with --no_metadata")
        stored = _parse_stored(text, args.from_video)
    else:
        return {}
    if args.task not in (None, stored["task"]):
        raise ValueError(f"the stored request is for --task {stored['task']}, not {args.task}")
    args.task = stored["task"]
    request = Request.from_dict(stored)
    _fill_from_request(args, request)
    if args.dtype is None:
        args.dtype = stored.get("dtype")
        args.convert_model_dtype |= bool(stored.get("convert_model_dtype"))
    return stored


def _fill_from_request(args: argparse.Namespace, request: Request) -> None:
    known = vars(request) | {"size": request.framing.asked}
    known |= {name: getattr(request, name) and getattr(request, name).path for name in ("image", "last_image")}
    if request.shape_image is None:
        del known["fit"]  # means nothing there
    for flag, field in {**REQUEST_FLAGS, "fps": "fps"}.items():
        if getattr(args, flag) is None:
            setattr(args, flag, known.get(field))
            if flag in ("image", "last_image") and not args.resume:
                _check_stored_image(getattr(request, field), flag)


def _check_stored_image(picture: Picture | None, flag: str) -> None:
    if picture is not None and not (picture.path and Path(picture.path).is_file()):
        raise FileNotFoundError(
            f"the video was made from the image {picture.path}, which is not there; say where it is: --{flag} FILE"
        )


def _parse_stored(text: str, source: str) -> dict[str, Any]:
    try:
        stored = json.loads(text)
        Request.from_dict(stored)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the request stored in {source} cannot be read: {error}") from None
    return stored


def _find_checkpoint(task: str, ckpt_dir: str | None, stored: dict[str, Any]) -> tuple[TaskConfig, Path]:
    """The folder to load and the config that suits it: nano for the embedded model, the task's own otherwise."""
    released = get_config(task)
    if ckpt_dir is None and stored.get("checkpoint", "nano") != "nano":
        raise ValueError(f"the stored request was made with a {task} checkpoint; give its folder with --ckpt_dir")
    if ckpt_dir in (None, "nano"):
        config = get_config(task, "nano")
        if not nano_checkpoint(task).is_dir():
            raise FileNotFoundError(
                f"the embedded nano checkpoint of {task} is not in this copy ({nano_checkpoint(task)}); "
                f"make it with python -m wan.nano.recipes {task.partition('-')[0]}, or give --ckpt_dir"
            )
        name = repository(released)
        log.info(
            "%s: the embedded nano model runs, a toy that knows a few moving shapes at %s. The real one: "
            "hf download Wan-AI/%s --local-dir %s, then --ckpt_dir %s",
            "no --ckpt_dir" if ckpt_dir is None else "--ckpt_dir nano",
            config.size,
            name,
            name,
            name,
        )
        return config, nano_checkpoint(task)
    folder = Path(ckpt_dir).expanduser()
    return (get_config(task, "nano") if _is_nano(folder, released) else released), folder


def _is_nano(folder: Path, config: TaskConfig) -> bool:
    """Whether a folder is of the nano family: the embedded one, or one whose `config.json` says so."""
    if folder.resolve() == nano_checkpoint(config.name).resolve():
        return True
    try:
        described = json.loads((folder / (config.low_noise_checkpoint or "") / "config.json").read_text("utf-8"))
    except (OSError, ValueError):  # the layout check that follows names what is wrong
        return False
    return isinstance(described, dict) and described.get("family") == "nano"


def _request(args: argparse.Namespace, config: TaskConfig, stored: dict[str, Any]) -> Request:
    if args.resume:  # the frames are sampled already, whatever has become of the images
        return replace(Request.from_dict(stored), fps=args.fps)
    if args.size is not None and args.fit in (None, "area"):
        check_supported_size(config, args.size)
    given = {field: getattr(args, flag) for flag, field in REQUEST_FLAGS.items()}
    request = Request.create(config, fps=args.fps, **{key: value for key, value in given.items() if value is not None})
    if args.prompt is None:
        log.info("no --prompt: %s", f"using the example {request.prompt!r}" if request.prompt else "the image decides")
    return request


def _video_path(args: argparse.Namespace, request: Request, latent: Path | None) -> Path:
    folder = Path(args.output_dir).expanduser() if args.output_dir else Path()
    if args.save_file:
        path = folder / Path(args.save_file).expanduser()
        if not path.suffix and not path.is_dir():
            return path.with_name(path.name + ".mp4")
        if path.suffix and path.suffix.lower() != ".mp4":
            raise ValueError(f"--save_file must end in .mp4, got {path.name}; try {path.with_suffix('.mp4').name}")
        return path
    if latent is not None:
        path = output.video_path(latent)
        return folder / path.name if args.output_dir else path
    return folder / output.default_name(
        request.task, request.framing.saved, request.prompt, request.seed, datetime.now()
    )


def _warn_about_long_prompts(request: Request, config: TaskConfig, checkpoint: Path) -> None:
    tokenizer = HuggingfaceTokenizer(part(checkpoint, config.t5_tokenizer), seq_len=config.text_len, clean="whitespace")
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name)
        cut = tokenizer.truncated_part(text)
        if cut:
            log.warning(
                "the text encoder reads %d tokens and the %s has %d; this part is cut off: %r",
                config.text_len,
                name.replace("_", " "),
                tokenizer.count(text),
                cut,
            )


def _warn_about_other_noise(request: Request, runtime: Runtime, stored: dict[str, Any]) -> None:
    made_on = stored.get("device", runtime.device.type)
    if made_on != runtime.device.type and request.noise_device == "default":
        log.warning(
            "the video was made on %s and this runs on %s, where the same seed gives other noise: expect another video",
            made_on,
            runtime.device.type,
        )


def _warn_about_other_images(request: Request, stored: dict[str, Any]) -> None:
    for name in ("image", "last_image"):
        picture, before = getattr(request, name), stored.get(name)
        if picture and before and picture.path == before["path"] and picture.sha256 != before["sha256"]:
            log.warning("%s has changed since the video was made: expect another video", picture.path)


# ---------------------------------------------------------------- Job -> file


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
    return {METADATA_KEY: _stored_request(job), "comment": comment}


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

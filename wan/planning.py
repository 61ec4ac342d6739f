"""Plan a run: fold the arguments into one Job, and check it before any weight is read."""

import argparse
import hashlib
import logging
import math
import os
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from wan import geometry, images, media, output, staging
from wan.arguments import FLAGS, RUN, SEVERAL, asked, flag_names, flags_of
from wan.checking import check_checkpoint
from wan.checkpoint.fingerprint import fingerprint
from wan.checkpoint.layout import part
from wan.checkpoint.loading import READABLE
from wan.checkpoint.recognise import described_fields
from wan.choices import PRESETS
from wan.configs import TaskConfig, get_config, is_embedded, nano_checkpoint
from wan.extension import plan_extension
from wan.files import check_writable, shown, stored_name, sweep
from wan.finding import DEFAULT_TASK, how_to_get, task_of, warn_about_files
from wan.forecast import models_of, work_of
from wan.jobs import PIPELINES, Job
from wan.modules.attention import check_backend
from wan.modules.packed import has_bfloat16_products
from wan.modules.tokenizers import HuggingfaceTokenizer
from wan.nano.remarks import remarks
from wan.parallel import Parallel, launched_rank, launched_size, local_rank
from wan.planner import choose, room_of
from wan.remarks import without_effect
from wan.request import Request, check_supported_size, overridden
from wan.runtime import Runtime, own_device
from wan.stored import Stored, read_stored
from wan.tts import Spoken, speak
from wan.values import named

log = logging.getLogger(__name__)

# What to give to a task in place of an input or setting that it does not know.
INSTEAD = {
    ("image", "animate-14B"): "--video FILE as well, or leave --image out: a folder has the character in it",
    ("audio", "animate-14B"): "--sound FILE",
    ("sound", "s2v-14B"): "--audio FILE",
    ("frame_num", "s2v-14B"): "--infer_frames, for the frames of a clip",
    ("infer_frames", "animate-14B"): "--frame_num",
}
ALSO = {"image": ("animate-14B with --video",)}  # uses of a flag that fill no field of the request
OVERHEAD_BYTES = 1 << 16  # of a file beside its values


def plan(args: argparse.Namespace) -> Job:
    """Fold the flags into a Job. Reads no weights. Raises ValueError or OSError for a run that cannot work."""
    with named(flag_names()):
        return _plan(args)


def _plan(args: argparse.Namespace) -> Job:
    again = read_stored(args)
    stored = again.beside if again else {}
    _say_what_is_repeated(args)
    config, checkpoint = _find_checkpoint(args, stored)
    if args.video and config.name == "animate-14B":
        prepare(args, config, checkpoint)
    _check_flags(args, config.name)
    with named(flag_names(config.name)):
        if args.enable_tts and not args.resume:
            check_checkpoint(checkpoint, config)  # before anything is spoken
            args.audio = spoken(args)
        request = request_of(args, config, again)
        request.check_parallel(_parallel(args))
    if request.use_relighting_lora:
        config = config.copy(uses_lora=True)
    runtime = runtime_of(args, stored)
    check_backend(runtime.attention, runtime.device, runtime.dtype)
    latent = Path(args.resume) if args.resume else None
    check_checkpoint(checkpoint, config)
    warn_about_files(checkpoint, config)
    weights = fingerprint(checkpoint, config)
    is_other = _is_other_checkpoint(args, stored, weights)
    job = Job(
        config,
        checkpoint,
        request,
        runtime,
        _video_path(args, request, latent, stored),
        args.overwrite,
        metadata=not args.no_metadata,
        progress=args.progress or ("bar" if sys.stderr.isatty() else "plain"),
        latent=latent,
        num_videos=args.num_videos,
        ckpt_dir=args.ckpt_dir,
        fingerprint=weights,
        stays=is_other and latent is not None,
        keep_clips=args.keep_clips,
        extension=plan_extension(args, request, runtime.device),
    )
    if latent is not None:
        _check_kept(job)
        reopened = again.with_inputs if job.samples else again.with_decoding_inputs
        job = replace(job, request=reopened(request, latent.parent))
    job = with_plan(job)
    if job.samples:
        if job.extension is None:
            warn_about_texts(job)
        _warn_about_sampling(args, job, again)
    for remark in without_effect(args, job.request, runtime, job.samples):
        log.warning("%s", remark)
    if launched_rank() == 0:  # probe files of several processes would get in each other's way
        _check_output(job)
    return job


def with_plan(job: Job) -> Job:
    """Choose the policy of memory. Raises ValueError when no policy fits."""
    config, runtime = job.config, job.runtime
    models = models_of(config, job.checkpoint, runtime)
    work = replace(work_of(config, job.request, max(job.clip_shapes), len(job.clip_shapes)), samples=job.samples)
    plan = choose(models, work, runtime, room_of(runtime))
    return replace(job, runtime=plan.runtime, plan=plan)


def _check_output(job: Job) -> None:
    """Make sure, before hours of work, that videos and latents can be written; remove files that killed runs left."""
    if removed := sweep(job.video.parent):
        log.info("removed what killed runs had not finished: %s", ", ".join(shown(path.name) for path in removed))
    latent_bytes = sum(4 * math.prod(shape) + OVERHEAD_BYTES for shape in job.clip_shapes)
    for variant in job.variants():
        check_writable(variant.video, job.overwrite, job.num_videos * job.video_bytes + latent_bytes)
        for index in range(len(job.clip_shapes)) if job.keep_clips else ():  # a run that goes on writes them again
            check_writable(variant.clip_file(index), job.overwrite or job.latent is not None)
    if job.latent is None:
        check_writable(output.latent_path(job.video), needed=latent_bytes)


def _check_kept(job: Job) -> None:
    """Refuse saved clips that their request cannot have made; the files stay unchanged."""
    files, shapes, request = output.kept_clips(job.latent), job.clip_shapes, job.request
    if len(files) > len(shapes):
        raise ValueError(f"{job.latent} holds {len(files)} clips, and a video of its request has {len(shapes)}")
    if job.samples and job.stays:
        raise ValueError(f"{job.latent} lacks clips, and these weights are not those that sampled the other clips")
    for path, wanted in zip(files, shapes, strict=False):
        clip = output.load_clip(path)
        if tuple(clip.latent.shape) != wanted:
            raise ValueError(
                f"{path} holds a latent of shape {list(clip.latent.shape)}, and a {request.task} video of "
                f"{geometry.format_size(request.framing.used)} and {request.frame_num} frames has {list(wanted)}: the "
                "file was changed, or is of another model"
            )
        for values in (clip.latent, clip.lead) if clip.lead is not None else (clip.latent,):
            problem = f"of the type {values.dtype}, and a latent has float32"
            if values.dtype in READABLE:
                problem = "that are not finite, of which no video can be made"
            if values.dtype not in READABLE or not bool(values.isfinite().all()):
                raise ValueError(f"{path} holds values {problem}; sample it again")


def _is_other_checkpoint(args: argparse.Namespace, stored: dict[str, Any], weights: str) -> bool:
    """Tell whether other weights made the video or latent. With --resume this needs an explicit --ckpt_dir."""
    before = stored.get("fingerprint")
    if before in (None, weights):  # versions before this one did not store it
        return False
    of = f"the checkpoint {shown(stored['checkpoint_dir'])}" if stored.get("checkpoint_dir") else "other weights"
    if args.from_video:
        log.warning("the video was made with %s, and this runs with others: expect another video", of)
    elif args.ckpt_dir is None:
        raise ValueError(
            f"{args.resume} was sampled with {of}, and this run has others; name those to decode it with: --ckpt_dir "
            f"{'FOLDER, or --ckpt_dir nano for the embedded ones' if stored.get('checkpoint') == 'nano' else 'FOLDER'}"
        )
    else:
        log.warning("%s was sampled with %s and is decoded with others; the latent stays", args.resume, of)
    return True


def prepare(args: argparse.Namespace, config: TaskConfig, checkpoint: Path) -> None:
    """Preprocess --video and --image into a folder, which --src_root_path then names; these flags are used up."""
    if args.src_root_path:
        raise ValueError("--video is preprocessed into a folder, and --src_root_path names one; leave one of them out")
    with named(flag_names(config.name) | staging.NAMES):
        given = {name: value for name, value in asked(args, config.name).items() if name != "fps"}
        inputs = staging.planned(args, config, given)  # before the checkpoint, whose check imports large packages
        check_checkpoint(checkpoint, config.copy(uses_lora=args.use_relighting_lora))
        args.src_root_path = staging.performed(args, inputs, checkpoint, local_rank())
    args.video = args.image = args.size = args.fps = None


def _say_what_is_repeated(args: argparse.Namespace) -> None:
    for flag, count in args.typed.items():
        if count > 1:
            log.warning("%s is given %d times; the last one counts", flag, count)


def task_of_inputs(args: argparse.Namespace) -> str:
    """Choose the task when none is given, by the inputs: image-to-video with an image alone, else the default."""
    if args.video or args.src_root_path:
        return "animate-14B"
    if args.audio or args.enable_tts:
        log.info("--%s without --task: taken as --task s2v-14B", "audio" if args.audio else "enable_tts")
        return "s2v-14B"
    given = [flag for flag in ("image", "last_image") if getattr(args, flag)]
    if not given:
        return DEFAULT_TASK
    log.info("--%s without --task: taken as --task i2v-A14B (--task ti2v-5B takes --image, too)", given[0])
    return "i2v-A14B"


def runtime_of(args: argparse.Namespace, stored: dict[str, Any], world_size: int | None = None) -> Runtime:
    """Fold the flags of a run; `world_size` are its processes, by default those that torchrun started."""
    flags = flags_of(args, RUN)
    if args.dtype is None:
        flags["dtype"] = stored.get("dtype") or "bf16"
        flags["convert_model_dtype"] |= bool(stored.get("convert_model_dtype"))
        flags["quantize"] = flags["quantize"] or stored.get("quantize")
    return Runtime.from_flags(**flags, parallel=_parallel(args, world_size), local_rank=local_rank())


def _parallel(args: argparse.Namespace, world_size: int | None = None) -> Parallel:
    if args.num_videos < 1:
        raise ValueError(f"--num_videos must be at least 1, got {args.num_videos}")
    if args.num_videos > 1 and args.resume:
        raise ValueError("--resume finishes the one video whose latent was kept; leave --num_videos out")
    size = world_size or launched_size()
    return Parallel.from_flags(world_size=size, num_videos=args.num_videos, **flags_of(args, SEVERAL))


def _check_flags(args: argparse.Namespace, task: str) -> None:
    """Refuse inputs of other tasks; warn about settings of other tasks."""
    for flag in FLAGS:
        if getattr(args, flag.name) in (None, False, flag.default):
            continue
        if not flag.is_of(task):
            others = f", only by {', '.join(flag.tasks + ALSO.get(flag.name, ()))}" if flag.tasks else ""
            instead = INSTEAD.get((flag.name, task))
            if flag.is_input:
                cure = f"give {instead}" if instead else "leave it out"
                raise ValueError(f"--{flag.name} is not used by {task}{others}; {cure}")
            cure = f"; give {instead}" if instead else ""
            log.warning("--%s is not used by %s%s; it changes nothing here%s", flag.name, task, others, cure)


def _find_checkpoint(args: argparse.Namespace, stored: dict[str, Any]) -> tuple[TaskConfig, Path]:
    """Find the folder to load and its config: a nano config for a nano model, else that of the task."""
    task = stored.get("task", args.task)
    if args.ckpt_dir not in (None, "nano"):
        folder = Path(args.ckpt_dir)
        released = get_config(task_of(folder, task) or task_of_inputs(args))
        return (get_config(released.name, "nano") if _is_nano(folder, released) else released), folder
    task = task or task_of_inputs(args)
    released = get_config(task)
    if args.ckpt_dir is None and stored.get("checkpoint", "nano") != "nano":
        raise ValueError(f"the stored request was made with a {task} checkpoint; give its folder with --ckpt_dir")
    config = get_config(task, "nano")
    if not is_embedded(config, nano_checkpoint(task)):
        raise FileNotFoundError(
            f"the embedded nano checkpoint of {task} is not in this copy ({nano_checkpoint(task)}); "
            f"make it with python -m wan.nano.recipes {task.partition('-')[0]}, or give --ckpt_dir"
        )
    log.info(
        "%s: the embedded nano model runs, a toy that knows one small world at %s. The real one: %s",
        "no --ckpt_dir" if args.ckpt_dir is None else "--ckpt_dir nano",
        config.size,
        how_to_get(released),
    )
    return config, nano_checkpoint(task)


def _is_nano(folder: Path, config: TaskConfig) -> bool:
    """Tell whether a folder is of the nano family: the embedded one, or one whose `config.json` says so."""
    if os.path.realpath(folder) == os.path.realpath(nano_checkpoint(config.name)):
        return True
    return any(described_fields(folder / expert).get("family") == "nano" for expert in config.experts)


def request_of(args: argparse.Namespace, config: TaskConfig, stored: Stored | None) -> Request:
    given = asked(args, config.name)
    if args.preset:
        preset = PRESETS[args.preset]
        given = overridden({name: preset[name] for name in preset if name != "boundary" or config.boundary}, given)
    if args.resume:  # the frames are sampled already, even if images have changed; only fps can be given
        has_sound = stored.request.audio or stored.request.sound
        if has_sound and given:
            raise ValueError("--fps cannot be changed by --resume: the frames that are sampled belong to the sound")
        return replace(stored.request, **given)
    if stored is not None:
        if "prompt" in given and stored.request.original_prompt is not None and not args.use_prompt_extend:
            log.info(
                "the prompt of the video was written out by a language model; --use_prompt_extend does so with this"
            )
        given = stored.given(given, Path(args.from_video).parent)
    if "size" in given and given.get("fit", "area") == "area":
        check_supported_size(config, given["size"])
    request = Request.create(config, **given)
    if "prompt" not in given:
        log.info("no --prompt: %s", f"using the example {request.prompt!r}" if request.prompt else "the image decides")
    return request


def spoken(args: argparse.Namespace) -> str:
    """Speak --tts_text into a sound file beside the video, once for all processes; returns its path."""
    if args.audio:
        log.warning("--audio is not used, because --enable_tts makes the sound")
    words = Spoken(args.tts_text, args.tts_prompt_audio, args.tts_prompt_text)
    digest = hashlib.sha256(repr(words).encode()).hexdigest()[:8]
    folder = Path(args.output_dir or "", args.save_file or "").parent
    path = folder / f"speech-{digest}.wav"
    speak(words, path, device=own_device(args.device, local_rank()))
    log.info("spoken: %s", path)
    return str(path)


def _video_path(args: argparse.Namespace, request: Request, latent: Path | None, stored: dict[str, Any]) -> Path:
    folder = Path(args.output_dir or "")
    if args.save_file and args.save_file.endswith(("/", os.sep)):
        folder /= args.save_file
    elif args.save_file:
        path = folder / args.save_file
        if not path.suffix and not path.is_dir():
            return path.with_name(path.name + ".mp4")
        count = PIPELINES[request.task].num_frames(request)
        if media.is_picture(path):
            if count == 1:
                return path
            fewer = ", or --frame_num 1" if count == request.frame_num else ""
            raise ValueError(
                f"{path.name} is the name of a picture, and the video has {count} frames; try "
                f"{path.with_suffix('.mp4').name}{fewer}"
            )
        if path.suffix and path.suffix.lower() != ".mp4":
            ends = ", ".join(images.WRITTEN) + " or .mp4" if count == 1 else ".mp4"
            raise ValueError(f"--save_file must end in {ends}, got {path.name}; try {path.with_suffix('.mp4').name}")
        return path
    if latent is not None:
        path = output.video_path(latent, stored.get("video"))
        return folder / path.name if args.output_dir or args.save_file else path
    return folder / output.default_name(
        request.task, request.framing.saved, request.prompt, request.seed, datetime.now()
    )


def warn_about_texts(job: Job) -> None:
    """Warn about a prompt that the models of a job do not read as a whole, or do not know."""
    _warn_about_long_prompts(job.request, job.config, job.checkpoint)
    for remark in remarks(job.config, job.request, job.clip_shapes) if job.config.family == "nano" else ():
        log.warning("%s", remark)


def _warn_about_sampling(args: argparse.Namespace, job: Job, again: Stored | None) -> None:
    if again:
        _warn_about_other_noise(job.request, job.runtime, again.beside)
        _warn_about_other_inputs(job.request, again.request)
    if job.config.family == "nano" or job.runtime.device.type != "cpu":
        return
    if args.device is None:
        slow = "on a CPU a video of a released model takes hours or days"
        log.warning("no GPU is found, and %s (torch %s)", slow, torch.__version__)
    if job.runtime.dtype == torch.bfloat16 and not has_bfloat16_products():
        log.warning("this CPU computes bfloat16 many times more slowly than float32: try --dtype fp32")


def _warn_about_long_prompts(request: Request, config: TaskConfig, checkpoint: Path) -> None:
    tokenizer = HuggingfaceTokenizer(part(checkpoint, config.t5_tokenizer), seq_len=config.text_len, clean="whitespace")
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name)
        if cut := tokenizer.truncated_part(text):
            has = f"the {name.replace('_', ' ')} has {tokenizer.count(text)}"
            log.warning(
                "the text encoder reads %d tokens and %s; this part is cut off: %s", config.text_len, has, shown(cut)
            )


def _warn_about_other_noise(request: Request, runtime: Runtime, stored: dict[str, Any]) -> None:
    here = runtime.device.type
    if (made_on := stored.get("device", here)) != here and request.noise_device == "default":
        changed = "where the same seed gives other noise: expect another video"
        log.warning("the video was made on %s and this runs on %s, %s", made_on, here, changed)


def _warn_about_other_inputs(request: Request, before: Request) -> None:
    for name, old in before.inputs.items():
        new = request.inputs.get(name)
        same_name = new and old.path and Path(new.path).name == Path(stored_name(old.path)).name
        if same_name and new.sha256 != old.sha256:
            log.warning("%s has changed since the video was made: expect another video", new.path)

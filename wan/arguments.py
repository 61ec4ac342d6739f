"""Flags of `generate.py`, one row each. None means "not given": then the stored request or the task's config decides.

Nothing here imports torch, so that help and errors about arguments appear at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from wan.choices import (
    ATTENTION,
    DTYPES,
    HUBS,
    MIN_VAE_TILE,
    NOISE_DEVICES,
    OFFLOAD,
    POSE_BACKENDS,
    PRESETS,
    PROGRESS,
    QUANTIZED,
    SOLVERS,
    VAE_DTYPES,
    VAE_FRAMES,
)
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS
from wan.configs.shared_config import TaskConfig
from wan.framing import FITS
from wan.geometry import parse_size
from wan.guidance import format_guidance, parse_guidance
from wan.parallel import launched_rank
from wan.parser import Parser
from wan.program import print_error, program_name, torchrun_line
from wan.typed import number, one_of, parsed, path, person, str2bool, text, whole
from wan.values import parse_rate, parse_reals


class Kind(NamedTuple):
    """Reader of a value, and its name in the help: a word, or the names to choose from. A switch has neither."""

    read: Callable[[str], Any] | None
    metavar: str | Iterable[str] | None


@dataclass(frozen=True)
class Flag:
    """Flag `--name`.

    `group` is its place in the help. In RUN and SEVERAL the flag is an argument of `Runtime.from_flags` and
    `Parallel.from_flags`; elsewhere `field` is the field of the request that it fills, or None for a flag of the
    program itself. `tasks` are the tasks that know the flag, all if there are none; they have a group of their own in
    the help. Those in `except_for` do not know it. For other tasks an input is refused, because the video would not be
    the one asked for, and a setting is ignored with a warning.
    """

    group: str
    name: str
    kind: Kind
    help: str
    field: str | None = None
    tasks: tuple[str, ...] = ()
    is_input: bool = False
    default: Any = None
    except_for: tuple[str, ...] = ()

    def is_of(self, task: str | None) -> bool:
        """Tell whether a task knows the flag; without a task, whether any does."""
        return task is None or (task not in self.except_for and (not self.tasks or task in self.tasks))


def choice(names: Iterable[str]) -> Kind:
    """Make the kind of a flag that takes one of some names; `choices` of argparse would not suggest a similar one."""
    return Kind(one_of(names), names)


def defaults(value: Callable[[TaskConfig], Any]) -> str:
    """Write the default values of the tasks: `default: 81, for ti2v-5B 121`."""
    tasks: dict[str, list[str]] = {}
    for name in IMPLEMENTED_TASKS:
        if (found := value(WAN_CONFIGS[name])) is not None:
            tasks.setdefault(str(found), []).append(name)
    usual = max(tasks, key=lambda found: len(tasks[found]))
    others = [f", for {' and '.join(names)} {found}" for found, names in tasks.items() if found != usual]
    return f"default: {usual}{''.join(others)}"


def device(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("the name of the device is empty; leave the flag out for the best there is")
    return value.strip().lower()


TEXT, FILE, FOLDER, WHOLE, NUMBER = (
    Kind(text, "TEXT"),
    Kind(path, "FILE"),
    Kind(path, "DIR"),
    Kind(whole, "N"),
    Kind(number, "X"),
)
SWITCH, YES_OR_NO = Kind(None, None), Kind(str2bool, "BOOL")
MAKE, OUTPUT, RUN, SEVERAL = "what to make", "output", "how to run", "several GPUs"
DOWNLOAD = "download"
LATER = " (comes later)"
EXTENSION = "prompt extension"
IMAGES, SPEECH, ANIMATE = ("i2v-A14B", "ti2v-5B", "s2v-14B"), ("s2v-14B",), ("animate-14B",)
CLIPS = SPEECH + ANIMATE  # tasks whose videos have several clips
# Titles of the groups of flags in the help, by the tasks that know them, or the first of these.
TITLES = {
    IMAGES[:1]: "from an image",
    SPEECH: "speech-to-video",
    ANIMATE: "character animation and replacement",
    CLIPS: "speech-to-video, character animation and replacement",
}

# fmt: off
FLAGS = [
    Flag(MAKE, "task", choice(WAN_CONFIGS), "default: by the inputs. --video or --src_root_path: animate-14B; "
         "--audio: s2v-14B; --image or --last_image: i2v-A14B; none: t2v-A14B"),
    Flag(MAKE, "ckpt_dir", FOLDER, "folder of released weights; default: nano, the embedded model"),
    Flag(MAKE, "prompt", TEXT, "what the video shows; default: an example, with an image nothing", "prompt"),
    Flag(MAKE, "negative_prompt", TEXT, "what to avoid; without effect at guidance 1; default: the task's text, of the "
         "embedded model ''", "negative_prompt"),
    Flag(MAKE, "size", Kind(parsed(parse_size), "W*H"), "pixels, as 1280*720 or 1280x720; of an image see --fit; "
         f"{defaults(lambda task: task.size)}", "size", except_for=ANIMATE),
    Flag(MAKE, "frame_num", WHOLE, "frames, 4n+1, for animate-14B those of a clip; "
         f"{defaults(lambda task: task.frame_num)}", "frame_num", except_for=SPEECH),
    Flag(MAKE, "base_seed", WHOLE, "draws the noise; default or negative: random, and printed", "seed"),
    Flag(MAKE, "num_videos", WHOLE, "make N videos, with this seed and the following ones; default: 1", default=1),
    Flag(MAKE, "sample_solver", choice(SOLVERS), "what integrates from noise to video; default: unipc", "solver"),
    Flag(MAKE, "sample_steps", WHOLE, "more take longer and look better; "
         f"{defaults(lambda task: task.sample_steps)}", "steps"),
    Flag(MAKE, "sample_shift", NUMBER, "larger values spend more steps on high noise; "
         f"{defaults(lambda task: f'{task.sample_shift:g}')}", "shift"),
    Flag(MAKE, "sample_guide_scale", Kind(parsed(parse_guidance), "G[,G]"), "how strongly the prompt counts, 1 for no "
         "guidance: one number, or as 3,4 one for the low-noise and one for the high-noise expert; "
         f"{defaults(lambda task: format_guidance(task.guidance))}", "guidance"),
    Flag(MAKE, "boundary", NUMBER, "the noise level, 0..1, from which up the high-noise expert works: with 0 it makes "
         f"all steps, with 1 at most the first; {defaults(lambda task: task.boundary)}", "boundary"),
    Flag(MAKE, "sample_sigmas", Kind(parsed(parse_reals), "S,S,..."), "noise levels of the steps, falling from at most "
         "1, in place of --sample_steps and --sample_shift; default: by these", "sigmas"),
    Flag(MAKE, "preset", choice(PRESETS), "settings for weights that are distilled to few steps; other flags override "
         "them; default: none"),
    Flag(MAKE, "cfg_until", NUMBER, "share of the steps, 0..1, that have guidance; those after it take half the time, "
         "and the video changes; default: 1", "guidance_until"),
    Flag(MAKE, "block_cache", NUMBER, "reuse what the transformer's blocks added at an earlier step where the first "
         "block adds the same up to this share, for example 0.1: faster, and the video changes; default: 0, never",
         "reuse"),
    Flag(MAKE, "noise_device", choice(NOISE_DEVICES), "where noise is drawn. default: where the model runs; cpu: a "
         "seed gives the same noise on every machine", "noise_device"),
    Flag(MAKE, "from_video", FILE, "repeat the request stored in a video; other flags override it; default: a new "
         "request"),

    Flag(MAKE, "image", FILE, "the first frame; of s2v-14B who speaks, of animate-14B with --video the character; "
         "default: none (ti2v-5B, --last_image)", "image", IMAGES, True),
    Flag(MAKE, "last_image", FILE, "the last frame (i2v-A14B), also without --image; default: none",
         "last_image", IMAGES[:1], True),
    Flag(MAKE, "fit", choice(FITS), "how the image meets --size: area (default) takes the shape of the image and the "
         "area of the size, crop fills the size and cuts, pad adds black borders, exact stretches",
         "fit", IMAGES, True),

    Flag(OUTPUT, "save_file", FILE, "the mp4 (of one frame a png, jpg or webp), or with / at its end a folder; default"
         ": a name from task, size, prompt, seed, time"),
    Flag(OUTPUT, "output_dir", FOLDER, "folder of the output; default: the current one"),
    Flag(OUTPUT, "overwrite", SWITCH, "replace an existing output file; default: refuse to start"),
    Flag(OUTPUT, "fps", Kind(parsed(parse_rate), "N"), "frames per second when it is played; "
         f"{defaults(lambda task: task.sample_fps)}, or those of the performance", "fps"),
    Flag(OUTPUT, "no_metadata", SWITCH, "do not store the request in the video; default: it is stored, for "
         "--from_video"),
    Flag(OUTPUT, "resume", FILE, "go on with what was kept of a run that ended early: a latent, or a folder of clips; "
         "default: a new run"),
    Flag(OUTPUT, "keep_clips", SWITCH, "also write each clip of a video of several, as NAME-clip001.mp4 and so on; "
         "default: the video alone", tasks=CLIPS),
    Flag(OUTPUT, "progress", choice(PROGRESS), "default: bar on a terminal, plain lines elsewhere"),

    Flag(RUN, "device", Kind(device, "NAME"), "cuda, cuda:1, mps or cpu; default: the best there is"),
    Flag(RUN, "dtype", choice([*DTYPES, *DTYPES.values()]), "what the transformer computes in; default: bf16"),
    Flag(RUN, "attention", choice(ATTENTION), "attention kernel; default: auto, the fastest one with exact results "
         "that is installed", default="auto"),
    Flag(RUN, "compile", YES_OR_NO, "compile the transformer's blocks, also without a value: slow start, faster steps; "
         "default: on CUDA, where a run is long enough to repay it"),
    Flag(RUN, "offload", choice(OFFLOAD), "what leaves the GPU while it is not at work. none; model: other models; "
         "block: all but the blocks at work, least memory; default: auto, the fastest of these that fits the GPU"),
    Flag(RUN, "offload_model", YES_OR_NO, "true, also without a value, is --offload model, false --offload none; "
         "default: see --offload"),
    Flag(RUN, "quantize", choice(QUANTIZED), "store the transformers' matrices in 8 bits: half the memory; norms, "
         "embeddings, time and head stay; other values, so another video; default: off"),
    Flag(RUN, "vae_dtype", choice([*VAE_DTYPES, *VAE_DTYPES.values()]), "type of the autoencoder's convolutions: "
         "fp16 has half the memory and time, for a GPU, 80 dB or more from fp32; default: fp32, on CUDA by TF32, but "
         "fp16 where the GPU's memory is short"),
    Flag(RUN, "vae_frames", Kind(whole, "N"), f"frames that the autoencoder computes together, "
         f"{', '.join(map(str, VAE_FRAMES))}: fewer need less memory, at the same values; default: {VAE_FRAMES[-1]}"),
    Flag(RUN, "vae_tile", Kind(whole, "PIXELS"), f"encode and decode in tiles of that edge, {MIN_VAE_TILE} or more, "
         "or in strips no larger: less memory, more time (try --vae_frames 1 first), other rounding, by which a video "
         "from an image can change visibly (in bf16 by up to 67 levels of 255); default: whole frames"),
    Flag(RUN, "t5_cpu", SWITCH, "run the text encoder on the CPU; default: where the model runs"),
    Flag(RUN, "convert_model_dtype", SWITCH, "round all transformer parameters to bf16; default: norms, time embedding "
         "and head stay float32"),

    Flag(SEVERAL, "ulysses_size", WHOLE, "processes that share the tokens of a video; default: all that --num_videos "
         "and --cfg_parallel leave"),
    Flag(SEVERAL, "cfg_parallel", SWITCH, "compute the two branches of guidance on two halves of the processes; "
         "default: one after the other"),
    Flag(SEVERAL, "dit_fsdp", SWITCH, "spread the transformer's parameters over the processes; default: each has all"),
    Flag(SEVERAL, "t5_fsdp", SWITCH, "spread the text encoder's parameters over the processes; default: the first has "
         "all"),

    Flag(DOWNLOAD, "download", SWITCH, "fetch the released checkpoint of --task into --ckpt_dir, by default a folder "
         "of its name, and make no video; default: off"),
    Flag(DOWNLOAD, "source", choice(HUBS), f"where --download fetches from; default: {HUBS[0]}"),

    Flag(EXTENSION, "use_prompt_extend", SWITCH, "let a language model write the prompt out, with an image one that "
         "sees it; default: off"),
    Flag(EXTENSION, "prompt_extend_method", choice(("dashscope", "local_qwen", "openai")), "dashscope: a service, with "
         "the key in DASH_API_KEY; local_qwen: a model on this machine; openai: any server with that API; default: "
         "local_qwen", default="local_qwen"),
    Flag(EXTENSION, "prompt_extend_model", Kind(text, "NAME"), "which model; of local_qwen an alias, a folder, or a "
         "name of the Hugging Face hub; default: qwen-plus, Qwen2.5_14B, with an image qwen-vl-max, QwenVL2.5_7B; the "
         "first that the server lists"),
    Flag(EXTENSION, "prompt_extend_target_lang", choice(("zh", "en")), "language of the written-out prompt; default: "
         "zh", default="zh"),
    Flag(EXTENSION, "prompt_extend_url", Kind(text, "URL"), "the server of method openai, with a key in OPENAI_API_KEY "
         "where it wants one, for example http://localhost:8000/v1; default: none"),
    Flag(EXTENSION, "prompt_extend_timeout", WHOLE, "seconds that a service has, all tries together; default: 120",
         default=120),

    Flag(MAKE, "audio", FILE, "what is spoken or sung: a sound, or a video that has one; default: none", "audio",
         SPEECH, True),
    Flag(MAKE, "audio_start", NUMBER, "the second of --audio at which the video begins; default: 0", "audio_start",
         SPEECH),
    Flag(MAKE, "audio_len", NUMBER, "seconds of --audio that are heard; default: to its end", "audio_len", SPEECH),
    Flag(MAKE, "pose_video", FILE, "a video whose poses are followed; default: none", "pose_video", SPEECH, True),
    Flag(MAKE, "tts_prompt_audio", FILE, "a sample of the voice that --enable_tts speaks with; default: none",
         None, SPEECH),
    Flag(MAKE, "tts_prompt_text", TEXT, "what is said in --tts_prompt_audio; default: none", None, SPEECH),
    Flag(MAKE, "tts_text", TEXT, "what --enable_tts speaks; default: none", None, SPEECH),
    Flag(MAKE, "num_clip", WHOLE, "clips to make at most, one after the other; default: as many as the sound is long",
         "num_clip", SPEECH),
    Flag(MAKE, "infer_frames", WHOLE, "frames of a clip, a multiple of 4; default: "
         f"{WAN_CONFIGS['s2v-14B'].frame_num}", "frame_num", SPEECH),
    Flag(MAKE, "enable_tts", SWITCH, "make the audio from a text; default: off", None, SPEECH, True),
    Flag(MAKE, "start_from_ref", SWITCH, "begin with the image itself; default: off", "start_from_ref", SPEECH),
    Flag(MAKE, "as_upstream", SWITCH, "make the original's choices where these are better: whole clips, also where "
         "less is left; of speech sound 3 frames late, black bars around the image, poses by whole strides; of "
         "animation soft masks, one noise for all clips; default: off", "as_upstream", CLIPS),

    Flag(MAKE, "video", FILE, "the video whose person is followed or replaced, which is preprocessed first; --image is "
         "the character; default: --src_root_path", None, ANIMATE, True),
    Flag(MAKE, "retarget_flag", SWITCH, "with --video: give the motion the proportions of the character; default: off",
         None, ANIMATE),
    Flag(MAKE, "person", Kind(person, "N|X,Y"), "with --video: which person, by number from left to right or by a "
         "point of the first frame; default: the largest", None, ANIMATE),
    Flag(MAKE, "smooth", NUMBER, "with --video: average key points over so many seconds, as 0.05, against trembling; "
         "default: 0", None, ANIMATE),
    Flag(MAKE, "masks", FILE, "with --video: your own masks, a video that is white where the person is; default: SAM 2",
         None, ANIMATE),
    Flag(MAKE, "pose_backend", choice(POSE_BACKENDS), "with --video: what finds the person; default: auto, the "
         "networks of the checkpoint, else MediaPipe", None, ANIMATE),
    Flag(MAKE, "keep_inputs", FOLDER, "with --video: keep what preprocessing makes here, with a preview; default: a "
         "folder of the cache", None, ANIMATE),
    Flag(MAKE, "src_root_path", FOLDER, "folder of the preprocessed performance; default: none", "performance",
         ANIMATE, True),
    Flag(MAKE, "refert_num", WHOLE, "frames that a clip takes over from the one before, 1 or 5; default: 1",
         "refert_num", ANIMATE),
    Flag(MAKE, "replace_flag", SWITCH, "replace the person in the video by the character, instead of animating the "
         "character; default: off", "replace_flag", ANIMATE, True),
    Flag(MAKE, "use_relighting_lora", SWITCH, "fit the character to the light of the video; default: off",
         "use_relighting_lora", ANIMATE, True),
    Flag(MAKE, "sound", FILE, "a sound, or a video that has one, which is heard with the video; default: the one that "
         "the performance names", "sound", ANIMATE, True),
    Flag(MAKE, "composite", SWITCH, "with --replace_flag keep the video's own pixels around the character; default: "
         "off", "composite", ANIMATE),
    Flag(MAKE, "match_color", SWITCH, "keep the colours of later clips those of the first one, or of the background; "
         "default: off", "match_color", ANIMATE),
]
# fmt: on


def flags_of(args: argparse.Namespace, group: str) -> dict[str, Any]:
    """Return the values of all flags of a group, by name."""
    return {flag.name: getattr(args, flag.name) for flag in FLAGS if flag.group == group}


def asked(args: argparse.Namespace, task: str | None = None) -> dict[str, Any]:
    """Return the values that were given for fields of the request of a task, or of any one, by field."""
    values = [(flag.field, getattr(args, flag.name)) for flag in FLAGS if flag.field and flag.is_of(task)]
    return {field: value for field, value in values if value is not None and value is not False}


def flag_names(task: str | None = None) -> dict[str, str]:
    """Map the fields of a request to the names of their flags, for errors; a task may have names of its own."""
    flags = [flag for flag in FLAGS if flag.is_of(task)]
    return {flag.field or flag.name: f"--{flag.name}" for flag in reversed(flags)}


def tasks_with(field: str) -> tuple[str, ...]:
    """Return the tasks that know the input of a field of the request."""
    return next((flag.tasks for flag in FLAGS if flag.field == field), ())


def knows(task: str, field: str) -> bool:
    """Tell whether a field of the request has a meaning for a task."""
    flags = [flag for flag in FLAGS if flag.field == field]
    return not flags or any(flag.is_of(task) for flag in flags)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all flags, in the groups of the help. Each help text names the default."""
    parser = Parser(
        prog=program_name(),
        usage="%(prog)s [--task TASK] [--ckpt_dir DIR] [--prompt TEXT] [flags]",
        description="Make a video from a prompt, an image or both. Without --ckpt_dir a small embedded model runs, "
        f"with defaults of its own: {_nano_defaults()}.",
        epilog="Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 130 interrupted.",
    )
    groups: dict[str, Any] = {}
    for flag in FLAGS:
        title = _title(flag)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], flag)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises SystemExit after help (0) and after a line about an error (2).

    Of several processes only the first one prints.
    """
    with contextlib.ExitStack() as stack:
        try:
            if launched_rank() > 0:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
        except ValueError as error:
            print_error(f"error: {error}")
            raise SystemExit(2) from None
        return build_parser().parse_args(argv)


def _title(flag: Flag) -> str:
    if flag.tasks:
        later = "" if set(flag.tasks) & set(IMPLEMENTED_TASKS) else LATER
        return (TITLES.get(flag.tasks) or TITLES.get(flag.tasks[:1], flag.tasks[0])) + later
    return f"{SEVERAL}: {torchrun_line('N')}" if flag.group == SEVERAL else flag.group


def _add(group: Any, flag: Flag) -> None:
    name, (read, metavar) = f"--{flag.name}", flag.kind
    if flag.kind is SWITCH:
        group.add_argument(name, action="store_true", help=flag.help)
        return
    metavar = metavar if isinstance(metavar, str) else "{" + ",".join(metavar) + "}"
    optional = {"nargs": "?", "const": True} if flag.kind is YES_OR_NO else {}
    group.add_argument(name, type=read, metavar=metavar, default=flag.default, help=flag.help, **optional)


def _nano_defaults() -> str:
    configs = NANO_CONFIGS.values()

    def between(value: Callable[[TaskConfig], float]) -> str:
        found = [value(config) for config in configs]
        return " to ".join(f"{end:g}" for end in sorted({min(found), max(found)}))

    sizes = " or ".join(dict.fromkeys(config.size for config in configs))
    frames, rate, steps = (between(attrgetter(name)) for name in ("frame_num", "sample_fps", "sample_steps"))
    shift, guidance = between(attrgetter("sample_shift")), between(attrgetter("guidance.low_noise"))
    return f"by task {sizes}, {frames} frames at {rate} fps, {steps} steps, shift {shift}, guidance {guidance}"

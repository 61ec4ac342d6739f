"""The flags of `generate.py`. None means "not given": the stored request, then the task's config, fill it."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from wan.choices import ATTENTION, DTYPES, MIN_VAE_TILE, NOISE_DEVICES, PROGRESS, SOLVERS
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS
from wan.configs.shared_config import TaskConfig
from wan.framing import FITS
from wan.geometry import parse_size
from wan.guidance import format_guidance, parse_guidance
from wan.parallel import launched_rank
from wan.parser import Parser
from wan.program import print_error, program_name, torchrun_line
from wan.typed import number, one_of, parsed, path, str2bool, text, whole

# Flags that define the video. They fill in from a stored request, and cannot be changed when a latent is resumed.
REQUEST_FLAGS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "size": "size",
    "frame_num": "frame_num",
    "sample_steps": "steps",
    "sample_shift": "shift",
    "sample_guide_scale": "guidance",
    "sample_solver": "solver",
    "base_seed": "seed",
    "boundary": "boundary",
    "noise_device": "noise_device",
    "image": "image",
    "last_image": "last_image",
    "fit": "fit",
}

# The fields of a request under the names of their flags, for errors.
FLAG_NAMES = {field: f"--{flag}" for flag, field in {**REQUEST_FLAGS, "fps": "fps", "task": "task"}.items()}

# Flags of other tasks: given to a task that does not know them, media inputs are refused (the result would not be what
# was asked for) and settings are ignored with a warning.
OTHER_INPUTS = {
    **{flag: tuple(c.name for c in WAN_CONFIGS.values() if flag in c.images) for flag in ("image", "last_image")},
    "fit": tuple(c.name for c in WAN_CONFIGS.values() if c.images),
    "audio": ("s2v-14B",),
    "pose_video": ("s2v-14B",),
    "enable_tts": ("s2v-14B",),
    "src_root_path": ("animate-14B",),
    "replace_flag": ("animate-14B",),
    "use_relighting_lora": ("animate-14B",),
}
OTHER_SETTINGS = {
    "num_clip": ("s2v-14B",),
    "tts_prompt_audio": ("s2v-14B",),
    "tts_prompt_text": ("s2v-14B",),
    "tts_text": ("s2v-14B",),
    "start_from_ref": ("s2v-14B",),
    "infer_frames": ("s2v-14B",),
    "refert_num": ("animate-14B",),
}


def build_parser() -> argparse.ArgumentParser:
    """Every flag, grouped as the help shows them. Each help text names the default."""
    parser = Parser(
        prog=program_name(),
        usage="%(prog)s [--task TASK] [--ckpt_dir DIR] --prompt TEXT [flags]",
        description="Make a video from a prompt, an image or both. Without --ckpt_dir a small embedded model runs, "
        f"with defaults of its own: {_nano_defaults()}.",
        epilog="Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 130 interrupted.",
    )
    _add_request(parser.add_argument_group("what to make"))
    _add_images(parser.add_argument_group("image-to-video (i2v-A14B, ti2v-5B)"))
    _add_output(parser.add_argument_group("output"))
    _add_runtime(parser.add_argument_group("how to run"))
    _add_several_gpus(parser.add_argument_group(f"several GPUs: {torchrun_line('N')}"))
    _add_prompt_extension(parser.add_argument_group("prompt extension (comes later)"))
    _add_other_tasks(parser)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line. Raises SystemExit after help (0) and after a line about an error (2).

    Of several processes only the first one prints them.
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


def _add_request(group: Any) -> None:
    _add_choice(
        group,
        "--task",
        WAN_CONFIGS,
        help=f"default: t2v-A14B, with --image or --last_image i2v-A14B; {_later()} come later",
    )
    group.add_argument(
        "--ckpt_dir",
        type=path,
        metavar="DIR",
        help="folder of released weights; default: nano, the embedded model",
    )
    group.add_argument(
        "--prompt", type=text, metavar="TEXT", help="what the video shows; default: an example, with an image nothing"
    )
    group.add_argument(
        "--negative_prompt",
        type=text,
        metavar="TEXT",
        help="what to avoid; without effect at guidance 1; default: the task's text, of the embedded model ''",
    )
    group.add_argument(
        "--size",
        type=parsed(parse_size),
        metavar="W*H",
        help=f"pixels, as 1280*720 or 1280x720; of an image see --fit; {_defaults(lambda task: task.size)}",
    )
    group.add_argument(
        "--frame_num", type=whole, metavar="N", help=f"frames, 4n+1; {_defaults(lambda task: task.frame_num)}"
    )
    group.add_argument(
        "--base_seed", type=whole, metavar="N", help="draws the noise; default or negative: random, and printed"
    )
    group.add_argument(
        "--num_videos",
        type=whole,
        default=1,
        metavar="N",
        help="make N videos, with this seed and the following ones; default: 1",
    )
    _add_choice(group, "--sample_solver", SOLVERS, help="what integrates from noise to video; default: unipc")
    group.add_argument(
        "--sample_steps",
        type=whole,
        metavar="N",
        help=f"more take longer and look better; {_defaults(lambda task: task.sample_steps)}",
    )
    group.add_argument(
        "--sample_shift",
        type=number,
        metavar="X",
        help=f"larger values spend more steps on high noise; {_defaults(lambda task: f'{task.sample_shift:g}')}",
    )
    group.add_argument(
        "--sample_guide_scale",
        type=parsed(parse_guidance),
        metavar="G[,G]",
        help="how strongly the prompt counts, 1 for no guidance: one number, or as 3,4 one for the low-noise and one "
        f"for the high-noise expert; {_defaults(lambda task: format_guidance(task.guidance))}",
    )
    group.add_argument(
        "--boundary",
        type=number,
        metavar="X",
        help="the noise level, 0..1, from which up the high-noise expert works: with 0 it makes all steps, with 1 at "
        f"most the first; {_defaults(lambda task: task.boundary)}",
    )
    _add_choice(
        group,
        "--noise_device",
        NOISE_DEVICES,
        help="where noise is drawn. default: where the model runs; cpu: a seed gives the same noise on every machine",
    )
    group.add_argument(
        "--from_video",
        type=path,
        metavar="FILE",
        help="repeat the request stored in a video; other flags override it; default: a new request",
    )


def _add_images(group: Any) -> None:
    group.add_argument(
        "--image",
        type=path,
        metavar="FILE",
        help="the first frame; default: none (ti2v-5B, --last_image)",
    )
    group.add_argument(
        "--last_image",
        type=path,
        metavar="FILE",
        help="the last frame (i2v-A14B), also without --image; default: none",
    )
    _add_choice(
        group,
        "--fit",
        FITS,
        help="how the image meets --size: area (default) takes the shape of the image and the area of the size, crop "
        "fills the size and cuts, pad adds black borders, exact stretches",
    )


def _add_output(group: Any) -> None:
    group.add_argument(
        "--save_file",
        type=path,
        metavar="FILE",
        help="the mp4 (of one frame a png, jpg or webp), or with / at its end a folder; default: a name from "
        "task, size, prompt, seed, time",
    )
    group.add_argument("--output_dir", type=path, metavar="DIR", help="folder of the output; default: the current one")
    group.add_argument(
        "--overwrite", action="store_true", help="replace an existing output file; default: refuse to start"
    )
    group.add_argument(
        "--fps",
        type=whole,
        metavar="N",
        help=f"frames per second when it is played; {_defaults(lambda task: task.sample_fps)}",
    )
    group.add_argument(
        "--no_metadata",
        action="store_true",
        help="do not store the request in the video; default: it is stored, for --from_video",
    )
    group.add_argument(
        "--resume",
        type=path,
        metavar="FILE",
        help="decode the latent that was kept of a run which failed after sampling; default: sample",
    )
    _add_choice(group, "--progress", PROGRESS, help="default: bar on a terminal, plain lines elsewhere")


def _add_runtime(group: Any) -> None:
    group.add_argument(
        "--device", type=_device, metavar="NAME", help="cuda, cuda:1, mps or cpu; default: the best there is"
    )
    _add_choice(group, "--dtype", [*DTYPES, *DTYPES.values()], help="what the transformer computes in; default: bf16")
    _add_choice(
        group,
        "--attention",
        ATTENTION,
        default="auto",
        help="attention kernel; default: auto, the fastest one with exact results that is installed",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer blocks: slow start, faster steps; default: off",
    )
    group.add_argument(
        "--offload_model",
        type=str2bool,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="keep only the model at work on the GPU; without a value true; default: true on one GPU, false on several",
    )
    group.add_argument(
        "--vae_tile",
        type=whole,
        metavar="PIXELS",
        help=f"encode and decode in tiles of that edge, {MIN_VAE_TILE} or more: less memory, more time, other "
        "rounding, by which a video from an image can change visibly (in bf16 by up to 67 levels of 255); default: "
        "whole frames",
    )
    group.add_argument(
        "--t5_cpu", action="store_true", help="run the text encoder on the CPU; default: where the model runs"
    )
    group.add_argument(
        "--convert_model_dtype",
        action="store_true",
        help="round all transformer parameters to bf16; default: norms, time embedding and head stay float32",
    )


def _add_several_gpus(group: Any) -> None:
    group.add_argument(
        "--ulysses_size",
        type=whole,
        metavar="N",
        help="processes that share the tokens of a video; default: all that --num_videos and --cfg_parallel leave",
    )
    group.add_argument(
        "--cfg_parallel",
        action="store_true",
        help="compute the two branches of guidance on two halves of the processes; default: one after the other",
    )
    group.add_argument(
        "--dit_fsdp",
        action="store_true",
        help="spread the transformer's parameters over the processes; default: each has all",
    )
    group.add_argument(
        "--t5_fsdp",
        action="store_true",
        help="spread the text encoder's parameters over the processes; default: the first has all",
    )


def _add_prompt_extension(group: Any) -> None:
    group.add_argument(
        "--use_prompt_extend", action="store_true", help="let a language model write the prompt out; default: off"
    )
    _add_choice(
        group,
        "--prompt_extend_method",
        ("dashscope", "local_qwen"),
        default="local_qwen",
        help="a service, or a model on this machine; default: local_qwen",
    )
    group.add_argument("--prompt_extend_model", type=text, metavar="NAME", help="which model; default: the method's")
    _add_choice(
        group,
        "--prompt_extend_target_lang",
        ("zh", "en"),
        default="zh",
        help="language of the written-out prompt; default: zh",
    )


def _add_other_tasks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speech-to-video (comes later)")
    for flag, help in (
        ("--audio", "what is spoken or sung; default: none"),
        ("--pose_video", "a video whose poses are followed; default: none"),
        ("--tts_prompt_audio", "a sample of the voice that --enable_tts speaks with; default: none"),
    ):
        group.add_argument(flag, type=path, metavar="FILE", help=help)
    for flag, help in (
        ("--tts_prompt_text", "what is said in --tts_prompt_audio; default: none"),
        ("--tts_text", "what --enable_tts speaks; default: none"),
    ):
        group.add_argument(flag, type=text, metavar="TEXT", help=help)
    for flag, help in (
        ("--num_clip", "clips to make, one after the other; default: as the audio is long"),
        ("--infer_frames", "frames of a clip; default: the task's"),
    ):
        group.add_argument(flag, type=whole, metavar="N", help=help)
    for flag, help in (
        ("--enable_tts", "make the audio from a text; default: off"),
        ("--start_from_ref", "begin with the image itself; default: off"),
    ):
        group.add_argument(flag, action="store_true", help=help)
    group = parser.add_argument_group("animate (comes later)")
    group.add_argument(
        "--src_root_path", type=path, metavar="DIR", help="folder of the preprocessed performance; default: none"
    )
    group.add_argument(
        "--refert_num",
        type=whole,
        metavar="N",
        help="frames that a clip takes over from the last one; default: the task's",
    )
    for flag, help in (
        ("--replace_flag", "replace the character in the video, instead of animating the image; default: off"),
        ("--use_relighting_lora", "fit the character to the light of the video; default: off"),
    ):
        group.add_argument(flag, action="store_true", help=help)


def _add_choice(group: Any, flag: str, names: Iterable[str], **options: Any) -> None:
    """A flag for one of some names; `choices` of argparse would not suggest a similar one."""
    group.add_argument(flag, type=one_of(names), metavar="{" + ",".join(names) + "}", **options)


def _defaults(value: Callable[[TaskConfig], Any]) -> str:
    """The default values of the tasks in words: `default: 81, for ti2v-5B 121`."""
    tasks: dict[str, list[str]] = {}
    for name in IMPLEMENTED_TASKS:
        if (found := value(WAN_CONFIGS[name])) is not None:
            tasks.setdefault(str(found), []).append(name)
    usual = max(tasks, key=lambda found: len(tasks[found]))
    others = [f", for {' and '.join(names)} {found}" for found, names in tasks.items() if found != usual]
    return f"default: {usual}{''.join(others)}"


def _nano_defaults() -> str:
    sizes = " or ".join(dict.fromkeys(config.size for config in NANO_CONFIGS.values()))
    nano = NANO_CONFIGS["t2v-A14B"]
    return (
        f"{sizes}, {nano.frame_num} frames at {nano.sample_fps} fps, {nano.sample_steps} steps, "
        f"shift {nano.sample_shift:g}, guidance {format_guidance(nano.guidance)}"
    )


def _later() -> str:
    return " and ".join(name for name in WAN_CONFIGS if name not in IMPLEMENTED_TASKS)


def _device(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("the name of the device is empty; leave the flag out for the best there is")
    return value

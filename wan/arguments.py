"""The flags of `generate.py`. None means "not given": the stored request, then the task's config, fill it."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from wan.configs import WAN_CONFIGS
from wan.framing import FITS
from wan.geometry import parse_size
from wan.modules.attention import BACKEND_NAMES
from wan.program import program_name, torchrun_line
from wan.request import NOISE_DEVICES, parse_guidance
from wan.runtime import DTYPE_NAMES, DTYPES
from wan.sampling import SOLVERS

PROGRESS = ("bar", "plain", "none")

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


class Parser(argparse.ArgumentParser):
    """Errors are one line; the full list of flags is a --help away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def str2bool(value: str | bool) -> bool:
    """yes, true, t, y, 1 and no, false, f, n, 0 in any case. Raises ArgumentTypeError for anything else."""
    if isinstance(value, bool):
        return value
    words = {True: ("yes", "true", "t", "y", "1"), False: ("no", "false", "f", "n", "0")}
    for meaning, spellings in words.items():
        if value.lower() in spellings:
            return meaning
    raise argparse.ArgumentTypeError(f"a yes or no was expected (true, false, yes, no, 1, 0), got {value!r}")


def build_parser() -> argparse.ArgumentParser:
    """Every flag, grouped as the help shows them."""
    parser = Parser(
        prog=program_name(),
        usage="%(prog)s [--task TASK] [--ckpt_dir DIR] --prompt TEXT [flags]",
        description="Make a video from a prompt, an image or both. Without --ckpt_dir a small embedded model runs.",
        epilog="Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 130 interrupted.",
        allow_abbrev=False,
    )
    _add_request(parser.add_argument_group("what to make"))
    _add_images(parser.add_argument_group("image-to-video (i2v-A14B, ti2v-5B)"))
    _add_output(parser.add_argument_group("output"))
    _add_runtime(parser.add_argument_group("how to run"))
    _add_several_gpus(parser.add_argument_group(f"several GPUs: {torchrun_line('N')}"))
    _add_prompt_extension(parser.add_argument_group("prompt extension (comes later)"))
    _add_other_tasks(parser)
    return parser


def _add_request(group: Any) -> None:
    group.add_argument("--task", choices=list(WAN_CONFIGS), help="default t2v-A14B")
    group.add_argument("--ckpt_dir", help="folder of the released checkpoint, or nano for the embedded model")
    group.add_argument("--prompt", help="what the video shows; default: an example of the task")
    group.add_argument("--negative_prompt", help="what to avoid; default: the task's, '' for none")
    group.add_argument(
        "--size", type=_typed(parse_size), metavar="W*H", help="1280*720 or 1280x720; default: the task's"
    )
    group.add_argument("--frame_num", type=int, metavar="N", help="frames, 4n+1; default: the task's")
    group.add_argument("--base_seed", type=int, metavar="N", help="negative or not given: random, and printed")
    group.add_argument(
        "--num_videos", type=int, default=1, metavar="N", help="make N videos, with this seed and the following ones"
    )
    group.add_argument("--sample_solver", choices=list(SOLVERS), help="default unipc")
    group.add_argument("--sample_steps", type=int, metavar="N", help="default: the task's")
    group.add_argument("--sample_shift", type=float, metavar="X", help="moves steps to high noise; default: the task's")
    group.add_argument(
        "--sample_guide_scale",
        type=_typed(parse_guidance),
        metavar="G[,G]",
        help="guidance, or one for the low-noise and one for the high-noise expert, as 3,4; default: the task's",
    )
    group.add_argument(
        "--boundary", type=float, metavar="X", help="share of the noise levels for the high-noise expert"
    )
    group.add_argument("--noise_device", choices=NOISE_DEVICES, help="cpu: the same noise on every machine")
    group.add_argument(
        "--from_video", metavar="FILE", help="repeat the request stored in a video; other flags override"
    )


def _add_images(group: Any) -> None:
    group.add_argument("--image", metavar="FILE", help="the first frame; ti2v-5B runs without one as well")
    group.add_argument("--last_image", metavar="FILE", help="the last frame, with or without --image (i2v-A14B)")
    group.add_argument(
        "--fit",
        choices=FITS,
        help="how the image meets --size: area takes the shape of the image (default), crop fills the size and cuts, "
        "pad adds black borders, exact stretches",
    )


def _add_output(group: Any) -> None:
    group.add_argument(
        "--save_file", metavar="FILE", help="the mp4; default: a name from task, size, prompt, seed, time"
    )
    group.add_argument("--output_dir", metavar="DIR", help="folder of the output; default: the current one")
    group.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    group.add_argument("--fps", type=int, metavar="N", help="playback speed of the file; default: the task's")
    group.add_argument("--no_metadata", action="store_true", help="do not store the request in the video")
    group.add_argument("--resume", metavar="FILE", help="decode a saved latent of a run that failed after sampling")
    group.add_argument("--progress", choices=PROGRESS, help="default bar on a terminal, plain lines elsewhere")


def _add_runtime(group: Any) -> None:
    group.add_argument("--device", help="cuda, cuda:1, mps or cpu; default: the best there is")
    group.add_argument(
        "--dtype", choices=[*DTYPES, *DTYPE_NAMES], help="what the transformer computes in; default bf16"
    )
    group.add_argument("--attention", choices=BACKEND_NAMES, default="auto", help="attention kernel; default auto")
    group.add_argument(
        "--compile", action="store_true", help="compile the transformer blocks: slow start, faster steps"
    )
    group.add_argument(
        "--offload_model",
        type=str2bool,
        metavar="BOOL",
        help="keep only the model at work on the GPU; default true",
    )
    group.add_argument(
        "--vae_tile",
        type=int,
        metavar="PIXELS",
        help="encode and decode in tiles of that edge: less memory, more time, the same video",
    )
    group.add_argument("--t5_cpu", action="store_true", help="run the text encoder on the CPU")
    group.add_argument(
        "--convert_model_dtype", action="store_true", help="round all transformer parameters to bf16, also norms"
    )


def _add_several_gpus(group: Any) -> None:
    group.add_argument(
        "--ulysses_size",
        type=int,
        metavar="N",
        help="processes that share the tokens of a video; default: all there are",
    )
    group.add_argument(
        "--cfg_parallel",
        action="store_true",
        help="compute the two branches of guidance on two halves of the processes",
    )
    group.add_argument("--dit_fsdp", action="store_true", help="spread the transformer's parameters over the processes")
    group.add_argument("--t5_fsdp", action="store_true", help="spread the text encoder's parameters over the processes")


def _add_prompt_extension(group: Any) -> None:
    group.add_argument("--use_prompt_extend", action="store_true")
    group.add_argument("--prompt_extend_method", choices=("dashscope", "local_qwen"), default="local_qwen")
    group.add_argument("--prompt_extend_model")
    group.add_argument("--prompt_extend_target_lang", choices=("zh", "en"), default="zh")


def _add_other_tasks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speech-to-video (comes later)")
    for flag in ("audio", "pose_video", "tts_prompt_audio"):
        group.add_argument(f"--{flag}", metavar="FILE")
    for flag in ("tts_prompt_text", "tts_text"):
        group.add_argument(f"--{flag}", metavar="TEXT")
    for flag in ("num_clip", "infer_frames"):
        group.add_argument(f"--{flag}", type=int, metavar="N")
    for flag in ("enable_tts", "start_from_ref"):
        group.add_argument(f"--{flag}", action="store_true")
    group = parser.add_argument_group("animate (comes later)")
    group.add_argument("--src_root_path", metavar="DIR")
    group.add_argument("--refert_num", type=int, metavar="N")
    for flag in ("replace_flag", "use_relighting_lora"):
        group.add_argument(f"--{flag}", action="store_true")


def _typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show the text of a ValueError instead of its own."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert

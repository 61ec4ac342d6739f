"""Command of preprocessing: `python wan/modules/animate/preprocess/preprocess_data.py --video_path FILE ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # also from a checkout that is not installed, in any folder
    sys.path[0] = str(Path(__file__).resolve().parents[4])

import argparse
import logging

from wan.choices import POSE_BACKENDS
from wan.files import shown
from wan.modules.animate.preprocess.backends import open_networks
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.source import SOURCE_RATE
from wan.modules.animate.preprocess.stage import Stage
from wan.parser import Parser, exit_code
from wan.program import OneLine
from wan.typed import number, one_of, parsed, path, person, whole
from wan.values import named, parse_rate

FLAGS = {  # fields of settings -> flags
    "video_path": "--video_path",
    "refer_path": "--refer_path",
    "save_path": "--save_path",
    "resolution_area": "--resolution_area",
    "retarget_flag": "--retarget_flag",
    "replace_flag": "--replace_flag",
    **{
        name: f"--{name}"
        for name in ("use_flux", "iterations", "k", "w_len", "h_len", "fps", "start", "len", "person", "smooth")
    },
}


def build_parser() -> Parser:
    parser = Parser(
        prog="preprocess_data.py",
        description="Make the folder that --task animate-14B reads, from a driving video and a picture of a character.",
        epilog="Exit codes: 0 done, 1 failed while running, 2 wrong arguments, 130 interrupted.",
    )
    add = parser.add_argument
    add("--ckpt_path", type=path, metavar="DIR", help="process_checkpoint of the released weights; default: none")
    add("--video_path", type=path, metavar="FILE", required=True, help="the driving video")
    add("--refer_path", type=path, metavar="FILE", required=True, help="the picture of the character")
    add("--save_path", type=path, metavar="DIR", required=True, help="the folder that is written")
    add(
        "--resolution_area",
        type=whole,
        nargs=2,
        metavar=("W", "H"),
        default=[1280, 720],
        help="two numbers whose product is the number of pixels; the shape is that of the picture, with "
        "--replace_flag that of the video; default: 1280 720",
    )
    add(
        "--fps",
        type=parsed(parse_rate),
        metavar="N",
        default=30,
        help="frames a second that are taken; -1 for the rate of the video; default: 30",
    )
    add("--start", type=number, metavar="S", default=0.0, help="the second of the video to begin at; default: 0")
    add("--len", type=number, metavar="S", help="seconds of the video that are used; default: to its end")
    add("--retarget_flag", action="store_true", help="give the skeleton the proportions of the character; default: off")
    add(
        "--use_flux",
        action="store_true",
        help="with --retarget_flag: edit both pictures into one pose first; default: off",
    )
    add("--replace_flag", action="store_true", help="replace the person of the video; default: animate the character")
    add("--iterations", type=whole, metavar="N", default=3, help="how often the mask grows; default: 3")
    add("--k", type=whole, metavar="PIXELS", default=7, help="by how much the mask grows; default: 7")
    add("--w_len", type=whole, metavar="N", default=1, help="columns of blocks that fill the mask; default: 1")
    add("--h_len", type=whole, metavar="N", default=1, help="rows of blocks that fill the mask; default: 1")
    add(
        "--masks",
        type=path,
        metavar="FILE",
        help="a video of masks, white where the person is, instead of SAM 2; default: none",
    )
    add(
        "--person",
        type=person,
        metavar="N|X,Y",
        help="which person: its number from left to right, or a point on it in the first frame; default: the largest",
    )
    add(
        "--pose_backend",
        type=one_of(POSE_BACKENDS),
        metavar="{" + ",".join(POSE_BACKENDS) + "}",
        default="auto",
        help="auto: the ONNX files of --ckpt_path, else MediaPipe; default: auto",
    )
    add(
        "--pose_input",
        type=one_of(("bgr", "rgb")),
        metavar="{bgr,rgb}",
        default="bgr",
        help="order of colours that the pose network gets; bgr as published; default: bgr",
    )
    add("--detector", type=path, metavar="FILE", help="the ONNX file of the detector; default: that of --ckpt_path")
    add(
        "--pose_model",
        type=path,
        metavar="FILE",
        help="the ONNX file of the pose network; default: that of --ckpt_path",
    )
    add(
        "--smooth",
        type=number,
        metavar="S",
        default=0.0,
        help="average key points over time against trembling, with a deviation of so many seconds, as 0.05; default: 0",
    )
    add("--preview", action="store_true", help="also write preview.mp4: frames, key points, faces, masks; default: off")
    add("--overwrite", action="store_true", help="replace the files of another run in --save_path; default: refuse")
    add(
        "--as_upstream",
        action="store_true",
        help="the original's choices: the largest person of each frame, stretched faces, frames by the mean "
        "rate; default: off",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("[%(asctime)s] %(levelname)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with named(FLAGS):
        folder = prepare(settings_of(args), args)
    print(f"written: {shown(folder)}")
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """Make the settings of the stage of flags. Raises ValueError."""
    width, height = args.resolution_area
    if min(width, height) < 1:
        raise ValueError(f"--resolution_area is two whole numbers from 1, got {width} {height}; try 1280 720")
    fps = SOURCE_RATE if args.fps == SOURCE_RATE else args.fps
    settings = Settings(
        args.video_path,
        args.refer_path,
        Path(args.save_path),
        area=width * height,
        fps=fps,
        start=args.start,
        length=args.len,
        retargets=args.retarget_flag,
        edits=args.use_flux,
        replaces=args.replace_flag,
        iterations=args.iterations,
        k=args.k,
        w_len=args.w_len,
        h_len=args.h_len,
        person=args.person,
        as_upstream=args.as_upstream,
        smooth=args.smooth,
        preview=args.preview,
        overwrite=args.overwrite,
    )
    settings.check()
    return settings


def prepare(settings: Settings, args: argparse.Namespace) -> Path:
    """Open the networks and run the stage. Raises ValueError and OSError, before anything runs if that can be known."""
    backend = open_networks(args, settings)
    return Stage(settings, backend.estimator, backend.identity, backend.segmenter, backend.editor).run()


if __name__ == "__main__":
    sys.exit(exit_code(main, "preprocess_data.py"))

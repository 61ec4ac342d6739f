"""Networks of a run of preprocessing: checked before anything runs, opened when they are needed."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wan import media
from wan.files import shown
from wan.inputs import Film
from wan.modules.animate.preprocess.masks import Clicks
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.sam2 import check_sam2, load_sam2, precision
from wan.modules.animate.preprocess.segment import Sam2
from wan.modules.animate.preprocess.source import Driving
from wan.modules.animate.preprocess.stage import Editor, Segmenter
from wan.modules.animate.preprocess.track import Estimator
from wan.modules.animate.preprocess.whole_body import DETECTOR, POSE, WholeBody
from wan.program import install_command
from wan.values import called

log = logging.getLogger(__name__)

SAM2 = "sam2/sam2_hiera_large.pt"
SOURCE = "it is in process_checkpoint of the released Wan2.2-Animate-14B"
WHITE = 128


@dataclass
class Networks:
    """Networks of a run; `identity` recognises the files that find points."""

    estimator: Estimator
    identity: str
    segmenter: Segmenter | None = None
    editor: Editor | None = None


def open_networks(args: Namespace, settings: Settings) -> Networks:
    """Open what a run needs. Raises ValueError and FileNotFoundError that name what is missing, and its source."""
    backend = chosen_backend(args)
    segmenter = open_segmenter(args, settings, backend) if settings.replaces else None
    if args.masks and not settings.replaces:
        log.warning("--masks has no effect without --replace_flag")
    editor = open_editor(args) if settings.edits else None
    if backend == "mediapipe":
        from wan.modules.animate.preprocess.mediapipe_points import MediaPipe

        if settings.person is not None:
            raise ValueError("--person needs the ONNX networks: MediaPipe sees one figure; leave it out")
        estimator = MediaPipe()
        return Networks(estimator, estimator.describe(), segmenter, editor)
    detector, points = onnx_files(args)
    estimator = WholeBody("", detector, points, order=args.pose_input, as_upstream=settings.as_upstream)
    return Networks(estimator, estimator.identity, segmenter, editor)


def chosen_backend(args: Namespace) -> str:
    """Choose the networks that find points: those of files where they are, else MediaPipe where it is installed."""
    if args.pose_backend != "auto":
        return args.pose_backend
    if all(file is not None and file.exists() for file in onnx_places(args)):
        return "onnx"
    from importlib.util import find_spec

    if find_spec("mediapipe"):
        return "mediapipe"
    places = zip(onnx_places(args), (DETECTOR, POSE))
    missing = [shown(file or name) for file, name in places if file is None or not file.exists()]
    raise FileNotFoundError(
        f"{' and '.join(missing)} missing; {SOURCE}: give its folder with --ckpt_path; or install MediaPipe, which is "
        f"coarser, in an environment of its own: {install_command('animate-mediapipe')}"
    )


def onnx_places(args: Namespace) -> list[Path | None]:
    """Name the files of detector and pose network, as flags or the folder say."""
    folder = Path(args.ckpt_path) if args.ckpt_path else None
    given = ((args.detector, DETECTOR), (args.pose_model, POSE))
    return [Path(file) if file else folder and folder / name for file, name in given]


def onnx_files(args: Namespace) -> list[Path]:
    places = onnx_places(args)
    for place, name, flag in zip(places, (DETECTOR, POSE), ("--detector", "--pose_model")):
        if place is None:
            raise ValueError(f"the ONNX networks need --ckpt_path DIR (or {flag} FILE for {name})")
        if not place.exists():
            raise FileNotFoundError(f"there is no {shown(place)}; {SOURCE}")
    return places


# ---- masks ----


def open_segmenter(args: Namespace, settings: Settings, backend: str) -> Segmenter:
    """Open the user's masks, or check SAM 2, which is loaded when masks are made; without it MediaPipe has its own."""
    if args.masks:
        driving = Driving.of(settings.video, settings.fps, settings.start, settings.length, settings.as_upstream)
        return OwnMasks(args.masks, driving)
    if backend == "mediapipe" and not (args.ckpt_path and Path(args.ckpt_path, SAM2).is_file()):
        from wan.modules.animate.preprocess.mediapipe_points import MediaPipeMasks

        return MediaPipeMasks()
    if not args.ckpt_path:
        raise ValueError(f"{called('replace_flag')} needs --ckpt_path DIR with {SAM2}, or your own masks: --masks FILE")
    path = Path(args.ckpt_path, SAM2)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {shown(path)}; {SOURCE}; or give your own masks: --masks FILE")
    check_sam2(path)
    return LoadedLater(path, settings.as_upstream)


class OwnMasks:
    """Masks of a video, white where the person is: of the frames that are taken, or of all frames of the source."""

    packages = ()
    identity = ""

    def __init__(self, path: str, driving: Driving):
        self.film = Film.of(path, "masks")
        if self.film.frames == len(driving):
            self.numbers: tuple[int, ...] = tuple(range(len(driving)))
        elif self.film.frames == driving.film.frames:
            self.numbers = driving.numbers
        else:
            raise ValueError(
                f"{shown(path)} has {self.film.frames} frames, and needs one for each of the {len(driving)} that are "
                f"taken from the video, or of all {driving.film.frames}"
            )

    def describe(self) -> str:
        return f"masks: {shown(self.film.path)}"

    def masks(self, frames: Iterator[np.ndarray], clicks: Callable[[int], Clicks]) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 [H, W]; masks of another size are scaled."""
        wanted = Driving(self.film, self.numbers, media.frame_rate(self.film.path), 0, 0)
        for frame, mask in zip(frames, wanted.frames()):
            yield scaled(mask[..., 0] >= WHITE, *frame.shape[:2])


def scaled(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a mask [h, w] to uint8 [height, width], by the nearest pixel."""
    rows, columns = (
        np.minimum(((np.arange(wanted) + 0.5) * side / wanted).astype(int), side - 1)
        for side, wanted in zip(mask.shape, (height, width))
    )
    return mask[rows[:, None], columns].astype(np.uint8)


class LoadedLater:
    """SAM 2 of a file, which is loaded when masks are made and freed after the last one."""

    packages = ("transformers",)

    def __init__(self, path: Path, as_upstream: bool = False):
        self.path, self.as_upstream = path, as_upstream
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.identity = f"{self.device} {path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"

    def describe(self) -> str:
        dtype = str(precision(self.device)).removeprefix("torch.")
        return f"masks: SAM 2 of {shown(self.path)} on {self.device} in {dtype}"

    def masks(self, frames: Iterator[np.ndarray], clicks: Callable[[int], Clicks]) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 [H, W]."""
        yield from Sam2(load_sam2(self.path, self.device), self.as_upstream).masks(frames, clicks)


# ---- the editor ----


def open_editor(args: Namespace) -> Editor:
    """Open the editor of pictures. Raises ValueError without its package, and FileNotFoundError without weights."""
    from wan.modules.animate.preprocess.editor import FluxEditor

    return FluxEditor(Path(args.ckpt_path or "", "FLUX.1-Kontext-dev"))

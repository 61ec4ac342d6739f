"""Preprocessing for animation, networks aside: frames a second, memory: `python -m benchmarks.preprocess`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import make_parser, parse, seconds, write_result
from wan.geometry import format_size
from wan.media import video_writer, write_video
from wan.memory import peak_memory
from wan.modules.animate.preprocess import detect, masks, pose, skeleton
from wan.modules.animate.preprocess.keypoints import face_part, face_picture, figure_of
from wan.modules.animate.preprocess.plan import Settings
from wan.modules.animate.preprocess.source import SOURCE_RATE, Driving
from wan.modules.animate.preprocess.stage import EXACT, FAST, Stage
from wan.nano import puppets
from wan.nano.standins import all_points
from wan.parser import exit_code
from wan.typed import at_least, whole

SIZES = ((832, 480), (1280, 720))
CYCLE = 50  # frames of the movement


class Known:
    """Estimator and segmenter without networks: a puppet in the middle, as high as most of the frame, moves."""

    identity, packages = "", ()

    def __init__(self) -> None:
        self.count, rng = 0, np.random.default_rng(0)
        puppet = puppets.sample_puppet(rng)
        places = puppets.joints(puppet, puppets.sample_motion(rng, CYCLE))[:, list(puppets.MARKERS)]
        self.places = np.stack([all_points(joints) for joints in places])  # [CYCLE, 133, 2], in shares of the height

    def describe(self) -> str:
        return "people: no network"

    def begin(self) -> None:
        """Do nothing."""

    def people(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the box of the middle of each frame."""
        return [np.array([[w / 4, h / 4, 3 * w / 4, 3 * h / 4, 0.9]]) for h, w, _ in (f.shape for f in frames)]

    def points(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the points [n, 133, 3] of the next frames."""
        (height, width), numbers = frames[0].shape[:2], np.arange(self.count, self.count + len(frames)) % CYCLE
        self.count += len(frames)
        places = self.places[numbers] * height + ((width - height) / 2, 0)
        return np.concatenate([places, np.full_like(places[..., :1], 0.9)], axis=-1)

    def masks(
        self, frames: Iterator[np.ndarray], clicks: Callable[[int], tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Yield a mask of the middle of each frame."""
        for frame in frames:
            mask = np.zeros(frame.shape[:2], np.uint8)
            mask[frame.shape[0] // 4 : -frame.shape[0] // 4, frame.shape[1] // 4 : -frame.shape[1] // 4] = 1
            yield mask


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("preprocess", __doc__, rounds=1)
    parser.add_argument(
        "--frames", type=at_least(10), default=1000, metavar="N", help="of the longest video; default: 1000"
    )
    parser.add_argument("--peak", type=whole, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parse(parser, arguments)
    if args.peak:
        number, count = args.peak
        run(Path(args.folder), SIZES[number], count, True)
        print(json.dumps(peak_memory(torch.device("cpu"))))
        return
    few, rows = args.frames // 10, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, size in enumerate(SIZES):
            for replaces, target in ((False, "50"), (True, "50")):
                rate = max(few / run(folder, size, few, replaces) for _ in range(args.rounds))
                what = f"{'replacement' if replaces else 'animation'}, from the source to all files"
                rows.append((format_size(size), what, f"{rate:.1f} frames/s", target if number == 0 else ""))
            for what, taken in parts(folder, size, few).items():
                rows.append((format_size(size), what, f"{few / taken:.1f} frames/s", ""))
            rows.append(
                (format_size(size), f"memory of {few} frames", f"{peak(number, few, name) / 2**20:.0f} MiB", "")
            )
        least, most = (peak(0, count, name) / 2**20 for count in (few, args.frames))
        growth = f"{least:.0f}, {most:.0f} MiB ({most / least - 1:+.1%})"
        rows.append((format_size(SIZES[0]), f"memory of {few} and {args.frames} frames", growth, "+5%"))
    write_result(
        "preprocess-cpu.md",
        args.save,
        title="Preprocessing for character animation, networks and segmentation aside",
        device="cpu",
        settings={"frames": args.frames, "rounds": args.rounds},
        header=("size", "what", "found", "target"),
        rows=rows,
        notes=["Parts run one after another, each alone. Targets are for two quiet cores."],
    )


def parts(folder: Path, size: tuple[int, int], count: int) -> dict[str, float]:
    """Measure the seconds that each part of the stage takes alone."""
    driving = Driving.of(str(film(folder, size, count)[0]), SOURCE_RATE)
    known, rates = Known(), {"rate": driving.rate, "overwrite": True}
    frame = next(driving.frames())
    people, points = known.people([frame]), known.points([frame], known.people([frame]))
    figure = figure_of(points[0], size)
    whole_figure = figure.scaled(size)
    place, mask = face_part(figure, size), next(known.masks(iter([frame]), lambda _: None))
    drawing = skeleton.draw(whole_figure.body, (whole_figure.left_hand, whole_figure.right_hand), size)
    crop, heat = pose.crop_around(people[0][0], size), np.random.default_rng(0).random((133, 64, 48), np.float32)
    pieces = {
        "decoding": lambda: deque(driving.frames(), maxlen=0),
        "around the detector": lambda: [detect.network_input(frame) for _ in range(count)],
        "around the pose network": lambda: [
            (pose.network_input(frame, crop, "bgr"), pose.joints_of(heat, crop)) for _ in range(count)
        ],
        "drawing": lambda: [
            skeleton.draw(whole_figure.body, (whole_figure.left_hand, whole_figure.right_hand), size)
            for _ in range(count)
        ],
        "faces": lambda: [face_picture(frame, place) for _ in range(count)],
        "masks and background": lambda: [masks.without(frame, masks.shaped(mask)) for _ in range(count)],
        "coding of the pose": lambda: coded(folder, drawing, count, FAST, **rates),
        "coding of the background": lambda: coded(folder, frame, count, FAST, **rates),
        "coding of the mask": lambda: coded(folder, mask * np.uint8(255), count, EXACT, **rates),
    }
    return {name: seconds(piece) for name, piece in pieces.items()}


def coded(
    folder: Path, frame: np.ndarray, count: int, options: dict[str, str], rate: Fraction, overwrite: bool
) -> None:
    with video_writer(folder / "coded.mp4", rate, overwrite=overwrite, **options) as add:
        for _ in range(count):
            add(frame)


def film(folder: Path, size: tuple[int, int], count: int) -> tuple[Path, Path]:
    """Write a video of noise that moves and a picture of its size, once."""
    source, picture = folder / f"{size[0]}-{count}.mp4", folder / f"{size[0]}.png"
    if not source.exists():
        write_video(moving(size, count), source, Fraction(25))
        Image.fromarray(next(moving(size, 1))[0]).save(picture)
    return source, picture


def run(folder: Path, size: tuple[int, int], count: int, replaces: bool) -> float:
    """Preprocess a video; return the seconds without making it."""
    source, picture = film(folder, size, count)
    out = Path(tempfile.mkdtemp(dir=folder))
    settings = Settings(str(source), str(picture), out, area=size[0] * size[1], fps=-1, replaces=replaces)
    known, start = Known(), time.perf_counter()
    Stage(settings, known, segmenter=known).run()
    return time.perf_counter() - start


def moving(size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """Yield frames, uint8 [1, H, W, 3], of a coarse pattern that moves over the screen."""
    width, height = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    pattern = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    for number in range(count):
        yield pattern[None, number % 16 : number % 16 + height, number % 16 : number % 16 + width]


def peak(size: int, count: int, folder: str) -> int:
    """Measure the peak memory of a process that preprocesses so many frames of a size of `SIZES`, in bytes."""
    film(Path(folder), SIZES[size], count)
    command = [sys.executable, "-m", "benchmarks.preprocess", "--peak", str(size), str(count), "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(exit_code(main))

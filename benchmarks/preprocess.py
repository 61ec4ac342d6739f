"""Preprocessing for animation, networks aside: frames a second, memory: `python -m benchmarks.preprocess`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import make_parser, parse, write_result
from wan.geometry import format_size
from wan.media import write_video
from wan.modules.animate.preprocess.stage import Settings, Stage
from wan.parser import exit_code
from wan.typed import whole

SIZES = ((832, 480), (1280, 720))
FEW, MANY = 100, 1000  # frames
POINTS = 133


class Still:
    """Estimator and segmenter without networks: one person in the middle, whose points move a little."""

    def __init__(self) -> None:
        self.count = 0
        self.grid = np.random.default_rng(0).random((POINTS, 2)) * 0.5 + 0.25

    def describe(self) -> str:
        return "people: no network"

    def people(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the box of the middle of each frame."""
        return [np.array([[w / 4, h / 4, 3 * w / 4, 3 * h / 4, 0.9]]) for h, w, _ in (f.shape for f in frames)]

    def points(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Return points [n, 133, 3] that move by a few pixels."""
        self.count += len(frames)
        places = self.grid * frames[0].shape[1::-1] + 3 * np.sin(self.count)
        return np.stack([np.concatenate([places, np.full((POINTS, 1), 0.9)], axis=1)] * len(frames))

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
    parser.add_argument("--frames", type=whole, default=150, metavar="N", help="of each video; default: 150")
    parser.add_argument("--peak", type=whole, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parse(parser, arguments)
    if args.peak:
        run(Path(args.folder), SIZES[0], args.peak, True)
        import resource

        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for replaces in (False, True):
                rate = max(args.frames / run(Path(folder), size, args.frames, replaces) for _ in range(args.rounds))
                rows.append(
                    (format_size(size), "replacement" if replaces else "animation", f"{rate:.0f} frames/s", "50")
                )
        few, many = (peak(count, folder) / 2**20 for count in (FEW, MANY))
        rows.append((format_size(SIZES[0]), f"memory of {FEW} and {MANY} frames", f"{few:.0f}, {many:.0f} MiB", "+5%"))
    write_result(
        "preprocess-cpu.md",
        args.save,
        title="Preprocessing for character animation, networks and segmentation aside",
        device="cpu",
        settings={"frames": args.frames, "rounds": args.rounds},
        header=("size", "what", "found", "target"),
        rows=rows,
        notes=["From the source to all written files. The target is for 832*480 on two cores."],
    )


def run(folder: Path, size: tuple[int, int], count: int, replaces: bool) -> float:
    """Preprocess a video of noise that moves; return the seconds without making it."""
    source, picture = folder / f"{size[0]}-{count}.mp4", folder / "picture.png"
    if not source.exists():
        write_video(moving(size, count), source, Fraction(25))
        Image.fromarray(next(moving(size, 1))[0]).save(picture)
    out = Path(tempfile.mkdtemp(dir=folder))
    settings = Settings(str(source), str(picture), out, area=size[0] * size[1], fps=-1, replaces=replaces)
    still, start = Still(), time.perf_counter()
    Stage(settings, still, segmenter=still).run()
    return time.perf_counter() - start


def moving(size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """Yield frames, uint8 [1, H, W, 3], of a coarse pattern that moves over the screen."""
    width, height = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    pattern = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    for number in range(count):
        yield pattern[None, number % 16 : number % 16 + height, number % 16 : number % 16 + width]


def peak(count: int, folder: str) -> int:
    """Measure the peak memory of a process that preprocesses so many frames, in bytes."""
    command = [sys.executable, "-m", "benchmarks.preprocess", "--peak", str(count), "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(exit_code(main))

"""Write folders of performances, as preprocessing does, of noise."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from wan.media import write_video

RATE, COUNT, SIZE = Fraction(30000, 1001), 12, (48, 32)


def write_film(path: Path, count=COUNT, size=SIZE, level=None, seed=0) -> None:
    width, height = size
    frames = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    write_video(frames if level is None else np.full_like(frames, level), path, RATE, overwrite=True)


def write_performance(folder: Path, **changes) -> Path:
    """Write the folder of a performance; `changes` are arguments of `write_film` for a file, or None for no file."""
    folder.mkdir(parents=True, exist_ok=True)
    films = {"pose": {}, "face": {"size": (16, 16)}, "bg": {"seed": 1}, "mask": {"level": 255}} | changes
    for name, options in films.items():
        if options is not None:
            write_film(folder / f"src_{name}.mp4", **options)
    if films.get("mask") == {"level": 255}:  # its left half
        frames = np.zeros((COUNT, SIZE[1], SIZE[0], 3), np.uint8)
        frames[:, :, : SIZE[0] // 2] = 255
        write_video(frames, folder / "src_mask.mp4", RATE, overwrite=True)
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 40, 3), np.uint8)).save(folder / "src_ref.png")
    return folder

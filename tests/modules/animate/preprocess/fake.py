"""Films of coloured squares that stand for people, and networks that see them."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from wan.media import write_video

GREY, RED, GREEN = (90, 90, 90), (220, 30, 30), (30, 200, 30)
SIZE = (96, 64)


def scene(*squares, size=SIZE):
    """Draw squares (x, y, side, colour) on grey, uint8 [H, W, 3]."""
    frame = np.full((size[1], size[0], 3), GREY, np.uint8)
    for x, y, side, colour in squares:
        frame[y : y + side, x : x + side] = colour
    return frame


def film(path: Path, frames, rate=30) -> Path:
    write_video(np.stack(frames), path, Fraction(rate), overwrite=True)
    return path


def walk(path: Path, count=12, absent=(), rate=30) -> Path:
    """Write a red square that walks to the right, and is not there in some frames."""
    frames = [scene() if n in absent else scene((10 + 2 * n, 16, 32, RED)) for n in range(count)]
    return film(path, frames, rate)


def picture(path: Path, size=(80, 60)) -> Path:
    Image.fromarray(scene((24, 12, 40, GREEN), size=size)).save(path)
    return path


class Squares:
    """Estimator that takes squares of strong colour for people, and puts 133 points on a grid over one."""

    packages = ()

    def __init__(self):
        self.calls = 0

    def describe(self) -> str:
        return "people: squares"

    def begin(self) -> None:
        pass

    def people(self, frames) -> list[np.ndarray]:
        return [self.boxes(frame) for frame in frames]

    def points(self, frames, boxes) -> np.ndarray:
        self.calls += len(frames)
        grid = np.random.default_rng(5).random((133, 2))
        places = [box[:2] + grid * (box[2:4] - box[:2]) for box in boxes]
        return np.stack([np.concatenate([place, np.full((133, 1), 0.9)], axis=1) for place in places]).astype(
            np.float32
        )

    def boxes(self, frame: np.ndarray) -> np.ndarray:
        found = []
        for channel in (0, 1):
            spread = frame[..., channel].astype(int) - frame.min(-1)
            rows, columns = np.nonzero(spread > 80)
            if len(rows) > 16:
                found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9 - channel / 10])
        return np.array(found, np.float64).reshape(-1, 5)


class ByColour:
    """Segmenter that takes the red pixels."""

    identity, packages = "", ()

    def describe(self) -> str:
        return "masks: red"

    def masks(self, frames, clicks):
        for number, frame in enumerate(frames):
            places, labels = clicks(number)
            assert places.shape == (len(labels), 2)
            yield (frame[..., 0].astype(int) - frame[..., 1] > 80).astype(np.uint8)

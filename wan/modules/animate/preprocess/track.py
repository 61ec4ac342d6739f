"""Track: the points of one person in all frames of a driving video, estimated once and kept in a file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from wan.files import atomic_file, shown
from wan.geometry import Size
from wan.modules.animate.preprocess.detect import largest
from wan.modules.animate.preprocess.keypoints import Figure, face_part, figure_of
from wan.modules.animate.preprocess.people import Choice, Follower
from wan.modules.animate.preprocess.scaling import Rect
from wan.values import called

log = logging.getLogger(__name__)

POINTS = 133
FILE = "keypoints.safetensors"
MANY = 12  # numbers of frames in a message
BATCH = 8  # frames that the networks get at once


class Estimator(Protocol):
    """Networks that find people and their points."""

    packages: Sequence[str]  # that run them

    def describe(self) -> str:
        """Name the networks and the device that really runs them, in a line."""

    def begin(self) -> None:
        """Forget the frames before: others begin."""

    def people(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Find people in frames, uint8 [H, W, 3]: boxes [n, 5] in pixels (corners, score), the best one first."""

    def points(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Find the points of the person in the box of each frame: [n, 133, 3], x and y in pixels, and confidence."""


@dataclass(frozen=True)
class Track:
    """Points [T, 133, 3] in pixels of the frames and boxes [T, 5] of a person; scores of -1 where it was not found.

    `others` are the boxes of other people, a list for each frame.
    """

    points: np.ndarray
    boxes: np.ndarray
    others: tuple[np.ndarray, ...] = ()

    @property
    def missing(self) -> list[int]:
        """Frames in which the person was not found."""
        return np.flatnonzero(self.boxes[:, 4] < 0).tolist()

    def figures(self, size: Size) -> list[Figure]:
        """Make the figures of all frames of a size, in shares."""
        found: list[Figure] = []
        for points in self.points:
            found.append(figure_of(points, size, found[-1] if found else None))
        return found

    def save(self, path: Path, key: str) -> None:
        """Keep the track in a file; `key` identifies what it was made from."""
        from safetensors.numpy import save_file

        counts = np.array([len(boxes) for boxes in self.others], np.int64)
        others = np.concatenate([np.zeros((0, 5)), *self.others]).astype(np.float32)
        tensors = {"points": self.points, "boxes": self.boxes, "others": others, "counts": counts}
        with atomic_file(path, overwrite=True) as temporary:
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary, {"key": key})

    @classmethod
    def load(cls, path: Path, key: str, count: int) -> Track | None:
        """Read a track that was made from the same; None for another one, or none."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                points, boxes, others, counts = map(file.get_tensor, ("points", "boxes", "others", "counts"))
        except (SafetensorError, OSError, ValueError):
            log.warning("%s cannot be read; the key points are estimated again", shown(path))
            return None
        if points.shape != (count, POINTS, 3) or boxes.shape != (count, 5) or counts.shape != (count,):
            return None
        return cls(points, boxes, tuple(np.split(others, np.cumsum(counts)[:-1])))


def estimate(
    frames: Iterable[np.ndarray],
    estimator: Estimator,
    choice: Choice = None,
    as_upstream: bool = False,
    source: str = "the video",
) -> Track:
    """Follow one person through frames, uint8 [H, W, 3], of `source`, and find its points in each.

    Frames without the person get points between those before and after. `as_upstream` takes the largest person of each
    frame, whoever it is, and else the whole frame. Raises ValueError when there is nobody in any frame.
    """
    follower, points, boxes, others = Follower(choice), [], [], []
    estimator.begin()
    for batch in batched(frames):
        for frame, people in zip(batch, estimator.people(batch), strict=True):
            box = largest(people, frame.shape[1::-1]) if as_upstream else follower.find(frame, people)
            boxes.append(nobody(frame) if box is None else box)
            others.append(people if box is None else people[(people != box).any(1)])
        points += points_of(batch, boxes[-len(batch) :], estimator, as_upstream)
    track = Track(np.stack(points).astype(np.float32), np.stack(boxes).astype(np.float32), tuple(others))
    if as_upstream:
        return track
    if len(track.missing) == len(track.boxes):
        who = "nobody" if choice is None else "not the person who was chosen"
        cure = "choose another part" + f", or another {called('person')}" * (choice is not None)
        raise ValueError(f"there is {who} in any of the {len(track.boxes)} frames of {source} that were tried; {cure}")
    return Track(between(track.points), track.boxes, track.others)


def listed(numbers: Sequence[int]) -> str:
    """List the first `MANY` numbers."""
    return ", ".join(map(str, numbers[:MANY])) + ", ..." * (len(numbers) > MANY)


def batched(frames: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    frames = iter(frames)
    while batch := list(islice(frames, BATCH)):
        yield batch


def nobody(frame: np.ndarray) -> np.ndarray:
    """Make the box [5] that stands for nobody: the whole frame."""
    return np.array([0, 0, *frame.shape[1::-1], -1], np.float64)


def points_of(
    frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray], estimator: Estimator, as_upstream: bool
) -> list[np.ndarray]:
    """Find the points [133, 3] in each frame; NaN where nobody is, unless `as_upstream`."""
    known = [number for number, box in enumerate(boxes) if box[4] >= 0 or as_upstream]
    found = [np.full((POINTS, 3), np.nan, np.float32)] * len(boxes)
    if known:
        given = estimator.points([frames[number] for number in known], [boxes[number] for number in known])
        for number, points in zip(known, given, strict=True):
            found[number] = points
    return found


def between(points: np.ndarray) -> np.ndarray:
    """Fill frames [T, n, 3] of NaN: places on a line between the frames around them, the lower confidence of both."""
    known = np.flatnonzero(np.isfinite(points).all((1, 2)))
    if len(known) in (0, len(points)):
        return points
    numbers, flat = np.arange(len(points)), points.reshape(len(points), -1)
    found = np.stack([np.interp(numbers, known, column[known]) for column in flat.T], axis=1).reshape(points.shape)
    before = known[(np.searchsorted(known, numbers, "right") - 1).clip(0)]
    after = known[np.searchsorted(known, numbers).clip(max=len(known) - 1)]
    found[..., 2] = np.minimum(points[before, :, 2], points[after, :, 2])
    found[known] = points[known]
    return found.astype(points.dtype)


def face_parts(figures: Sequence[Figure], size: Size, as_upstream: bool = False) -> Iterator[Rect]:
    """Yield the part of each frame with the face; one that is lost stays where it was."""
    before = None
    for figure in figures:
        before = face_part(figure, size, before, as_upstream)
        yield before

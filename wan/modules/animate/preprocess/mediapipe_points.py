"""Points and masks of a person by MediaPipe, whose wheel holds the networks: coarser, and of one figure only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wan.files import shown
from wan.geometry import Size
from wan.modules.animate.preprocess.joints import CERTAIN
from wan.modules.animate.preprocess.keypoints import FACE_GROWTH, LEFT_HAND, RIGHT_HAND, around_head, figure_of
from wan.modules.animate.preprocess.scaling import Rect
from wan.modules.animate.preprocess.track import POINTS
from wan.program import install_command

NEWEST_PYTHON = (3, 12)
MODEL = 1  # of three; the wheel holds this one alone

# Which of MediaPipe's points each of the 133 is. Sides are the person's own.
BODY = (
    *(0, 2, 5, 7, 8),  # nose, eyes, ears
    *(11, 12, 13, 14, 15, 16),  # shoulders, elbows, wrists
    *(23, 24, 25, 26, 27, 28),  # hips, knees, ankles
    *(31, 31, 29, 32, 32, 30),  # of the left foot, then the right one: its tip for both toes, heel
)
FACE = (
    *(127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356),  # jaw from the right ear
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows, from right to left
    *(168, 197, 5, 4, 98, 97, 2, 326, 327),  # nose, down the ridge, then below it
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes, each clockwise
    *(61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91),  # outside of the lips, clockwise
    *(78, 81, 13, 311, 308, 402, 14, 178),  # inside of them
)
FACE_PART = slice(len(BODY), len(BODY) + len(FACE))
LEFT_WRIST, RIGHT_WRIST = 9, 10  # of the 133
NOSE, SHOULDERS, HIPS = 0, (11, 12), (23, 24)  # of MediaPipe's 33
PERSON = 0.5  # of the mask, from which on a pixel belongs to the person
ROOM = 1.6  # side of the part for a closer look, of that of the figure
SMALLEST = 16  # pixels


class MediaPipe:
    """Estimator by MediaPipe, which follows one figure from frame to frame.

    Raises ValueError naming the cause when the package cannot be imported.
    """

    packages = ("mediapipe",)

    def __init__(self) -> None:
        self.solutions = solutions()
        self.begin()

    def describe(self) -> str:
        """Name the package and its version, and the device."""
        version = self.solutions.version
        return (
            f"people and points: MediaPipe {version} (CPU), which sees one figure and is coarser than the ONNX networks"
        )

    def begin(self) -> None:
        """Forget the frames before: what is found in a frame depends on them."""
        self.watcher = Watcher(self.solutions.holistic)
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def people(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Find the figure in frames, uint8 [H, W, 3]: boxes [1, 5] in pixels (corners, score), or [0, 5]."""
        self.seen = [(frame, whole_body(self.watcher.see(frame), frame.shape[1::-1])) for frame in frames]
        return [box_of(points, frame.shape[1::-1]) for frame, points in self.seen]

    def points(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the points of frames that `people` saw last, [n, 133, 3] in pixels; boxes are of no use."""
        return np.stack([next(points for seen, points in self.seen if seen is frame) for frame in frames])


class MediaPipeMasks:
    """Segmenter by MediaPipe's mask of the figure. Raises ValueError as `MediaPipe` does."""

    packages = ("mediapipe",)

    def __init__(self) -> None:
        self.solutions = solutions()
        self.identity = self.describe()

    def describe(self) -> str:
        """Name the package and its version, and the device."""
        return f"masks: MediaPipe {self.solutions.version} (CPU)"

    def masks(
        self, frames: Iterator[np.ndarray], clicks: Callable[[int], tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 [H, W] of 0 and 1, empty where nobody is; clicks are of no use."""
        watcher = Watcher(self.solutions.pose, enable_segmentation=True)
        for frame in frames:
            mask = watcher.see(frame).mask
            yield np.zeros(frame.shape[:2], np.uint8) if mask is None else (mask > PERSON).astype(np.uint8)


# ---- the networks ----


class Seen(NamedTuple):
    """Points of a figure, [33, 3], [468, 3], [21, 3], [21, 3]: pixels and visibility; and its mask, float [H, W]."""

    body: np.ndarray | None = None
    face: np.ndarray | None = None
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    mask: np.ndarray | None = None


class Watcher:
    """Networks that follow one figure through frames, and look closer where it is lost or seems not to be upright.

    A figure whose legs are outside the frame is easily read with its hips at the head. A closer look mends it.
    """

    def __init__(self, networks: Callable[..., Any], **options: Any):
        self.networks, self.options = networks, {"model_complexity": MODEL, **options}
        self.follows, self.looks_closer = None, None
        self.place: Rect | None = None  # of the figure in the last frame with one

    def see(self, frame: np.ndarray) -> Seen:
        """Find the figure in the next frame, uint8 [H, W, 3]."""
        height, width = frame.shape[:2]
        self.follows = self.follows or self.networks(static_image_mode=False, **self.options)
        first = look(self.follows, frame, (0, 0, width, height))
        if first.body is not None:
            self.place = around_body(first.body, (width, height))
        if self.place is None or is_upright(first.body):
            return first
        self.looks_closer = self.looks_closer or self.networks(static_image_mode=True, **self.options)
        closer = look(self.looks_closer, frame, self.place)
        return closer if is_upright(closer.body) else first


def look(network: Any, frame: np.ndarray, part: Rect) -> Seen:
    """Run networks on a part of a frame."""
    left, top, right, bottom = part
    found = network.process(np.ascontiguousarray(frame[top:bottom, left:right]))

    def points(name: str) -> np.ndarray | None:
        landmarks = getattr(found, f"{name}_landmarks", None)
        if landmarks is None:
            return None
        shares = np.array([(one.x, one.y, one.visibility) for one in landmarks.landmark])
        return shares * (right - left, bottom - top, 1) + (left, top, 0)

    mask = found.segmentation_mask
    if mask is not None:
        mask = np.pad(mask, ((top, frame.shape[0] - bottom), (left, frame.shape[1] - right)))
    return Seen(*map(points, ("pose", "face", "left_hand", "right_hand")), mask)


def is_upright(body: np.ndarray | None) -> bool:
    """Tell whether hips lie below the nose, and beyond the shoulders, as seen from it, by half of their width."""
    if body is None:
        return False
    nose, left, right = (body[number, :2] for number in (NOSE, *SHOULDERS))
    middle, hips = (left + right) / 2, body[list(HIPS), :2].mean(0)
    neck = middle - nose
    beyond = (hips - middle) @ neck
    return bool(hips[1] > nose[1] and beyond >= np.linalg.norm(left - right) / 2 * np.linalg.norm(neck) > 0)


def around_body(body: np.ndarray, size: Size) -> Rect:
    """Frame the visible points of a body [33, 3], with room around them, inside a frame."""
    seen = body[body[:, 2] >= CERTAIN] if (body[:, 2] >= CERTAIN).any() else body
    seen = seen[:, :2].clip(0, np.subtract(size, 1))
    middle, side = (seen.min(0) + seen.max(0)) / 2, max(ROOM * np.ptp(seen, axis=0).max(), SMALLEST)
    start, end = (middle - side / 2).clip(0), (middle + side / 2).clip(max=size)
    return int(start[0]), int(start[1]), int(np.ceil(end[0])), int(np.ceil(end[1]))


# ---- from MediaPipe's points to the 133 ----


def whole_body(seen: Seen, size: Size) -> np.ndarray:
    """Arrange what was seen in a frame as the 133 points [133, 3]: pixels and confidence.

    What was not seen has confidence 0: a hand lies at its wrist, a face on a square around the head. Without a body
    all points are (-1, -1).
    """
    points = np.full((POINTS, 3), (-1, -1, 0), np.float32)
    if seen.body is None:
        return points
    points[: len(BODY)] = seen.body[list(BODY)]
    for part, wrist, hand in ((LEFT_HAND, LEFT_WRIST, seen.left), (RIGHT_HAND, RIGHT_WRIST, seen.right)):
        points[slice(*part), :2] = points[wrist, :2] if hand is None else hand[:, :2]
        points[slice(*part), 2] = hand is not None
    points[FACE_PART, :2] = around(points, size) if seen.face is None else seen.face[list(FACE), :2]
    points[FACE_PART, 2] = seen.face is not None
    return points


def around(points: np.ndarray, size: Size) -> np.ndarray:
    """Place the 68 points of a face at the corners of a square around the head, [68, 2] in pixels."""
    left, top, right, _ = around_head(figure_of(points, size).body, size)
    side = (right - left) / FACE_GROWTH**0.5  # it grows again when the face is cut out
    x, y = (left + right - side) / 2, top + (right - left - side) * 3 / 4
    return np.resize([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], (len(FACE), 2))


def box_of(points: np.ndarray, size: Size) -> np.ndarray:
    """Frame the visible points of a body [133, 3]: [1, 5], its score the mean visibility; [0, 5] without any."""
    body = points[: len(BODY)].astype(np.float64)
    body = body[(body[:, 2] >= CERTAIN) & ((body[:, :2] >= 0) & (body[:, :2] < size)).all(1)]
    if not len(body):
        return np.zeros((0, 5))
    start, end = body[:, :2].min(0), body[:, :2].max(0)
    return np.array([[*start, *np.maximum(end, start + 1), body[:, 2].mean()]])


# ---- the package ----


class Solutions(NamedTuple):
    """Parts of the package that are used."""

    version: str
    holistic: Callable[..., Any]
    pose: Callable[..., Any]


def solutions() -> Solutions:
    try:
        import mediapipe
        from mediapipe.python.solutions.holistic import Holistic
        from mediapipe.python.solutions.pose import Pose
    except Exception as error:  # its compiled parts and those of its packages have no common class of errors
        raise ValueError(f"MediaPipe cannot be used: {cause(error)}") from error
    return Solutions(mediapipe.__version__, Holistic, Pose)


def cause(error: Exception, python: tuple[int, ...] = sys.version_info[:2], numpy: str = np.__version__) -> str:
    """Name the cause of a failed import, and its cure."""
    extra = f"{install_command('animate-mediapipe')}, in an environment of its own"
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else None
    if missing == "mediapipe" and python > NEWEST_PYTHON:
        wanted, given = (".".join(map(str, version)) for version in (NEWEST_PYTHON, python))
        return f"it needs Python {wanted} or older, and this is Python {given}; with an older one: {extra}"
    if missing == "mediapipe":
        return f"it is not installed; {extra}"
    if missing and missing.startswith("mediapipe."):
        return f"this version has no networks in it, which 0.10.21 has ({shown(error)}); {extra}"
    if "libGL" in str(error) or "libEGL" in str(error):
        return f"a library of the system is missing ({shown(error)}); install it: sudo apt install libgl1 libegl1"
    if int(numpy.split(".")[0]) >= 2:
        return f"it needs numpy below 2, and this is numpy {numpy} ({shown(error)}); {extra}"
    return f"its import fails ({shown(error)}); {extra}"

"""Figure of a frame: groups of the 133 points of the pose estimator, and the place of the face.

The order of the 133 points is that of COCO-WholeBody: 17 body joints, 6 of the feet, 68 of the face, 21 of each hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wan.geometry import Size
from wan.letterbox import resize_linear
from wan.modules.animate.preprocess.joints import CERTAIN, HEAD
from wan.modules.animate.preprocess.scaling import Rect

# Two of the 133 points, whose mean is the body joint
FROM_WHOLE_BODY = (
    *((0, 0), (6, 5), (6, 6), (8, 8), (10, 10), (5, 5), (7, 7), (9, 9), (12, 12), (14, 14), (16, 16), (11, 11)),
    *((13, 13), (15, 15), (2, 2), (1, 1), (4, 4), (3, 3), (17, 18), (20, 21)),
)
FACE, LEFT_HAND, RIGHT_HAND = (
    (22, 91),
    (91, 112),
    (112, 133),
)  # the first point of `FACE` is the right heel, as upstream
FACE_SIDE = 512  # pixels of the face video
FACE_GROWTH = 1.3  # of the area around the face's points; three quarters of the growth in height lie above
SMALLEST_FACE = 8  # pixels


@dataclass(frozen=True)
class Figure:
    """Points of a person, float [., 3]: x and y as shares of width and height, or in pixels, and confidence."""

    body: np.ndarray  # 20 joints
    left_hand: np.ndarray  # 21 points
    right_hand: np.ndarray
    face: np.ndarray  # 69 points; the first one is no part of the face

    def scaled(self, size: Size) -> Figure:
        """Multiply coordinates by width and height: shares become pixels, in float64."""
        return Figure(*(points * (*size, 1.0) for points in (self.body, self.left_hand, self.right_hand, self.face)))


def figure_of(points: np.ndarray, size: Size, before: Figure | None = None) -> Figure:
    """133 points [133, 3] in pixels -> a figure in shares of a frame, float32.

    When every body joint lies left of or above the frame, the body is that of the frame before.
    """
    shares = (points / (*size, 1.0)).astype(np.float32)
    body = shares[np.array(FROM_WHOLE_BODY)].mean(1)
    figure = Figure(body, *(shares[slice(*part)] for part in (LEFT_HAND, RIGHT_HAND, FACE)))
    is_lost = (body[:, :2] < 0).any(1).all()
    return replace(figure, body=before.body) if is_lost and before else figure


def face_part(figure: Figure, size: Size, before: Rect | None = None, as_upstream: bool = False) -> Rect:
    """Find the part of a frame with the face, by a figure in shares; never empty, and inside the frame.

    It is a square inside the frame; with `as_upstream` a rectangle cut at the borders, which stretches faces. Without a
    face in the frame it is the part of the frame before, or a square around the joints of the head.
    """
    part = rectangle(figure.face[1:, :2], size)
    part = part if part is None or as_upstream else squared(part, size)
    return part or before or around_head(figure.body, size)


def rectangle(points: np.ndarray, size: Size) -> Rect | None:
    """Frame the points of a face [68, 2], grown and cut at the borders; None when less than a pixel remains."""
    if not np.isfinite(points).all():
        return None
    pixels = points.astype(np.float64) * size
    (x1, y1), (x2, y2) = pixels.min(0), pixels.max(0)
    growth = FACE_GROWTH**0.5 - 1
    across, down = (x2 - x1) * growth, (y2 - y1) * growth
    left, right = max(x1 - across / 2, 0), min(x2 + across / 2, size[0])
    top, bottom = max(y1 - down * 3 / 4, 0), min(y2 + down / 4, size[1])
    part = tuple(int(np.clip(side, -1, max(size))) for side in (left, top, right, bottom))
    return part if part[0] < part[2] and part[1] < part[3] else None


def squared(part: Rect, size: Size) -> Rect:
    """Make a rectangle a square of its longer side, moved into the frame."""
    left, top, right, bottom = part
    side = min(max(right - left, bottom - top, SMALLEST_FACE), *size)
    start = ((left + right - side) // 2, (top + bottom - side) // 2)
    x, y = (min(max(place, 0), whole - side) for place, whole in zip(start, size, strict=True))
    return x, y, x + side, y + side


def around_head(body: np.ndarray, size: Size) -> Rect:
    """Frame the head by the joints that are seen, twice as wide as they are apart; else the upper middle."""
    head = body[list(HEAD)]
    head = head[np.isfinite(head).all(1) & (head[:, 2] >= CERTAIN), :2].astype(np.float64) * size
    head = head[((head >= 0) & (head < size)).all(1)]
    if len(head):
        (x, y), side = head.mean(0), max(2 * np.ptp(head, axis=0).max(), min(size) / 8)
    else:
        (x, y), side = (size[0] / 2, size[1] / 4), min(size) / 3
    return squared(tuple(int(place) for place in (x - side / 2, y - side / 2, x + side / 2, y + side / 2)), size)


def face_picture(frame: np.ndarray, part: Rect) -> np.ndarray:
    """Cut a face out of a frame, uint8 [512, 512, 3]."""
    left, top, right, bottom = part
    return resize_linear(np.ascontiguousarray(frame[top:bottom, left:right]), FACE_SIDE, FACE_SIDE)

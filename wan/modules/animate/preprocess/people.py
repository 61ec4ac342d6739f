"""Person of a video: chosen once, then followed from frame to frame by place and appearance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wan.modules.animate.preprocess.detect import CONFIDENT, largest, overlap

BINS = 4  # of each colour
ALIKE = 0.5  # appearance from which on a box in another place may be the same person
LIKELY = 0.8  # sum of overlap and appearance from which on a box is taken for the same person
SLOW = 0.1  # share of a new frame in the appearance that is remembered

Choice = int | tuple[float, float] | None  # the number of a person from the left, or a point of the first frame


@dataclass
class Follower:
    """Choice of one person among those of each frame, in order.

    Without a `choice` it is the largest of confident ones. After frames without the person, appearance decides alone.
    """

    choice: Choice = None
    box: np.ndarray | None = None  # of the last frame with the person, [5]
    look: np.ndarray | None = None  # histogram of colours

    def find(self, frame: np.ndarray, people: np.ndarray) -> np.ndarray | None:
        """Find the person in a frame, uint8 [H, W, 3], among boxes [n, 5]; None when it is not there."""
        if not len(people):
            return None
        looks = [appearance(frame, box) for box in people]
        if self.box is None:
            number = self._first(frame, people)
            if number is None:
                return None
        else:
            alike = np.array([np.minimum(look, self.look).sum() for look in looks])
            near = overlap(self.box, people)
            score = near + alike
            score[(near == 0) & (alike < ALIKE)] = 0
            number = int(score.argmax())
            if score[number] < LIKELY:
                return None
        self.box, look = people[number], looks[number]
        self.look = look if self.look is None else (1 - SLOW) * self.look + SLOW * look
        return self.box

    def _first(self, frame: np.ndarray, people: np.ndarray) -> int | None:
        """Choose a person in the first frame that has the one who is asked for."""
        middles = (people[:, :2] + people[:, 2:4]) / 2
        if isinstance(self.choice, int):
            order = middles[:, 0].argsort(kind="stable")
            return int(order[self.choice - 1]) if self.choice <= len(order) else None
        if self.choice is not None:
            point = np.array(self.choice)
            inside = ((people[:, :2] <= point) & (point <= people[:, 2:4])).all(1)
            far = np.linalg.norm(middles - point, axis=1)
            return int(np.where(inside, far - 1e9, far).argmin())
        certain = people[people[:, 4] >= CONFIDENT]
        best = largest(certain if len(certain) else people, frame.shape[1::-1])
        return int((people == best).all(1).argmax())


def appearance(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Histogram of colours [64], of sum 1, in the middle of a box."""
    (x1, y1, x2, y2), (height, width) = box[:4], frame.shape[:2]
    inset = (x2 - x1) / 5, (y2 - y1) / 5
    left, right = (int(np.clip(x, 0, width)) for x in (x1 + inset[0], x2 - inset[0]))
    top, bottom = (int(np.clip(y, 0, height)) for y in (y1 + inset[1], y2 - inset[1]))
    pixels = frame[top : max(bottom, top + 1), left : max(right, left + 1)].reshape(-1, 3)
    if not len(pixels):
        return np.full(BINS**3, 1 / BINS**3)
    codes = (pixels // (256 // BINS)).astype(int) @ (BINS**2, BINS, 1)
    return np.bincount(codes, minlength=BINS**3) / len(codes)

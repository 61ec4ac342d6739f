"""Preview of a frame: what was found in it, side by side, to judge at a glance."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from wan.letterbox import letterbox
from wan.modules.animate.preprocess import skeleton
from wan.modules.animate.preprocess.keypoints import Figure

HEIGHT = 360  # pixels
TINT = np.array((0, 255, 0), np.float32)  # of the mask


class Preview:
    """Picture of one frame: the frame with its key points, the face, the pose video, the mask if there is one."""

    @staticmethod
    def of(frame: np.ndarray, figure: Figure, face: Future, pose: Future, mask: np.ndarray | None) -> np.ndarray:
        """Draw a preview, uint8 [HEIGHT, W, 3]; face and pose are pictures that another thread makes."""
        size = frame.shape[1::-1]
        whole = figure.scaled(size)
        drawing = skeleton.draw(whole.body, (whole.left_hand, whole.right_hand), size)
        panels = [frame, np.where(drawing.any(-1, keepdims=True), drawing, frame // 2), face.result(), pose.result()]
        if mask is not None:
            shaded = frame * 0.5 + TINT * 0.5
            panels.append(np.where(mask[..., None].astype(bool), shaded, frame).astype(np.uint8))
        return np.concatenate([fitted(panel) for panel in panels], axis=1)


def fitted(panel: np.ndarray) -> np.ndarray:
    """Scale a panel to the height of the preview, with an even width."""
    rows, columns = panel.shape[:2]
    width = max(2, round(columns * HEIGHT / rows / 2) * 2)
    return letterbox(panel, HEIGHT, width)

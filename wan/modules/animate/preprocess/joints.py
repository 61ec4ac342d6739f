"""Tables of the figure: its joints, the limbs between them, and the colours they are drawn in.

A figure has 20 body joints and two hands of 21 points; their sides are the person's own.
"""

from __future__ import annotations

import numpy as np

CERTAIN = 0.5  # joints of less confidence are not drawn

BODY = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear", "left_toe", "right_toe"),
)
JOINT = {name: number for number, name in enumerate(BODY)}
HEAD = tuple(JOINT[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear"))

# Two joints, start and end. Every start but the neck is the end of a limb before: the order walks the figure.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (13, 18), (10, 19)),
)
HAND_EDGES = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))

# RGB, of a joint and of the limb with its number
COLOURS = np.array(
    [
        *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
        *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
        *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85), (200, 200, 0), (100, 100, 0)),
    ],
    np.uint8,
)
LIMB_COLOURS = (COLOURS[: len(LIMBS)] * 0.6).astype(np.uint8)
# The wheel of hues. Halves are rounded as the generator saw them in training, up or down.
HAND_EDGE_COLOURS = np.array(
    [
        *((255, 0, 0), (255, 77, 0), (255, 153, 0), (255, 229, 0), (204, 255, 0), (128, 255, 0), (51, 255, 0)),
        *((0, 255, 25), (0, 255, 102), (0, 255, 179), (0, 255, 255), (0, 178, 255), (0, 102, 255), (0, 25, 255)),
        *((51, 0, 255), (128, 0, 255), (204, 0, 255), (255, 0, 230), (255, 0, 153), (255, 0, 77)),
    ],
    np.uint8,
)
HAND_POINT_COLOUR = (0, 0, 255)

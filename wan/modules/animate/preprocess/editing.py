"""Instructions for an editor of pictures, which brings both figures into one pose before their limbs are compared."""

from __future__ import annotations

import numpy as np

from wan.geometry import Size
from wan.modules.animate.preprocess.joints import JOINT

ARMS = tuple(JOINT[name] for name in ("right_elbow", "right_wrist", "left_elbow", "left_wrist"))
LEGS = tuple(JOINT[name] for name in ("right_knee", "right_ankle", "left_knee", "left_ankle"))
SEEN = 0.75  # confidence

T_POSE = "Show the person from the front, with both arms stretched out sideways at the height of the shoulders"
ARMS_DOWN = "Show the person from the front, with both arms hanging straight down at the sides"
STANDING = "The person stands upright, and both hands and both feet are inside the picture."
HANDS = "Both hands are inside the picture."
INSTRUCTIONS = {
    "t_pose_standing": f"{T_POSE}. {STANDING}",
    "arms_down_standing": f"{ARMS_DOWN}. {STANDING}",
    "t_pose": f"{T_POSE}. {HANDS}",
    "arms_down": f"{ARMS_DOWN}. {HANDS}",
    "face_forward": "Turn the person to face the viewer.",
}


def instruction(bodies: np.ndarray, size: Size) -> str:
    """Choose the kind of instruction for a picture, by the limbs seen in the driving video, [T, 20, 3] in shares."""
    legs, arms = (is_seen(bodies[:, list(joints)]) for joints in (LEGS, ARMS))
    if not (legs or arms):
        return "face_forward"
    return ("t_pose" if size[0] > size[1] else "arms_down") + ("_standing" if legs else "")


def is_seen(joints: np.ndarray) -> bool:
    """Tell whether one of the joints [T, n, 3] is in its frame; left of and above it counts too, as upstream."""
    return bool(((joints[..., :2] <= 1).all(-1) & (joints[..., 2] >= SEEN)).any())

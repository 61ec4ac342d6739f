"""A world of big-headed figures that move: their looks, their motions, and where everything is.

`sample_puppet` draws a look and `sample_motion` a motion. `joints` and `hands` place the points of the skeleton, and
`face_box` the face; `puppet_videos` paints them. Lengths are shares of the frame's side, y points down, and angles are
in radians. Right and left are those of the figure, which looks out of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

Rgb = tuple[int, int, int]

SIZE = 64
FACE_SIZE = 32
FPS = 15
PARTS = ("hair", "head", "trunk", "arms", "gloves", "legs", "shoes")
EYES, MOUTH = len(PARTS) + 1, len(PARTS) + 2  # labels behind those of the parts, which begin at 1
COLOURS: dict[str, Rgb] = {
    "red": (196, 70, 70),
    "orange": (217, 140, 61),
    "yellow": (217, 195, 84),
    "green": (76, 153, 86),
    "cyan": (84, 185, 192),
    "blue": (73, 101, 196),
    "purple": (129, 76, 161),
    "pink": (217, 137, 178),
    "brown": (125, 89, 64),
    "white": (215, 215, 210),
    "black": (58, 56, 62),
}
SKINS: dict[str, Rgb] = {
    "pale": (224, 198, 178),
    "tan": (203, 164, 129),
    "green": (162, 196, 139),
    "blue": (146, 175, 214),
}
GROUNDS: tuple[Rgb, ...] = (
    (150, 156, 150),
    (116, 128, 146),
    (168, 150, 130),
    (104, 120, 100),
    (190, 192, 200),
    (92, 84, 96),
)
MOUTH_COLOUR: Rgb = (112, 14, 36)
EYE_COLOUR: Rgb = (24, 22, 40)
JITTER = 6.0  # deviation of a colour from its name
APART = 52.0  # least RGB distance of the colours of a figure from each other and from the ground

# Joints of the skeleton, and the colour of each one's marker on figures for networks that see strong colours only.
NOSE, NECK, EYE, EAR = 0, 1, (14, 15), (16, 17)
SHOULDER, ELBOW, WRIST = (2, 5), (3, 6), (4, 7)
HIP, KNEE, ANKLE, TOE = (8, 11), (9, 12), (10, 13), (19, 18)
NUM_JOINTS, NUM_HAND = 20, 21
MARKERS: dict[int, Rgb] = {
    0: (255, 0, 0), 15: (0, 255, 0), 14: (0, 0, 255), 17: (255, 255, 0), 16: (0, 255, 255),
    5: (255, 0, 255), 2: (255, 128, 0), 6: (128, 255, 0), 3: (0, 255, 128), 7: (0, 128, 255), 4: (128, 0, 255),
    11: (255, 0, 128), 8: (128, 0, 0), 12: (0, 128, 0), 9: (0, 0, 128), 13: (128, 128, 0), 10: (0, 128, 128),
    18: (128, 0, 128), 19: (255, 255, 128),
}  # fmt: skip

FLOOR = 0.95
GLOVE, SHOE = 1.3, 1.15  # radii by that of the limbs
FACE = 2.3  # side of the square around a face by the radius of the head


@dataclass(frozen=True)
class Puppet:
    """Looks of one figure, and the ground behind it."""

    colours: tuple[Rgb, ...]  # of PARTS
    eyes: Rgb
    mouth: Rgb
    ground: Rgb
    ground_seed: int
    ground_strength: float  # deviation of its colours
    head: float  # radius
    trunk: float  # length
    shoulders: float  # half width
    arm: float  # length of each half
    leg: float
    limb: float  # radius
    long_hair: bool

    @property
    def height(self) -> float:
        """Height of the figure that stands upright."""
        return 2.05 * self.head + self.trunk + 2 * self.leg + SHOE * self.limb


@dataclass(frozen=True)
class Motion:
    """Motion of F frames; pairs are (right, left)."""

    x: np.ndarray  # [F] of the hips
    lean: np.ndarray  # [F] of the trunk
    tilt: np.ndarray  # [F] of the head, against the trunk
    turn: np.ndarray  # [F] of the face to the side, -1..1
    shoulders: np.ndarray  # [F, 2] from hanging down outwards
    elbows: np.ndarray  # [F, 2] in addition
    hips: np.ndarray  # [F, 2]
    knees: np.ndarray  # [F, 2]
    mouth: np.ndarray  # [F] opening, 0..1
    eyes: np.ndarray  # [F] opening, 0..1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, frames: slice) -> Motion:
        return Motion(*(getattr(self, field.name)[frames] for field in fields(self)))


PROPORTIONS: dict[str, tuple[float, float]] = {
    "head": (0.16, 0.19), "trunk": (0.15, 0.19), "shoulders": (0.085, 0.11), "arm": (0.105, 0.13), "leg": (0.1, 0.12),
    "limb": (0.046, 0.056),
}  # fmt: skip
LIMITS = {
    "x": (0.3, 0.7), "lean": (-0.22, 0.22), "tilt": (-0.3, 0.3), "turn": (-1.0, 1.0), "shoulders": (0.1, 2.6),
    "elbows": (-1.2, 1.3), "hips": (0.02, 0.62), "knees": (-0.6, 0.15),
}  # fmt: skip
REST = {"x": 0.5, "lean": 0.0, "tilt": 0.0, "turn": 0.0, "shoulders": 0.7, "elbows": 0.1, "hips": 0.2, "knees": -0.1}


# ---------------------------------------------------------------- draws


def sample_puppet(rng: np.random.Generator, is_grey: bool = False) -> Puppet:
    """Draw a figure; colours of its parts and of the ground are far from each other, of a grey one they are greys."""
    drawn = {name: float(rng.uniform(*span)) for name, span in PROPORTIONS.items()}
    colours, ground, dark = _greys(rng) if is_grey else (*_colours(rng), None)
    return Puppet(
        colours=colours,
        eyes=dark or EYE_COLOUR,
        mouth=dark or MOUTH_COLOUR,
        ground=ground,
        ground_seed=int(rng.integers(2**31)),
        ground_strength=float(rng.uniform(4, 14)),
        long_hair=bool(rng.random() < 0.5),
        **drawn,
    )


def _colours(rng: np.random.Generator) -> tuple[tuple[Rgb, ...], Rgb]:
    while True:
        names = [str(name) for name in rng.permutation(list(COLOURS))[: len(PARTS) - 1]]
        skin = SKINS[str(rng.choice(list(SKINS)))]
        base = [COLOURS[names[0]], skin, *(COLOURS[name] for name in names[1:])]
        ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
        near = [np.array(rgb) + rng.normal(0, JITTER, 3).clip(-2 * JITTER, 2 * JITTER) for rgb in (*base, ground)]
        near = [tuple(int(v) for v in rgb.round().clip(0, 255)) for rgb in near]
        if least_distance(near) >= APART:
            return tuple(near[:-1]), near[-1]


def _greys(rng: np.random.Generator) -> tuple[tuple[Rgb, ...], Rgb, Rgb]:
    levels = rng.permutation(np.linspace(60, 225, len(PARTS) + 1) + rng.uniform(-5, 5, len(PARTS) + 1))
    head = int(levels.argmax())  # the face is light
    levels[[1, head]] = levels[[head, 1]]
    greys = [(int(level),) * 3 for level in levels]
    return tuple(greys[:-1]), greys[-1], (24, 24, 24)


def least_distance(colours: Sequence[Rgb]) -> float:
    """Return the least RGB distance of two of them."""
    values = np.array(colours, float)
    apart = np.linalg.norm(values[:, None] - values[None], axis=-1)
    return float(apart[np.triu_indices(len(values), 1)].min())


def sample_motion(rng: np.random.Generator, frames: int) -> Motion:
    """Draw a motion: every joint swings between its limits by a few harmonics, mouth and eyes change their state."""

    def joint(name: str, lively: float) -> np.ndarray:
        low, high = LIMITS[name]
        return (low + high) / 2 + (high - low) / 2 * np.tanh(lively * _harmonics(rng, frames))

    single = {name: joint(name, 1.0) for name in ("x", "lean", "tilt", "turn")}
    double = {
        name: np.stack([joint(name, 1.1) for _ in range(2)], axis=1)
        for name in ("shoulders", "elbows", "hips", "knees")
    }
    return _moved(single | double, _states(rng, frames, (7, 20), (7, 20)), _states(rng, frames, (7, 14), (14, 40)))


def rest(rng: np.random.Generator) -> Motion:
    """Draw a single frame of a figure that stands, with its arms away from the trunk and its eyes open."""
    pairs = ("shoulders", "elbows", "hips", "knees")
    values = {
        n: v + rng.normal(0, 0.12, (1, 2) if n in pairs else 1) * (0.3 if n == "x" else 1) for n, v in REST.items()
    }
    clipped = {name: value.clip(*LIMITS[name]) for name, value in values.items()}
    return _moved(clipped, np.array([float(rng.random() < 0.3)]), np.ones(1))


def shaped_as(puppet: Puppet, other: Puppet) -> Puppet:
    """Give a figure the proportions of another one."""
    return replace(puppet, **{name: getattr(other, name) for name in PROPORTIONS})


def in_front_of(puppet: Puppet, other: Puppet) -> Puppet:
    """Put a figure before the ground of another one."""
    return replace(puppet, ground=other.ground, ground_seed=other.ground_seed, ground_strength=other.ground_strength)


def _moved(values: dict[str, np.ndarray], mouth: np.ndarray, eyes: np.ndarray) -> Motion:
    return Motion(
        **{name: value.astype(np.float32) for name, value in (values | {"mouth": mouth, "eyes": eyes}).items()}
    )


def _harmonics(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Sum three waves of random phase, [F] of about unit deviation."""
    at = np.arange(frames)
    waves = [rng.uniform(0.4, 1) * np.sin(2 * np.pi * (at / rng.uniform(40, 120) + rng.random())) for _ in range(3)]
    return sum(waves) * rng.uniform(0.6, 1.2) + rng.normal(0, 0.35)


def _states(rng: np.random.Generator, frames: int, shut: tuple[int, int], wide: tuple[int, int]) -> np.ndarray:
    """Draw holds of 0 and of 1 in turn, with changes of three frames between them: [F]."""
    state, track = int(rng.integers(2)), np.zeros(0)
    while len(track) < frames + 2:
        track = np.concatenate([track, np.full(rng.integers(*(wide if state else shut)), state)])
        state = 1 - state
    return np.convolve(track[: frames + 2], np.ones(3) / 3, "valid")


# ---------------------------------------------------------------- geometry


def joints(puppet: Puppet, motion: Motion) -> np.ndarray:
    """Place the joints of the skeleton: float32 [F, 20, 2] as (x, y)."""
    made = np.zeros((len(motion), NUM_JOINTS, 2), np.float32)
    up = _direction(np.pi + motion.lean)
    across = np.stack([-up[:, 1], up[:, 0]], axis=1)  # to the left of the figure, which is right in the frame
    down = np.zeros(len(motion), np.float32)
    for side, sign in enumerate((-1, 1)):
        hip = 0.55 * sign * puppet.shoulders * across
        knee = hip + puppet.leg * _direction(sign * motion.hips[:, side])
        ankle = knee + puppet.leg * _direction(sign * (motion.hips[:, side] + motion.knees[:, side]))
        made[:, HIP[side]], made[:, KNEE[side]], made[:, ANKLE[side]] = hip, knee, ankle
        made[:, TOE[side]] = ankle + puppet.limb * np.array([1.1 * sign, 0.35])
        down = np.maximum(down, ankle[:, 1])
    neck = puppet.trunk * up
    made[:, NECK] = neck
    for side, sign in enumerate((-1, 1)):
        shoulder = neck + sign * puppet.shoulders * across - 0.1 * puppet.trunk * up
        elbow = shoulder + puppet.arm * _direction(sign * motion.shoulders[:, side])
        wrist = elbow + puppet.arm * _direction(sign * (motion.shoulders[:, side] + motion.elbows[:, side]))
        made[:, SHOULDER[side]], made[:, ELBOW[side]], made[:, WRIST[side]] = shoulder, elbow, wrist
    centre, right, below = head_axes(puppet, motion, neck)
    side = 0.28 * motion.turn[:, None] * right
    made[:, NOSE] = centre + puppet.head * (1.2 * side + 0.16 * below)
    for place, sign in enumerate((-1, 1)):
        made[:, EYE[place]] = centre + puppet.head * (0.38 * sign * right + side - 0.02 * below)
        made[:, EAR[place]] = centre + puppet.head * (0.92 * sign * right + 0.3 * side)
    made += np.stack([motion.x, FLOOR - SHOE * puppet.limb - down], axis=1)[:, None]
    return made


def hands(puppet: Puppet, points: np.ndarray) -> np.ndarray:
    """Place the points of both hands for joints [F, 20, 2]: float32 [F, 2, 21, 2], first the left one.

    The first point is the wrist, and each of five fingers has four. They end at the edge of the glove.
    """
    made = np.empty((len(points), 2, NUM_HAND, 2), np.float32)
    for slot, side in enumerate((1, 0)):
        wrist = points[:, WRIST[side]]
        along = _unit(wrist - points[:, ELBOW[side]]) * GLOVE * puppet.limb
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        made[:, slot, 0] = wrist
        for finger in range(5):
            for part in range(4):
                share = (part + 1) / 4
                made[:, slot, 1 + 4 * finger + part] = (
                    wrist + (0.2 + 1.3 * share) * along + (finger - 2) * (0.15 + 0.2 * share) * across
                )
    return made


def gloves(puppet: Puppet, points: np.ndarray) -> np.ndarray:
    """Place the middles of the gloves for joints [F, 20, 2]: [F, 2, 2], first the right one."""
    wrists, elbows = points[:, list(WRIST)], points[:, list(ELBOW)]
    return wrists + 0.5 * GLOVE * puppet.limb * _unit(wrists - elbows)


def head_place(puppet: Puppet, motion: Motion, points: np.ndarray) -> np.ndarray:
    """Place the middle of the head for joints [F, 20, 2]: [F, 2]."""
    return head_axes(puppet, motion, points[:, NECK])[0]


def face_box(puppet: Puppet, motion: Motion, points: np.ndarray) -> np.ndarray:
    """Make squares around the face, [F, 3]: the upper left corner (x, y) and the side."""
    side = np.full((len(motion), 1), FACE * puppet.head, np.float32)
    return np.concatenate([head_place(puppet, motion, points) - side / 2, side], axis=1)


def head_axes(puppet: Puppet, motion: Motion, neck: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the middle of the head and its directions to the right of the frame and down, each [F, 2]."""
    below = _direction(motion.lean + motion.tilt)
    return neck - 0.92 * puppet.head * below, np.stack([below[:, 1], -below[:, 0]], axis=1), below


def _direction(angle: np.ndarray) -> np.ndarray:
    """Turn angles [F] from straight down towards the right of the frame into directions [F, 2]."""
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-6)

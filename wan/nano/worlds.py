"""A small world: one coloured shape that moves, or rests, in front of a plain background.

`sample_scene` draws a scene, `render` paints it, `caption` describes it in plain English, and `measure` reads it back
from pixels alone. Every score of the nano models compares the result of `measure` with the scene that was asked for.
Lengths are fractions of the frame side, so that one scene renders at any size.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rgb = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle")
COLORS: dict[str, Rgb] = {
    "red": (226, 48, 48),
    "yellow": (246, 205, 40),
    "green": (46, 168, 76),
    "cyan": (50, 205, 225),
    "blue": (52, 96, 240),
    "pink": (238, 92, 196),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (240, 240, 236),
    "grey": (134, 134, 138),
    "black": (18, 18, 20),
    "navy": (28, 38, 104),
}
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
ATTRIBUTES = {"shape": SHAPES, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "motion": tuple(MOTIONS)}

UNKNOWN = "unknown"  # something is there, but it has none of the known values
NONE = "none"  # there is no object

RADIUS = (0.125, 0.195)
TRAVEL = (0.31, 0.50)
MARGIN = 0.03
SHADING = 0.08  # the top of a shape is this much lighter than its flat colour, the bottom this much darker

# Half side of the square and circumradius of the triangle, in radii of the circle with the same nominal size.
_SQUARE = 0.9
_TRIANGLE = 1.35


@dataclass(frozen=True)
class Scene:
    """Scene of a video; `x`, `y` is the centroid in the first frame, `travel` the way to the last one."""

    shape: str
    color: str
    background: str
    motion: str
    radius: float
    x: float
    y: float
    travel: float

    def __post_init__(self):
        for field, known in ATTRIBUTES.items():
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field} {value!r} is not in this world; choose one of {', '.join(known)}")

    @property
    def size(self) -> str:
        """The word for the size: small, medium or large."""
        third = (self.radius - RADIUS[0]) / (RADIUS[1] - RADIUS[0])
        return "small" if third < 1 / 3 else "large" if third > 2 / 3 else "medium"


@dataclass(frozen=True)
class Measured:
    """Result of `measure`; every field is a name of this world, `UNKNOWN` or `NONE`."""

    shape: str
    color: str
    background: str
    motion: str


# ---------------------------------------------------------------- scenes


def held_out(scene: Scene) -> bool:
    """Tell whether the combination of shape, colour, background and motion is kept out of training.

    A linear code modulo 7 over the four attributes decides. One combination in seven is held out. Three attributes
    exclude at most one value of the fourth, so that every value, and nearly every triple, is frequent in training.
    """
    places = [known.index(getattr(scene, field)) for field, known in ATTRIBUTES.items()]
    return sum(weight * place for weight, place in zip((1, 2, 3, 5), places, strict=True)) % 7 == 0


def contrast(scene: Scene) -> float:
    """RGB distance of the shape from the background: from 113, green on grey, to 296, yellow on black."""
    return float(np.linalg.norm(np.subtract(COLORS[scene.color], BACKGROUNDS[scene.background])))


def sample_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """Draw a scene; `split` is "train", "heldout" (combinations never seen in training) or "all"."""
    if split not in ("train", "heldout", "all"):
        raise ValueError(f"split must be train, heldout or all, got {split!r}")
    while True:
        shape = str(rng.choice(SHAPES))
        motion = str(rng.choice(list(MOTIONS)))
        radius = rng.uniform(*RADIUS)
        left, right, up, down = _extent(shape, radius)
        low = np.array([left, up]) + MARGIN
        high = 1 - MARGIN - np.array([right, down])
        direction = np.array(MOTIONS[motion])
        room = (high - low)[np.argmax(np.abs(direction))]
        travel = rng.uniform(TRAVEL[0], min(TRAVEL[1], room)) if direction.any() else 0.0
        path = direction * travel
        x, y = rng.uniform(low - np.minimum(path, 0), high - np.maximum(path, 0))
        color, background = str(rng.choice(list(COLORS))), str(rng.choice(list(BACKGROUNDS)))
        scene = Scene(shape, color, background, motion, float(radius), float(x), float(y), float(travel))
        if split == "all" or held_out(scene) == (split == "heldout"):
            return scene


# ---------------------------------------------------------------- pictures


def render(scene: Scene, frame_num: int = 17, size: int = 64) -> np.ndarray:
    """Paint a scene: uint8 [F, size, size, 3], RGB, anti-aliased over one pixel."""
    steps = np.linspace(0, 1, frame_num) if frame_num > 1 else np.zeros(1)
    way = np.array(MOTIONS[scene.motion], dtype=np.float64) * scene.travel
    centers = (np.array([scene.x, scene.y]) + steps[:, None] * way).astype(np.float32)
    cover = _coverage(scene.shape, centers * size, np.full(frame_num, scene.radius * size, np.float32), size)[..., None]
    rows = (np.arange(size, dtype=np.float32) + 0.5) / size
    light = 1 - SHADING * np.clip((rows - centers[:, 1:]) / scene.radius, -1, 1)  # [F, size]
    ink = np.minimum(light[:, :, None, None] * np.array(COLORS[scene.color], np.float32), 255)
    paper = np.array(BACKGROUNDS[scene.background], np.float32)
    return (paper + cover * (ink - paper) + 0.5).astype(np.uint8)


def _extent(shape: str, radius: float) -> tuple[float, float, float, float]:
    """Distances from the centroid of a shape to its left, right, upper and lower end."""
    if shape == "circle":
        return (radius,) * 4
    if shape == "square":
        return (radius * _SQUARE,) * 4
    around = radius * _TRIANGLE
    return around * 3**0.5 / 2, around * 3**0.5 / 2, around, around / 2


def _coverage(shape: str, centers: np.ndarray, radius: np.ndarray, size: int) -> np.ndarray:
    """Share of each pixel inside the shape, float32 [F, size, size]; `centers` [F, 2] as (x, y), `radius` [F], px."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    dx = grid[None, None, :] - centers[:, 0, None, None]
    dy = grid[None, :, None] - centers[:, 1, None, None]
    r = radius[:, None, None]
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - r
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - _SQUARE * r
    else:  # apex up; the inradius is half the circumradius
        slope = 3**0.5 / 2
        distance = np.maximum(slope * np.abs(dx) - 0.5 * dy, dy) - 0.5 * _TRIANGLE * r
    return np.clip(0.5 - distance, 0, 1)


# ---------------------------------------------------------------- captions

_SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball", "round shape"),
    "square": ("square", "square", "box", "block", "square shape"),
    "triangle": ("triangle", "triangle", "triangle", "triangular shape"),
}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big"), "medium": ("medium-sized",)}
_COLOR_WORDS = {"grey": ("grey", "gray")}
_GROUND_WORDS = ("background", "background", "backdrop", "wall", "canvas")
_ASIDE = ("moves {}", "moves to the {}", "slides {}", "drifts to the {}", "travels {}wards", "glides {}")
_MOVES = {
    **{side: tuple(text.format(side) for text in _ASIDE) for side in ("left", "right")},
    "up": ("moves up", "moves upwards", "rises", "drifts upwards", "floats up", "climbs to the top"),
    "down": ("moves down", "moves downwards", "falls", "drifts downwards", "sinks down", "drops to the bottom"),
    "still": ("stays still", "does not move", "rests in place", "stands still", "remains motionless", "stays in place"),
}
_MOVING = {
    "left": ("moving left", "moving to the left", "sliding left", "drifting leftwards", "travelling to the left"),
    "right": ("moving right", "moving to the right", "sliding right", "drifting rightwards", "travelling to the right"),
    "up": ("moving up", "moving upwards", "rising", "drifting upwards", "floating up"),
    "down": ("moving down", "moving downwards", "falling", "drifting downwards", "sinking down"),
    "still": ("staying still", "not moving", "resting in place", "standing still", "without any motion"),
}
_TEMPLATES = (
    "a {thing} {moves} on a {ground}",
    "a {thing} {moves} in front of a {ground}",
    "a {thing} {moves} against a {ground}",
    "a {thing} {moves} over a {ground}",
    "a {thing} {moving} on a {ground}",
    "a {thing} {moving} in front of a {ground}",
    "a {thing}, {moving}, {ground}",
    "{thing} {moving} on a {ground}",
    "{thing}, {ground}, {moving}",
    "{thing} that {moves}, {ground}",
    "{ground}, {thing} {moving}",
    "{ground}, a {thing} {moves}",
    "on a {ground}, a {thing} {moves}",
    "in front of a {ground} a {thing} {moves}",
    "against a {ground}, a {thing} is {moving}",
    "the {thing} {moves} while the {groundword} stays {groundcolor}",
    "the {thing} is {moving}, and the {groundword} is {groundcolor}",
    "the {groundword} is {groundcolor} and a {thing} {moves}",
    "a video of a {thing} {moving} on a {ground}",
    "a short clip of a {thing} that {moves} on a {ground}",
    "a simple animation: a {thing} {moves}, {ground}",
    "there is a {thing} {moving} in front of a {ground}",
    "we see a {thing} on a {ground}; it {moves}",
    "a {ground} with a {thing} {moving}",
    "a {shapeword} {moves}; it is {color} and the {groundword} is {groundcolor}",
    "a {color} {shapeword} on {groundcolor}, {moving}",
)


def words_of(text: str) -> list[str]:
    """List the words of a text in lower case, without numbers."""
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text.lower())


# Every word that a caption may have.
WORDS = frozenset(
    word
    for table in (_SHAPE_WORDS, _SIZE_WORDS, _COLOR_WORDS, _MOVES, _MOVING)
    for texts in table.values()
    for text in texts
    for word in words_of(text)
).union(COLORS, BACKGROUNDS, _GROUND_WORDS, words_of(re.sub(r"\{\w+\}", "", " ".join(_TEMPLATES))))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in plain English. The words vary, their meaning does not; the size is named half of the time."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    shape = pick(_SHAPE_WORDS[scene.shape])
    size = pick(_SIZE_WORDS[scene.size]) + " " if rng.random() < (0.25 if scene.size == "medium" else 0.6) else ""
    ground_color, ground_word = pick(_COLOR_WORDS.get(scene.background, (scene.background,))), pick(_GROUND_WORDS)
    moving = pick(_MOVING[scene.motion])
    text = pick(_TEMPLATES).format(
        thing=f"{size}{scene.color} {shape}",
        color=scene.color,
        shapeword=shape,
        ground=f"{ground_color} {ground_word}",
        groundcolor=ground_color,
        groundword=ground_word,
        moves=pick(_MOVES[scene.motion]),
        moving=moving,
    )
    text = text.replace("is without", "is there, without")
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.4 else "")


# ---------------------------------------------------------------- measures

_MIN_CONTRAST = 60.0  # RGB distance from the background at which a pixel belongs to the object
_MAX_COLOR_ERROR = 75.0  # RGB distance to the nearest named colour above which the colour is unknown
_AREA = (0.015, 0.35)  # share of the frame that an object may cover
_STILL, _MOVED = 0.09, 0.15  # displacement as a share of the frame side: below the first still, above the second moved
_MAX_JITTER = 0.05  # rms deviation from a straight, even path
_MIN_OVERLAP = 0.80  # intersection over union with the ideal shape of equal area


def measure(frames: np.ndarray) -> Measured:
    """Read shape, colours and motion from the pixels of uint8 [F, H, W, 3] (H == W), knowing nothing of the scene.

    The background is the median colour. The object is the largest connected piece that differs from it. The motion is
    a straight line through its centroids. The shape is the ideal one of equal area and place that overlaps it best.
    """
    video = _smooth(frames.astype(np.float32))
    paper = np.median(video, axis=(0, 1, 2))
    background = _nearest(paper, BACKGROUNDS)
    masks = _largest_piece(np.linalg.norm(video - paper, axis=-1) > _MIN_CONTRAST)
    nothing = Measured(NONE, NONE, background, NONE)
    if not _present(masks).mean() >= 0.8:
        return nothing
    ink = np.median(video[_core(masks)], axis=0)
    toward = (ink - paper) / np.sum((ink - paper) ** 2)
    masks = _largest_piece((video - paper) @ toward > 0.5)
    present = _present(masks)
    if not present.mean() >= 0.8:
        return nothing
    centers, area = _moments(masks[present])
    motion = _motion_of(np.flatnonzero(present) / max(len(frames) - 1, 1), centers / frames.shape[1])
    return Measured(_shape_of(masks[present], centers, area), _nearest(ink, COLORS), background, motion)


def _smooth(video: np.ndarray) -> np.ndarray:
    """3x3 box filter over rows and columns of [F, H, W, C], edges repeated."""
    padded = np.pad(video, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def _nearest(color: np.ndarray, palette: dict[str, Rgb]) -> str:
    distance = {name: float(np.linalg.norm(color - np.array(rgb))) for name, rgb in palette.items()}
    best = min(distance, key=distance.__getitem__)
    return best if distance[best] <= _MAX_COLOR_ERROR else UNKNOWN


def _present(masks: np.ndarray) -> np.ndarray:
    """Tell, bool [F], which masks of [F, H, W] have the size of an object."""
    area = masks.mean(axis=(1, 2))
    return (area >= _AREA[0]) & (area <= _AREA[1])


def _grow(masks: np.ndarray) -> np.ndarray:
    """Add to bool [F, H, W] the four neighbours of every pixel."""
    grown = masks.copy()
    grown[:, 1:] |= masks[:, :-1]
    grown[:, :-1] |= masks[:, 1:]
    grown[:, :, 1:] |= masks[:, :, :-1]
    grown[:, :, :-1] |= masks[:, :, 1:]
    return grown


def _core(masks: np.ndarray) -> np.ndarray:
    """Shrink bool [F, H, W] by up to three pixels: at the edge, blur has mixed in the background."""
    for _ in range(3):
        inner = ~_grow(~masks)
        if not inner.any():
            break
        masks = inner
    return masks


def _largest_piece(masks: np.ndarray) -> np.ndarray:
    """Keep, in every frame of bool [F, H, W], the connected piece that holds the densest spot."""
    frames = len(masks)
    table = np.pad(masks.astype(np.int32), ((0, 0), (5, 4), (5, 4))).cumsum(1).cumsum(2)
    density = table[:, 9:, 9:] - table[:, :-9, 9:] - table[:, 9:, :-9] + table[:, :-9, :-9]  # 9x9 sums
    density = np.where(masks, density, -1).reshape(frames, -1)
    piece = np.zeros_like(masks)
    piece.reshape(frames, -1)[np.arange(frames), density.argmax(1)] = True
    piece &= masks
    grown = _grow(piece) & masks
    while (grown != piece).any():
        piece, grown = grown, _grow(grown) & masks
    return piece


def _moments(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [F, 2] as (x, y) and areas [F] of bool [F, H, W], in pixels."""
    area = masks.sum(axis=(1, 2)).astype(np.float32)
    grid = np.arange(masks.shape[1], dtype=np.float32) + 0.5
    return np.stack([masks.sum(1) @ grid, masks.sum(2) @ grid], axis=1) / area[:, None], area


def _motion_of(times: np.ndarray, centers: np.ndarray) -> str:
    """Name the motion of `centers` [F, 2] in frame sides at `times` [F] in 0..1."""
    if len(times) < 2:
        return UNKNOWN
    design = np.stack([times, np.ones_like(times)], axis=1)
    line = np.linalg.lstsq(design, centers, rcond=None)[0]
    jitter = float(np.sqrt(np.mean(np.sum((centers - design @ line) ** 2, axis=1))))
    x, y = line[0]
    along, across = max(abs(x), abs(y)), min(abs(x), abs(y))
    if jitter > _MAX_JITTER:
        return UNKNOWN
    if along < _STILL:
        return "still"
    if along < _MOVED or across > 0.5 * along:
        return UNKNOWN
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _shape_of(masks: np.ndarray, centers: np.ndarray, area: np.ndarray) -> str:
    """Name the shape whose ideal mask of equal centroid and area overlaps bool [F, H, W] best."""
    unit_area = {"circle": np.pi, "square": 4 * _SQUARE**2, "triangle": 0.75 * 3**0.5 * _TRIANGLE**2}
    overlap = {}
    for shape in SHAPES:
        ideal = _coverage(shape, centers, np.sqrt(area / unit_area[shape]), masks.shape[1]) > 0.5
        overlap[shape] = np.median((masks & ideal).sum(axis=(1, 2)) / (masks | ideal).sum(axis=(1, 2)))
    best = max(overlap, key=overlap.__getitem__)
    return best if overlap[best] >= _MIN_OVERLAP else UNKNOWN

"""A world of cartoon faces that talk: drawn from a scene, and measured from pixels alone.

`sample_face` draws a face, `render` paints a video of it from the opening of its mouth and the path of its head, and
`pose_video` paints the same path for a model to follow. `opening`, `head`, `colours` and `sharpness` read videos.
The mouth is the only red thing. Lengths are shares of the frame's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Rgb = tuple[int, int, int]

SIZE = 64
SKINS: dict[str, Rgb] = {
    "pale": (250, 220, 196),
    "tan": (222, 178, 138),
    "brown": (166, 116, 80),
    "dark": (104, 72, 52),
}
HAIRS: dict[str, Rgb] = {
    "black": (26, 24, 30),
    "brown": (92, 62, 40),
    "blond": (232, 200, 110),
    "grey": (156, 158, 164),
    "blue": (60, 84, 200),
    "green": (54, 150, 84),
}
GROUNDS: dict[str, Rgb] = {
    "white": (240, 240, 236),
    "grey": (134, 134, 138),
    "navy": (28, 38, 104),
    "cyan": (80, 190, 210),
    "yellow": (236, 214, 104),
    "green": (60, 130, 90),
}
EYES: tuple[Rgb, ...] = ((40, 60, 160), (40, 110, 60), (80, 50, 30), (30, 30, 34))
MOUTH: Rgb = (176, 22, 44)
POSE: Rgb = (40, 210, 90)  # of the head in a pose video, on black

HALF_WIDTH = (0.225, 0.265)  # of the head
ASPECT = (1.15, 1.3)  # its height by its width
MOUTH_WIDTH = (0.26, 0.29)  # whole: at least 16 pixels of 64
MOUTH_HEIGHT = (0.022, 0.17)  # whole, closed and wide open
PLACE = ((0.38, 0.62), (0.46, 0.56))  # of a head, x and y
ROOM = ((0.28, 0.72), (0.40, 0.60))  # where a head that moves may go
JITTER = 10.0  # deviation of a colour from its name
TWO_COLOURS = 60.0  # least distance of the background from hair and skin, and of these


@dataclass(frozen=True)
class Face:
    """Looks of one person, and where the head is in the reference image."""

    skin: Rgb
    hair: Rgb
    ground: Rgb
    eyes: Rgb
    half_width: float
    aspect: float
    mouth_width: float
    long_hair: bool
    x: float
    y: float
    words: tuple[str, str]  # for the caption: hair and background


# ---------------------------------------------------------------- scenes


def sample_face(rng: np.random.Generator) -> Face:
    """Draw a face; hair, skin and background differ."""

    def shade(name: str, table: dict[str, Rgb]) -> Rgb:
        near = np.array(table[name]) + rng.normal(0, JITTER, 3).clip(-2 * JITTER, 2 * JITTER)
        return tuple(int(v) for v in near.round().clip(0, 255))

    while True:
        names = [str(rng.choice(list(table))) for table in (SKINS, HAIRS, GROUNDS)]
        skin, hair, ground = (shade(name, table) for name, table in zip(names, (SKINS, HAIRS, GROUNDS), strict=True))
        pairs = ((skin, hair), (skin, ground), (hair, ground))
        if min(np.linalg.norm(np.subtract(a, b)) for a, b in pairs) >= TWO_COLOURS:
            break
    x, y = (float(rng.uniform(*side)) for side in PLACE)
    sizes = (float(rng.uniform(*span)) for span in (HALF_WIDTH, ASPECT, MOUTH_WIDTH))
    eyes = EYES[int(rng.integers(len(EYES)))]
    return Face(skin, hair, ground, eyes, *sizes, bool(rng.random() < 0.5), x, y, (names[1], names[2]))


def still(face: Face, frames: int) -> np.ndarray:
    """Path of a head that rests: float32 [frames, 2] as (x, y)."""
    return np.tile(np.array([face.x, face.y], np.float32), (frames, 1))


def wander(face: Face, frames: int, rng: np.random.Generator, fps: float = 16) -> np.ndarray:
    """Path of a head that moves smoothly from place to place, float32 [frames, 2]; it begins where the face is."""
    turns = [0.0]
    while turns[-1] < frames:
        turns.append(turns[-1] + fps * rng.uniform(1.0, 2.2))
    places = np.stack([rng.uniform(*side, len(turns)) for side in ROOM], axis=1)
    places[0] = face.x, face.y
    at = np.arange(frames)
    leg = np.searchsorted(turns, at, side="right") - 1
    start, end = np.array(turns)[leg], np.array(turns)[leg + 1]
    share = 0.5 - 0.5 * np.cos(np.pi * (at - start) / (end - start))
    return (places[leg] + share[:, None] * (places[leg + 1] - places[leg])).astype(np.float32)


_TEMPLATES = (
    "a round shape on a {ground} background",
    "in front of a {ground} wall there is a round shape",
    "we see a round shape in front of a {ground} background",
    "a video of a round shape on a {ground} backdrop",
)


# ---------------------------------------------------------------- pictures


def render(face: Face, mouth: np.ndarray, path: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Paint a video: uint8 [F, size, size, 3]. mouth: opening [F] in 0..1; path: places [F, 2] of the head."""
    video = np.empty((len(mouth), size, size, 3), np.float32)
    video[:] = face.ground
    a, b = face.half_width, face.half_width * face.aspect
    x, y = path[:, 0], path[:, 1]
    if face.long_hair:
        _paint(video, _ellipse(x, y + 0.12 * b, 1.22 * a, 1.12 * b, size), face.hair)
    _paint(video, _ellipse(x, y - 0.22 * b, 1.12 * a, 0.98 * b, size), face.hair)
    _paint(video, _ellipse(x, y + 0.06 * b, a, 0.94 * b, size), face.skin)
    fringe = _ellipse(x, y - 0.74 * b, 0.95 * a, 0.5 * b, size)
    _paint(video, fringe, face.hair)
    for side in (-1, 1):
        _paint(video, _ellipse(x + side * 0.42 * a, y - 0.02 * b, 0.24 * a, 0.15 * b, size), (248, 248, 248))
        _paint(video, _ellipse(x + side * 0.42 * a, y - 0.02 * b, 0.12 * a, 0.12 * b, size), face.eyes)
    closed, wide = MOUTH_HEIGHT
    height = closed + (wide - closed) * np.asarray(mouth, np.float32)
    _paint(video, _lips(x, y + 0.52 * b, face.mouth_width / 2, height / 2, size), MOUTH)
    return (video + 0.5).clip(0, 255).astype(np.uint8)


def pose_video(face: Face, path: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Paint the path of a head as a green oval with two eyes on black: uint8 [F, size, size, 3]."""
    video = np.zeros((len(path), size, size, 3), np.float32)
    a, b = face.half_width, face.half_width * face.aspect
    x, y = path[:, 0], path[:, 1]
    _paint(video, _ellipse(x, y, a, b, size), POSE)
    for side in (-1, 1):
        _paint(video, _ellipse(x + side * 0.42 * a, y - 0.02 * b, 0.2 * a, 0.15 * b, size), (248, 248, 248))
    return (video + 0.5).clip(0, 255).astype(np.uint8)


def caption(face: Face, rng: np.random.Generator) -> str:
    """Describe the picture in words that the text encoder of the small world knows; it says nothing of the sound."""
    text = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    return text.format(ground=face.words[1])


def _paint(video: np.ndarray, cover: np.ndarray, colour: Sequence[int]) -> None:
    video += cover[..., None] * (np.array(colour, np.float32) - video)


def _grid(size: int) -> np.ndarray:
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def _ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float, size: int) -> np.ndarray:
    """Share of each pixel inside an ellipse with half axes a, b: float32 [F, size, size], soft over one pixel."""
    grid = _grid(size)
    dx, dy = (grid - x[:, None])[:, None, :] / a, (grid - y[:, None])[:, :, None] / b
    radius = np.sqrt(dx * dx + dy * dy) + 1e-6
    slope = np.sqrt((dx / a) ** 2 + (dy / b) ** 2) / radius + 1e-6
    return np.clip(0.5 - (radius - 1) / slope * size, 0, 1)


def _lips(x: np.ndarray, y: np.ndarray, a: float, b: np.ndarray, size: int) -> np.ndarray:
    """As `_ellipse` for flat ones of half heights b [F], exact in height: an almost closed mouth is a faint line."""
    across = np.clip(1 - ((_grid(size * 4) - x[:, None]) / a) ** 2, 0, None) ** 0.5  # [F, 4 size]
    half = (across * b[:, None])[:, None, :]
    upper, lower = np.arange(size, dtype=np.float32)[:, None] / size, (np.arange(size) + 1)[:, None] / size
    y = y[:, None, None]
    inside = np.minimum(lower, y + half) - np.maximum(upper, y - half)
    return np.clip(inside * size, 0, 1).reshape(len(b), size, size, 4).mean(-1)


# ---------------------------------------------------------------- measures

_RED = (60.0, 125.0)  # redness of skin at most, of lips at least
_CLOSED, _WIDE = 0.0053, 0.037  # area of a mouth in shares of the picture
SHUT = 0.15  # an opening below this is a closed mouth


def redness(frames: np.ndarray) -> np.ndarray:
    """Share of lip in each pixel of uint8 [F, H, W, 3]: only lips are much more red than green and blue."""
    red, green, blue = np.moveaxis(frames.astype(np.float32), -1, 0)
    low, high = _RED
    return np.clip((np.minimum(red - green, red - blue) - low) / (high - low), 0, 1)


def opening(frames: np.ndarray) -> np.ndarray:
    """Read how open the mouth is: [F], about 0..1."""
    return (redness(frames).mean(axis=(1, 2)) - _CLOSED) / (_WIDE - _CLOSED)


def head(frames: np.ndarray) -> np.ndarray:
    """Read the place of the head, float [F, 2] as (x, y): the centre of what has the colour of skin, and of the lips.

    The colour of skin is that between lips and eyes, in all frames that show lips. It is looked for around the lips, or
    where the head was before. Without any lips the head is in the middle.
    """
    grid, video = _grid(frames.shape[1]), frames.astype(np.float32)
    lips = redness(frames)
    shown = lips.sum(axis=(1, 2)) > 2
    if not shown.any():
        return np.full((len(frames), 2), 0.5)
    total = np.maximum(lips.sum(axis=(1, 2)), 1e-6)
    mouths = np.stack([lips.sum(1) @ grid, lips.sum(2) @ grid], axis=1) / total[:, None]
    skin = np.median([_bridge(*pair, grid) for pair in zip(video[shown], mouths[shown], strict=True)], axis=0)
    places, last = [], mouths[shown.argmax()]
    for frame, mouth, lip, is_shown in zip(video, mouths, lips, shown, strict=True):
        x, y = mouth if is_shown else last
        near = np.hypot(grid[None] - x, grid[:, None] - y) < 0.45
        mask = (np.linalg.norm(frame - skin, axis=-1) < 40) & near | (lip > 0.5)
        if mask.any():
            last = np.array([mask.sum(0) @ grid, mask.sum(1) @ grid]) / mask.sum()
        places.append(last)
    return np.stack(places)


def _bridge(frame: np.ndarray, mouth: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Colour between the eyes, above a mouth at (x, y)."""
    across, above = abs(grid[None] - mouth[0]), mouth[1] - grid[:, None]
    return np.median(frame[(across < 0.035) & (above > 0.09) & (above < 0.17)], axis=0)


def colours(frames: np.ndarray, face: Face, places: np.ndarray) -> np.ndarray:
    """Read hair, skin and background of uint8 [F, H, W, 3] around `places` [F, 2]: Lab, [3, 3].

    The parts are those of the face at its places, without edges; each colour is the median over all frames.
    """
    pure = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    key = replace(face, hair=pure[0], skin=pure[1], ground=pure[2], eyes=(0, 0, 0))
    drawn = render(key, np.ones(len(frames)), places, frames.shape[1])
    parts = [(drawn == np.array(colour, np.uint8)).all(-1) for colour in pure]
    return np.stack([lab(np.median(frames[_inner(part)], axis=0)) for part in parts])


def lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB [..., 3] in 0..255 to CIE Lab (D65)."""
    linear = np.asarray(rgb, np.float64) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def sharpness(frames: np.ndarray) -> np.ndarray:
    """Read the sharpness of each frame, [F]: root mean square of the differences of neighbouring pixels."""
    grey = frames.astype(np.float32).mean(-1)
    return np.sqrt(np.square(np.diff(grey, axis=1)).mean((1, 2)) + np.square(np.diff(grey, axis=2)).mean((1, 2)))


def _inner(mask: np.ndarray) -> np.ndarray:
    """Remove from bool [F, H, W] the pixels at its edge."""
    inner = mask.copy()
    for axis in (1, 2):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    return inner if inner.any() else mask

"""Videos of puppets, with exact masks, and drawings of their skeletons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wan.modules.animate.preprocess.skeleton import draw
from wan.nano import puppets
from wan.nano.puppets import (
    ANKLE,
    ELBOW,
    EYE,
    EYES,
    GLOVE,
    HIP,
    KNEE,
    MARKERS,
    MOUTH,
    NECK,
    PARTS,
    SHOE,
    SHOULDER,
    SIZE,
    TOE,
    WRIST,
    Motion,
    Puppet,
    Rgb,
)


@dataclass(frozen=True)
class Drawn:
    """Video of a figure, with the topmost part of every pixel: 0 is the ground, and then PARTS, EYES, MOUTH."""

    video: np.ndarray  # uint8 [F, H, W, 3]
    labels: np.ndarray  # uint8 [F, H, W]

    @property
    def mask(self) -> np.ndarray:
        """Place of the figure, bool [F, H, W]."""
        return self.labels > 0


def render(
    puppet: Puppet,
    motion: Motion,
    size: int = SIZE,
    box: np.ndarray | None = None,
    markers: float = 0.0,
    larger: int = 1,
) -> Drawn:
    """Paint a video of `size` pixels: of the whole frame, or of squares [F, 3] of it (see `face_box`).

    `markers` is the radius of coloured joints. A picture that is drawn `larger` is resized; its masks are not.
    """
    if larger > 1:
        drawn = render(puppet, motion, size * larger, box, markers)
        return Drawn(shrunk(drawn.video, larger), drawn.labels[:, larger // 2 :: larger, larger // 2 :: larger])
    points = puppets.joints(puppet, motion)
    box = np.array([[0, 0, 1]], np.float32) if box is None else box
    steps = (np.arange(size, dtype=np.float32) + 0.5) / size
    grid = Grid(box[:, :1] + box[:, 2:] * steps, box[:, 1:2] + box[:, 2:] * steps, size / float(box[0, 2]))
    video = np.broadcast_to(ground(puppet, grid), (len(motion), size, size, 3)).copy()
    labels = np.zeros(video.shape[:3], np.uint8)
    for label, colour, cover in _layers(puppet, motion, points, grid, markers):
        place = cover > 0
        video[place] += cover[place][:, None] * (np.array(colour, np.float32) - video[place])
        if label:
            labels[cover > 0.5] = label
    return Drawn((video + 0.5).clip(0, 255).astype(np.uint8), labels)


@dataclass(frozen=True)
class Grid:
    """Places of pixels, x and y [F or 1, size], and the pixels of a unit of length."""

    x: np.ndarray
    y: np.ndarray
    scale: float

    def ellipse(self, at: np.ndarray, right: np.ndarray, a: float, b: np.ndarray | float) -> np.ndarray:
        """Share of each pixel in an ellipse at [F, 2], half axes a along `right` [F, 2] and b: [F, size, size]."""
        dx, dy = self.x[:, None, :] - at[:, 0, None, None], self.y[:, :, None] - at[:, 1, None, None]
        c, s = right[:, 0, None, None], right[:, 1, None, None]
        b = np.reshape(np.asarray(b, np.float32), (-1, 1, 1))
        u, v = (c * dx + s * dy) / a, (c * dy - s * dx) / b
        radius = np.sqrt(u * u + v * v) + 1e-6
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) / radius + 1e-6
        return np.clip(0.5 + (1 - radius) / slope * self.scale, 0, 1)

    def capsule(self, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
        """Share of each pixel in what is nearer than `radius` to the line from start to end, [F, 2] each."""
        dx, dy = self.x[:, None, :] - start[:, 0, None, None], self.y[:, :, None] - start[:, 1, None, None]
        line = (end - start)[:, None, None]
        share = (dx * line[..., 0] + dy * line[..., 1]) / np.maximum((line**2).sum(-1), 1e-8)
        share = share.clip(0, 1)
        apart = np.hypot(dx - share * line[..., 0], dy - share * line[..., 1])
        return np.clip(0.5 + (radius - apart) * self.scale, 0, 1)


Layer = tuple[int, Rgb, np.ndarray]


def _layers(puppet: Puppet, motion: Motion, p: np.ndarray, grid: Grid, markers: float) -> Iterator[Layer]:
    """Yield label, colour and cover [F, size, size] of each shape, from the back to the front."""
    number = {name: place + 1 for place, name in enumerate(PARTS)}
    centre, right, below = puppets.head_axes(puppet, motion, p[:, NECK])
    r, limb = puppet.head, puppet.limb

    def part(name: str, cover: np.ndarray) -> Layer:
        return number[name], puppet.colours[number[name] - 1], cover

    if puppet.long_hair:
        yield part("hair", grid.ellipse(centre + 0.25 * r * below, right, 1.12 * r, 1.05 * r))
    for hip, knee, ankle, toe in zip(HIP, KNEE, ANKLE, TOE, strict=True):
        yield part("legs", grid.capsule(p[:, hip], p[:, knee], limb))
        yield part("legs", grid.capsule(p[:, knee], p[:, ankle], limb))
        yield part("shoes", grid.capsule(p[:, ankle], p[:, toe], SHOE * limb))
    hips, neck = (p[:, HIP[0]] + p[:, HIP[1]]) / 2, p[:, NECK]
    yield part("trunk", grid.capsule(neck + 0.2 * (hips - neck), hips, 1.02 * puppet.shoulders))
    for shoulder, elbow, wrist in zip(SHOULDER, ELBOW, WRIST, strict=True):
        yield part("arms", grid.capsule(p[:, shoulder], p[:, elbow], limb))
        yield part("arms", grid.capsule(p[:, elbow], p[:, wrist], limb))
    for side in np.moveaxis(puppets.gloves(puppet, p), 1, 0):
        yield part("gloves", grid.ellipse(side, right, GLOVE * limb, GLOVE * limb))
    yield part("hair", grid.ellipse(centre - 0.1 * r * below, right, 1.06 * r, 1.0 * r))
    yield part("head", grid.ellipse(centre + 0.12 * r * below, right, 0.94 * r, 0.82 * r))
    aside = 0.28 * r * motion.turn[:, None] * right
    for eye in EYE:
        yield EYES, puppet.eyes, grid.ellipse(p[:, eye], right, 0.14 * r, r * (0.04 + 0.14 * motion.eyes))
    mouth = centre + 0.55 * r * below + aside
    yield MOUTH, puppet.mouth, grid.ellipse(mouth, right, 0.38 * r, r * (0.06 + 0.26 * motion.mouth))
    for joint, colour in MARKERS.items() if markers else ():
        yield 0, colour, grid.ellipse(p[:, joint], right, markers, markers)


def ground(puppet: Puppet, grid: Grid) -> np.ndarray:
    """Paint the ground: smooth clouds around its colour, float32 [F or 1, H, W, 3]; of a grey one they are grey."""
    rng = np.random.default_rng(puppet.ground_seed)
    is_grey = len(set(puppet.ground)) == 1
    light, tint = rng.normal(0, 1, (5, 5, 1)), rng.normal(0, 0 if is_grey else 0.8, (4, 4, 3))
    clouds = sum(
        np.einsum("fyi,fxj,ijc->fyxc", _weights(grid.y, len(k)), _weights(grid.x, len(k)), k) for k in (light, tint)
    )
    return (np.array(puppet.ground) + puppet.ground_strength * clouds).clip(0, 255).astype(np.float32)


def _weights(at: np.ndarray, knots: int) -> np.ndarray:
    """Weights [F, size, knots] of the knots around each place in 0..1, smooth between them; places outside repeat."""
    place = at.clip(0, 1)[..., None] * (knots - 1) - np.arange(knots)
    return 0.5 + 0.5 * np.cos(np.pi * place.clip(-1, 1))


def pose_video(puppet: Puppet, motion: Motion, size: int = SIZE, larger: int = 1) -> np.ndarray:
    """Draw the skeleton of a motion: uint8 [F, size, size, 3]; one that is drawn `larger` is resized."""
    points = puppets.joints(puppet, motion)
    of_hands = puppets.hands(puppet, points)
    side = size * larger
    frames = [
        draw(certain(body * side), [certain(hand * side) for hand in pair], (side, side))
        for body, pair in zip(points, of_hands, strict=True)
    ]
    return shrunk(np.stack(frames), larger)


def certain(points: np.ndarray) -> np.ndarray:
    """Give points [n, 2] full confidence: [n, 3]."""
    return np.concatenate([points, np.ones_like(points[:, :1])], axis=1)


def shrunk(video: np.ndarray, factor: int) -> np.ndarray:
    """Make a video uint8 [F, H, W, 3] smaller by the means of squares of pixels."""
    if factor == 1:
        return video
    frames, height, width, _ = video.shape
    squares = video.reshape(frames, height // factor, factor, width // factor, factor, 3)
    return (squares.mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def without_figure(puppet: Puppet, size: int = SIZE) -> np.ndarray:
    """Paint the ground alone: uint8 [size, size, 3]."""
    steps = ((np.arange(size, dtype=np.float32) + 0.5) / size)[None]
    return (ground(puppet, Grid(steps, steps, size))[0] + 0.5).astype(np.uint8)


def grown(mask: np.ndarray, by: int, shape: str) -> np.ndarray:
    """Grow masks bool [F, H, W] by pixels, then fill the `cells` of 8 pixels or the `box` they lie in, or nothing."""
    size = mask.shape[1]
    padded = np.pad(mask, ((0, 0), (by, by), (by, by)))
    rows = np.any([padded[:, n : n + size] for n in range(2 * by + 1)], axis=0)
    mask = np.any([rows[:, :, n : n + size] for n in range(2 * by + 1)], axis=0)
    if shape == "cells":
        cells = mask.reshape(len(mask), size // 8, 8, size // 8, 8).any(axis=(2, 4))
        return cells.repeat(8, axis=1).repeat(8, axis=2)
    if shape == "box":
        return _between(mask.any(2))[:, :, None] & _between(mask.any(1))[:, None]
    return mask


def _between(line: np.ndarray) -> np.ndarray:
    """Fill bool [F, n] between the first and the last place."""
    return np.logical_or.accumulate(line, 1) & np.logical_or.accumulate(line[:, ::-1], 1)[:, ::-1]

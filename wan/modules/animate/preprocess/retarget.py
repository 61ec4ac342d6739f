"""Retargeting: the motion of the driving figure with the limbs of the character, in the place of the character.

Bodies are float64 [20, 3]: x and y as shares of a frame, or in pixels where a name says so, and confidence. `Pair` has
the first driving frame and the picture of the character; all lengths are compared between these two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from wan.geometry import Size
from wan.modules.animate.preprocess.joints import CERTAIN, HEAD, JOINT, LIMBS
from wan.modules.animate.preprocess.keypoints import Figure

KNOWN = 0.4  # confidence of joints that are in the frame
EQUAL_BY_MOST = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (17, 18))  # limbs of both sides
EQUAL_BY_MEAN = ((13, 15), (14, 16))
CALF_OF_FOOT = {18: 8, 17: 11}
LONGEST_FOOT = 0.5  # of the calf
RATIOS = (0.5, 2.0)  # limits of a limb's ratio; beyond them a joint was not where it seemed
FAR = 1e4  # shares of a frame; nothing lies farther outside
UNKNOWN = np.array((-1.0, -1.0, 0.0))  # upstream's place of a point that is not known
SHORTEST = 0.02  # of a frame's height; figures that are lower tell no scale
NARROWEST = 0.35  # width of the shoulders of a person who faces the camera, in lengths of the trunk

NECK, NOSE = JOINT["neck"], JOINT["nose"]
HIPS, ANKLES = (JOINT["right_hip"], JOINT["left_hip"]), (JOINT["right_ankle"], JOINT["left_ankle"])
SHOULDERS = (JOINT["left_shoulder"], JOINT["right_shoulder"])
RIGHT_WRIST, LEFT_WRIST = JOINT["right_wrist"], JOINT["left_wrist"]
TOES = {JOINT["left_ankle"]: JOINT["left_toe"], JOINT["right_ankle"]: JOINT["right_toe"]}


@dataclass(frozen=True)
class Pair:
    """Body of the first driving frame and that of the character, with the sizes (width, height) of their frames."""

    first: np.ndarray
    first_size: Size
    character: np.ndarray
    character_size: Size
    shortest: float = SHORTEST  # height that tells the scale, in shares of the frame; 0 as upstream

    def sane(self, shortest: float = SHORTEST) -> Pair:
        return replace(self, first=sane(self.first), character=sane(self.character), shortest=shortest)

    @cached_property
    def measure(self) -> tuple[int, ...]:
        """Joints below the nose that tell the scale: ankles, else hips; none when neither is certain."""

        def seen(joints: tuple[int, ...]) -> bool:
            return all(body[[NOSE, *joints], 2].min() > CERTAIN for body in (self.first, self.character))

        return next((joints for joints in (ANKLES, HIPS) if seen(joints) and self.tall(joints)), ())

    def tall(self, joints: tuple[int, ...]) -> float:
        """Height of the driving figure in heights of the character, in pixels; 0 when one of them has none."""
        first, character = (abs(body[list(joints), 1].mean() - body[NOSE, 1]) for body in (self.first, self.character))
        is_low = min(first, character) <= 0 or min(first, character) < self.shortest
        return 0.0 if is_low else self.first_size[1] * first / (self.character_size[1] * character)

    @cached_property
    def scale(self) -> float:
        """Size of the driving figure in sizes of the character."""
        if self.measure:
            return float(self.tall(self.measure))
        return float(np.sqrt(np.prod(self.first_size)) / np.sqrt(np.prod(self.character_size)))

    @cached_property
    def scaled_size(self) -> Size:
        """Size of the character's frame when the character is as large as the driving figure."""
        width, height = (int(side * self.scale) for side in self.character_size)
        return width, height

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the limbs in pixels: of the driving figure, and of the character at its size."""
        return limb_lengths(pixels(self.first, self.first_size)), limb_lengths(pixels(self.character, self.scaled_size))


def pixels(points: np.ndarray, size: Size) -> np.ndarray:
    return points.astype(np.float64) * (*size, 1.0)


def vectors(body: np.ndarray) -> np.ndarray:
    """Limbs [19, 2], from start to end."""
    start, end = np.array(LIMBS).T
    return (body[end] - body[start])[:, :2]


def limb_lengths(body: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors(body), axis=1)


def limb_ratios(pair: Pair, edited: Pair | None = None, limits: tuple[float, float] | None = RATIOS) -> np.ndarray:
    """Lengths [19] of the character's limbs in lengths of the driving figure's, the same on both sides.

    `edited` has the two figures of edited pictures, in the same pose. A limb without a length keeps its own; without
    `limits`, as upstream, one that the character has not vanishes.
    """
    driving, character = (edited or pair).lengths
    if edited and not edited.measure:  # the editor may have changed the scale
        character = character * enlarged(pair.character, edited.character, pair.character_size)
        driving = driving * enlarged(pair.first, edited.first, pair.first_size)
    has_length = (driving > 0) & ((character > 0) | (limits is None))
    ratios = np.divide(character, driving, out=np.ones(len(LIMBS)), where=has_length)
    ratios = ratios.clip(*limits) if limits else ratios
    for table, rule in ((EQUAL_BY_MOST, max), (EQUAL_BY_MEAN, lambda a, b: (a + b) / 2)):
        for one, other in table:
            ratios[[one, other]] = rule(ratios[one], ratios[other])
    return ratios


def enlarged(before: np.ndarray, after: np.ndarray, size: Size) -> float:
    """Size of a figure before it was edited in sizes after it, by the head and the shoulders."""
    heads = [np.ptp(body[list(HEAD), 0]) for body in (before, after)]
    shoulders = [np.linalg.norm(np.diff(pixels(body, size)[list(SHOULDERS), :2], axis=0)) for body in (before, after)]
    return max([a / b for a, b in (heads, shoulders) if b > 0], default=1.0) or 1.0


def posed(body: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Give a body, in pixels, limbs of other lengths in the same directions, from the neck on."""
    limbs, result = vectors(body), body.copy()
    for (start, end), limb, ratio in zip(LIMBS, limbs, ratios, strict=True):
        result[end, :2] = result[start, :2] + limb * ratio
    return result


def with_short_feet(body: np.ndarray, ratios: np.ndarray, as_upstream: bool = False) -> np.ndarray:
    """Limit the ratios of feet: a foot gets at most half the length of its calf.

    Unless `as_upstream`, a foot that is longer in the driving frame keeps its share of the calf.
    """
    lengths, result = limb_lengths(body), ratios.copy()
    for foot, calf in CALF_OF_FOOT.items():
        if lengths[foot] > 0:
            most = LONGEST_FOOT * lengths[calf] * ratios[calf] / lengths[foot]
            result[foot] = min(ratios[foot], most if as_upstream else max(most, ratios[calf]))
    return result


def framing(pair: Pair) -> str:
    """Name how much of both figures is in their frames: "full", "three_quarter" or "half"."""

    def has(joints: tuple[int, ...]) -> bool:
        return all((body[list(joints), 1] <= 1).all() and (body[list(joints), 2] >= KNOWN).all() for body in both)

    both = (pair.first, pair.character)
    return "half" if not has(HIPS) else "full" if has(ANKLES) else "three_quarter"


@dataclass(frozen=True)
class Anchor:
    """Place that both figures share: the shift from the driving frame to the character's, and its x."""

    shift: np.ndarray
    x: float


def anchor_of(pair: Pair, ratios: np.ndarray, as_upstream: bool = False) -> Anchor:
    """Put hips and ground of the figures, or else their necks, in one place.

    The ground is midway between ankle and toe of the lower foot. `as_upstream` takes the ankle of the driving figure,
    which lifts every character.
    """
    moved = posed(pixels(pair.first, pair.first_size), ratios)
    target = pixels(pair.character, pair.scaled_size)
    if framing(pair) != "full":
        return Anchor(moved[NECK, :2] - target[NECK, :2], float(moved[NECK, 0]))
    x, y = moved[list(HIPS), 0].mean(), moved[list(ANKLES), 1].max() if as_upstream else ground(moved)
    return Anchor(np.array((x - target[list(HIPS), 0].mean(), y - ground(target))), float(x))


def ground(body: np.ndarray) -> float:
    return max((body[ankle, 1] + body[toe, 1]) / 2 for ankle, toe in TOES.items())


def is_frontal(body: np.ndarray, size: Size) -> bool:
    """Tell whether a person faces the camera, by the width of the shoulders and their order."""
    body = pixels(sane(body), size)
    right, left = body[list(SHOULDERS[::-1]), :2]
    trunk = np.linalg.norm(body[list(HIPS), :2].mean(0) - body[NECK, :2])
    hips_known, width = body[list(HIPS), 2].min() >= KNOWN, left[0] - right[0]
    return bool(width > 0 and (not hips_known or width >= NARROWEST * trunk))


def sane(points: np.ndarray) -> np.ndarray:
    """Make points float64 and finite: those that are not get confidence 0."""
    found = np.nan_to_num(points.astype(np.float64), nan=0.0, posinf=FAR, neginf=-FAR).clip(-FAR, FAR)
    found[~np.isfinite(points).all(-1), 2] = 0
    return found


class Retargeting:
    """Retarget figures of a driving video, one after the other. The result is in pixels of the character's frame.

    `as_upstream` limits no ratio and no height, glues hands to wrists, and moves the first frame apart from the others
    where the pair was made from another one.
    """

    def __init__(self, pair: Pair, edited: Pair | None = None, as_upstream: bool = False):
        shortest = 0 if as_upstream else SHORTEST
        self.pair, edited = (each and each.sane(shortest) for each in (pair, edited))
        self.ratios = limb_ratios(self.pair, edited, limits=None if as_upstream else RATIOS)
        self.anchor = anchor_of(self.pair, self.ratios, as_upstream)
        self.framing, self.as_upstream = framing(self.pair), as_upstream

    def figures(self, driving: Sequence[Figure]) -> Iterator[Figure]:
        for number, figure in enumerate(driving):
            yield self.figure(figure, is_first=number == 0)

    def figure(self, figure: Figure, is_first: bool = False) -> Figure:
        """Retarget a figure in shares of the driving frame. Points of hands that are not known become NaN."""
        old = pixels(sane(figure.body), self.pair.first_size)
        moved = posed(old, with_short_feet(old, self.ratios, self.as_upstream))
        shift = self.anchor.shift + ((self.jump(moved), 0) if is_first and self.as_upstream else 0)
        new = moved.copy()
        new[:, :2] = (moved[:, :2] - shift) / self.pair.scale
        hands = [sane(points) for points in (figure.right_hand, figure.left_hand)]
        first, second = self.hands(hands, old, new)
        return Figure(new, first, second, figure.face)

    def jump(self, body: np.ndarray) -> float:
        """Tell how far the first frame lies from its anchor: 0 unless the pair has another first frame."""
        places = {"full": body[list(HIPS), 0].mean(), "half": body[NECK, 0], "three_quarter": self.anchor.x}
        return float(places[self.framing] - self.anchor.x)

    def hands(self, hands: list[np.ndarray], old: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
        """Scale hands, the right one first, and move them with their wrists; they keep this order, as upstream's do.

        A right hand whose root is nearer to the left wrist is taken for the left hand, and the other way round.
        """
        size, wrists = self.pair.first_size, (RIGHT_WRIST, LEFT_WRIST)
        growth = max(self.ratios[0], self.ratios[1]) / self.pair.scale
        root = hands[0][0]
        if self.as_upstream and root[2] < KNOWN:
            root = UNKNOWN
        far = [np.linalg.norm(old[wrist, :2] - pixels(root, size)[:2]) for wrist in wrists]
        sides = hands[::-1] if far[0] > far[1] else hands
        if self.as_upstream:
            return [
                glued(hand, root, size, old[wrist], new[wrist], growth)
                for hand, root, wrist in zip(sides, hands, wrists, strict=True)
            ]
        return [
            moved_with(hand, size, old[wrist], new[wrist], growth) for hand, wrist in zip(sides, wrists, strict=True)
        ]


def moved_with(hand: np.ndarray, size: Size, old: np.ndarray, new: np.ndarray, growth: float) -> np.ndarray:
    """Scale a hand about its wrist, and move it with the wrist."""
    result = pixels(hand, size)
    result[:, :2] = new[:2] + (result[:, :2] - old[:2]) * growth
    result[hand[:, 2] < KNOWN] = (np.nan, np.nan, 0)
    return result


def glued(
    hand: np.ndarray, root: np.ndarray, size: Size, old: np.ndarray, new: np.ndarray, growth: float
) -> np.ndarray:
    """Scale a hand about its root; the root of the one before the exchange comes onto the wrist."""
    start = pixels(root[:1], size)[0] if root[0, 2] >= KNOWN else old
    result = hand.copy()
    result[:, :2] = hand[0, :2] + (hand[:, :2] - hand[0, :2]) * growth
    result[:, :2] = np.trunc(result[:, :2] * size + (new - start)[:2])
    result[hand[:, 2] < KNOWN] = (np.nan, np.nan, 0)
    return result

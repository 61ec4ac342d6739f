"""Score videos of puppets that perform: joints, colours, mouths, grounds and borders of clips are read from pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from wan.media import from_uint8, to_uint8
from wan.nano import puppet_videos, puppets
from wan.nano.faces import lab
from wan.nano.puppet_videos import Drawn
from wan.nano.puppets import PARTS, Motion, Puppet
from wan.nano.talking import PERCENT, Measure, border_change

NEAR = 70.0  # RGB distance up to which a pixel has the colour of a part
LEAST = 4  # pixels of a part that is seen
MISSING = 0.5  # error of a part that is not seen, by body height
OPEN, SHUT = 0.9, 0.1  # openings of mouths that are in one state
PLACES = {"head": (1, 0.17), "gloves": (2, 0.08), "shoes": (2, 0.08)}  # how many, and their reach


@dataclass(frozen=True)
class Take:
    """Generated video of a figure, and what it was made from."""

    puppet: Puppet  # of the reference, before the ground that is asked for
    motion: Motion
    frames: np.ndarray  # uint8 [F, H, W, 3]
    borders: tuple[int, ...]  # first frames of the clips but the first
    mask: np.ndarray | None = None  # bool [F, H, W], what is replaced; None: all
    is_swapped: bool = False  # mouth and eyes are those of another face video than the joints'

    def __post_init__(self):
        if len(self.motion) != len(self.frames):
            raise ValueError(f"{len(self.frames)} frames need a motion of as many, got {len(self.motion)}")

    @cached_property
    def truth(self) -> Drawn:
        """The video as it is drawn."""
        return puppet_videos.render(self.puppet, self.motion, self.frames.shape[1])

    @cached_property
    def seen(self) -> np.ndarray:
        """Labels [F, H, W] of the parts that the frames show."""
        return classified(self.puppet, self.frames)


# ---------------------------------------------------------------- joints


def off_joints(take: Take, other: Motion | None = None) -> float:
    """Mean distance of hands, feet and head from where they are, by body height; `other` is another motion (control).

    Hands and feet that the figure hides are left out. Two hands have one colour, and each is the nearer one.
    """
    drawn = take.truth if other is None else puppet_videos.render(take.puppet, other, take.frames.shape[1])
    errors = []
    for name, (count, reach) in PLACES.items():
        label = PARTS.index(name) + 1
        wanted, seen = (places_of(labels == label, count, reach) for labels in (drawn.labels, take.seen))
        errors += [error for pair in zip(wanted, seen, strict=True) for error in _errors(*pair, take.puppet.height)]
    return float(np.mean(errors))


def classified(puppet: Puppet, frames: np.ndarray) -> np.ndarray:
    """Tell the part of each pixel by its colour, as labels [F, H, W]; mixed colours at edges are no part."""
    colours = np.array([*puppet.colours, puppet.eyes, puppet.mouth], np.float32)
    ground = puppet_videos.without_figure(puppet, frames.shape[1]).astype(np.float32)
    video = frames.astype(np.float32)
    apart = np.stack([np.linalg.norm(video - ground, axis=-1), *(np.linalg.norm(video - c, axis=-1) for c in colours)])
    found = np.where(apart.min(0) < NEAR, apart.argmin(0), 0).astype(np.uint8)
    for label in range(1, len(colours) + 1):
        place = found == label
        found[place & (around(place) < 4)] = 0
    return found


def around(place: np.ndarray) -> np.ndarray:
    """Count the pixels of bool [F, H, W] in the 3 x 3 pixels around each."""
    padded = np.pad(place, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    height, width = place.shape[1:]
    return sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))


def places_of(place: np.ndarray, count: int, reach: float) -> list[np.ndarray]:
    """Find the middles of at most `count` like parts in each frame of bool [F, H, W]: [n, 2] as (x, y).

    A part is where most pixels are within `reach`, a share of the frame; single pixels elsewhere do not move it.
    """
    return [_middles((np.argwhere(frame)[:, ::-1] + 0.5) / place.shape[1], count, reach) for frame in place]


def _middles(points: np.ndarray, count: int, reach: float) -> np.ndarray:
    found, least = [], LEAST
    for _ in range(count):
        crowd = (np.linalg.norm(points[:, None] - points[None], axis=-1) < reach).sum(1)
        if crowd.max(initial=0) < least:
            break
        least = max(LEAST, crowd.max() / 4)  # a second one that is much smaller is none
        middle = points[crowd.argmax()]
        for _ in range(2):
            middle = points[np.linalg.norm(points - middle, axis=1) < reach].mean(0)
        found.append(middle)
        points = points[np.linalg.norm(points - middle, axis=1) > 1.5 * reach]
    return np.reshape(found, (-1, 2))


def _errors(wanted: np.ndarray, seen: np.ndarray, height: float) -> list[float]:
    """List the errors of the parts that are wanted, each with the nearest way to tell two apart."""
    if not len(seen):
        return [MISSING] * len(wanted)
    apart = np.linalg.norm(wanted[:, None] - seen[None], axis=-1) / height
    if len(wanted) == 2 == len(seen):
        return min(([apart[0, 0], apart[1, 1]], [apart[0, 1], apart[1, 0]]), key=sum)
    return apart.min(1).tolist()


# ---------------------------------------------------------------- colours


def part_colours(take: Take, frames: slice = slice(None)) -> np.ndarray:
    """Read the colour of each part where it is drawn: Lab, [7, 3]; NaN for a part that is hidden."""
    labels, video = take.truth.labels[frames], take.frames[frames]
    found = np.full((len(PARTS), 3), np.nan)
    for number in range(len(PARTS)):
        place = labels == number + 1
        inner = place & (around(place) > 7)
        place = inner if inner.sum() >= 2 * LEAST else place
        if place.sum() >= 2 * LEAST:
            found[number] = np.median(video[place], axis=0)
    return lab(found)


def right_colours(take: Take, other: Puppet | None = None) -> np.ndarray:
    """Tell of each part that is seen whether its colour is nearer to the reference's than to any other of the world.

    `other` is another figure, for control.
    """
    wanted = lab(np.array((other or take.puppet).colours))
    known = lab(np.array([*puppets.COLOURS.values(), *puppets.SKINS.values()]))
    seen = part_colours(take)
    right = []
    for colour, aim in zip(seen, wanted, strict=True):
        others = known[np.linalg.norm(known - aim, axis=-1) > 20]
        if np.isfinite(colour).all():
            right.append(np.linalg.norm(colour - aim) < np.linalg.norm(others - colour, axis=-1).min())
    return np.array(right)


def drift(take: Take) -> float:
    """Mean Lab difference of the parts' colours in the last clip from those in the first one."""
    first, last = slice(0, min(take.borders, default=None)), slice(max(take.borders, default=0), None)
    return float(np.nanmean(np.linalg.norm(part_colours(take, last) - part_colours(take, first), axis=-1)))


# ---------------------------------------------------------------- mouths, grounds


def opening(take: Take) -> np.ndarray:
    """Read how open the mouth is, [F] in about 0..1: from the dark red below the middle of the head."""
    skin, mouth = (np.array(c, np.float32) for c in (take.puppet.colours[PARTS.index("head")], take.puppet.mouth))
    line = mouth - skin
    values = []
    for motion in (take.motion, replace(take.motion, mouth=np.zeros_like(take.motion.mouth)),
                   replace(take.motion, mouth=np.ones_like(take.motion.mouth))):  # fmt: skip
        drawn = puppet_videos.render(take.puppet, motion, take.frames.shape[1])
        if motion is take.motion:
            place = _below_eyes(take)
            drawn = replace(drawn, video=take.frames)
        share = ((drawn.video.astype(np.float32) - skin) @ line / (line @ line)).clip(0, 1)
        values.append((share * place).sum(axis=(1, 2)))
    seen, shut, wide = values
    return (seen - shut) / np.maximum(wide - shut, 1e-6)


def _below_eyes(take: Take) -> np.ndarray:
    """Place of the mouth and its surroundings in the face: bool [F, H, W]."""
    wide = replace(take.motion, mouth=np.ones_like(take.motion.mouth))
    mouth = puppet_videos.render(take.puppet, wide, take.frames.shape[1]).labels == puppets.MOUTH
    face = np.isin(take.truth.labels, (PARTS.index("head") + 1, puppets.MOUTH))
    return puppet_videos.grown(mouth, 1, "grown") & face


def right_mouths(take: Take, other: np.ndarray | None = None) -> np.ndarray:
    """Tell of each frame whose mouth is fully open or shut whether it is seen so; `other` are other openings [F]."""
    wanted = take.motion.mouth if other is None else other
    clear = (wanted > OPEN) | (wanted < SHUT)
    return ((opening(take) > 0.5) == (wanted > 0.5))[clear]


def ground_psnr(take: Take) -> float:
    """PSNR in dB of what is not replaced, against the ground; NaN where all is."""
    if take.mask is None:
        return float("nan")
    wanted = puppet_videos.without_figure(take.puppet, take.frames.shape[1]).astype(np.float64)
    error = np.square(take.frames - wanted)[~take.mask].mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


# ---------------------------------------------------------------- the table


def _plain(takes: Sequence[Take]) -> list[Take]:
    return [take for take in takes if not take.is_swapped]


def _mean(score: Callable[[Take], np.ndarray | float], takes: Sequence[Take]) -> float:
    """Mean of what is read from each video, without NaN; NaN without any."""
    values = [value for take in takes for value in np.ravel(score(take)) if np.isfinite(value)]
    return float(np.mean(values)) if values else float("nan")


def _others(score: Callable[[Take, Take], np.ndarray | float], takes: Sequence[Take]) -> float:
    """Mean of a score of every video with what belongs to the next one."""
    following = {id(take): takes[(n + 1) % len(takes)] for n, take in enumerate(takes)}
    return _mean(lambda take: score(take, following[id(take)]), takes)


MEASURES: dict[str, Measure] = {
    "hands, feet and head off their places": Measure(
        lambda takes: _mean(off_joints, _plain(takes)), "<= 8 %", lambda v: v <= 0.08, PERCENT
    ),
    "... off another driver's (control)": Measure(
        lambda takes: _others(lambda a, b: off_joints(a, b.motion), _plain(takes)),
        "above 20 %",
        lambda v: v > 0.2,
        PERCENT,
    ),
    "colours of parts are the reference's": Measure(
        lambda takes: _mean(right_colours, takes), ">= 90 %", lambda v: v >= 0.9, PERCENT
    ),
    "... another reference's (control)": Measure(
        lambda takes: _others(lambda a, b: right_colours(a, b.puppet), _plain(takes)),
        "below 40 %",
        lambda v: v < 0.4,
        PERCENT,
    ),
    "mouth follows the face video": Measure(
        lambda takes: _mean(right_mouths, _plain(takes)), ">= 85 %", lambda v: v >= 0.85, PERCENT
    ),
    "... another's face video (control)": Measure(
        lambda takes: _others(lambda a, b: right_mouths(a, b.motion.mouth), _plain(takes)),
        "below 70 %",
        lambda v: v < 0.7,
        PERCENT,
    ),
    "mouth follows a swapped face video": Measure(
        lambda takes: _mean(right_mouths, [t for t in takes if t.is_swapped]), ">= 85 %", lambda v: v >= 0.85, PERCENT
    ),
    "... joints off while it does": Measure(
        lambda takes: _mean(off_joints, [t for t in takes if t.is_swapped]), "<= 8 %", lambda v: v <= 0.08, PERCENT
    ),
    "replacement: background outside the mask": Measure(
        lambda takes: _mean(ground_psnr, takes), ">= 25 dB", lambda v: v >= 25, "{:.1f} dB"
    ),
    "colours drift from first to last clip (Lab)": Measure(lambda takes: _mean(drift, takes), "<= 3", lambda v: v <= 3),
    "change at borders of clips": Measure(border_change, "<= 1.5 x", lambda v: v <= 1.5, "{:.2f} x"),
}


def table(takes: Sequence[Take]) -> dict[str, float]:
    """Compute every measure."""
    return {name: measure.value(takes) for name, measure in MEASURES.items()}


def through(reconstruct: Callable[[Tensor], Tensor], takes: Sequence[Take]) -> list[Take]:
    """Draw the same videos and send them through `reconstruct`, [3, F, H, W] in [-1, 1] to the same."""
    videos = (from_uint8(torch.from_numpy(take.truth.video)).transpose(0, 1) for take in takes)
    return [
        replace(take, frames=to_uint8(reconstruct(video)).numpy()) for take, video in zip(takes, videos, strict=True)
    ]


def markdown(values: Mapping[str, float], alone: Mapping[str, float]) -> str:
    """Make a table of measures, targets, the values of a run and those of the autoencoder alone."""
    lines = ["| measure | target | measured | autoencoder alone | |", "| --- | ---: | ---: | ---: | --- |"]
    for name, measure in MEASURES.items():
        shown = [measure.unit.format(of[name]) for of in (values, alone)]
        verdict = "" if measure.reached(values[name]) else "missed"
        lines.append(f"| {name} | {measure.target} | {' | '.join(shown)} | {verdict} |")
    return "\n".join(lines) + "\n"

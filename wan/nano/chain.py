"""The whole way from a video and a picture to an animation, on puppets: what preprocessing costs the generator.

A grey figure with coloured joints is filmed, preprocessed by the stand-in networks, and performed by a coloured one.
The same video is made from perfect inputs too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from wan.animate import WanAnimate
from wan.media import write_video
from wan.modules.animate.preprocess.backends import OwnMasks
from wan.modules.animate.preprocess.folder import POINTS
from wan.modules.animate.preprocess.keypoints import figure_of
from wan.modules.animate.preprocess.plan import Plan, Settings
from wan.modules.animate.preprocess.stage import Stage
from wan.modules.animate.preprocess.whole_body import WholeBody
from wan.nano import acting, acts, puppet_videos, puppets
from wan.nano.acting import Take
from wan.nano.acts import Act
from wan.nano.standins import all_points
from wan.performance import FolderFootage, Performance

SIZE = 256  # pixels of the driver's video
MARKERS = 0.022  # radius of its joints, which the stand-ins see from 2 % of a figure on
GROWTH = {"iterations": 1, "k": 7, "w_len": 8, "h_len": 8}  # of masks, as in the generator's world
CLOSE = 40.0  # RGB distance up to which a pixel is that of the ground
OFF, POINTS_LOST = 0.04, 0.10  # that preprocessing may cost: of the body's height, and of a share
TRUE = 0.02  # of the figure's height, that key points may be off
JOINTS = "hands, feet and head off their places"


@dataclass(frozen=True)
class Pair:
    """Video made through preprocessing and from perfect inputs, and how far the key points were off."""

    chained: Take
    perfect: Take
    off_points: float  # of the figure's height


def draw_acts(count: int, seed: int, frames: int) -> Iterator[Act]:
    """Draw acts whose drivers the stand-ins see: all greys but for their joints; every second one is replaced."""
    rng = np.random.default_rng([seed, 7])
    for act in acts.draw_acts(count, seed, frames):
        driver = puppets.shaped_as(puppets.sample_puppet(rng, is_grey=True), act.puppet)
        puppet = puppets.in_front_of(act.puppet, driver) if act.is_replaced else act.puppet
        yield replace(act, puppet=puppet, driver=driver, markers=MARKERS)


def perform(pipeline: WanAnimate, act: Act, seed: int, folder: Path, **settings: Any) -> Pair:
    """Make the video of an act in both ways; `settings` are those of a request."""
    perfect = acts.perform(pipeline, act, seed, **settings)
    made = preprocessed(act, folder, WholeBody(Path(pipeline.checkpoint_dir) / "process_checkpoint"))
    chained = acts.generate(pipeline, act, Performance.of(made), seed, **settings)
    mask = FolderFootage(made).mask.take(range(len(act.motion)))[..., 0] > 127 if act.is_replaced else None
    return Pair(replace(chained, mask=mask), perfect, off_points(act, made))


def preprocessed(act: Act, folder: Path, networks: WholeBody) -> Path:
    """Film the driver and preprocess that; in replacement the world's masks are given. Returns the folder."""
    drawn = puppet_videos.render(act.driver, act.wanted, SIZE, markers=act.markers)
    video, picture, masks = (folder / name for name in ("driver.mp4", "character.png", "masks.mp4"))
    write_video(drawn.video, video, puppets.FPS, overwrite=True)
    Image.fromarray(act.reference).save(picture)
    area, growth = act.reference.shape[0] * act.reference.shape[1], GROWTH if act.is_replaced else {}
    settings = Settings(
        str(video), str(picture), folder / "performance", area, Fraction(-1), replaces=act.is_replaced, **growth
    )
    segmenter = None
    if act.is_replaced:
        of_figure = puppet_videos.render(act.puppet, act.wanted, SIZE).mask
        write_video(np.repeat(of_figure[..., None] * np.uint8(255), 3, axis=-1), masks, puppets.FPS, overwrite=True)
        segmenter = OwnMasks(str(masks), Plan.of(settings).driving)
    return Stage(settings, networks, networks.identity, segmenter).run()


def off_points(act: Act, folder: Path) -> float:
    """Mean distance of the body's key points of a folder from the truth, by the figure's height."""
    with safe_open(folder / POINTS, "np") as file:
        found = file.get_tensor("points")
    side = SIZE if not act.is_replaced else act.reference.shape[0]
    places = puppets.joints(act.driver, act.motion)[:, list(puppets.MARKERS)]
    errors = []
    for points, joints in zip(found, places, strict=True):
        true = np.concatenate([all_points(joints), np.ones((133, 1))], axis=1)
        seen, wanted = figure_of(points, (side, side)).body, figure_of(true, (1, 1)).body
        errors.append(np.linalg.norm(seen[:, :2] - wanted[:, :2], axis=1))
    return float(np.mean(errors) / act.driver.height)


# ---------------------------------------------------------------- the table


def right_ground(take: Take) -> float:
    """Share of the pixels around the figure that have the colour of the ground."""
    place = puppet_videos.grown(take.truth.mask, acts.GROWN, "cells") if take.mask is None else take.mask
    ground = puppet_videos.without_figure(take.puppet, take.frames.shape[1]).astype(np.float32)
    near = np.linalg.norm(take.frames - ground, axis=-1) < CLOSE
    return float(near[~place].mean())


def table(pairs: Sequence[Pair]) -> dict[str, tuple[float, float]]:
    """Compute each measure of the videos made through preprocessing, and of those from perfect inputs."""
    groups = [pair.chained for pair in pairs], [pair.perfect for pair in pairs]
    both = {name: tuple(acting.MEASURES[name].value(takes) for takes in groups) for name in MEASURED}
    grounds = tuple(float(np.mean([right_ground(take) for take in takes])) for takes in groups)
    return both | {"background as it was": grounds, "key points off the truth": (off(pairs), 0.0)}


def off(pairs: Sequence[Pair]) -> float:
    return float(np.mean([pair.off_points for pair in pairs]))


MEASURED = (
    JOINTS,
    "... off another driver's (control)",
    "colours of parts are the reference's",
    "... another reference's (control)",
    "mouth follows the face video",
    "... another's face video (control)",
)


def limit(name: str, perfect: float) -> float:
    """The worst value that is allowed through preprocessing; for controls the target of the generator."""
    if "control" in name:
        return perfect
    return TRUE if name.startswith("key") else perfect + OFF if name == JOINTS else perfect - POINTS_LOST


def reached(name: str, chained: float, perfect: float) -> bool:
    """Tell whether a measure stays within its limit; a control must fail as it does without preprocessing."""
    if "control" in name:
        return acting.MEASURES[name].reached(chained)
    return (
        chained <= limit(name, perfect) if name == JOINTS or name.startswith("key") else chained >= limit(name, perfect)
    )


def markdown(values: Mapping[str, tuple[float, float]]) -> str:
    """Make a table of measures, from a video and a picture, and from perfect inputs."""
    lines = [
        "| measure | from perfect inputs | limit | through preprocessing | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, (chained, perfect) in values.items():
        target = acting.MEASURES[name].target if "control" in name else f"{limit(name, perfect):.1%}"
        verdict = "" if reached(name, chained, perfect) else "missed"
        lines.append(f"| {name} | {perfect:.1%} | {target} | {chained:.1%} | {verdict} |")
    return "\n".join(lines) + "\n"

"""Videos of puppets that perform, made by a pipeline from drawn figures and motions, to be scored by `acting`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wan.animate import WanAnimate, clips_of
from wan.media import read_video, to_uint8, write_video
from wan.nano import puppet_videos, puppets
from wan.nano.acting import Take
from wan.nano.pictures import film_strip
from wan.nano.puppets import Motion, Puppet
from wan.performance import BACKGROUND, FACE, MASK, POSE, REFERENCE, FolderFootage, Footage
from wan.request import Request

GROWN = 3  # pixels around a figure that are replaced too, and then the rest of cells of 8 pixels


@dataclass(frozen=True)
class Act:
    """Figure and motion that a video is asked of."""

    puppet: Puppet
    reference: np.ndarray  # uint8 [H, W, 3]
    motion: Motion
    face: Motion  # of the face video: its mouth and its eyes, which may be those of another video
    driver: Puppet  # who is seen in it
    markers: float  # radius of coloured joints on the driver
    is_replaced: bool  # the figure takes somebody's place

    @property
    def wanted(self) -> Motion:
        """The motion that is asked for."""
        return replace(self.motion, mouth=self.face.mouth, eyes=self.face.eyes)

    def swapped(self, other: Act) -> Act:
        """Take the face video of another act."""
        return replace(self, face=other.face, driver=other.driver, markers=other.markers)


@dataclass(frozen=True)
class Still:
    """Frames in memory, as a performance has them."""

    video: np.ndarray  # uint8 [F, H, W, 3]

    def __len__(self) -> int:
        return len(self.video)

    def take(self, numbers: Sequence[int]) -> np.ndarray:
        return self.video[list(numbers)]


def draw_acts(count: int, seed: int, frames: int) -> Iterator[Act]:
    """Draw figures and motions that are not trained on; every second figure takes the place of another one."""
    rng = np.random.default_rng([seed, 6])
    for index in range(count):
        puppet, is_replaced = puppets.sample_puppet(rng), index % 2 == 1
        reference = puppet_videos.render(puppet, puppets.rest(rng)).video[0]
        driver = puppets.shaped_as(puppets.sample_puppet(rng, is_grey=rng.random() < 0.5), puppet)
        motion = puppets.sample_motion(rng, frames)
        shown = puppets.in_front_of(puppet, driver) if is_replaced else puppet
        yield Act(shown, reference, motion, motion, driver, float(rng.choice((0, 0.016))), is_replaced)


def perform(pipeline: WanAnimate, act: Act, seed: int, **settings: Any) -> Take:
    """Make the video of an act; `settings` are those of a request."""
    footage = footage_of(act)
    take = generate(pipeline, act, footage, seed, **settings)
    return replace(take, mask=footage.mask.video[..., 0] > 0) if act.is_replaced else take


def generate(pipeline: WanAnimate, act: Act, performance: Any, seed: int, **settings: Any) -> Take:
    """Make the video of an act from a performance of it."""
    given = {"performance": performance, "replace_flag": act.is_replaced, "seed": seed, "noise_device": "cpu"}
    request = Request.create(pipeline.config, **given, **settings)
    frames = to_uint8(pipeline.video(request)).numpy()
    borders = tuple(numbers.start + request.refert_num for numbers in clips_of(request)[1:])
    return Take(act.puppet, act.wanted, frames, borders, is_swapped=act.face is not act.motion)


def footage_of(act: Act) -> Footage:
    """Draw what preprocessing makes of the driver's video."""
    places = puppets.joints(act.driver, act.face)
    box = puppets.face_box(act.driver, act.face, places)
    face = puppet_videos.render(act.driver, act.face, 2 * puppets.FACE_SIZE, box, act.markers).video
    pose = puppet_videos.pose_video(act.puppet, act.motion)
    if not act.is_replaced:
        return Footage(Still(pose), Still(face), act.reference)
    mask = puppet_videos.grown(puppet_videos.render(act.puppet, act.motion).mask, GROWN, "cells")
    ground = puppet_videos.without_figure(act.puppet) * ~mask[..., None]
    white = np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1)
    return Footage(Still(pose), Still(face), act.reference, Still(ground), Still(white))


def write_folder(act: Act, folder: Path, fps: float = puppets.FPS) -> Path:
    """Write the performance of an act as preprocessing writes it; returns the folder."""
    from PIL import Image

    footage = footage_of(act)
    videos = {POSE: footage.pose, FACE: footage.face, BACKGROUND: footage.background, MASK: footage.mask}
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in videos.items():
        if frames is not None:
            write_video(frames.video, folder / name, fps, overwrite=True)
    Image.fromarray(footage.reference).save(folder / REFERENCE)
    return folder


def draw_strip(video: str | Path, performance: str | Path, picture: str | Path) -> None:
    """Draw a video below the skeleton, the face and, if it has one, the background of its performance, as PNG."""
    given = FolderFootage(Path(performance))
    frames, _ = read_video(video)
    films = [given.pose, given.face, *([given.background] if (Path(performance) / BACKGROUND).exists() else [])]
    rows = [(None, film.take(range(len(frames)))) for film in films]
    film_strip([*rows, (given.reference, frames.numpy())], picture)

"""Folder of the stage: the files that it may hold, and the description of what they were made from."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from wan import audio, media
from wan.files import read_json, shown
from wan.geometry import format_size
from wan.inputs import SPEECH_RATE, Picture
from wan.modules.animate.preprocess.keypoints import FACE_SIDE
from wan.modules.animate.preprocess.plan import Plan
from wan.modules.animate.preprocess.scaling import Rect
from wan.modules.animate.preprocess.source import Driving
from wan.modules.animate.preprocess.track import FILE as POINTS, Track
from wan.performance import BACKGROUND, DESCRIPTION, FACE, MASK, MAX_DESCRIPTION_BYTES, POSE, REFERENCE
from wan.values import called
from wan.version import VERSION

log = logging.getLogger(__name__)

PREVIEW = "preview.mp4"
EDITED = ("refer_edit.png", "tpl_edit.png")
KEY = "wan_made_from"  # tag of kept masks
KEPT = (POINTS, "character.safetensors", "person.mp4")  # what networks found: of the person, the character; its masks
CHARACTER, PERSON = KEPT[1:]
MADE = (POSE, DESCRIPTION, FACE, REFERENCE, BACKGROUND, MASK, PREVIEW, *EDITED)  # the first two tell a finished folder


def check_folder(folder: Path, driving: Driving, picture: Picture, overwrite: bool) -> None:
    """Refuse a folder that holds the performance of other inputs, or that an input lies in.

    Raises ValueError and FileExistsError.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{shown(folder)} is a file; choose another {called('save_path')}")
    ours = {os.path.realpath(folder / name) for name in (*MADE, *KEPT)}
    for name, path in (("video_path", driving.film.path), ("refer_path", picture.path)):
        if os.path.realpath(path) in ours:
            raise ValueError(
                f"{called(name)} {shown(path)} is one of the files that are written; copy it elsewhere, or choose "
                f"another {called('save_path')}"
            )
    if overwrite or not (folder / POSE).exists():  # without it nothing in there is finished
        return
    try:
        before = read_json(folder / DESCRIPTION, MAX_DESCRIPTION_BYTES)
        made_from, what = (before["source"]["sha256"], before["picture"]["sha256"]), "of another video or picture"
    except (ValueError, OSError, KeyError, TypeError):
        made_from, what = None, f"of an unknown video and picture ({DESCRIPTION} is missing or damaged)"
    if made_from != (driving.film.sha256, picture.sha256):
        raise FileExistsError(
            f"{shown(folder)} holds the performance {what}; choose another {called('save_path')}, or replace it with "
            "--overwrite"
        )


def clear(folder: Path, replaced: Collection[str]) -> None:
    """Remove what an earlier run made, but for files that are `replaced` in one step: they may be read meanwhile."""
    for name in MADE:
        if name not in replaced:
            (folder / name).unlink(missing_ok=True)


def describe(
    plan: Plan, track: Track, parts: Sequence[Rect], networks: str, packages: Sequence[str], warnings: list[str]
) -> dict[str, Any]:
    """List what a folder was made from, and how. `packages` ran networks."""
    settings, driving = plan.settings, plan.driving
    source = seen_from(settings.folder, settings.video)
    sound = {"path": source, "start": driving.start, "length": driving.length}
    left_out = ("video", "picture", "folder", "overwrite")
    return {
        "rate": str(driving.rate),
        "source": {"path": source, "sha256": driving.film.sha256, "size": format_size(driving.size)},
        "picture": {"path": seen_from(settings.folder, settings.picture), "sha256": plan.character.sha256},
        "sound": sound if has_sound(driving) else None,
        "sizes": {
            "pose": format_size(plan.pose_size),
            "frame": format_size(plan.size),
            "face": format_size((FACE_SIDE, FACE_SIDE)),
        },
        "settings": {name: value for name, value in asdict(settings).items() if name not in left_out}
        | {"fps": str(settings.fps)},
        "frames": list(driving.numbers),
        "boxes": np.round(track.boxes.astype(float), 2).tolist(),
        "faces": [list(map(int, part)) for part in parts],
        "confidence": np.round(track.points[:, :17, 2].mean(axis=1).astype(float), 3).tolist(),
        "missing": track.missing,
        "networks": networks,
        "versions": {"wan": VERSION} | {name: version(name) for name in packages},
        "warnings": warnings,  # the last: the others may add to them
    }


def has_sound(driving: Driving) -> bool:
    """Tell whether the part of the video that is used has a sound. One that is damaged is named in a warning."""
    path = driving.film.path
    if not audio.has_sound(path):
        return False
    try:
        return sum(map(len, audio.sound_chunks(path, SPEECH_RATE))) > driving.start * SPEECH_RATE
    except (ValueError, OSError) as error:
        log.warning("the sound of the video cannot be used, and the folder names none: %s", shown(error))
        return False


def has_masks(path: Path, key: str, count: int) -> bool:
    """Tell whether an earlier run kept the masks of so many frames that were made from the same."""
    if not path.is_file():
        return False
    try:
        return media.read_metadata(path).get(KEY) == key and media.written(path)[0] == count
    except (ValueError, OSError):
        log.warning("%s cannot be read; the masks are made again", shown(path))
        return False


def version(package: str) -> str:
    """Version of a package that ran: of the module, as a distribution may have another name."""
    return str(getattr(sys.modules.get(package), "__version__", "unknown"))


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the warnings that are logged within the block."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    ours = logging.getLogger("wan")
    ours.addHandler(handler)
    try:
        yield texts
    finally:
        ours.removeHandler(handler)


def seen_from(folder: Path, path: str) -> str:
    """Write a path as it is seen from a folder."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))

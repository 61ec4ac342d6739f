"""Stage of preprocessing: from a driving video and a picture to the folder of a performance."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wan import media
from wan.files import atomic_file, check_writable, parse_json, shown, sweep
from wan.geometry import Size, format_size
from wan.inputs import SPEECH_RATE, Picture, file_digest
from wan.letterbox import letterbox
from wan.modules.animate.preprocess import masks, skeleton
from wan.modules.animate.preprocess.editing import instruction
from wan.modules.animate.preprocess.frames import resize_to_area, size_of_area
from wan.modules.animate.preprocess.joints import CERTAIN
from wan.modules.animate.preprocess.keypoints import FACE_SIDE, Figure, face_picture
from wan.modules.animate.preprocess.people import Choice
from wan.modules.animate.preprocess.preview import Preview
from wan.modules.animate.preprocess.retarget import Pair, Retargeting, is_frontal
from wan.modules.animate.preprocess.source import Driving
from wan.modules.animate.preprocess.track import FILE as POINTS_FILE, Estimator, Track, estimate, face_parts
from wan.performance import BACKGROUND, DESCRIPTION, FACE, MASK, POSE, REFERENCE
from wan.values import called
from wan.version import VERSION

log = logging.getLogger(__name__)

FAST = {"preset": "superfast"}  # coding takes most of the time
EXACT = {"crf": "0", "preset": "superfast"}  # black and white come back as they are
WAITING = 2  # frames that wait to be coded
LONGEST_SIDE, MOST_PIXELS = 16_384, 8192 * 4352  # of H.264
PREVIEW = "preview.mp4"
EDITED = ("refer_edit.png", "tpl_edit.png")
OURS = (POSE, FACE, REFERENCE, BACKGROUND, MASK, DESCRIPTION, POINTS_FILE, PREVIEW, *EDITED)


class Segmenter(Protocol):
    """Network, or file, that finds the masks of the person."""

    def describe(self) -> str:
        """Name it in a line."""

    def masks(
        self, frames: Iterator[np.ndarray], clicks: Callable[[int], tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 [H, W] of 0 and 1; `clicks` gives places and labels for a frame."""


class Editor(Protocol):
    """Network that changes pictures by instructions."""

    def edit(self, picture: np.ndarray, kind: str) -> np.ndarray:
        """Change a picture, uint8 [h, w, 3], by a kind of `editing.INSTRUCTIONS`; the result may have another size."""


@dataclass(frozen=True)
class Settings:
    """Settings of the stage, as the flags of the command say. `area` is in pixels."""

    video: str
    picture: str
    folder: Path
    area: int = 1280 * 720
    fps: Fraction | int = 30
    start: float = 0.0
    length: float | None = None
    retargets: bool = False
    edits: bool = False
    replaces: bool = False
    iterations: int = 3
    k: int = 7
    w_len: int = 1
    h_len: int = 1
    person: Choice = None
    as_upstream: bool = False
    preview: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError for values that cannot be, and log those that have no effect."""
        for name, value in (("k", self.k), ("w_len", self.w_len), ("h_len", self.h_len)):
            if value < 1:
                raise ValueError(f"{called(name)} must be at least 1, got {value}; try {getattr(Settings, name)}")
        if self.iterations < 0:
            raise ValueError(f"{called('iterations')} must be 0 or more, got {self.iterations}; try 3")
        if self.area < 16 * 16:
            raise ValueError(f"{called('resolution_area')} has {self.area} pixels; try 1280 720")
        if isinstance(self.person, int) and self.person < 1:
            raise ValueError(f"{called('person')} counts from 1, from left to right, got {self.person}")
        if self.edits and not self.retargets:
            raise ValueError(f"{called('use_flux')} needs {called('retarget_flag')}; add it, or leave it out")
        if self.retargets and self.replaces:
            log.warning(
                "%s has no effect with %s: the character stands where the person stands",
                called("retarget_flag"),
                called("replace_flag"),
            )
        if not self.replaces:
            changed = [
                name for name in ("iterations", "k", "w_len", "h_len") if getattr(self, name) != getattr(Settings, name)
            ]
            if changed:
                names = ", ".join(map(called, changed))
                log.warning("%s has no effect without %s", names, called("replace_flag"))

    @property
    def has_retargeting(self) -> bool:
        return self.retargets and not self.replaces


@dataclass
class Stage:
    """Run of the stage. `networks` identifies the files that find points."""

    settings: Settings
    estimator: Estimator
    networks: str = ""
    segmenter: Segmenter | None = None
    editor: Editor | None = None
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Path:
        """Write the folder; returns it. Raises ValueError, OSError; the folder then has nothing that looks finished."""
        settings = self.settings
        driving = Driving.of(settings.video, settings.fps, settings.start, settings.length, settings.as_upstream)
        picture = Picture.of(settings.picture, "refer_path")
        plan = Plan(settings, driving, np.asarray(picture.pixels))
        plan.check()
        check_folder(settings.folder, driving, picture, settings.overwrite)
        check_writable(settings.folder / DESCRIPTION, overwrite=True, other=called("save_path"))
        sweep(settings.folder)
        log.info("%s", self.estimator.describe())
        log.info(
            "%s: %s of %s at %s fps", shown(settings.video), len(driving), driving.film.frames, float(driving.rate)
        )
        track = self.track(plan)
        figures = track.figures(plan.size)
        if not any((figure.body[:, 2] >= CERTAIN).any() for figure in figures):
            raise ValueError(
                f"no joint of the person is certain in any of the {len(figures)} frames, and nothing would be drawn; "
                "choose a video in which the person is larger or clearer"
            )
        retargeting = self.retargeting(plan, figures) if settings.has_retargeting else None
        self.write(plan, track, figures, poses(plan, figures, retargeting), picture)
        return settings.folder

    def track(self, plan: Plan) -> Track:
        """Find the points of the person in all frames, or read those that an earlier run kept."""
        settings, path = self.settings, self.settings.folder / POINTS_FILE
        values = [plan.driving.film.sha256, plan.driving.numbers, self.networks, settings.person, settings.as_upstream]
        key = json.dumps([*values, plan.size if settings.replaces else None])
        track = Track.load(path, key, len(plan.driving))
        if track is None:
            track = estimate(plan.frames(), self.estimator, plan.person, settings.as_upstream)
            track.save(path, key)
        else:
            log.info("the key points of an earlier run are used: %s", shown(path))
        return track

    def retargeting(self, plan: Plan, figures: list[Figure]) -> Retargeting:
        """Compare the figures of the first frame and of the character, perhaps in edited pictures."""
        character = self.figure_of(plan.picture)
        pair = Pair(figures[0].body, plan.size, character.body, plan.pose_size)
        people = {"person in the first frame": (pair.first, plan.size), "character": (pair.character, plan.pose_size)}
        for who, (body, size) in people.items():
            if not is_frontal(body, size):
                flag = called("retarget_flag")
                self.warn(
                    f"the {who} does not face the camera, so that limbs seem short; try another part, or no {flag}"
                )
        edited = None
        if self.settings.edits:
            bodies = np.stack([figure.body for figure in figures])
            number = min(1, len(figures) - 1) if self.settings.as_upstream else 0
            frame = next(islice(plan.frames(), number, None))
            drawn = []
            for name, original in zip(EDITED, (plan.picture, frame), strict=True):
                size = original.shape[1::-1]
                changed = letterbox(self.editor.edit(original, instruction(bodies, size)), *reversed(size))
                media.save_image(changed, self.settings.folder / name)
                drawn.append(self.figure_of(changed).body)
            edited = Pair(drawn[1], plan.size, drawn[0], plan.pose_size)
        return Retargeting(pair, edited, self.settings.as_upstream)

    def figure_of(self, picture: np.ndarray) -> Figure:
        """Find the figure of a picture. Raises ValueError when nobody is in it."""
        track = estimate([picture], self.estimator, as_upstream=self.settings.as_upstream)
        return track.figures(picture.shape[1::-1])[0]

    def write(
        self, plan: Plan, track: Track, figures: list[Figure], poses: Iterator[np.ndarray], picture: Picture
    ) -> None:
        """Write all files of the folder; the pose video and the description appear last."""
        settings, folder, rate = self.settings, self.settings.folder, plan.driving.rate
        parts = list(face_parts(figures, plan.size, settings.as_upstream))
        for name in (DESCRIPTION, POSE):  # what is there is not finished any more
            (folder / name).unlink(missing_ok=True)
        with atomic_file(folder / REFERENCE, overwrite=True) as temporary:
            picture.pixels.save(temporary, "PNG")
        with ExitStack() as files:

            def opened(name: str, options: dict[str, str]) -> Callable[[np.ndarray], None]:
                add = files.enter_context(media.video_writer(folder / name, rate, overwrite=True, **options))
                return files.enter_context(behind(add))

            add_pose, add_face = opened(POSE, FAST), opened(FACE, FAST)
            if settings.replaces:
                add_background, add_mask = opened(BACKGROUND, FAST), opened(MASK, EXACT)
            add_preview = opened(PREVIEW, FAST) if settings.preview else None
            found = self.masks(plan, track, figures) if settings.replaces else repeat(None)
            # masks come first, because their end has something to say
            for mask, frame, pose, part, figure in zip(found, plan.frames(), poses, parts, figures):
                face = face_picture(frame, part)
                add_pose(pose)
                add_face(face)
                if mask is not None:
                    add_background(masks.without(frame, mask))
                    add_mask(mask * np.uint8(255))
                if add_preview is not None:
                    add_preview(Preview.of(frame, figure, face, pose, mask))
        self.describe(plan, track, parts)

    def masks(self, plan: Plan, track: Track, figures: list[Figure]) -> Iterator[np.ndarray]:
        """Yield the grown masks of all frames; where the person vanishes, that of the frame before, else the first."""
        settings = self.settings

        def clicks(number: int) -> tuple[np.ndarray, np.ndarray]:
            return masks.clicks(figures[number].body, plan.size, track.others[number], settings.as_upstream)

        growth = settings.iterations, settings.k, settings.w_len, settings.h_len
        before, empty = None, []
        for number, mask in enumerate(self.segmenter.masks(plan.frames(), clicks)):
            if not mask.any():
                empty.append(number)
                if before is not None:
                    yield before
                continue
            is_first, before = before is None, masks.shaped(mask, *growth)
            yield from [before] * (number + 1 if is_first else 1)
        if before is None:
            raise ValueError("the masks of all frames are empty: nobody would be replaced; try --masks with your own")
        if empty:
            self.warn(
                f"in {len(empty)} frames the person had no mask, and that of the frame before it, or the first one, is "
                f"used: {listed(empty)}"
            )

    def describe(self, plan: Plan, track: Track, parts: list[Any]) -> None:
        """Write the description: what the folder was made from, and how."""
        settings, driving = self.settings, plan.driving
        source = seen_from(settings.folder, settings.video)
        sound = {"path": source, "start": driving.start, "length": driving.length}
        values = {
            "rate": str(driving.rate),
            "source": {
                "path": source,
                "sha256": driving.film.sha256,
                "size": format_size(driving.size),
            },
            "picture": {"path": seen_from(settings.folder, settings.picture), "sha256": file_digest(settings.picture)},
            "sound": sound if self.has_sound(driving) else None,
            "sizes": {
                "pose": format_size(plan.pose_size),
                "frame": format_size(plan.size),
                "face": format_size((FACE_SIDE, FACE_SIDE)),
            },
            "settings": {
                name: value for name, value in asdict(settings).items() if name not in ("video", "picture", "folder")
            }
            | {"fps": str(settings.fps)},
            "frames": list(driving.numbers),
            "boxes": np.round(track.boxes.astype(float), 2).tolist(),
            "faces": [list(map(int, part)) for part in parts],
            "confidence": np.round(np.nanmean(track.points[:, :17, 2], axis=1).astype(float), 3).tolist(),
            "missing": track.missing,
            "warnings": self.warnings,
            "networks": self.networks,
            "versions": {"wan": VERSION},
        }
        with atomic_file(settings.folder / DESCRIPTION, overwrite=True) as temporary:
            temporary.write_text(json.dumps(values), "utf-8")  # ASCII: names may have bytes of no letter

    def has_sound(self, driving: Driving) -> bool:
        """Tell whether the part of the video that is used has a sound. One that is damaged is named in a warning."""
        path = driving.film.path
        if not media.has_sound(path):
            return False
        try:
            return sum(map(len, media.sound_chunks(path, SPEECH_RATE))) > driving.start * SPEECH_RATE
        except (ValueError, OSError) as error:
            self.warn(f"the sound of the video cannot be used, and the folder names none: {shown(error)}")
            return False

    def warn(self, text: str) -> None:
        """Log a warning, and keep it for the description."""
        log.warning("%s", text)
        self.warnings.append(text)


@dataclass(frozen=True)
class Plan:
    """Sizes of a run: the picture gets the area that was asked, and in replacement the frames do."""

    settings: Settings
    driving: Driving
    original: np.ndarray

    def check(self) -> None:
        """Refuse sizes that no video can have, and a person outside the video. Raises ValueError."""
        width, height = self.pose_size
        person, within = self.settings.person, self.driving.size
        if isinstance(person, tuple) and not all(0 <= place < side for place, side in zip(person, within, strict=True)):
            raise ValueError(
                f"{called('person')} is a point of the first frame, which has {format_size(within)} pixels, got "
                f"{person[0]:g},{person[1]:g}"
            )
        if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
            raise ValueError(
                f"a video of {format_size((width, height))} cannot be written: H.264 has at most {LONGEST_SIDE} pixels "
                f"in a side, and {MOST_PIXELS} in all; choose a smaller {called('resolution_area')}, or crop "
                f"{called('video_path' if self.settings.replaces else 'refer_path')}"
            )

    @property
    def person(self) -> Choice:
        """Choice of the person, a point in pixels of `size`; the user gives it in those of the video."""
        person = self.settings.person
        if not isinstance(person, tuple):
            return person
        x, y = (place * new / old for place, new, old in zip(person, self.size, self.driving.size, strict=True))
        return x, y

    @property
    def picture(self) -> np.ndarray:
        """Picture of the character in the size of the pose video, uint8 [H, W, 3]."""
        return resize_to_area(self.original, self.settings.area)

    @property
    def size(self) -> Size:
        """Size of the frames."""
        return size_of_area(self.driving.size, self.settings.area) if self.settings.replaces else self.driving.size

    @property
    def pose_size(self) -> Size:
        """Size of the pose video, and of the video that is made."""
        return self.size if self.settings.replaces else size_of_area(self.original.shape[1::-1], self.settings.area)

    def frames(self) -> Iterator[np.ndarray]:
        """Decode the frames, uint8 [H, W, 3]."""
        for frame in self.driving.frames():
            yield resize_to_area(frame, self.settings.area) if self.settings.replaces else frame


@contextmanager
def behind(call: Callable[[np.ndarray], None]) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that calls another one in a thread, in order, while the caller goes on; few calls wait.

    An error of a call is raised by a later one, or at the end of the block.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1) as thread:

        def later(frame: np.ndarray) -> None:
            if len(waiting) == WAITING:
                waiting.popleft().result()
            waiting.append(thread.submit(call, frame))

        yield later
        for done in waiting:
            done.result()


def poses(plan: Plan, figures: list[Figure], retargeting: Retargeting | None) -> Iterator[np.ndarray]:
    """Yield the drawing of each figure, uint8 [H, W, 3] in the size of the pose video."""
    if retargeting is not None:
        for figure in retargeting.figures(figures):
            yield skeleton.draw(figure.body, (figure.left_hand, figure.right_hand), plan.pose_size)
        return
    for figure in figures:
        whole = figure.scaled(plan.size)
        drawing = skeleton.draw(whole.body, (whole.left_hand, whole.right_hand), plan.size)
        yield letterbox(drawing, *reversed(plan.pose_size))


def check_folder(folder: Path, driving: Driving, picture: Picture, overwrite: bool) -> None:
    """Refuse a folder that holds the performance of other inputs. Raises ValueError and FileExistsError."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{shown(folder)} is a file; choose another {called('save_path')}")
    if overwrite or not any((folder / name).exists() for name in OURS):
        return
    try:
        before = parse_json((folder / DESCRIPTION).read_text("utf-8"))
        made_from = before["source"]["sha256"], before["picture"]["sha256"]
    except FileNotFoundError:
        if not (folder / POSE).exists():  # of a run that was killed
            return
        made_from = None
    except (ValueError, OSError, KeyError, TypeError):
        made_from = None
    if made_from != (driving.film.sha256, picture.sha256):
        raise FileExistsError(
            f"{shown(folder)} holds the performance of another video or picture; choose another {called('save_path')}, "
            "or replace it with --overwrite"
        )


def seen_from(folder: Path, path: str) -> str:
    """Write a path as it is seen from a folder."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def listed(numbers: list[int], most: int = 12) -> str:
    return ", ".join(map(str, numbers[:most])) + ", ..." * (len(numbers) > most)

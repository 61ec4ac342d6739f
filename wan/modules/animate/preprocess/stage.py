"""Stage of preprocessing: from a driving video and a picture to the folder of a performance."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wan import media
from wan.files import atomic_file, check_writable, shown, sweep
from wan.letterbox import letterbox
from wan.modules.animate.preprocess import folder as folders, masks, skeleton
from wan.modules.animate.preprocess.editing import instruction
from wan.modules.animate.preprocess.folder import CHARACTER, EDITED, PERSON, POINTS, PREVIEW
from wan.modules.animate.preprocess.joints import CERTAIN
from wan.modules.animate.preprocess.keypoints import Figure, face_picture
from wan.modules.animate.preprocess.masks import Clicks
from wan.modules.animate.preprocess.people import Choice
from wan.modules.animate.preprocess.plan import Plan, Settings
from wan.modules.animate.preprocess.preview import Preview
from wan.modules.animate.preprocess.retarget import Pair, Retargeting, is_frontal
from wan.modules.animate.preprocess.smoothing import smoothed
from wan.modules.animate.preprocess.track import Estimator, Track, estimate, face_parts, listed
from wan.performance import BACKGROUND, DESCRIPTION, FACE, MASK, POSE, REFERENCE, WHITE
from wan.values import called

log = logging.getLogger(__name__)

FAST, RICH = {"preset": "ultrafast"}, {"preset": "superfast"}  # of drawings and faces; of whole pictures
EXACT = {"crf": "0", "preset": "ultrafast"}  # black and white come back as they are
Make = Callable[..., np.ndarray]  # makes a picture
Add = Callable[..., Future]  # adds one to a video, later
WAITING = 2  # frames that wait to be coded


class Segmenter(Protocol):
    """Network, or file, that finds the masks of the person."""

    identity: str  # changes with the network; "" for masks that an earlier run need not keep
    packages: Sequence[str]  # that run it

    def describe(self) -> str:
        """Name it in a line."""

    def masks(self, frames: Iterator[np.ndarray], clicks: Callable[[int], Clicks]) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 [H, W] of 0 and 1; `clicks` gives places and labels for a frame."""


class Editor(Protocol):
    """Network that changes pictures by instructions."""

    packages: Sequence[str]  # that run it

    def edit(self, picture: np.ndarray, kind: str) -> np.ndarray:
        """Change a picture, uint8 [h, w, 3], by a kind of `editing.INSTRUCTIONS`; the result may have another size."""


@dataclass
class Stage:
    """Run of the stage. `networks` identifies the files that find points."""

    settings: Settings
    estimator: Estimator
    networks: str = ""
    segmenter: Segmenter | None = None
    editor: Editor | None = None

    def run(self) -> Path:
        """Write the folder; returns it. Raises ValueError, OSError; the folder then has nothing that looks finished."""
        settings = self.settings
        with folders.heard() as warnings:
            plan = Plan.of(settings)
            driving = plan.driving
            folders.check_folder(settings.folder, driving, plan.character, settings.overwrite)
            check_writable(settings.folder / DESCRIPTION, overwrite=True, other=called("save_path"))
            sweep(settings.folder)
            for part in (self.estimator, self.segmenter):
                if part is not None:
                    log.info("%s", part.describe())
            numbers = len(driving), driving.film.frames, float(driving.rate)
            log.info("%s: %s of %s frames at %g fps", shown(settings.video), *numbers)
            track = self.track(plan)
            figures = track.figures(plan.size)
            if settings.smooth:
                figures = smoothed(figures, settings.smooth, float(driving.rate))
            if not any((figure.body[:, 2] >= CERTAIN).any() for figure in figures):
                raise ValueError(
                    f"no joint of the person is certain in any of the {len(figures)} frames, and nothing would be "
                    "drawn; choose a video in which the person is larger or clearer"
                )
            made = {POSE, FACE, REFERENCE, *((BACKGROUND, MASK) if settings.replaces else ())}
            folders.clear(settings.folder, made - {POSE})
            retargeting = self.retargeting(plan, figures) if settings.has_retargeting else None
            self.write(plan, track, figures, retargeting, warnings)
        return settings.folder

    @property
    def packages(self) -> list[str]:
        """List the packages that run networks."""
        parts = (part for part in (self.estimator, self.segmenter, self.editor) if part is not None)
        return list(dict.fromkeys(package for part in parts for package in part.packages))

    def key(self, plan: Plan, *more: Any) -> str:
        """Recognise what the networks find in the video."""
        driving, size = plan.driving, plan.size if self.settings.replaces else None
        return self.recognised(driving.film.sha256, driving.numbers, plan.person, size, *more)

    def recognised(self, *made_from: Any) -> str:
        versions = [folders.version(package) for package in self.packages]
        values = [*made_from, self.networks, self.settings.as_upstream, versions]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def track(self, plan: Plan) -> Track:
        """Find the points of the person in all frames, or read those that an earlier run kept."""
        source = self.settings.video
        track = self.kept(POINTS, self.key(plan), len(plan.driving), plan.frames, source, plan.person)
        if track.missing and not self.settings.as_upstream:
            numbers = len(track.missing), listed(track.missing)
            log.warning("in %d frames the person was not found, and is placed between others: %s", *numbers)
        return track

    def kept(
        self,
        name: str,
        key: str,
        count: int,
        frames: Callable[[], Iterable[np.ndarray]],
        source: str,
        person: Choice = None,
    ) -> Track:
        """Find the points of a person in frames, or read those that an earlier run kept under this name and key."""
        path = self.settings.folder / name
        track = Track.load(path, key, count)
        if track is None:
            choice = person, self.settings.as_upstream, shown(source)
            track = estimate(ahead(iter(frames())), self.estimator, *choice)
            track.save(path, key)
        else:
            log.info("the key points of an earlier run are used: %s", shown(path))
        return track

    def retargeting(self, plan: Plan, figures: list[Figure]) -> Retargeting:
        """Compare the figures of the first frame and of the character, perhaps in edited pictures."""
        key = self.recognised(plan.character.sha256, plan.pose_size)
        [character] = self.kept(CHARACTER, key, 1, lambda: [plan.picture], self.settings.picture).figures(
            plan.pose_size
        )
        pair = Pair(figures[0].body, plan.size, character.body, plan.pose_size)
        people = {"person in the first frame": (pair.first, plan.size), "character": (pair.character, plan.pose_size)}
        for who, (body, size) in people.items():
            if not is_frontal(body, size):
                values = who, called("retarget_flag")
                log.warning(
                    "the %s does not face the camera, so that limbs seem short; try another part, or no %s", *values
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
                [figure] = estimate([changed], self.estimator, as_upstream=self.settings.as_upstream).figures(size)
                drawn.append(figure.body)
            edited = Pair(drawn[1], plan.size, drawn[0], plan.pose_size)
        return Retargeting(pair, edited, self.settings.as_upstream)

    def write(
        self, plan: Plan, track: Track, figures: list[Figure], retargeting: Retargeting | None, warnings: list[str]
    ) -> None:
        """Write all files of the folder; the description appears when the others are there, and the pose video last."""
        settings, folder, count = self.settings, self.settings.folder, len(plan.driving)
        parts = list(face_parts(figures, plan.size, settings.as_upstream))
        with ExitStack() as last, ExitStack() as files:

            def opened(name: str, options: dict[str, str], make: Make, stack: ExitStack = files) -> Add:
                writer = media.video_writer(folder / name, plan.driving.rate, overwrite=True, **options)
                add = stack.enter_context(writer)

                def made(*given: Any) -> np.ndarray:
                    add(picture := make(*given))
                    return picture

                return files.enter_context(behind(made))

            add_pose = opened(POSE, FAST, lambda *given: drawing(plan, retargeting, *given), last)
            add_face = opened(FACE, FAST, face_picture)
            description = last.enter_context(atomic_file(folder / DESCRIPTION, overwrite=True))
            picture = files.enter_context(atomic_file(folder / REFERENCE, overwrite=True))
            plan.character.pixels.save(picture, "PNG")
            if settings.replaces:
                add_background = opened(BACKGROUND, RICH, masks.without)
                add_mask = opened(MASK, EXACT, lambda mask: mask * np.uint8(255))
            add_preview = opened(PREVIEW, FAST, Preview.of) if settings.preview else None
            found = self.masks(plan, track, figures) if settings.replaces else nothing(count)
            found, frames = (files.enter_context(closing(each)) for each in (found, ahead(plan.frames())))
            # masks come first, because their end has something to say
            for number, (mask, frame, part, figure) in enumerate(zip(found, frames, parts, figures, strict=True)):
                pose, face = add_pose(figure, number == 0), add_face(frame, part)
                if mask is not None:
                    add_background(frame, mask)
                    add_mask(mask)
                if add_preview is not None:
                    add_preview(frame, figure, face, pose, mask)
            files.close()
            values = folders.describe(plan, track, parts, self.networks, self.packages, warnings)
            description.write_text(json.dumps(values), "utf-8")  # ASCII: names may have bytes of no letter

    def masks(self, plan: Plan, track: Track, figures: list[Figure]) -> Iterator[np.ndarray]:
        """Yield the grown masks of all frames; where the person vanishes, that of the frame before, else the first."""
        settings = self.settings
        growth = settings.iterations, settings.k, settings.w_len, settings.h_len
        before, empty = None, []
        for number, mask in enumerate(self.person(plan, track, figures)):
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
            log.warning(
                "in %d frames the person had no mask, and that of the frame before it, or the first one, is used: %s",
                len(empty),
                listed(empty),
            )

    def person(self, plan: Plan, track: Track, figures: list[Figure]) -> Iterator[np.ndarray]:
        """Yield the masks that the segmenter finds, or those that an earlier run kept."""
        segmenter, path = self.segmenter, self.settings.folder / PERSON

        def clicks(number: int) -> Clicks:
            return masks.clicks(figures[number].body, plan.size, track.others[number], self.settings.as_upstream)

        if not segmenter.identity:
            yield from segmenter.masks(ahead(plan.frames()), clicks)
            return
        key = self.key(plan, segmenter.identity, self.settings.smooth)
        if folders.has_masks(path, key, len(plan.driving)):
            log.info("the masks of an earlier run are used: %s", shown(path))
            yield from ((frame[..., 0] >= WHITE).astype(np.uint8) for _, frame in media.upright_frames(path))
            return
        tags = {folders.KEY: key}
        with media.video_writer(path, plan.driving.rate, tags, overwrite=True, **EXACT) as add, behind(add) as add_mask:
            for mask in segmenter.masks(ahead(plan.frames()), clicks):
                add_mask(mask * np.uint8(255))
                yield mask


def nothing(count: int) -> Iterator[None]:
    """Yield None so many times."""
    yield from [None] * count


@contextmanager
def behind(call: Make) -> Iterator[Add]:
    """Give a function that calls another one in a thread, in order, while the caller goes on; few calls wait.

    An error of a call is raised by a later one, or at the end of the block.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1) as thread:

        def later(*given: Any) -> Future:
            if len(waiting) == WAITING:
                waiting.popleft().result()
            waiting.append(thread.submit(call, *given))
            return waiting[-1]

        yield later
        for done in waiting:
            done.result()


def ahead(items: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield items, of which a thread makes a few before they are asked for."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(WAITING))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item


def drawing(plan: Plan, retargeting: Retargeting | None, figure: Figure, is_first: bool) -> np.ndarray:
    """Draw a figure, uint8 [H, W, 3] in the size of the pose video."""
    if retargeting is not None:
        figure = retargeting.figure(figure, is_first)
        return skeleton.draw(figure.body, (figure.left_hand, figure.right_hand), plan.pose_size)
    whole = figure.scaled(plan.size)
    drawn = skeleton.draw(whole.body, (whole.left_hand, whole.right_hand), plan.size)
    return letterbox(drawn, *reversed(plan.pose_size))

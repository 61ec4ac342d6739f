"""Checks of the recordings of the whole stage of animate preprocessing, with the networks of the repository."""

import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.parity.preprocess import GROUPS, assert_drawn, assert_levels, picture
from wan.configs.nano import CHECKPOINTS
from wan.geometry import Size
from wan.letterbox import letterbox
from wan.modules.animate.preprocess import frames, keypoints, masks
from wan.modules.animate.preprocess.keypoints import Figure
from wan.modules.animate.preprocess.retarget import Pair, Retargeting
from wan.modules.animate.preprocess.skeleton import draw
from wan.modules.animate.preprocess.track import estimate
from wan.modules.animate.preprocess.whole_body import WholeBody


@lru_cache
def networks() -> WholeBody:
    return WholeBody(CHECKPOINTS / "animate-14B" / "process_checkpoint", as_upstream=True)


def figures_of(pictures: list[np.ndarray]) -> list[Figure]:
    return estimate(pictures, networks(), as_upstream=True).figures(pictures[0].shape[1::-1])


class Run:
    """Run of the stage in `e2e.json`, as upstream."""

    def __init__(self, folder: Path, name: str):
        about = json.loads((folder / "e2e.json").read_text())
        self.folder, self.name, self.about = folder, name, about["runs"][name]
        self.area = int(np.prod(self.about["resolution_area"]))
        source = self.strip("driving", about["frame_wh"][1])
        assert len(source) == about["frames"]
        taken = frames.select(
            len(source), about["source_fps"], self.about["fps_argument"], len(source) / about["source_fps"]
        )
        self.frames = [source[number] for number in taken]
        if name == "replace":
            self.frames = [frames.resize_to_area(frame, self.area) for frame in self.frames]
        self.reference = frames.resize_to_area(self.picture("reference"), self.area)

    def picture(self, name: str) -> np.ndarray:
        return picture(self.folder / f"e2e_{name}.png")

    def strip(self, name: str, height: int) -> np.ndarray:
        """Divide a strip into frames of that height, [F, H, W, 3]."""
        pixels = self.picture(name)
        return pixels.reshape(-1, height, *pixels.shape[1:])

    @cached_property
    def figures(self) -> list[Figure]:
        return figures_of(self.frames)

    @cached_property
    def pair(self) -> Pair:
        return paired(self.frames[0], self.reference)

    @property
    def size(self) -> Size:
        return tuple(self.about.get("pose_wh", self.pair.character_size))

    def drawings(self) -> list[np.ndarray]:
        """Draw the figures of a run, in the size of its videos."""
        if self.name in ("animate_retarget", "animate_edit"):
            edited = self.edited() if self.name == "animate_edit" else None
            figures = Retargeting(self.pair, edited, as_upstream=True).figures(self.figures)
            return [drawing(figure, self.pair.character_size) for figure in figures]
        high, wide = self.frames[0].shape[:2]
        drawn = [drawing(figure.scaled((wide, high)), (wide, high)) for figure in self.figures]
        return [letterbox(each, *self.size[::-1]) for each in drawn] if self.name == "animate" else drawn

    def edited(self) -> Pair:
        """Make the pair of the edited pictures, which are brought back to the sizes of those given to the editor."""
        given = self.frames[1], self.reference
        made = (self.picture(f"edit_{name}") for name in ("driving", "reference"))
        return paired(*(letterbox(pixels, *before.shape[:2]) for pixels, before in zip(made, given, strict=True)))


def paired(first: np.ndarray, character: np.ndarray) -> Pair:
    one, other = (figures_of([pixels])[0].body for pixels in (first, character))
    return Pair(one, first.shape[1::-1], other, character.shape[1::-1])


def drawing(figure: Figure, size: Size) -> np.ndarray:
    return draw(figure.body, [figure.left_hand, figure.right_hand], size)


def run_of(path: Path, part: str) -> Run:
    """Find the run of a picture such as `e2e_animate_retarget_pose.png`, whose last part is named."""
    return Run(path.parent, path.stem.removeprefix("e2e_").removesuffix(f"_{part}"))


def poses(path: Path) -> None:
    run = run_of(path, "pose")
    expected = run.strip(f"{run.name}_pose", run.size[1])
    for drawn, recorded in zip(run.drawings(), expected, strict=True):
        assert_drawn(drawn, recorded, 0.01)


def first_face(path: Path) -> None:
    run = run_of(path, "face0")
    size = run.frames[0].shape[1::-1]
    part = keypoints.face_part(run.figures[0], size, as_upstream=True)
    assert_levels(keypoints.face_picture(run.frames[0], part), picture(path), share=1, most=2)


def replaced(path: Path) -> None:
    """Check masks and backgrounds, from the masks that stand for the segmenter's."""
    run = Run(path.parent, "replace")
    given = run.strip("replace_sam_masks", run.size[1])[..., 0] > 127
    shaped = [masks.shaped(mask.astype(np.uint8), **run.about["options"]) for mask in given]
    if path.stem.endswith("mask"):
        expected = run.strip("replace_mask", run.size[1])
        np.testing.assert_array_equal(np.stack(shaped) * 255, expected[..., 0])
    else:
        made = [masks.without(frame, mask) for frame, mask in zip(run.frames, shaped, strict=True)]
        assert_levels(np.stack(made), run.strip("replace_bg", run.size[1]), share=1, most=2)


def stage_points(path: Path) -> None:
    given = load_file(path)
    for name in ("animate", "animate_retarget", "replace"):
        run = Run(path.parent, name)
        for group in GROUPS:
            found = [getattr(figure, group) for figure in run.figures]
            np.testing.assert_allclose(found, given[f"{name}_{group}"], atol=1e-4)
            if f"{name}_reference_{group}" in given:
                (character,) = figures_of([run.reference])
                np.testing.assert_allclose(getattr(character, group), given[f"{name}_reference_{group}"], atol=1e-4)


def stage(path: Path) -> None:
    """Check numbers and sizes of all runs, face boxes, key frames, and what an editor is asked for."""
    for name, about in json.loads(path.read_text())["runs"].items():
        run = Run(path.parent, name)
        assert len(run.frames) == about["frames_out"]
        height, width = run.drawings()[0].shape[:2]
        assert (width, height) == run.size
        size = run.frames[0].shape[1::-1]
        for figure, box in zip(run.figures, about.get("face_boxes_x1_x2_y1_y2", []), strict=False):
            left, top, right, bottom = keypoints.face_part(figure, size, as_upstream=True)
            np.testing.assert_allclose((left, right, top, bottom), box, atol=1)
        if "segmentation_key_frames" in about:
            assert masks.key_frames(len(run.frames)) == about["segmentation_key_frames"]
        asked = [[call["width"], call["height"]] for call in about.get("editor_calls", [])]
        assert asked in ([], [[*run.reference.shape[1::-1]], [*run.frames[1].shape[1::-1]]])


def given(path: Path) -> None:
    """Check that a picture which the other recordings begin with can be read."""
    assert picture(path).any()


RUNNERS: dict[str, Any] = {}
NAMED = {
    f"preprocess/{name}": run
    for name, run in {
        "e2e.json": stage,
        "e2e_*_bg.png": replaced,
        "e2e_*_face0.png": first_face,
        "e2e_*_mask.png": replaced,
        "e2e_*_pose.png": poses,
        "e2e_*_sam_masks.png": given,
        "e2e_driving.png": given,
        "e2e_edit_*.png": given,
        "e2e_keypoints.*": stage_points,
        "e2e_reference.png": given,
    }.items()
}

"""Checks of the recordings of animate preprocessing, which are known by their names; PNGs are checked as files too."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from wan.modules.animate.preprocess import joints
from wan.modules.animate.preprocess.skeleton import draw


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_drawn(drawn: np.ndarray, expected: np.ndarray, share: float = 0.001) -> None:
    """Check that at most a share of the lit pixels differs."""
    assert drawn.shape == expected.shape and drawn.dtype == expected.dtype
    assert (drawn != expected).any(-1).sum() <= share * (expected > 0).any(-1).sum()


def pose_draw(path: Path) -> None:
    given = load_file(path.with_suffix(".safetensors"))
    drawn = draw(given["body"], [given["left_hand"], given["right_hand"]], tuple(given["canvas_wh"].tolist()))
    assert_drawn(drawn, picture(path.with_suffix(".png")))


def pose_tables(path: Path) -> None:
    table = json.loads(path.read_text())
    assert table["body_names"] == list(joints.BODY)
    assert table["limbs"] == [list(limb) for limb in joints.LIMBS]
    assert table["hand_edges"] == [list(edge) for edge in joints.HAND_EDGES]
    colours = table["limb_and_joint_colours_rgb"]
    np.testing.assert_array_equal(colours, joints.COLOURS)
    limbs = (np.array(colours[:19]) * table["limb_colour_factor"]).astype(int)
    np.testing.assert_array_equal(limbs, joints.LIMB_COLOURS)
    np.testing.assert_array_equal(table["hand_edge_colours_rgb"], joints.HAND_EDGE_COLOURS)
    assert tuple(table["hand_joint_colour_rgb"]) == joints.HAND_POINT_COLOUR


RUNNERS: dict = {}
NAMED = {
    f"preprocess/{name}": run
    for name, run in {
        "pose_draw_*": pose_draw,
        "pose_tables.json": pose_tables,
    }.items()
}

"""Checks of the recordings of animate preprocessing, which are known by their names; PNGs are checked as files too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from wan.checkpoint.loading import empty
from wan.letterbox import letterbox
from wan.modules.animate.preprocess import (
    detect,
    editing,
    frames,
    joints,
    keypoints,
    masks,
    pose,
    retarget,
    sam2,
)
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
    assert table["body_from_wholebody"] == [list(pair) for pair in keypoints.FROM_WHOLE_BODY]
    ranges = {"face_group": keypoints.FACE, "left_hand": keypoints.LEFT_HAND, "right_hand": keypoints.RIGHT_HAND}
    assert table["wholebody_ranges"] == {name: list(part) for name, part in ranges.items()}
    assert table["segmentation_prompt_joints"] == list(masks.CLICKED)
    rules = table["retarget"]
    assert rules["equalise_by_max"] == [list(pair) for pair in retarget.EQUAL_BY_MOST]
    assert rules["equalise_by_mean"] == [list(pair) for pair in retarget.EQUAL_BY_MEAN]
    assert rules["foot_limb_to_calf_limb"] == [list(pair) for pair in retarget.CALF_OF_FOOT.items()]
    assert rules["foot_max_fraction"] == retarget.LONGEST_FOOT
    seen = table["editing_visibility"]
    assert [seen["arm_joints"], seen["leg_joints"]] == [list(editing.ARMS), list(editing.LEGS)]
    assert seen["min_confidence"] == editing.SEEN
    assert table["limbs"] == [list(limb) for limb in joints.LIMBS]
    assert table["hand_edges"] == [list(edge) for edge in joints.HAND_EDGES]
    colours = table["limb_and_joint_colours_rgb"]
    np.testing.assert_array_equal(colours, joints.COLOURS)
    limbs = (np.array(colours[:19]) * table["limb_colour_factor"]).astype(int)
    np.testing.assert_array_equal(limbs, joints.LIMB_COLOURS)
    np.testing.assert_array_equal(table["hand_edge_colours_rgb"], joints.HAND_EDGE_COLOURS)
    assert tuple(table["hand_joint_colour_rgb"]) == joints.HAND_POINT_COLOUR


def sizes_and_frames(path: Path) -> None:
    table = json.loads(path.read_text())
    for row in table["target_size"]:
        assert frames.size_of_area((row["w"], row["h"]), row["area"]) == (row["new_w"], row["new_h"])
        is_shrunk = row["new_w"] * row["new_h"] < row["w"] * row["h"]
        assert row["interpolation"] == ("area" if is_shrunk else "linear") and row["divisor"] == frames.STEP
    for row in table["padded_resize"]:
        placed = letterbox(np.full((row["src_h"], row["src_w"], 1), 255, np.uint8), row["dst_h"], row["dst_w"])[..., 0]
        (rows,), (columns,) = np.nonzero(placed.any(1)), np.nonzero(placed.any(0))
        assert (columns[0], rows[0], len(columns), len(rows)) == tuple(row[name] for name in ("x0", "y0", "w", "h"))
    for row in table["frame_selection"]:
        taken = frames.select(row["frame_num"], row["video_fps"], row["fps"], row["last_frame_end"])
        assert taken == row["indices"] and len(taken) == row["count"]


def assert_levels(pixels: np.ndarray, expected: np.ndarray, share: float = 0.01, most: int = 1) -> None:
    """Check that at most a share of the values differs, by at most `most` levels."""
    gap = np.abs(pixels.astype(int) - expected)
    assert pixels.shape == expected.shape and gap.max() <= most and (gap > 0).mean() <= share


def resize_pad(path: Path) -> None:
    given = load_file(path)
    for case in noted(path, "cases"):
        number = case["case"]
        frame = given[f"frame_{number}"]
        assert_levels(frames.resize_to_area(frame, case["area"]), given[f"by_area_{number}"])
        (name,) = (name for name in given if name.startswith("padded_") and name.endswith(f"_{number}"))
        high, wide = map(int, name.split("_")[1].split("x"))
        assert_levels(letterbox(frame, high, wide), given[name])


def detector_input(path: Path) -> None:
    given = load_file(path)
    for name in (name for name in given if name.startswith("frame_rgb_")):
        made, number = detect.network_input(given[name])[0], name.removeprefix("frame_rgb_")
        np.testing.assert_allclose(made[:, 3::8, 3::8], given[f"tensor_every8_{number}"], atol=1 / 255 + 1e-6)
        stats = made.mean((1, 2), dtype=float), made.std((1, 2), dtype=float)
        np.testing.assert_allclose(stats, given[f"mean_{number}"], atol=1 / 255)


def detector_output(path: Path) -> None:
    given = load_file(path)
    for rows, (high, wide), box in zip(given["rows"], given["frame_hw"], given["person_box"], strict=True):
        found = detect.person(rows, (int(wide), int(high)), as_upstream=True)
        np.testing.assert_array_equal(found[:4], box[:4])
        assert abs(found[4] - box[4]) <= 1e-6


def detector_after_suppression(path: Path) -> None:
    given = load_file(path.with_name("detector_output.safetensors"))
    for rows, (high, wide), kept in zip(given["rows"], given["frame_hw"], json.loads(path.read_text()), strict=True):
        found, kept = detect.boxes(rows, (int(wide), int(high)), as_upstream=True), np.array(kept).reshape(-1, 6)
        np.testing.assert_array_equal(found[:, [0, 1, 2, 3, 5]], kept[:, [0, 1, 2, 3, 5]])
        np.testing.assert_allclose(found[:, 4], kept[:, 4], atol=1e-6)


def pose_crop(path: Path) -> None:
    given = load_file(path)
    for row in given["table"]:
        crop = pose.crop_around(row[2:7], (int(row[0]), int(row[1])))
        np.testing.assert_allclose((*crop.centre, *crop.size), row[7:11], rtol=1e-6)
        assert np.abs(np.array(crop.part) - row[11:15]).max() <= row[15]
    cases = sorted(name for name in given if name.startswith("frame_rgb_"))
    for number, name in enumerate(cases):
        frame = given[name]
        crop = pose.crop_around(given[f"box_{number}"], (frame.shape[1], frame.shape[0]))
        made = pose.network_input(frame, crop)[0]
        np.testing.assert_allclose(made[:, 1::4, 1::4], given[f"tensor_every4_{number}"], atol=0.02)
    np.testing.assert_allclose(made, given["tensor_full_last"].astype(np.float32), atol=0.02)


def heatmap_decode(path: Path) -> None:
    given = load_file(path)
    expected = zip(given["keypoints"], given["keypoints_heatmap_px"], strict=True)
    for number, (points, places) in enumerate(expected):
        heatmaps = given["heatmaps_f16"][number].astype(np.float32)
        np.testing.assert_allclose(pose.peaks(heatmaps)[:, :2], places, atol=1e-3)
        crop = pose.Crop(tuple(given["crop_centre"][number]), tuple(given["crop_size"][number]))
        found = pose.joints_of(heatmaps, crop)
        np.testing.assert_allclose(found[:, :2], points[:, :2], atol=0.02)
        np.testing.assert_allclose(found[:, 2], points[:, 2], atol=1e-6)


def keypoint_groups(path: Path) -> None:
    given, figure = load_file(path), None
    size = tuple(given["frame_wh"].tolist())
    for number, points in enumerate(given["keypoints133"]):
        figure = keypoints.figure_of(points, size, figure)
        for name in GROUPS:
            np.testing.assert_allclose(getattr(figure, name), given[name][number], atol=1e-6)
            if number == 0:
                found = getattr(figure.scaled(size), name)[:, :2]
                np.testing.assert_allclose(found, given[f"pixels_{name}_0"], atol=1e-3)


def face_boxes(path: Path) -> None:
    given = load_file(path)
    gaps = []
    for points, size, box in zip(given["face_points"], given["frame_wh"], given["x1_x2_y1_y2"], strict=True):
        left, top, right, bottom = keypoints.rectangle(points[1:], tuple(size.tolist()))
        gaps.append(np.abs(np.subtract((left, right, top, bottom), box)).max())
    assert max(gaps) <= 1 and np.count_nonzero(gaps) <= 0.01 * len(gaps)


def retarget_case(path: Path) -> tuple[dict[str, np.ndarray], retarget.Retargeting, list[keypoints.Figure]]:
    """Return a recording, its retargeting as upstream, and the figures of the driving frames."""
    given = load_file(path)
    sizes = [tuple(given[name].tolist()) for name in ("driving_wh", "reference_wh")]
    pairs = [
        retarget.Pair(given[f"first_{kind}body"][0], sizes[0], given[f"reference_{kind}body"][0], sizes[1])
        for kind in ("", "edited_")
        if f"first_{kind}body" in given
    ]
    driving = [
        keypoints.Figure(*parts, np.zeros((69, 3)))
        for parts in zip(*(given[f"driving_{name}"] for name in GROUPS[:3]), strict=True)
    ]
    return given, retarget.Retargeting(*pairs, as_upstream=True), driving


def retargeted(path: Path) -> None:
    given, made, driving = retarget_case(path)
    np.testing.assert_allclose(made.pair.scale, given["scale"][0], rtol=1e-6)
    np.testing.assert_allclose(made.ratios, given["limb_ratios"], atol=1e-6)
    np.testing.assert_allclose(made.anchor.shift, given["shift_xy"], atol=1e-3)
    np.testing.assert_allclose(made.anchor.x, given["anchor_x"][0], atol=1e-3)
    with safe_open(path, "np") as file:
        assert file.metadata()["body_class"] == f"{made.framing}_body"
    figures = list(made.figures(driving))
    np.testing.assert_allclose([figure.body for figure in figures], given["out_body"], atol=1e-3)
    for name in ("left_hand", "right_hand"):
        np.testing.assert_allclose([getattr(figure, name) for figure in figures], given[f"out_{name}"], atol=1)


def retarget_drawing(path: Path) -> None:
    name, frame = path.stem.rsplit("_frame", 1)
    _, made, driving = retarget_case(path.with_name(f"{name}.safetensors"))
    figure = list(made.figures(driving))[int(frame)]
    drawn = draw(figure.body, [figure.left_hand, figure.right_hand], made.pair.character_size)
    assert_drawn(drawn, picture(path), 0.01)


def shaped_masks(path: Path) -> None:
    given = load_file(path)
    for case in noted(path, "cases"):
        number, options = case["case"], [case[name] for name in ("iterations", "k", "w_len", "h_len")]
        mask = given[f"mask_{number}"]
        np.testing.assert_array_equal(masks.grown(mask, options[1], options[0]), given[f"dilated_{number}"])
        final = masks.shaped(mask, *options)
        np.testing.assert_array_equal(final, given[f"final_{number}"])
        background = masks.without(given[f"frame_{number}"], final)
        np.testing.assert_array_equal(background, given[f"background_{number}"])


def segmentation_prompts(path: Path) -> None:
    table = json.loads(path.read_text())
    for row in table["schedule"]:
        chunks = masks.chunks(row["frames"])
        expected = [(chunk["length"], chunk["key_frames"]) for chunk in row["chunks"]]
        assert [(len(chunk), masks.key_frames(len(chunk))) for chunk in chunks] == expected
        assert sum(map(len, chunks)) == row["masks"]
    for row in table["points"]:
        size = row["width"], row["height"]
        places, labels = masks.clicks(np.array(row["keypoints_body"], np.float32), size, as_upstream=True)
        assert (places.tolist(), labels.tolist()) == (row["points"], row["labels"])


def edit_prompt_choice(path: Path) -> None:
    for row in json.loads(path.read_text()):
        bodies = np.array(row["keypoints_body"], np.float32)
        for name in ("driving", "reference"):
            assert editing.instruction(bodies, tuple(row[f"{name}_size"])) == row[name]


def sam2_names(path: Path) -> None:
    table, config = json.loads(path.read_text()), sam2.config_of()
    state = empty(lambda: sam2.model_of(config)).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {n: row["shape"] for n, row in table.items()}
    for name, row in table.items():
        source = row["source"]
        assert sam2.stored_names(name) == ([source] if isinstance(source, str) else source)


GROUPS = ("body", "left_hand", "right_hand", "face")


def noted(path: Path, name: str) -> Any:
    """Read a note in the metadata of a recording."""
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()[name])


RUNNERS: dict = {}
NAMED = {
    f"preprocess/{name}": run
    for name, run in {
        "detector_after_suppression.json": detector_after_suppression,
        "detector_input.*": detector_input,
        "detector_output.*": detector_output,
        "edit_prompt_choice.json": edit_prompt_choice,
        "face_boxes.*": face_boxes,
        "heatmap_decode.*": heatmap_decode,
        "keypoint_groups.*": keypoint_groups,
        "masks.*": shaped_masks,
        "pose_crop.*": pose_crop,
        "pose_draw_*": pose_draw,
        "pose_tables.json": pose_tables,
        "resize_pad.*": resize_pad,
        "retarget_*.png": retarget_drawing,
        "retarget_*.safetensors": retargeted,
        "sam2_hiera_large_keys.json": sam2_names,
        "segmentation_prompts.json": segmentation_prompts,
        "sizes_and_frames.json": sizes_and_frames,
    }.items()
}

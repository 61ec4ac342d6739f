"""Stand-in networks for animate preprocessing: tiny graphs with the signatures of the released ones.

They see coloured discs on grey. The detector boxes all strong colours. The pose estimator finds the middle of 19
colours, one for each joint of `MARKERS`, and computes all 133 points from them. Nothing in them is trained.

    python -m wan.nano.standins DIR    writes det/yolov10m.onnx and pose2d/vitpose_h_wholebody.onnx (needs `onnx`)
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wan.modules.animate.preprocess import detect, pose
from wan.modules.animate.preprocess.joints import BODY
from wan.modules.animate.preprocess.whole_body import DETECTOR, POSE
from wan.nano.puppets import MARKERS

OPSET, IR_VERSION = 17, 9  # those of the recorded runs; onnxruntime reads them for years to come

PLACE = {BODY[joint]: number for number, joint in enumerate(MARKERS)}  # joints in the order of the 133 points
STRONG = 0.25  # range of the channels of a pixel that belongs to the figure, of 1
NEAR = 0.22  # distance of a pixel's worst channel from the colour of a joint, of 1
LEAST = 3.0  # pixels of a joint that is seen
SIGMA = 2.0  # heatmap pixels
SCORES = {"body": 0.95, "foot": 0.90, "face": 0.85, "hand": 0.80}


def all_points(markers: np.ndarray) -> np.ndarray:
    """Compute the 133 points [133, 2] that the stand-in gives for the joints of `MARKERS` [19, 2], in pixels."""
    along, across, _ = point_maps()
    x, y = markers.T
    return np.stack([along @ x - across @ y, along @ y + across @ x], axis=1)


def point_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices M and P [133, 19], and scores [133]: points are M x - P y and M y + P x of the joints."""
    along, across = np.zeros((2, 133, len(MARKERS)))
    score = np.full(133, SCORES["body"])
    along[range(17), range(17)] = 1
    for base, side, sign in ((17, "left", 1), (20, "right", -1)):
        ankle, toe = PLACE[f"{side}_ankle"], PLACE[f"{side}_toe"]
        along[base, toe] = 1  # big toe, small toe, heel
        along[base + 1, [toe, ankle]], across[base + 1, [toe, ankle]] = (0.9, 0.1), (-0.25 * sign, 0.25 * sign)
        along[base + 2, [toe, ankle]] = -0.2, 1.2
        score[base : base + 3] = SCORES["foot"]
    for point, (right, down) in enumerate(face_template(), start=23):
        along[point, PLACE["nose"]] = 1
        eyes = [PLACE["left_eye"], PLACE["right_eye"]]
        along[point, eyes], across[point, eyes] = (right / 2, -right / 2), (down / 2, -down / 2)
        score[point] = SCORES["face"]
    for base, side, sign in ((91, "left", 1), (112, "right", -1)):
        ends = [PLACE[f"{side}_wrist"], PLACE[f"{side}_elbow"]]
        for point, (reach, width) in enumerate(hand_template(), start=base):
            along[point, ends], across[point, ends] = (1 + reach, -reach), (sign * width, -sign * width)
            score[point] = SCORES["hand"]
    return along, across, score


def face_template() -> np.ndarray:
    """68 points (right, down) from the nose, in halves of the distance of the eyes."""
    ring = lambda count, x, y, wide, high: [  # noqa: E731
        (x + wide * math.cos(angle), y - high * math.sin(angle))
        for angle in (math.pi - 2 * math.pi * n / count for n in range(count))
    ]
    jaw = [(-2 * math.cos(math.pi * n / 16), 2.6 * math.sin(math.pi * n / 16) - 0.6) for n in range(17)]
    brow = [(1.7 - 1.3 * n / 4, -1.5 - 0.25 * math.sin(math.pi * n / 4)) for n in range(5)]
    brows = [(-x, y) for x, y in brow] + [(1.7 - 1.3 * (1 - n / 4), y) for n, (_, y) in enumerate(brow)]
    nose = [(0, -0.9 + 0.3 * n) for n in range(4)] + [
        (-0.5 + 0.25 * n, 0.3 + 0.06 * (2 - abs(n - 2))) for n in range(5)
    ]
    eyes = ring(6, -1, -0.9, 0.45, 0.22) + ring(6, 1, -0.9, 0.45, 0.22)
    return np.array(jaw + brows + nose + eyes + ring(12, 0, 1.1, 0.9, 0.35) + ring(8, 0, 1.1, 0.6, 0.15), float)


def hand_template() -> np.ndarray:
    """21 points (along, across) beyond the wrist, in lengths of the forearm."""
    fingers = [
        (0.08 + (reach - 0.08) * part / 4, (finger - 2) * (0.035 + 0.045 * part / 4))
        for finger, reach in enumerate((0.28, 0.42, 0.45, 0.42, 0.34))
        for part in range(1, 5)
    ]
    return np.array([(0, 0), *fingers])


class Graph:
    """ONNX graph that is built node by node; names are given by number."""

    def __init__(self) -> None:
        import onnx

        self.onnx, self.nodes, self.constants = onnx, [], []

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: Any, out: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output. Inputs that are no names are constants."""
        out = out or f"t{len(self.nodes) + 1}"
        names = [given if isinstance(given, str) else self.constant(given) for given in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [out], **attributes))
        return out

    def reshape(self, given: str, *shape: int, out: str = "") -> str:
        return self.add("Reshape", given, self.constant(shape, np.int64), out=out)

    def eroded(self, given: str) -> str:
        """Shrink bright areas by a pixel on each side."""
        pooled = self.add("MaxPool", self.add("Neg", given), kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        return self.add("Neg", pooled)

    def write(self, path: Path, title: str, given: tuple[str, list], made: tuple[str, list]) -> None:
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        ends = [[helper.make_tensor_value_info(name, kind, shape)] for name, shape in (given, made)]
        graph = helper.make_graph(self.nodes, "standin", *ends, self.constants, title)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="standin", ir_version=IR_VERSION)
        self.onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.onnx.save(model, str(path))


def write_detector(path: Path) -> None:
    """Write a detector that boxes all strong colours. Two decoys come with them: a faint person, and an object."""
    graph, side, number = Graph(), detect.SIDE, Graph().onnx.TensorProto.FLOAT
    spread = graph.add(
        "Sub",
        graph.add("ReduceMax", "images", axes=[1], keepdims=1),
        graph.add("ReduceMin", "images", axes=[1], keepdims=1),
    )
    figure = graph.eroded(graph.add("Cast", graph.add("Greater", spread, STRONG), to=number))
    found = graph.add("ReduceMax", figure, keepdims=0)
    edges = {}
    for name, axis in (("x", 2), ("y", 3)):
        line = graph.reshape(graph.add("ReduceMax", figure, axes=[axis], keepdims=0), side)
        for end, move in ((0, -8.0), (1, 9.0)):  # the pixel lost by erosion, and a margin
            place = graph.add("ArgMax", line, axis=0, keepdims=1, select_last_index=end)
            moved = graph.add("Add", graph.add("Cast", place, to=number), [move])
            edges[name, end] = graph.add("Clip", moved, 0.0, float(side))
    score = graph.reshape(graph.add("Mul", found, 0.9), 1)
    corners = [edges["x", 0], edges["y", 0], edges["x", 1], edges["y", 1]]
    person = graph.reshape(graph.add("Concat", *corners, score, [0.0], axis=0), 1, 6)
    decoys = np.array([[4, 4, 44, 60, 0.30, 0], [596, 590, 636, 636, 0.80, 16]])
    scores = decoys * (0, 0, 0, 0, 1, 0)
    others = graph.add("Add", decoys - scores, graph.add("Mul", scores, found))
    rows = graph.add("Concat", person, others, np.zeros((297, 6)), axis=0)
    graph.reshape(rows, 1, 300, 6, out="output0")
    graph.write(path, "stand-in person detector", ("images", [1, 3, side, side]), ("output0", [1, 300, 6]))


def write_pose_estimator(path: Path, order: str = "bgr", batch: int | str = 1) -> None:
    """Write a pose estimator. `order`: that of the channels it gets; `batch`: a name allows any number of pictures."""
    graph, number = Graph(), Graph().onnx.TensorProto.FLOAT
    pixels = graph.add("Add", graph.add("Mul", "input", pose.STD.reshape(1, 3, 1, 1)), pose.MEAN.reshape(1, 3, 1, 1))
    colours = np.array([*MARKERS.values()])[:, :: -1 if order == "bgr" else 1] / 255
    apart = graph.add(
        "Sub", graph.add("Unsqueeze", pixels, graph.constant([1], np.int64)), colours.reshape(1, -1, 3, 1, 1)
    )
    worst = graph.add("ReduceMax", graph.add("Abs", apart), axes=[2], keepdims=0)  # [B, 19, H, W]
    match = graph.eroded(graph.add("Relu", graph.add("Sub", 1.0, graph.add("Div", worst, NEAR))))
    axes = graph.constant([2, 3], np.int64)
    mass = graph.add("ReduceSum", match, axes, keepdims=0)
    x, y = (
        graph.add(
            "Div",
            graph.add("ReduceSum", graph.add("Mul", match, np.arange(length).reshape(shape)), axes, keepdims=0),
            graph.add("Add", mass, 1e-6),
        )
        for length, shape in ((pose.WIDTH, (1, 1, 1, -1)), (pose.HEIGHT, (1, 1, -1, 1)))
    )
    along, across, score = point_maps()
    straight, turned = graph.constant(along.T), graph.constant(across.T)
    point_x = graph.add("Sub", graph.add("MatMul", x, straight), graph.add("MatMul", y, turned))
    point_y = graph.add("Add", graph.add("MatMul", y, straight), graph.add("MatMul", x, turned))
    absent = graph.add("Sub", 1.0, graph.add("Cast", graph.add("Greater", mass, LEAST), to=number))
    missing = graph.add("MatMul", absent, ((along != 0) | (across != 0)).T)  # a point needs all its joints
    known = graph.add("Mul", graph.add("Relu", graph.add("Sub", 1.0, missing)), score.reshape(1, -1))

    def bump(place: str, length: int) -> str:
        heat = graph.add("Div", graph.add("Add", place, 0.5), 4.0)
        apart = graph.add(
            "Sub", np.arange(length).reshape(1, 1, -1), graph.add("Unsqueeze", heat, graph.constant([2], np.int64))
        )
        return graph.add("Exp", graph.add("Div", graph.add("Mul", apart, apart), -2 * SIGMA**2))

    across_map = graph.add("Unsqueeze", bump(point_x, pose.HEAT_WIDTH), graph.constant([2], np.int64))
    down_map = graph.add("Unsqueeze", bump(point_y, pose.HEAT_HEIGHT), graph.constant([3], np.int64))
    graph.add("Mul", graph.add("Mul", down_map, across_map), graph.add("Unsqueeze", known, axes), out="output")
    heat = [batch, 133, pose.HEAT_HEIGHT, pose.HEAT_WIDTH]
    title = f"stand-in whole-body pose estimator, {order} input"
    graph.write(path, title, ("input", [batch, 3, pose.HEIGHT, pose.WIDTH]), ("output", heat))


if __name__ == "__main__":
    write_detector(Path(sys.argv[1]) / DETECTOR)
    write_pose_estimator(Path(sys.argv[1]) / POSE)

"""Estimator of people and their points by the two released networks, a detector and a pose estimator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wan.modules.animate.preprocess import detect, pose
from wan.modules.animate.preprocess.networks import Network

DETECTOR, POSE = "det/yolov10m.onnx", "pose2d/vitpose_h_wholebody.onnx"  # in the folder of upstream's stage


class WholeBody:
    """Both networks of a folder; either of them may be another file.

    `order`: see `pose.network_input`; `as_upstream`: see `detect.persons`; `device`: see `Network`. Raises ValueError
    and FileNotFoundError naming the file.
    """

    packages = ("onnxruntime",)

    def __init__(
        self,
        folder: str | Path,
        detector: str | Path | None = None,
        estimator: str | Path | None = None,
        device: str = "auto",
        order: str = "bgr",
        as_upstream: bool = False,
    ):
        side, picture = detect.SIDE, (None, 3, pose.HEIGHT, pose.WIDTH)
        heat = (None, 133, pose.HEAT_HEIGHT, pose.HEAT_WIDTH)
        files = Path(detector or Path(folder) / DETECTOR), Path(estimator or Path(folder) / POSE)
        self.detector = Network(files[0], "person detector", (None, 3, side, side), (None, None, 6), device)
        self.estimator = Network(files[1], "pose estimator", picture, heat, device)
        self.order, self.as_upstream = order, as_upstream

    def describe(self) -> str:
        """Name the files, and the providers that really run them."""
        parts = (("people", self.detector), ("points", self.estimator))
        return "; ".join(f"{what}: {network.path} ({network.provider})" for what, network in parts)

    def begin(self) -> None:
        """Do nothing: each frame is estimated by itself."""

    @property
    def identity(self) -> str:
        """Text that changes with the files and the order of the channels."""
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.detector.path, self.estimator.path)
        ]
        return f"{files} {self.order}"

    def people(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Find people in frames, uint8 [H, W, 3]: boxes [n, 5] in pixels (corners, score), the best one first."""
        found = self.detector(np.concatenate([detect.network_input(frame) for frame in frames]))
        pairs = zip(found, frames, strict=True)
        return [detect.persons(rows, frame.shape[1::-1], self.as_upstream) for rows, frame in pairs]

    def points(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Find the points of the person in a box [5] of each frame: float32 [n, 133, 3], pixels and confidence."""
        crops = [pose.crop_around(box, frame.shape[1::-1]) for frame, box in zip(frames, boxes, strict=True)]
        given = zip(frames, crops, strict=True)
        heatmaps = self.estimator(np.concatenate([pose.network_input(*each, self.order) for each in given]))
        return np.stack([pose.joints_of(maps, crop) for maps, crop in zip(heatmaps, crops, strict=True)])

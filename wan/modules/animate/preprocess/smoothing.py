"""Smoothing of key points over time, against the trembling that networks add from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from wan.modules.animate.preprocess.joints import CERTAIN
from wan.modules.animate.preprocess.keypoints import Figure

REACH = 3  # deviations, beyond which frames count no more


def smoothed(figures: Sequence[Figure], seconds: float, rate: float) -> list[Figure]:
    """Average the places of points over time by a Gaussian whose deviation is `seconds`; `rate` is in frames a second.

    Points count by their confidence. Those that are not certain neither count nor move, and confidences stay.
    """
    parts = (averaged(np.stack([getattr(f, part.name) for f in figures]), seconds * rate) for part in fields(Figure))
    return [Figure(*parts) for parts in zip(*parts, strict=True)]


def averaged(points: np.ndarray, deviation: float) -> np.ndarray:
    """Average points [T, n, 3] with those of the frames around them; `deviation` is in frames."""
    count = len(points)
    is_seen = np.isfinite(points).all(-1, keepdims=True) & (points[..., 2:] >= CERTAIN)
    weight = np.where(is_seen, points[..., 2:], 0).astype(np.float64)
    place = np.where(is_seen, points[..., :2], 0) * weight
    sums, weights = np.zeros_like(place), np.zeros_like(weight)
    reach = min(int(REACH * deviation), count - 1)
    for apart in range(-reach, reach + 1):
        share = np.exp(-((apart / deviation) ** 2) / 2) if apart else 1.0
        here, there = slice(max(0, -apart), count - max(0, apart)), slice(max(0, apart), count - max(0, -apart))
        sums[here] += share * place[there]
        weights[here] += share * weight[there]
    result = points.copy()
    result[..., :2] = np.where(is_seen, sums / np.where(is_seen, weights, 1), points[..., :2])
    return result

"""UniPC (arXiv:2302.04867) for flow matching: order 2, B(h) = e^h - 1, data prediction, with corrector."""

import math

import numpy as np
from torch import Tensor

from wan.utils.flow import FlowScheduler, to_data


class FlowUniPCMultistepScheduler(FlowScheduler):
    """UniPC with a history of two data estimates. A step first corrects its sample, then predicts the next one.

    The data estimate is not computed again from the corrected sample: there is one network call per step.
    """

    def _forget(self) -> None:
        self._estimates: list[Tensor] = []  # data estimates, the newest last, at most two
        self._start: Tensor | None = None  # the corrected sample the last prediction started from
        self._order = 0  # of that prediction

    @property
    def start_sigma(self) -> float:
        """Start just below pure noise; the float32 rounding is part of the published schedule."""
        return float(np.float32(1 - 1 / self.num_train_timesteps))

    def _advance(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        estimate = to_data(x, self._sigmas[i], velocity)
        if self._sigmas[i + 1] == 0:  # the prediction is the estimate itself, with or without a correction
            self._estimates, self._start = [], None
            return estimate
        if i > 0:
            x = self._correct(i, estimate)
        self._order = min(2, i + 1)
        self._start = x
        predicted = self._predict(i, estimate)
        self._estimates = [*self._estimates[-1:], estimate]
        return predicted

    def _predict(self, i: int, estimate: Tensor) -> Tensor:
        """Predict the sample at i + 1 from the corrected one at i; the second-order weight 1/2 is the paper's."""
        scale, weight, h = self._interval(i, i + 1)
        x = scale * self._start - weight * estimate
        if self._order == 2:
            ratio = (self._lambdas[i - 1] - self._lambdas[i]) / h
            x = x - (weight * 0.5 / ratio) * (self._estimates[-1] - estimate)
        return x

    def _correct(self, i: int, estimate: Tensor) -> Tensor:
        """Compute the sample at i again from i - 1, with its data estimate known, in the order of the prediction."""
        scale, weight, h = self._interval(i - 1, i)
        previous = self._estimates[-1]
        x = scale * self._start - weight * previous
        change = estimate - previous
        if self._order == 1:
            return x - (weight * 0.5) * change
        ratio = (self._lambdas[i - 2] - self._lambdas[i - 1]) / h
        growth = math.expm1(-h)
        phi1 = growth / -h - 1
        phi2 = phi1 / -h - 0.5
        b1, b2 = phi1 / growth, 2 * phi2 / growth
        rho1 = (b1 - b2) / (1 - ratio)  # solves rho1 + rho2 = b1, ratio * rho1 + rho2 = b2
        rho2 = b1 - rho1
        return x - (weight * rho1 / ratio) * (self._estimates[-2] - previous) - (weight * rho2) * change

    def _interval(self, a: int, b: int) -> tuple[float, float, float]:
        """Factor of the sample, alpha_b * (e^-h - 1), and h = lambda_b - lambda_a, from step a to step b."""
        h = self._lambdas[b] - self._lambdas[a]
        return self._sigmas[b] / self._sigmas[a], (1 - self._sigmas[b]) * math.expm1(-h), h

"""What boosting minimises: the loss of raw outputs, its gradients, and where to begin.

No party: pure functions, which the label party alone runs. Logistic, softmax, squared and Poisson (log link),
with scikit-learn's baselines (HistGradientBoosting) and XGBoost's second-order steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, log_softmax, softmax, xlogy

from protocols.arrays import Array
from protocols.errors import DataError

Name = Literal["logistic", "softmax", "squared", "poisson"]
_LEAST = 1e-12  # of a class's share, so that its logarithm is finite


@dataclass(frozen=True)
class Loss:
    """One of four. Targets (rows,): classes as int64 from 0, or numbers as float64."""

    name: Name
    classes: int = 0  # of softmax

    @property
    def outputs(self) -> int:
        """How many raw outputs a row has."""
        return self.classes if self.name == "softmax" else 1

    def baseline(self, y: Array, weights: Array) -> Array:
        """The best constant outputs, float64 (outputs,). DataError for a Poisson target without events."""
        if self.name == "softmax":
            shares = np.bincount(y, weights, minlength=self.classes) / weights.sum()
            logs: Array = np.log(np.maximum(shares, _LEAST))
            return logs
        mean = float(np.average(y, weights=weights))
        if self.name == "logistic":
            mean = min(max(mean, _LEAST), 1 - _LEAST)
            return np.array([np.log(mean / (1 - mean))])
        if self.name == "poisson":
            if mean <= 0:
                raise DataError("the target is 0 in every training row; a Poisson model needs some events")
            return np.array([np.log(mean)])
        return np.array([mean])

    def derivatives(self, y: Array, raw: Array) -> tuple[Array, Array]:
        """Gradients and hessians (rows, outputs) at raw outputs (rows, outputs)."""
        if self.name == "softmax":
            p = softmax(raw, axis=1)
            return p - (np.arange(self.classes) == y[:, None]), p * (1 - p)
        f = raw[:, 0]
        if self.name == "logistic":
            p = expit(f)
            g, h = p - y, p * (1 - p)
        elif self.name == "poisson":
            h = _exp(f)
            g = h - y
        else:
            g, h = f - y, np.ones_like(f)
        return g[:, None], h[:, None]

    def mean(self, y: Array, raw: Array, weights: Array) -> float:
        """The weighted mean of the loss."""
        if self.name == "softmax":
            each = -log_softmax(raw, axis=1)[np.arange(len(y)), y]
        else:
            f = raw[:, 0]
            if self.name == "logistic":
                each = np.logaddexp(0, f) - y * f
            elif self.name == "poisson":
                each = _exp(f) - y * f - y + xlogy(y, y)  # half the deviance
            else:
                each = 0.5 * (f - y) ** 2
        return float(np.average(each, weights=weights))

    def response(self, raw: Array) -> Array:
        """Probabilities (rows, classes), or numbers (rows, 1)."""
        if self.name == "softmax":
            found: Array = softmax(raw, axis=1)
        elif self.name == "logistic":
            found = np.concatenate([expit(-raw), expit(raw)], axis=1)
        else:
            found = _exp(raw) if self.name == "poisson" else raw
        return found


def _exp(raw: Array) -> Array:
    """Infinite, without a warning, where it is too large: training refuses such gradients."""
    with np.errstate(over="ignore"):
        found: Array = np.exp(raw)
    return found

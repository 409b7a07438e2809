"""Losses of generalised linear models as functions of scores z, and what they are minimised with.

No party: numerics. A score is a row's intercept plus its columns times their coefficients; there is one for
each output. McCullagh and Nelder 1989; the Taylor form is that of Hardy et al. 2017 (arXiv:1711.10677),
equation 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp, softmax

from protocols.arrays import Array

FURTHEST = 30.0  # scores of a Poisson model that starts: e^30 events a row


@dataclass(frozen=True)
class Loss:
    """One loss. z and y are (n, outputs) float64: y is 0 or 1 for each class, or the number to predict.

    value: (z, y) -> (n,). residual: (z, y) -> (n, outputs), its derivative by z. curvature: the most that
    its second derivative can be, or for Poisson what it is at a mean of 1. start: (y, weights of mean 1) ->
    the intercepts (outputs,) of the best model without columns. quadratic: whether the residual is affine
    in z.
    """

    value: Callable[[Array, Array], Array]
    residual: Callable[[Array, Array], Array]
    curvature: float
    start: Callable[[Array, Array], Array]
    quadratic: bool = False


def _binomial(z: Array, y: Array) -> Array:
    return np.asarray((np.logaddexp(0.0, z) - y * z)[:, 0])


def _log_odds(y: Array, weights: Array) -> Array:
    share = _mean(y, weights)
    return np.asarray(np.log(share / (1 - share)))


def _multinomial(z: Array, y: Array) -> Array:
    return np.asarray(logsumexp(z, axis=1) - (y * z).sum(axis=1))


def _log_shares(y: Array, weights: Array) -> Array:
    shares = np.log(_mean(y, weights))
    return np.asarray(shares - shares.mean())


def _poisson(z: Array, y: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray((np.exp(z) - y * z)[:, 0])


def _poisson_residual(z: Array, y: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(z) - y)


def _log_mean(y: Array, weights: Array) -> Array:
    return np.asarray(np.log(np.maximum(_mean(y, weights), np.exp(-FURTHEST))))


def _mean(y: Array, weights: Array) -> Array:
    return np.asarray((weights[:, None] * y).mean(axis=0))


def _nothing(y: Array, weights: Array) -> Array:
    return np.zeros(y.shape[1])


LOSSES: dict[str, Loss] = {
    "binomial": Loss(_binomial, lambda z, y: expit(z) - y, 0.25, _log_odds),
    "multinomial": Loss(_multinomial, lambda z, y: softmax(z, axis=1) - y, 0.5, _log_shares),
    "squared": Loss(lambda z, y: ((z - y) ** 2 / 2)[:, 0], lambda z, y: z - y, 1.0, _mean, quadratic=True),
    "poisson": Loss(_poisson, _poisson_residual, 1.0, _log_mean),
    "taylor": Loss(
        lambda z, y: (np.log(2.0) - (y - 0.5) * z + z**2 / 8)[:, 0],
        lambda z, y: z / 4 - (y - 0.5),
        0.25,
        _nothing,
        quadratic=True,
    ),
}

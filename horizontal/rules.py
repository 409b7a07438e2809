"""What the server makes of the clients' models, as a value that its role is given.

Takes part: the server alone. It needs the mean by rows only, so a rule works as well where no single
update is visible. A rule is two functions, `init(model) -> state` and `apply(state, model, mean) -> (model,
state)`; `mean - model` is the round's direction (the pseudo-gradient) for rules that take a step of their
own.
Sources: McMahan et al., AISTATS 2017; Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from protocols.arrays import Array, Arrays, weighted_mean

S = TypeVar("S")


@dataclass(frozen=True)
class ServerRule(Generic[S]):
    """How the next global model follows from this one and the clients' mean."""

    init: Callable[[Arrays], S]
    apply: Callable[[S, Arrays, Arrays], tuple[Arrays, S]]
    flops: float = 0.0  # of `apply`, per number of the model


def _no_state(model: Arrays) -> None:
    return None


def _take_mean(state: None, model: Arrays, mean: Arrays) -> tuple[Arrays, None]:
    return mean, None


average: ServerRule[None] = ServerRule(_no_state, _take_mean)
"""FedAvg: the mean is the next model."""


def mean_model(model: Arrays, updates: Sequence[Arrays], rows: Sequence[int]) -> Arrays:
    """The mean of `updates` weighted by `rows`, in the dtypes of `model`; counters are rounded."""
    return Arrays((n, _as(model[n], a)) for n, a in weighted_mean(updates, rows).items())


def mean_flops(model: Arrays, updates: int) -> float:
    """FLOPs of `mean_model`: a multiply-add for every number of every update."""
    return 2.0 * updates * model.size


def is_finite(weights: Arrays) -> bool:
    """Whether no array holds NaN or infinity."""
    return all(bool(np.isfinite(a).all()) for a in weights.values())


def _as(like: Array, mean: Array) -> Array:
    return mean if mean.dtype == like.dtype else np.rint(mean).astype(like.dtype)

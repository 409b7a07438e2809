"""What a party brings to a linear model, and what it keeps of it. No line is involved."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.data.tables import Scaler
from protocols.psi.ids import CanonicalIds

Classes = list[bool | int | str]


@dataclass(frozen=True)
class Table:
    """What a party brings: ids and features, row for row."""

    ids: CanonicalIds
    x: Array = field(repr=False)  # (n, d) float64
    names: list[str] = field(repr=False)


@dataclass(frozen=True)
class Target:
    """What the label party brings besides."""

    y: pd.Series = field(repr=False)
    weights: Array | None = field(repr=False, default=None)  # (n,) float64


@dataclass(frozen=True)
class Linear:
    """What a party learns about its own columns."""

    scaler: Scaler
    coef: Array = field(repr=False)  # (d, outputs) float64, of standardised columns

    def __call__(self, x: Array) -> Array:
        """This party's part of the scores (n, outputs) of `x` (n, d), float64."""
        return np.asarray(standardised(self.scaler, x) @ self.coef)


@dataclass(frozen=True)
class Head:
    """What the label party alone learns."""

    intercept: Array  # (outputs,) float64
    classes: Classes | None  # of classification
    scaler: Scaler | None  # of a linear regression's target
    steps: int  # iterations or epochs
    converged: bool
    losses: list[float]  # the objective before each step and, where it is known, after the last
    held_out: int = field(repr=False)  # the key of which rows were, for who starts from this model


def standardised(scaler: Scaler, x: Array) -> Array:
    """In float64, in which a `Scaler` has its numbers."""
    return np.asarray((x - scaler.mean) / scaler.scale)

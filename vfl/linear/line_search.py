"""L-BFGS without vectors: where to go and how far, from inner products and scores alone.

No party: numerics. The two loops of L-BFGS need only inner products of the gradient, the last steps and the
last changes of the gradient (Chen, Wang and Zhou 2014, "Large-scale L-BFGS using MapReduce"). Every owner of
columns holds its own part of these vectors in a `Span`; the label party adds up their inner products, and
keeps a `Span` of scores, since the score of a combination is the combination of scores. `Patience` ends
training by the loss of rows that were held out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from protocols.arrays import Array, Arrays
from protocols.errors import DataError

MEMORY = 20  # pairs of a step and the change of the gradient over it; see decision 022
_NEAR = 1e-3
_FARTHEST, _LARGE = 2.0**60, 1e300


class Span:
    """A point, the gradient there, and the last steps with the gradient's changes; arrays of one shape."""

    def __init__(self, point: Array, memory: int = MEMORY) -> None:
        self.point, self._memory = point, memory
        self.gradient = np.zeros_like(point)
        self.steps: list[Array] = []
        self.changes: list[Array] = []
        self._step: Array | None = None  # since the gradient was last known

    @property
    def basis(self) -> list[Array]:
        """What a direction is made of."""
        return [self.gradient, *self.steps, *self.changes]

    def combined(self, coefficients: Array) -> Array:
        """The combination of the basis."""
        summed = np.zeros_like(self.point)
        for factor, vector in zip(coefficients.tolist(), self.basis, strict=True):
            if factor:
                summed = summed + factor * vector
        return summed

    def move(self, coefficients: Array, step: float) -> None:
        """Go `step` times a combination of the basis."""
        self._step = step * self.combined(coefficients)
        self.point = self.point + self._step

    def turn(self, gradient: Array) -> None:
        """Take the gradient at the point."""
        if self._step is not None:
            self.steps = [*self.steps, self._step][-self._memory :]
            self.changes = [*self.changes, gradient - self.gradient][-self._memory :]
        self.gradient, self._step = gradient, None

    def arrays(self, name: str) -> dict[str, Array]:
        """A copy of all, for a checkpoint."""
        held = {"point": self.point, "gradient": self.gradient}
        held |= {} if self._step is None else {"step": self._step}
        empty = np.zeros((0, *self.point.shape))
        held["steps"] = np.stack(self.steps) if self.steps else empty
        held["changes"] = np.stack(self.changes) if self.changes else empty
        return {f"{name}.{key}": np.array(array) for key, array in held.items()}

    def restore(self, name: str, state: Arrays) -> None:
        """Take up what `arrays` gave. DataError if it is of other columns."""
        point = state.get(f"{name}.point")
        if point is None or point.shape != self.point.shape:
            raise DataError(f"the checkpoint is not of this model: {name} should be {list(self.point.shape)}")
        self.point, self.gradient = np.array(point), np.array(state[f"{name}.gradient"])
        self.steps, self.changes = [*state[f"{name}.steps"]], [*state[f"{name}.changes"]]
        self._step = state.get(f"{name}.step")


def products(vectors: list[Array]) -> Array:
    """All inner products, (b, b) float64."""
    flat = np.stack([vector.ravel() for vector in vectors])
    return np.asarray(flat @ flat.T)


def direction(gram: Array) -> Array:
    """The coefficients (b,) of a descent direction in the basis whose inner products are `gram` (b, b)."""
    pairs = (len(gram) - 1) // 2
    steps, changes = range(1, 1 + pairs), range(1 + pairs, 1 + 2 * pairs)
    # Near the optimum rounding can make a pair of no or negative curvature, which says nothing.
    usable = [
        (s, y)
        for s, y in zip(steps, changes, strict=True)
        if gram[s, y] > 1e-12 * np.sqrt(gram[s, s] * gram[y, y])
    ]
    found = np.zeros(len(gram))
    found[0] = -1.0
    factors = {}
    for s, y in reversed(usable):
        factors[s] = (found @ gram[:, s]) / gram[s, y]
        found[y] -= factors[s]
    if usable:
        s, y = usable[-1]
        found *= gram[s, y] / gram[y, y]
    for s, y in usable:
        found[s] += factors[s] - (found @ gram[:, y]) / gram[s, y]
    return found


def line_search(slope: Callable[[float], float]) -> float:
    """How far to go along a line on which a convex function has this slope; 0 where it does not fall.

    To within a thousandth of where the slope is 0, by Brent's method: far beyond what L-BFGS asks for, and
    every score that it takes is at hand.
    """
    first = slope(0.0)
    if not first < 0:
        return 0.0
    low, high = 0.0, 1.0
    while (above := slope(high)) < 0 and high < _FARTHEST:
        if above > _NEAR * first:
            return high
        low, high = high, 2 * high
    if above < 0:
        return high

    def finite(t: float) -> float:  # where the function is too large for a float it rises
        return float(np.nan_to_num(slope(t), nan=_LARGE, posinf=_LARGE))

    return float(brentq(finite, low, high, rtol=_NEAR))


class Patience:
    """Ends training once the best validation loss is so many steps ago. At the label party."""

    def __init__(self, patience: int, best: float = np.inf, since: int = 0) -> None:
        self._patience, self.best, self.since = patience, best, since

    def better(self, loss: float) -> bool:
        """Whether `loss` is the best so far."""
        found = loss < self.best
        self.best, self.since = (loss, 0) if found else (self.best, self.since + 1)
        return found

    @property
    def over(self) -> bool:
        """Whether to go back to the best."""
        return self.since >= self._patience

    def array(self) -> Array:
        """For a checkpoint."""
        return np.array([self.best, self.since])

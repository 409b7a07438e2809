"""One owner's columns: in fixed point, with their coefficients, in coordinates in which they are alike.

No party: what each owner of columns computes for itself. Columns are rounded to 24 bits of their largest
value, once, and scores and gradients are of the rounded ones: so that the optimum is one of a table that
differs from the given one by 2^-25, and not a compromise of two.

An owner knows how its own columns go together, and so preconditions the optimisation: with G = c X^T X / n
and T T^T = (G + 0.3 diag(G) + l2)^-1, it works in coordinates v, w = T v, in which its own block of the
loss's second derivative is about 1 in all directions that matter. What is left for L-BFGS to find out is how
columns of different owners go together. Numbers, with and without damping, are in decision 016.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protocols.arrays import Array
from protocols.errors import DataError
from vfl.linear.search import Span, products

BITS = 24  # of a column's largest value
DAMPING = 0.3
LEAST = 10  # rows a batch has for each column of whoever learns its gradient


@dataclass(frozen=True)
class Columns:
    """An owner's columns over all common rows: those of training first, then those held out."""

    values: Array  # (n, d) float64, rounded
    ints: Array  # (n, d) int64, below 2^24 in magnitude
    limits: Array  # (d,) float64: values = ints * limits / 2^24
    training: int  # rows

    @classmethod
    def of(cls, x: Array, training: int) -> Columns:
        """Of x (n, d) float64."""
        limits = np.abs(x).max(axis=0, initial=0.0)
        limits = np.where(limits > 0, limits, 1.0)
        ints = np.rint(x / limits * 2.0**BITS).astype(np.int64)
        return cls(np.ldexp(ints * limits, -BITS), ints, limits, training)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.values.shape[1])


class Block:
    """Columns with their coefficients.

    start: (d, outputs), in the columns' own coordinates. penalised: (d,) of those that l2 is about.
    curvature: the loss's; 0 for no preconditioning.
    """

    def __init__(self, x: Columns, start: Array, penalised: Array, l2: float, curvature: float) -> None:
        self.x, self._l2, self._penalised = x, l2, penalised.astype(np.float64)[:, None]
        self._to, back = _coordinates(x, l2 * penalised, curvature)
        self.span = Span(back @ start)

    @property
    def coef(self) -> Array:
        """(d, outputs) float64, in the columns' own coordinates."""
        return np.asarray(self._to @ self.span.point)

    def turn(self, summed: Array, rows: int) -> None:
        """Take X^T r (d, outputs) of so many rows: the loss's part of the gradient at the coefficients."""
        self.span.turn(self._to.T @ (summed / rows + self._l2 * self._penalised * self.coef))

    def curved(self, summed: Array, rows: int, vector: Array) -> Array:
        """The second derivative times `vector` in the span's coordinates; `summed`: c X^T of its scores."""
        return np.asarray(self._to.T @ (summed / rows + self._l2 * self._penalised * (self._to @ vector)))

    def penalty(self) -> Array:
        """l2 times the inner products of the coefficients that it is about and of the basis, (b + 1, b + 1).

        So nothing of them where it is 0.
        """
        vectors = (self.span.point, *self.span.basis)
        return self._l2 * products([self._penalised * (self._to @ v) for v in vectors])

    def scores(self, vector: Array) -> Array:
        """The scores (n, outputs) that all rows get of a `vector` in the span's coordinates."""
        return np.asarray(self.x.values @ (self._to @ vector))


def _coordinates(x: Columns, l2: Array, curvature: float) -> tuple[Array, Array]:
    """T (d, d) and its inverse."""
    if not curvature:
        return np.eye(x.count), np.eye(x.count)
    used = x.values[: x.training]
    own = curvature * (used.T @ used) / len(used)
    damped = own + np.diag(DAMPING * np.diag(own) + l2)
    # In units of their own first: of columns as they are, small ones would be lost beside large ones.
    units = np.sqrt(np.where(np.diag(damped) > 0, np.diag(damped), 1.0))
    sizes, axes = np.linalg.eigh(damped / units / units[:, None])
    # Columns of zeros would have no bound.
    roots = np.sqrt(np.maximum(sizes, 1e-9 * sizes.max(initial=1e-300)))
    return axes / roots / units[:, None], (axes * roots).T * units


def check_columns(x: Array, names: list[str]) -> None:
    """DataError for columns that are the same in all of the rows that are trained on."""
    constant = [name for name, column in zip(names, x.T, strict=True) if column.min() == column.max()]
    if constant:
        counted = f"{len(constant)} of {len(names)} columns are constant in the {len(x)} rows of training"
        error = DataError(f"{counted}, as is {constant[0]!r}; drop what cannot tell rows apart")
        error.told = counted
        raise error


def check_rows(rows: int, columns: int) -> None:
    """DataError unless a batch of `rows` keeps each row's residual hidden in the gradient of `columns`."""
    if rows < LEAST * columns:
        # From as many sums as rows the residuals follow, and from these the labels.
        error = DataError(
            f"a batch of {rows} rows is too small for {columns} columns: whoever learns its gradient could "
            f"find out labels; it should have at least {LEAST} rows a column: raise batch_size, bring more "
            "rows or fewer columns"
        )
        error.told = str(error)
        raise error

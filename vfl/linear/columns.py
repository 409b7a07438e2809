"""One owner's columns: with their coefficients, in coordinates in which they are alike.

No party: what each owner of columns computes for itself.

An owner knows how its own columns go together, and so preconditions the optimisation: with G = c X^T X / n
and T T^T = (G + 0.3 diag(G) + l2)^-1, it works in coordinates v, w = T v, in which its own block of the
loss's second derivative is about 1 in all directions that matter. What is left for L-BFGS to find out is how
columns of different owners go together. Numbers, with and without damping, are in decision 016.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from protocols.arrays import Array
from protocols.errors import DataError
from protocols.party import Guard
from vfl.linear.groups import check_groups
from vfl.linear.line_search import MEMORY, Span, products
from vfl.linear.whole import Factors

DAMPING = 0.3
LEAST = 10  # rows a batch has for each column of whoever learns its gradient


@dataclass(frozen=True)
class Columns:
    """An owner's columns over all common rows: those of training first, then those held out."""

    values: Array = field(repr=False)  # (n, d) float64
    training: int  # rows
    names: list[str] = field(repr=False)  # of the first columns: all but the intercept's

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.values.shape[1])

    def check(self, batches: Iterable[Array | slice], guard: Guard) -> None:
        """PolicyError if the gradient over one of these batches is of too few rows: see `groups`."""
        for rows in batches:
            check_groups(self.values[rows, : len(self.names)], self.names, guard)

    def factors(self, rows: Array | slice) -> Factors:
        """Those of `rows`, for sums with others' residuals."""
        return Factors.of(self.values[rows])


class Block:
    """Columns with their coefficients.

    start: (d, outputs), in the columns' own coordinates. penalised: (d,) of those that l2 is about.
    curvature: the loss's; 0 for no preconditioning.
    """

    def __init__(
        self,
        x: Columns,
        start: Array,
        penalised: Array,
        l2: float,
        curvature: float,
        memory: int = MEMORY,
    ) -> None:
        self.x, self._l2, self._penalised = x, l2, penalised.astype(np.float64)[:, None]
        self._to, back = _coordinates(x, l2 * penalised, curvature)
        self.span = Span(back @ start, memory)

    @property
    def coef(self) -> Array:
        """(d, outputs) float64, in the columns' own coordinates."""
        return np.asarray(self._to @ self.span.point)

    def turn(self, summed: Array, rows: int) -> None:
        """Take X^T r (d, outputs) of so many rows: the loss's part of the gradient at the coefficients."""
        self.span.turn(self.gradient(summed, rows, self.span.point))

    def gradient(self, summed: Array, rows: int, point: Array) -> Array:
        """At a `point` in the span's coordinates, where X^T r is `summed`."""
        return np.asarray(self._to.T @ (summed / rows + self._l2 * self._penalised * (self._to @ point)))

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

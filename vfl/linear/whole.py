"""Residuals and columns as whole numbers so small that their sums fit a window of few bits.

No party: numerics, of which both ends of `gradient` do their part. A sum of residuals times a column is an
exact integer of at most `WINDOW` - `CHECK` bits, its sign among them, because both are short enough (Cauchy
and Schwarz): the residuals of n rows at most sqrt(n) 2^detail long, a column what that leaves. Only its
owner knows how finely a column is then rounded; nobody has to be told.

Rounding a column to units of q puts sqrt(n) q / 3.5 times the residuals' root mean square into its sum,
whatever is done about residuals; so they are rounded as coarsely as can be, which leaves columns more room.
What rounding a residual leaves out is told with the next message: where everybody follows the same rows step
after step, what is told is the change since the last time (`Told`), and in mini-batches a row's rest waits
until the row comes again (`Batches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, isqrt, log2, sqrt
from typing import Self

import numpy as np

from protocols.arrays import Array
from protocols.errors import DataError
from protocols.hazmat.paillier import Fixed

WINDOW = 34  # bits of a sum that its receiver is told: the fewest that keep coefficients, decision 022
CHECK = 1  # of them, beyond those of sums: so every other wrong sum is one that cannot be
NOISE = 10  # bits by which a gradient's rounding is below the residuals' root mean square
FARTHEST = 400  # a power of two that no residual is beyond


@dataclass(frozen=True)
class Rounded:
    """Numbers (n, outputs) as whole ones: their root mean square is at most 2^detail(n), for each output."""

    ints: Array = field(repr=False)  # (n, outputs) float64
    exponent: int  # of a power of two above the root mean square of the numbers

    @classmethod
    def of(cls, numbers: Array, least: int = -FARTHEST) -> Self:
        """In units of a power of two. least: no lower exponent. DataError for infinite or too large ones."""
        bits = detail(len(numbers))
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.sqrt((numbers**2).mean(axis=0)).max(initial=0.0)
        exponent = max(least, exponent_of(size))
        ints = np.rint(np.ldexp(numbers, bits - exponent))
        if (ints**2).sum(axis=0).max(initial=0.0) > len(ints) * 4**bits:  # by rounding up
            exponent += 1
            ints = np.rint(np.ldexp(numbers, bits - exponent))
        return cls(ints, exponent)

    @property
    def values(self) -> Array:
        """What they stand for."""
        return np.ldexp(self.ints, self.exponent - detail(len(self.ints)))


def detail(rows: int) -> int:
    """Bits of a residual, at their root mean square: the fewer the more rows there are to even them out."""
    return max(1, round(NOISE - log2(max(rows, 1)) / 2))


def exponent_of(size: float) -> int:
    """Of a power of two above `size`."""
    if not size < 2.0**FARTHEST:  # NaN too
        raise DataError(
            "training diverged: residuals are not finite, or too large; lower the learning rate, raise l2, "
            "or scale counts down"
        )
    return max(int(np.frexp(size)[1]), -FARTHEST) if size else -FARTHEST


class Batches:
    """What is told of rows (n, outputs) that come in one batch after the other.

    What rounding leaves out of a row is added to it when it comes again, so that steps do not add it up. The
    power of two that is told only grows.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._exponent, self._left_out = 0, np.zeros(shape)

    def tell(self, numbers: Array, rows: Array) -> Rounded:
        """One batch's, of `rows`."""
        whole = numbers + self._left_out[rows]
        rounded = Rounded.of(whole, self._exponent)
        self._exponent, self._left_out[rows] = rounded.exponent, whole - rounded.values
        return rounded

    def arrays(self) -> dict[str, Array]:
        """For a checkpoint."""
        return {"left out": np.array(self._left_out), "exponent": np.array([self._exponent], np.int64)}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take up what `arrays` gave."""
        self._left_out, self._exponent = np.array(state["left out"]), int(state["exponent"][0])


class Told:
    """What others know of numbers (n, outputs) that change: the sum of all that they were told."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values, self.highest = np.zeros(shape), 0

    def rest(self, numbers: Array) -> Rounded:
        """What is to be told so that they know `numbers`, about."""
        # At first by the largest, which of classes tells nothing: there is always one of nearly 1.
        least = -FARTHEST if self.values.any() else exponent_of(np.abs(numbers).max(initial=0.0))
        rounded = Rounded.of(numbers - self.values, least)
        self.values = self.values + rounded.values
        self.highest = max(self.highest, rounded.exponent)
        return rounded

    def arrays(self) -> dict[str, Array]:
        """For a checkpoint."""
        return {"told": np.array(self.values), "highest": np.array([self.highest], np.int64)}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take up what `arrays` gave."""
        self.values, self.highest = np.array(state["told"]), int(state["highest"][0])


@dataclass(frozen=True)
class Factors:
    """Columns (n, d) as whole numbers, for sums with `Rounded` ones."""

    ints: Array = field(repr=False)  # (n, d) int64
    scale: Array = field(repr=False)  # (d,): ints are columns times this
    values: Array = field(repr=False)  # (n, d) float64

    @classmethod
    def of(cls, columns: Array) -> Self:
        """As finely as sums have room for."""
        rows = len(columns)
        largest = np.abs(columns).max(axis=0, initial=0.0)
        largest = np.where(largest > 0, largest, 1.0)
        length = np.sqrt(((columns / largest) ** 2).sum(axis=0)) * largest
        most = longest(rows) - sqrt(rows) / 2 - 1  # rounding may lengthen
        scale = most / np.where(length > 0, length, 1.0)
        return cls(np.rint(columns * scale).astype(np.int64), scale, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.ints.shape
        return rows, columns


def longest(rows: int) -> int:
    """How long a column of whole numbers may be, so that no sum is above 2^(WINDOW - 1 - CHECK)."""
    return isqrt(4 ** (WINDOW - 1 - CHECK - detail(rows)) // max(rows, 1))


def ranges(rows: int) -> tuple[Fixed, Fixed]:
    """Of residuals and of columns: no number is larger than all of them are long."""
    return Fixed(ceil(sqrt(max(rows, 1)) * 2 ** detail(rows))), Fixed(longest(rows))

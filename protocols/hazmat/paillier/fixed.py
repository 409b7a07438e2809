"""Numbers as integers of one common scale.

A value x stands as the integer x * 2^bits, one `bits` for a whole array: an exponent of each number's own,
as `phe` has, would tell everybody how large the number is.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf, nextafter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError, DataError

Array = NDArray[Any]
SMALL = 1 << 62  # integers below this stay in numpy's int64


@dataclass(frozen=True)
class Fixed:
    """Numbers of at most `limit` in magnitude, in whole multiples of 2**-bits.

    Every whole multiple of 2**-bits from -limit to limit is encoded exactly; any other number in that range
    becomes the nearest multiple (ties to even), so it is off by at most 2**-(bits + 1).
    """

    limit: float
    bits: int = 0

    def __post_init__(self) -> None:
        for name in ("limit", "bits"):
            value = getattr(self, name)
            object.__setattr__(self, name, value.item() if isinstance(value, np.generic) else value)
        if not (isinstance(self.bits, int) and 0 <= self.bits <= 1000):
            raise ConfigError(f"Fixed(bits={self.bits!r}): expected a whole number from 0 to 1000")
        if not isinstance(self.limit, int | float) or not 0 < self.limit < inf:
            raise ConfigError(f"Fixed(limit={self.limit!r}): expected a finite number above 0")
        if self.bound.bit_length() > 1000:
            need = self.bound.bit_length()
            raise ConfigError(f"Fixed(bits={self.bits}) needs {need} bits a value, at most 1000; use fewer")

    @property
    def bound(self) -> int:
        """The largest magnitude of an encoded integer."""
        return -int(-Fraction(self.limit) * 2**self.bits // 1)

    def encode(self, x: Any) -> Encoded:
        """Integers for `x`, of any shape. DataError for what is no number, NaN, infinite or beyond limit."""
        values = np.asarray(x)
        if values.dtype.kind in "bui" or (values.dtype == object and _all_int(values)):
            return Encoded(self._whole(values), self)
        if values.dtype.kind != "f":
            raise DataError(f"expected numbers to encode, got {values.dtype}")
        values = values.astype(np.float64)
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise DataError(
                f"{bad} of {values.size} values are NaN or infinite; fill or drop them before encrypting"
            )
        most = float(self.limit)
        if most > self.limit:  # a large integer that no float equals
            most = nextafter(most, 0.0)
        self._refuse(np.abs(values) > most)
        scaled = np.rint(np.ldexp(values, self.bits))  # scaling by a power of two is exact
        return Encoded(scaled.astype(np.int64) if self.bound < SMALL else objects(scaled), self)

    def _whole(self, values: Array) -> Array:
        self._refuse(np.asarray(abs(objects(values)) > self.limit, dtype=bool))
        if self.bound < SMALL:
            return values.astype(np.int64) << np.int64(self.bits)
        return np.asarray(objects(values) * 2**self.bits)

    def _refuse(self, beyond: Array) -> None:
        if count := int(np.count_nonzero(beyond)):
            raise DataError(
                f"{count} of {beyond.size} values are beyond the limit of ±{self.limit}; clip or scale them, "
                "or declare a larger limit"
            )


@dataclass(frozen=True, eq=False)
class Encoded:
    """Plain numbers as integers, with the declared range from which bounds follow."""

    ints: Array  # int64, or Python integers (object) where they could be larger
    fixed: Fixed

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ints.shape

    @property
    def T(self) -> Encoded:  # noqa: N802  # numpy's name
        return Encoded(self.ints.T, self.fixed)


def _all_int(values: Array) -> bool:
    return all(isinstance(value, int) for value in values.ravel().tolist())


def objects(values: Array) -> Array:
    """The same numbers as Python integers."""
    made = np.empty(values.shape, dtype=object)
    made.ravel()[:] = [int(value) for value in values.ravel().tolist()]
    return made

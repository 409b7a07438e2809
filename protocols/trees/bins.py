"""Columns as bins: what a tree sees of a party's own table.

Takes part: one party, about its own columns; nothing here leaves it but the number of bins, in a message
of `vfl.boosting.messages`. A column of numbers is divided at quantiles of its training rows; one of
categories has a bin for each. Bin 0 holds what is missing, and categories that no training row had; values
have 1 and up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from protocols.arrays import Array, inferred
from protocols.errors import DataError

MOST_BINS = 255  # of values: with the one of missing values, a bin is a byte
Category = bool | int | float | str


@dataclass(frozen=True)
class Bins:
    """How one column is divided: at `thresholds`, or by `categories`."""

    name: str | int
    thresholds: Array | None = field(
        default=None, repr=False
    )  # (bins - 1,) float64; value <= [i] is bin i + 1
    categories: tuple[Category, ...] = field(default=(), repr=False)  # each once
    codes: Array | None = field(default=None, repr=False)  # (categories,) uint8: the bin of each

    @property
    def is_categorical(self) -> bool:
        """Whether bins have no order."""
        return self.thresholds is None

    @property
    def count(self) -> int:
        """How many bins values have; the one of missing values comes on top."""
        if self.thresholds is not None:
            return len(self.thresholds) + 1
        return 0 if self.codes is None else int(self.codes.max(initial=0))

    def check(self, column: pd.Series) -> None:
        """DataError for text where numbers are expected, and for categories that are all of another kind than
        those in training (numbers, where those were text): every one would count as missing."""
        column = inferred(column)
        if self.is_categorical:
            self._check_kinds(_plain(column))
        elif _is_categorical(column):
            raise DataError(
                f"column {self.name!r} is {column.dtype}, and was numbers in training; give it as numbers"
            )

    def _check_kinds(self, values: pd.Series) -> None:
        known, given = _kinds(self.categories), _kinds(values.dropna())
        if known and given and not known & given:
            raise DataError(
                f"column {self.name!r} holds {' and '.join(sorted(given))}, and held "
                f"{' and '.join(sorted(known))} in training; convert it"
            )

    def __call__(self, column: pd.Series) -> Array:
        """The bin of each value, uint8 (n,). Errors as of `check`, and for infinite numbers."""
        column = inferred(column)
        if self.thresholds is None:
            assert self.codes is not None
            plain = _plain(column)
            self._check_kinds(plain)
            at = pd.Index(self.categories, dtype=object).get_indexer_for(pd.Index(plain))
            of_categories: Array = np.append(self.codes, np.uint8(0))
            found_at: Array = of_categories[at]  # -1, of what is unknown, finds the last
            return found_at
        self.check(column)
        values = _numbers(column)
        found = np.searchsorted(self.thresholds, values, side="left") + 1
        found[np.isnan(values)] = 0
        return found.astype(np.uint8)


def fit_bins(column: pd.Series, most: int) -> Bins:
    """Divide a column into at most `most` bins of about equally many rows, or one for each value.

    Categories beyond `most` share the last bin, the most frequent have one of their own. Raises DataError for
    values that are neither numbers nor categories.
    """
    name: Any = column.name  # text or a whole number: as the table has it
    column = inferred(column)
    if not _is_categorical(column):
        values = _numbers(column)
        return Bins(name, _thresholds(values[~np.isnan(values)], most))
    found = _categories(column).value_counts(sort=False)
    # In an order that follows from the values alone: parties may read their rows in any.
    counted = sorted(zip(found.index, found.to_numpy(), strict=True), key=lambda pair: _sorting(pair[0]))
    rank = np.argsort([-count for _, count in counted], kind="stable")
    own = np.sort(rank if len(counted) <= most else rank[: most - 1])
    codes = np.full(len(counted), most, np.uint8)
    codes[own] = np.arange(1, len(own) + 1)
    return Bins(name, categories=tuple(value for value, _ in counted), codes=codes)


def fit_all(table: pd.DataFrame, most: int) -> tuple[Bins, ...]:
    """`fit_bins` of every column of `table`."""
    return tuple(fit_bins(table[name], most) for name in table.columns)


def binned(table: pd.DataFrame, bins: Sequence[Bins]) -> Array:
    """The bins of the fitted columns, uint8 (columns, rows)."""
    found = np.empty((len(bins), len(table)), np.uint8)
    for row, one in zip(found, bins, strict=True):
        row[:] = one(table[one.name])
    return found


def check_columns(table: pd.DataFrame) -> None:
    """DataError unless all columns can be divided, and each tells rows apart: what is missing counts too."""
    empty, constant = [], []
    for name in table.columns:
        column = inferred(table[name])
        values = _categories(column) if _is_categorical(column) else pd.Series(_numbers(column)).dropna()
        distinct = values.nunique()
        if distinct == 0:
            empty.append(name)
        elif distinct == 1 and len(values) == len(column):
            constant.append(name)
    for names, what in ((empty, "no value in any row"), (constant, "one and the same value in every row")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            error = DataError(f"column {names[0]!r}{more} has {what}; drop it")
            error.told = f"{len(names)} of {table.shape[1]} columns: {what}"  # how many, and no name
            raise error


def check_kinds(table: pd.DataFrame, bins: Sequence[Bins]) -> None:
    """DataError unless the fitted columns are there, in any order, and can be divided as they were."""
    missing = [one.name for one in bins if one.name not in table.columns]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(bins)} columns of the fitted table are missing: {missing[:3]}; "
            "give the columns that it was fitted with"
        )
    for one in bins:
        one.check(table[one.name])


def _is_categorical(column: pd.Series) -> bool:
    types = pd.api.types
    if types.is_any_real_numeric_dtype(column):
        return False
    if (
        types.is_bool_dtype(column)
        or types.is_object_dtype(column)
        or types.is_string_dtype(column)
        or isinstance(column.dtype, pd.CategoricalDtype)
    ):
        return True
    raise DataError(
        f"column {column.name!r} is {column.dtype}, expected numbers, categories, text or truth values; "
        "convert it"
    )


def _kinds(values: Iterable[object]) -> set[str]:
    """What kinds of values there are: text, numbers (truth values are 0 and 1), or a type by its name."""
    kinds = {type(value) for value in values}
    return {
        "text" if issubclass(kind, str) else "numbers" if issubclass(kind, float | int) else kind.__name__
        for kind in kinds
    }


def _categories(column: pd.Series) -> pd.Series:
    """Those that are there. DataError for values that are none, whether or not they could be counted."""
    values = _plain(column).dropna()
    for value in values:
        if not isinstance(value, Category):
            raise DataError(
                f"column {column.name!r} holds values of type {type(value).__name__}, expected numbers, text "
                "or truth values; convert it"
            )
    return values


def _plain(column: pd.Series) -> pd.Series:
    """Categories as Python's own values."""
    return pd.Series(
        [value.item() if isinstance(value, np.generic) else value for value in column.astype(object)],
        dtype=object,
    )


def _numbers(column: pd.Series) -> Array:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if infinite := int(np.isinf(values).sum()):
        raise DataError(
            f"column {column.name!r} has {infinite} infinite values in {len(values)} rows; clip them, or "
            "leave them missing"
        )
    return values


def _thresholds(values: Array, most: int) -> Array:
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) > most:
        # A value that would fill a bin by itself counts as one bin, and the rest share the others: quantiles
        # of all rows would leave few thresholds to a column that is mostly zeros.
        heavy = counts * most >= len(values)
        rest = max(1, int(counts[~heavy].sum()))
        taken = np.cumsum(np.where(heavy, rest, counts * (most - int(heavy.sum()))))  # in bins, times `rest`
        at = np.searchsorted(taken, np.arange(1, most) * rest) + 1
        at = np.unique(np.minimum(at, len(distinct) - 1))
        below, above = distinct[at - 1], distinct[at]
    else:
        below, above = distinct[:-1], distinct[1:]
    middle = 0.5 * below + 0.5 * above  # of two large numbers the sum would be infinite
    return np.where(middle < above, middle, below)


def _sorting(value: Category) -> tuple[str, str]:
    return (type(value).__name__, str(value))

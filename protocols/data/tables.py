"""From a party's own DataFrame to the arrays it computes with, or a clear error at its owner.

No line is involved. `Moments` and `Classes` are the two things row-clients tell a coordinator
before training: sums over their rows, and which labels occur.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field

from protocols.arrays import Array, Arrays, inferred
from protocols.errors import ConfigError, DataError, nearest
from protocols.wire.message import Message, Spec

Kind = Literal["classification", "regression"]


class Moments(
    Message,
    reveals="row count, and per column the mean and variance over one client's training rows; "
    "with one row, the row itself; with two, each column's two values",
):
    """What one client contributes to standardising."""

    rows: Annotated[int, Field(ge=1)]
    mean: Annotated[Array, Spec("float64", ("d",))]
    variance: Annotated[Array, Spec("float64", ("d",))]

    @classmethod
    def of(cls, value: Arrays, weight: float) -> Self:
        """From a part of a sum."""
        return cls(rows=int(weight), mean=value["mean"], variance=value["variance"])

    @property
    def value(self) -> Arrays:
        """What a sum is given."""
        return Arrays({"mean": self.mean, "variance": self.variance})

    @property
    def weight(self) -> int:
        """What it weighs there."""
        return self.rows


class Scaling(Message, reveals="per column the mean and deviation over all clients' training rows"):
    """What every client standardises with."""

    mean: Annotated[Array, Spec("float64", ("d",))]
    scale: Annotated[Array, Spec("float64", ("d",))]  # constant columns have 1


class Classes(Message, reveals="which labels occur, among one client's rows or all clients' rows"):
    """Labels, sorted; they are data scientists' values: text, whole numbers or truth values."""

    labels: list[bool | int | str]


def split_target(target: str, parties: Iterable[str]) -> tuple[str, str]:
    """`"bank.default.payment"` -> `("bank", "default.payment")`."""
    party, dot, column = target.partition(".")
    if not dot or not column:
        raise ConfigError(f"target {target!r} should be 'party.column', as in 'bank.default'")
    names = tuple(parties)
    if party not in names:
        known = ", ".join(names)
        raise ConfigError(
            f"target {target!r}: no party {party!r}; parties are {known}{nearest(party, names)}"
        )
    return party, column


_NAMELESS = re.compile(r"Unnamed: \d+")  # what pandas calls a column that a file has no name for


def own_table(given: object) -> pd.DataFrame:
    """A party's table as all methods take it: each column has one name, text or a whole number.

    Names that numpy made (np.int64, np.str_) become Python's own. DataError for what is no DataFrame, for
    several levels of names, for two columns of the same name, and for a column without a name.
    """
    if not isinstance(given, pd.DataFrame):
        raise DataError(f"expected a DataFrame, got {type(given).__name__}")
    if given.columns.nlevels > 1:
        raise DataError(
            f"the columns have {given.columns.nlevels} levels of names, expected one; join them, as in "
            'table.columns = ["_".join(map(str, name)).strip("_") for name in table.columns]'
        )
    names = [name.item() if isinstance(name, np.generic) else name for name in given.columns]
    check_names(names)
    if any(type(old) is not type(new) for old, new in zip(given.columns, names, strict=True)):
        return given.set_axis(pd.Index(names, dtype=object), axis=1)
    return given


def check_names(names: Sequence[object]) -> None:
    """DataError unless `names` are text or whole numbers, none is empty and none stands twice."""
    for place, name in enumerate(names, 1):
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise DataError(
                f"the name of column {place} of {len(names)} is a {type(name).__name__}, expected text or a "
                "whole number; rename it"
            )
        if nameless(name):
            raise DataError(
                f"column {place} of {len(names)} has no name, as where to_csv() wrote the index or lines end "
                "with a comma; name it, or drop it if it only counts rows (read_csv(..., index_col=0), "
                "to_csv(..., index=False))"
            )
        if isinstance(name, str) and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"the name of column {place} of {len(names)} is not Unicode text; rename it")
    said = [str(name) for name in names]
    if len(set(said)) < len(said):
        twice = next(name for place, name in enumerate(said) if name in said[:place])
        raise DataError(f"two columns are called {twice!r}; rename one")


def nameless(name: object) -> bool:
    """Whether a column has no name, or the one that pandas makes up for such a column."""
    return isinstance(name, str) and (not name.strip() or _NAMELESS.fullmatch(name) is not None)


def column(table: pd.DataFrame, name: str, role: str) -> pd.Series:
    """A column by name; DataError if the table lacks it. `role` is what it was wanted as."""
    if name not in table.columns:
        close = nearest(name, map(str, table.columns))
        if name in table.index.names:
            close = "; it is the index, which reset_index() makes a column"
        raise DataError(f"no {role} column {name!r} in a table of {table.shape[1]} columns{close}")
    return table[name]


def check_rows(table: pd.DataFrame) -> None:
    """DataError for a table without rows."""
    if not len(table):
        raise DataError("the table has 0 rows, expected at least 1")


def features(table: pd.DataFrame, columns: Sequence[str] | None = None) -> Array:
    """The numeric columns (default: all) as float64 (n, d).

    DataError: text, missing or infinite cells, absent columns, no rows.
    """
    names = list(table.columns if columns is None else columns)
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} columns of the fitted table are missing: {missing[:3]}; "
            "give the columns that it was fitted with"
        )
    check_rows(table)
    held = [name for name in names if table[name].dtype == object]
    if held:
        table = table.astype({name: inferred(table[name]).dtype for name in held})
    text = [
        n
        for n in names
        if not pd.api.types.is_any_real_numeric_dtype(table[n]) and not pd.api.types.is_bool_dtype(table[n])
    ]
    if text:
        raise DataError(
            f"column {text[0]!r} is {table[text[0]].dtype}, expected numbers"
            + (f" (and {len(text) - 1} more)" if len(text) > 1 else "")
            + "; encode it (pandas.get_dummies) or drop it"
        )
    # In C order, as arrays off the wire are: sums and products would differ in their last bits.
    values = np.ascontiguousarray(table[names].to_numpy(dtype=np.float64, na_value=np.nan))
    bad = ~np.isfinite(values)
    if bad.any():
        worst = int(bad.sum(axis=0).argmax())
        raise DataError(
            f"column {names[worst]!r} has {int(bad[:, worst].sum())} missing or infinite values "
            f"in {len(table)} rows; fill or drop them"
        )
    return values


def labels(values: pd.Series) -> list[bool | int | str]:
    """The distinct labels, sorted. DataError: missing ones, one class only, or values that are no labels."""
    if values.isna().any():
        raise DataError(
            f"target {values.name!r}: {int(values.isna().sum())} of {len(values)} labels are missing; "
            "drop those rows"
        )
    # Object columns hold numpy's own scalars; of dates, tolist() would make whole numbers.
    found = [v.item() if isinstance(v, np.generic) else v for v in values.drop_duplicates()]
    whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in found]
    if not all(isinstance(v, bool | int | str) for v in whole):
        raise DataError(f"target {values.name!r} is {values.dtype}, not labels; use a regressor?")
    if len({type(v) for v in whole}) > 1:
        raise DataError(f"target {values.name!r} mixes types; make all labels text or all numbers")
    return sorted(whole)


def check_classes(classes: Sequence[object]) -> None:
    """DataError unless there are at least two classes."""
    if len(classes) < 2:
        raise DataError(
            f"the target has {len(classes)} class, expected at least 2 to tell apart; add rows of another"
        )


def encode_labels(values: pd.Series, classes: Sequence[bool | int | str]) -> Array:
    """Positions in `classes`, int64 (n,). DataError for a label that is not among them."""
    codes = pd.Index(classes).get_indexer(pd.Index(values))
    if (codes < 0).any():
        raise DataError(
            f"target {values.name!r}: {int((codes < 0).sum())} of {len(values)} labels are not among "
            f"the {len(classes)} classes; fit with rows of every class"
        )
    return codes.astype(np.int64)


def check_numbers(values: pd.Series) -> None:
    """DataError for a regression target of anything else, or with missing or infinite values."""
    types, values = pd.api.types, inferred(values)
    if not types.is_any_real_numeric_dtype(values) and not types.is_bool_dtype(values):
        raise DataError(f"target {values.name!r} is {values.dtype}, not numbers; use a classifier?")
    found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if wrong := int(np.count_nonzero(~np.isfinite(found))):
        raise DataError(
            f"target {values.name!r}: {wrong} of {len(values)} values are missing or infinite; "
            "drop those rows"
        )


def numbers(values: pd.Series) -> Array:
    """A regression target, float64 (n, 1): it is centred before it becomes float32, or large ones lose all
    digits. Raises DataError as `check_numbers`, and for no rows."""
    check_numbers(values)
    return features(values.to_frame())


@dataclass(frozen=True)
class Scaler:
    """Standardises columns: (x - mean) / scale, in float32."""

    mean: Array  # (d,) float64
    scale: Array  # (d,) float64, 1 where a column is constant

    @classmethod
    def fit(cls, x: Array) -> Scaler:
        """From the rows of `x` (n, d)."""
        return cls.combine([moments(x)])

    @classmethod
    def combine(cls, parts: Sequence[Moments]) -> Scaler:
        """As if fitted on all clients' rows together (Chan, Golub and LeVeque 1979), in the order given."""
        rows = sum(p.rows for p in parts)
        mean = sum((p.mean * (p.rows / rows) for p in parts), np.zeros_like(parts[0].mean))
        variance = sum(
            ((p.variance + (p.mean - mean) ** 2) * (p.rows / rows) for p in parts), np.zeros_like(mean)
        )
        return cls.around(mean, variance)

    @classmethod
    def around(cls, mean: Array, variance: Array) -> Scaler:
        """From each column's mean and variance over all rows."""
        deviation = np.sqrt(variance)
        return cls(mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0))

    def __call__(self, x: Array) -> Array:
        """`x` (n, d) standardised, float32 (n, d)."""
        return ((x - self.mean) / self.scale).astype(np.float32)

    def inverse(self, x: Array) -> Array:
        """Standardised `x` (n, d) in the columns' own units again, float64 (n, d)."""
        return x.astype(np.float64) * self.scale + self.mean


def moments(x: Array) -> Moments:
    """Row count, mean and (population) variance of the columns of `x` (n, d)."""
    with np.errstate(over="ignore"):
        mean, variance = x.mean(axis=0), x.var(axis=0)
    if not np.isfinite(variance).all():
        column = int(np.flatnonzero(~np.isfinite(variance))[0])
        raise DataError(f"column {column + 1} of {len(variance)} is too large to standardise; scale it down")
    return Moments(rows=len(x), mean=mean, variance=variance)

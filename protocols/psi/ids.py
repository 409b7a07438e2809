"""One name for an id everywhere: a type tag and canonical bytes.

One party, about its own table; nothing leaves it here. An integer of any width becomes its decimal, text
becomes its NFC form in UTF-8, so that int32 meets Int64 and a composed letter meets its decomposed twin.
An integer never meets text: `protocols.psi.ecdh` tells the tags to the peers first, and 1 against "1" is
an error there, not an empty intersection; any `normalise` makes text of both. Case and blanks are kept unless
`normalise` says otherwise. An id of several columns is one only if it agrees in each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from protocols.errors import ConfigError, DataError, nearest
from protocols.rules import MOST_COLUMNS

Duplicates = Literal["error", "first", "many"]
Rule = Literal["strip", "casefold", "digits"]
Normalise = Rule | Sequence[Rule]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CanonicalIds:
    """The distinct ids of one table. Its repr shows none of them."""

    tag: str  # "int" or "str"; of an id of several columns all of theirs, as in "str+int"
    values: pa.LargeBinaryArray = field(repr=False)  # (n,), distinct, in the table's order
    rows: Rows = field(repr=False)  # (n,) the position in the table that each came from first
    repeats: int  # rows whose id an earlier row has
    places: Rows | None = field(default=None, repr=False)  # of each row of the table, where all rows count

    def __len__(self) -> int:
        return len(self.values)

    @property
    def many(self) -> bool:
        """Whether all rows of an id count, and not its first only."""
        return self.places is not None

    @property
    def total(self) -> int:
        """Rows of the table."""
        return len(self) + self.repeats

    def at(self, rows: Rows) -> Iterator[bytes]:
        """The canonical ids of these rows of the table, one after another; each row has one here."""
        for place in np.searchsorted(self.rows, rows):
            yield self.values[int(place)].as_py()

    def counts(self, rows: Rows) -> Rows:
        """How many rows of the table have the id of each of `rows`: 1 unless all its rows count."""
        if self.places is None:
            return np.ones(len(rows), np.int64)
        every = np.bincount(self.places, minlength=len(self)).astype(np.int64)
        counts: Rows = every[np.searchsorted(self.rows, rows)]
        return counts

    def every(self, rows: Rows, times: Rows) -> Rows:
        """All rows of the table with the ids of `rows`, each id's in the table's order; or, where an id has
        one row here, that one as many `times` as it has rows elsewhere."""
        counts = self.counts(rows)
        repeated = np.repeat(rows, times)
        several = np.flatnonzero(counts > 1)
        if len(several):
            assert self.places is not None
            by_place = np.argsort(self.places, kind="stable")
            starts = np.searchsorted(self.places[by_place], np.searchsorted(self.rows, rows[several]))
            ends = np.cumsum(times)[several]
            for start, end, count in zip(starts, ends, counts[several], strict=True):
                repeated[end - count : end] = by_place[start : start + count]
        return repeated


def canonical(
    ids: pd.Series | pd.Index | pd.DataFrame,
    *,
    duplicates: Duplicates = "error",
    normalise: Normalise = (),
) -> CanonicalIds:
    """Canonical ids of one table's id column, or of several columns that make an id together.

    ids: integers (any NumPy, nullable pandas or Arrow width) or text (object, pandas or Arrow strings), or a
    categorical of either. An empty column of no type counts as text. duplicates: "first" keeps the first row
    of each id, "many" all of them. Duplicates are counted after normalisation. normalise: "strip" takes away
    blanks at both ends, "casefold" the difference of upper and lower case, "digits" all but the digits 0 to
    9; in this order, whatever the order given; integers become text.

    Raises DataError, with counts and types but no id, for ids of another type, missing ids and duplicates.
    """
    if duplicates not in get_args(Duplicates):
        raise ConfigError(f'duplicates should be "error", "first" or "many", got {duplicates!r}')
    rules = check_rules(normalise)
    parts = [ids.iloc[:, i] for i in range(ids.shape[1])] if isinstance(ids, pd.DataFrame) else [ids]
    if not 1 <= len(parts) <= MOST_COLUMNS:
        raise ConfigError(f"an id has 1 to {MOST_COLUMNS} columns, got {len(parts)}")
    read = [_read(part, rules) for part in parts]
    texts = [text for _, text in read]
    # Each part with its length before it, so that ("ab", "c") is not ("a", "bc").
    framed = [texts[0]] if len(texts) == 1 else [piece for text in texts for piece in _framed(text)]
    joined = (
        framed[0]
        if len(framed) == 1
        else pc.binary_join_element_wise(*framed, pa.scalar("", pa.large_string()))
    )
    values = pc.cast(joined, pa.large_binary())
    codes = values.dictionary_encode().indices.to_numpy()
    rows = np.unique(codes, return_index=True)[1].astype(np.int64)
    repeats = len(values) - len(rows)
    if repeats and duplicates == "error":
        raise DataError(
            f"{repeats} of {len(values)} ids are duplicated; "
            'pass duplicates="first" or aggregate before aligning; vfl.align can keep all, with "many"'
        )
    distinct = values.take(pa.array(rows)) if repeats else values
    places = codes.astype(np.int64) if duplicates == "many" else None
    return CanonicalIds("+".join(tag for tag, _ in read), distinct, rows, repeats, places)


def check_rules(normalise: Normalise) -> tuple[Rule, ...]:
    """The rules in the order in which they are applied. ConfigError for one that there is not."""
    given = (normalise,) if isinstance(normalise, str) else tuple(normalise)
    known: tuple[Rule, ...] = get_args(Rule)
    unknown = [rule for rule in given if rule not in known]
    if unknown:
        raise ConfigError(
            f"normalise names {unknown[0]!r}; there are {', '.join(known)}{nearest(str(unknown[0]), known)}"
        )
    return tuple(rule for rule in known if rule in given)


def _read(ids: pd.Series | pd.Index, rules: Sequence[Rule]) -> tuple[str, pa.Array]:
    """(tag, text) of one column."""
    array = _arrow(ids)
    tag = _tag(array.type)
    if array.null_count:
        raise DataError(
            f"{array.null_count} of {len(array)} ids are missing; drop those rows or fill in their ids"
        )
    text = pc.cast(array, pa.large_string())
    if not rules:
        return tag, pc.utf8_normalize(text, form="NFC") if tag == "str" else text
    if "strip" in rules:
        text = pc.utf8_trim_whitespace(text)
    if "casefold" in rules:  # of one form: folding moves marks that other forms have in another order
        text = _casefold(pc.utf8_normalize(text, form="NFD"))
    if "digits" in rules:
        text = pc.replace_substring_regex(text, "[^0-9]", "")
    empty = int(pc.sum(pc.equal(pc.binary_length(text), 0)).as_py() or 0)
    if empty:
        raise DataError(
            f"{empty} of {len(text)} ids are empty after normalise={list(rules)}; drop those rows, or leave "
            "out a rule"
        )
    return "str", pc.utf8_normalize(text, form="NFC")


def _casefold(text: pa.Array) -> pa.Array:
    """Unicode's full case folding. Arrow has it for ASCII only, as lower case."""
    plain = pc.string_is_ascii(text)
    folded = pc.ascii_lower(text)
    if pc.all(plain, min_count=0).as_py():
        return folded
    others = pc.invert(plain)
    rest = pa.array([name.casefold() for name in text.filter(others).to_pylist()], pa.large_string())
    return pc.replace_with_mask(folded, others, rest)


def _framed(text: pa.Array) -> tuple[pa.Array, pa.Scalar, pa.Array]:
    length = pc.cast(pc.binary_length(text), pa.large_string())
    return length, pa.scalar(":", pa.large_string()), text


def _arrow(ids: pd.Series | pd.Index) -> pa.Array:
    """The column as one Arrow array, gaps as nulls. Arrow's own messages quote values: none is passed on."""
    if isinstance(ids, pd.MultiIndex):
        raise _unfit("an index of several levels", "join the levels into one text column")
    try:
        array = pa.array(ids)
    except OverflowError:
        raise _unfit("integers beyond 64 bits", "cast them to str") from None
    except UnicodeEncodeError:
        raise _unfit("text that is not valid Unicode", "read the file again with its own encoding") from None
    except (pa.ArrowException, TypeError, ValueError):
        kind = pd.api.types.infer_dtype(ids, skipna=True) if ids.dtype == object else ids.dtype
        raise _unfit(f"{kind} values", "cast the whole column to int or to str") from None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _tag(kind: pa.DataType) -> Literal["int", "str"]:
    is_a = pa.types
    if is_a.is_integer(kind):
        return "int"
    if is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind) or is_a.is_null(kind):
        return "str"
    if is_a.is_floating(kind):
        raise _unfit("floats", "cast them to int: ids read as float usually had missing values")
    if is_a.is_boolean(kind):
        raise _unfit("booleans", "choose a column that tells rows apart")
    if is_a.is_binary(kind) or is_a.is_large_binary(kind) or is_a.is_binary_view(kind):
        raise _unfit("bytes", "decode them to str")
    if is_a.is_temporal(kind):
        raise _unfit("dates or times", "format them as str, the same way at every party")
    got = "nested values" if is_a.is_nested(kind) else str(kind)
    raise _unfit(got, "cast them to str, the same way at every party")


def _unfit(got: str, fix: str) -> DataError:
    return DataError(f"ids should be integers or text, got {got}; {fix}")

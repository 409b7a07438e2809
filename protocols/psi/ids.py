"""One name for an id everywhere: a type tag and canonical bytes.

One party, about its own table; nothing leaves it here. An integer of any width becomes its decimal, text
becomes its NFC form in UTF-8, so that int32 meets Int64 and a composed letter meets its decomposed twin.
An integer never meets text: `protocols.psi.ecdh` tells the tags to the peers first, and 1 against "1" is
an error there, not an empty intersection; any `normalise` makes text of both. Case and blanks are kept unless
`normalise` says otherwise. An id of several columns is one only if it agrees in each of them.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from protocols.errors import ConfigError, DataError, nearest
from protocols.settings import MOST_COLUMNS

Duplicates = Literal["error", "first", "many"]
Rule = Literal["strip", "casefold", "digits"]
Normalise = Rule | Sequence[Rule]
Rows = NDArray[np.int64]
Column: TypeAlias = pd.Series | pd.Index | pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class OneByOne:
    """Ids that are made, or read from a disk, when they are asked for; how many is known before."""

    count: int
    read: Callable[[], Iterator[bytes]] = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[bytes]:
        return self.read()


class Ids(ABC):
    """The distinct ids of one table, wherever they are kept."""

    tag: str  # "int" or "str"; of an id of several columns all of theirs, as in "str+int"
    repeats: int  # rows whose id an earlier row has
    firsts: Rows | None  # of each row of the table the first with its id, where all rows of an id count

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def at(self, rows: Rows) -> OneByOne:
        """The canonical ids of these rows of the table, in any order; each row has one here."""

    @abstractmethod
    def sample(self, most: int) -> pa.LargeBinaryArray:
        """So many of the ids, or fewer."""

    @property
    def many(self) -> bool:
        """Whether all rows of an id count, and not its first only."""
        return self.firsts is not None

    @property
    def total(self) -> int:
        """Rows of the table."""
        return len(self) + self.repeats

    def counts(self, rows: Rows) -> Rows:
        """How many rows of the table have the id of each of `rows`: 1 unless all its rows count."""
        if self.firsts is None:
            return np.ones(len(rows), np.int64)
        counts: Rows = np.bincount(self.firsts, minlength=self.total).astype(np.int64)[rows]
        return counts

    def every(self, rows: Rows, times: Rows) -> Rows:
        """All rows of the table with the ids of `rows`, each id's in the table's order; or, where an id has
        one row here, that one as many `times` as it has rows elsewhere."""
        counts = self.counts(rows)
        repeated = np.repeat(rows, times)
        several = np.flatnonzero(counts > 1)
        if len(several):
            assert self.firsts is not None
            by_first = np.argsort(self.firsts, kind="stable")
            starts = np.searchsorted(self.firsts[by_first], rows[several])
            ends = np.cumsum(times)[several]
            for start, end, count in zip(starts, ends, counts[several], strict=True):
                repeated[end - count : end] = by_first[start : start + count]
        return repeated


@dataclass(frozen=True, eq=False)
class CanonicalIds(Ids):
    """In memory. Its repr shows none of them."""

    tag: str
    values: pa.LargeBinaryArray = field(repr=False)  # (n,), distinct, in the table's order
    rows: Rows = field(repr=False)  # (n,) the position in the table that each came from first
    repeats: int
    firsts: Rows | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, rows: Rows) -> OneByOne:
        def read() -> Iterator[bytes]:
            for place in np.searchsorted(self.rows, rows):
                yield self.values[int(place)].as_py()

        return OneByOne(len(rows), read)

    def sample(self, most: int) -> pa.LargeBinaryArray:
        return self.values.take(pa.array(np.arange(0, len(self), -(-len(self) // most))))


@dataclass(frozen=True, eq=False)
class Read:
    """Canonical ids of some rows, repeated ones too. Of no use where some are missing or empty."""

    tag: str
    values: pa.LargeBinaryArray = field(repr=False)
    missing: int  # of the first column that lacks some
    empty: int  # after normalisation

    def check(self, rules: Sequence[Rule], n: int) -> None:
        """DataError, with counts, where some of `n` are missing or empty."""
        if self.missing:
            raise _countable(f"{self.missing} of {n} ids are missing; drop those rows or fill in their ids")
        if self.empty:
            raise _countable(
                f"{self.empty} of {n} ids are empty after normalise={list(rules)}; drop those rows, or leave "
                "out a rule"
            )


def canonical(
    ids: pd.Series | pd.Index | pd.DataFrame | pa.Table,
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
    check_duplicates(duplicates)
    rules = check_rules(normalise)
    if isinstance(ids, pd.DataFrame):
        read = read_values([ids.iloc[:, i] for i in range(ids.shape[1])], rules)
    else:
        read = read_values(ids.columns if isinstance(ids, pa.Table) else [ids], rules)
    read.check(rules, len(read.values))
    values = read.values
    codes = values.dictionary_encode().indices.to_numpy()
    rows = np.unique(codes, return_index=True)[1].astype(np.int64)
    repeats = len(values) - len(rows)
    if repeats and duplicates == "error":
        raise repeated(repeats, len(values))
    distinct = values.take(pa.array(rows)) if repeats else values
    return CanonicalIds(read.tag, distinct, rows, repeats, rows[codes] if duplicates == "many" else None)


def read_values(parts: Sequence[Column], rules: Sequence[Rule]) -> Read:
    """Canonical ids of the rows of `parts`, one for each id column. DataError for values of another type."""
    if not 1 <= len(parts) <= MOST_COLUMNS:
        raise ConfigError(f"an id has 1 to {MOST_COLUMNS} columns, got {len(parts)}")
    arrays = [as_arrow(part) for part in parts]
    missing = next((array.null_count for array in arrays if array.null_count), 0)
    read = [_text(array, rules) for array in arrays]
    texts = [text for _, text in read]
    empty = 0
    if rules:
        empty = max(int(pc.sum(pc.equal(pc.binary_length(text), 0)).as_py() or 0) for text in texts)
    # Each part with its length before it, so that ("ab", "c") is not ("a", "bc").
    framed = [texts[0]] if len(texts) == 1 else [piece for text in texts for piece in _framed(text)]
    joined = (
        framed[0]
        if len(framed) == 1
        else pc.binary_join_element_wise(*framed, pa.scalar("", pa.large_string()))
    )
    return Read("+".join(tag for tag, _ in read), pc.cast(joined, pa.large_binary()), missing, empty)


def repeated(repeats: int, total: int) -> DataError:
    """Of ids that should be distinct."""
    return _countable(
        f'{repeats} of {total} ids are duplicated; pass duplicates="first" or aggregate before aligning; '
        'vfl.align and vfl psi can keep all, with "many"'
    )


def check_duplicates(duplicates: str) -> None:
    """ConfigError for what `Duplicates` does not name."""
    if duplicates not in get_args(Duplicates):
        raise ConfigError(f'duplicates should be "error", "first" or "many", got {duplicates!r}')


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


def _text(array: pa.Array, rules: Sequence[Rule]) -> tuple[str, pa.Array]:
    """(tag, text) of one column."""
    tag = tag_of(array.type)
    if pa.types.is_string_view(array.type):  # which Arrow 16 cannot cast
        array = pa.array(array.to_pylist(), pa.large_string())
    text = pc.cast(array, pa.large_string())
    if "strip" in rules:
        text = pc.utf8_trim_whitespace(text)
    if "casefold" in rules:  # of one form: folding moves marks that other forms have in another order
        text = _casefold(text)
    if "digits" in rules:
        text = pc.replace_substring_regex(text, "[^0-9]", "")
    if tag == "str" or rules:
        # Arrow 16's own function decomposes where it should compose: ids of other releases would not meet.
        tag, text = "str", _beyond_ascii(text, partial(unicodedata.normalize, "NFC"))
    return tag, text


def _casefold(text: pa.Array) -> pa.Array:
    """Unicode's full case folding. Arrow has it for ASCII only, as lower case."""
    decomposed = _beyond_ascii(text, partial(unicodedata.normalize, "NFD"))
    return _beyond_ascii(pc.ascii_lower(decomposed), str.casefold)


def _beyond_ascii(text: pa.Array, change: Callable[[str], str]) -> pa.Array:
    """`text` with `change` made to each value that is not all ASCII, one by one."""
    others = pc.invert(pc.string_is_ascii(text))
    if not pc.any(others, min_count=0).as_py():
        return text
    rest = [None if name is None else change(name) for name in text.filter(others).to_pylist()]
    return pc.replace_with_mask(text, others, pa.array(rest, pa.large_string()))


def _framed(text: pa.Array) -> tuple[pa.Array, pa.Scalar, pa.Array]:
    length = pc.cast(pc.binary_length(text), pa.large_string())
    return length, pa.scalar(":", pa.large_string()), text


def as_arrow(ids: Column) -> pa.Array:
    """The column as one Arrow array, gaps as nulls. Arrow's own messages quote values: none is passed on."""
    if isinstance(ids, pd.MultiIndex):
        raise _unfit("an index of several levels", "join the levels into one text column")
    try:
        array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
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


def tag_of(kind: pa.DataType) -> Literal["int", "str"]:
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
    return _countable(f"ids should be integers or text, got {got}; {fix}")


def _countable(said: str) -> DataError:
    """An error of counts and types alone, in words that other parties may hear too."""
    error = DataError(said)
    error.told = said
    return error

"""One name for an id everywhere: a type tag and canonical bytes.

One party, about its own table; nothing leaves it here. An integer of any width becomes its decimal, text
becomes its NFC form in UTF-8, so that int32 meets Int64 and a composed letter meets its decomposed twin.
An integer never meets text: `protocols.psi.ecdh` tells the tags to the peers first, and 1 against "1" is
an error there, not an empty intersection. Case and blanks are kept: whether "A7 " is "a7" is for the owner
to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from protocols.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class CanonicalIds:
    """The distinct ids of one table. Its repr shows none of them."""

    tag: Literal["int", "str"]
    values: pa.LargeBinaryArray = field(repr=False)  # (n,), distinct, in the table's order
    rows: NDArray[np.int64] = field(repr=False)  # (n,) the position in the table that each came from
    repeats: int  # rows left out because an earlier row has their id

    def __len__(self) -> int:
        return len(self.values)

    def at(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """The canonical ids of these rows of the table, one after another; each row has one here."""
        for place in np.searchsorted(self.rows, rows):
            yield self.values[int(place)].as_py()


def canonical(ids: pd.Series | pd.Index, *, duplicates: Literal["error", "first"] = "error") -> CanonicalIds:
    """Canonical ids of one table's id column.

    ids: integers (any NumPy, nullable pandas or Arrow width) or text (object, pandas or Arrow strings), or a
    categorical of either. An empty column of no type counts as text. `duplicates="first"` keeps the first row
    of each id. Duplicates are counted after normalisation.

    Raises DataError, with counts and types but no id, for ids of another type, missing ids and duplicates.
    """
    if duplicates not in ("error", "first"):
        raise ConfigError(f'duplicates should be "error" or "first", got {duplicates!r}')
    array = _arrow(ids)
    tag = _tag(array.type)
    if array.null_count:
        raise DataError(
            f"{array.null_count} of {len(array)} ids are missing; drop those rows or fill in their ids"
        )
    text = pc.cast(array, pa.large_string())
    if tag == "str":
        text = pc.utf8_normalize(text, form="NFC")
    values = pc.cast(text, pa.large_binary())
    rows = np.unique(values.dictionary_encode().indices.to_numpy(), return_index=True)[1].astype(np.int64)
    repeats = len(values) - len(rows)
    if repeats and duplicates == "error":
        raise DataError(
            f"{repeats} of {len(values)} ids are duplicated; "
            'pass duplicates="first" or aggregate before aligning'
        )
    return CanonicalIds(tag, values.take(pa.array(rows)) if repeats else values, rows, repeats)


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

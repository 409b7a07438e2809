"""Ids that are too many to be held in memory: on disk, in parts by a hash that nobody else knows.

One party, about its own ids; nothing here leaves it. They are in the clear in files of the party's own
(`protocols.data.shelf`). One part is in memory at a time, and beside it 8 bytes for each row: its position,
or where all rows of a repeated id count the first row with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from protocols.data.shelf import Shelf
from protocols.errors import DataError
from protocols.hazmat.blake2s import keyed_digests
from protocols.hazmat.oprf_switch import LARGE, STEP, kernels
from protocols.psi.id_columns import IdColumn
from protocols.psi.ids import (
    CanonicalIds,
    Duplicates,
    Ids,
    Normalise,
    OneByOne,
    Read,
    Rows,
    check_duplicates,
    check_rules,
    read_values,
    repeated,
)
from protocols.psi.order import by_bytes

FROM = 1_000_000  # rows of a table, from which on its ids go to disk
PART = 1 << 18  # ids in memory at a time
ID_AND_ROW = pa.schema([("id", pa.large_binary()), ("row", pa.int64())])

Mask = NDArray[np.bool_]  # (total,): which rows of the table


class StoredIds(Ids):
    """The distinct ids of a table, on disk. Made by `store`."""

    def __init__(self, tag: str, shelf: Shelf, n: int, repeats: int, firsts: Rows | None) -> None:
        self.tag, self.repeats, self.firsts = tag, repeats, firsts
        self._shelf, self._n = shelf, n

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"StoredIds({self._n} ids)"

    @property
    def scratch(self) -> Path:
        """Where there is place for what is made of them."""
        return self._shelf.folder.parent

    def parts(self) -> Iterator[tuple[pa.LargeBinaryArray, Rows]]:
        """All ids, and the row of each, part by part in no order of the table's."""
        for part in range(self._shelf.count):
            values, rows = self._shelf.take(part)
            yield values, rows.to_numpy()

    def at(self, rows: Rows) -> OneByOne:
        def read() -> Iterator[bytes]:
            for values, _ in self._chosen(self.mask(rows)):
                yield from values.to_pylist()

        return OneByOne(len(rows), read)

    def sample(self, most: int) -> pa.LargeBinaryArray:
        values: pa.LargeBinaryArray = self._shelf.take(0)[0]
        # A part is a random sample in the table's order; the first of it are from the table's beginning.
        return values.take(pa.array(np.arange(0, len(values), max(1, -(-len(values) // most)))))

    def mask(self, rows: Rows) -> Mask:
        """`rows` as a mask over the table."""
        mask = np.zeros(self.total, np.bool_)
        mask[rows] = True
        return mask

    def loaded(self) -> CanonicalIds:
        """All of them in memory."""
        every = list(self.parts())
        rows = np.concatenate([rows for _, rows in every])
        order = np.argsort(rows)
        values = pa.concat_arrays([values for values, _ in every]).take(pa.array(order))
        return CanonicalIds(self.tag, values, rows[order], self.repeats, self.firsts)

    def in_order(self, mask: Mask) -> Rows:
        """The chosen rows, each the first with its id, by the ids' bytes."""
        size = int(np.count_nonzero(mask))
        count = -(-size // PART)
        if count <= 1:
            return _sorted(*self._all(mask))[1]
        cuts: list[bytes] = []
        ranges = Shelf(self.scratch, count, ID_AND_ROW)
        try:
            for values, rows in map(_sorted_pair, self._chosen(mask)):
                # A part is a random sample of all ids: what divides the first one evenly divides all so.
                if not cuts and len(values):
                    steps = np.arange(1, count) * len(values) // count
                    cuts = values.take(pa.array(steps)).to_pylist()
                drawers = np.searchsorted(
                    [_first_from(values, cut) for cut in cuts], np.arange(len(values)), side="right"
                )
                ranges.put(drawers, [values, pa.array(rows)])
            found = [_sorted(values, rows.to_numpy())[1] for values, rows in map(ranges.take, range(count))]
        finally:
            ranges.close()
        return np.concatenate(found)

    def _chosen(self, mask: Mask) -> Iterator[tuple[pa.LargeBinaryArray, Rows]]:
        for values, rows in self.parts():
            chosen = mask[rows]
            yield values.filter(pa.array(chosen)), rows[chosen]

    def _all(self, mask: Mask) -> tuple[pa.LargeBinaryArray, Rows]:
        every = list(self._chosen(mask))
        return pa.concat_arrays([values for values, _ in every]), np.concatenate([rows for _, rows in every])


def _sorted(values: pa.LargeBinaryArray, rows: Rows) -> tuple[pa.LargeBinaryArray, Rows]:
    order = by_bytes(values)
    return values.take(pa.array(order)), rows[order]


def _sorted_pair(pair: tuple[pa.LargeBinaryArray, Rows]) -> tuple[pa.LargeBinaryArray, Rows]:
    return _sorted(*pair)


def _first_from(values: pa.LargeBinaryArray, cut: bytes) -> int:
    """Where in sorted `values` those from `cut` on begin."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle].as_py() < cut:
            low = middle + 1
        else:
            high = middle
    return low


def store(
    column: IdColumn,
    scratch: Path | None,
    *,
    duplicates: Duplicates = "error",
    normalise: Normalise = (),
) -> StoredIds:
    """As `protocols.psi.ids.canonical`, with the ids in a folder below `scratch` in place of memory.

    Besides DataError for what the disk refuses.
    """
    check_duplicates(duplicates)
    rules = check_rules(normalise)
    total, key = column.rows, secrets.token_bytes(32)
    shelf = Shelf(scratch, -(-total // PART) or 1, ID_AND_ROW)
    if column.on_progress is not None and total >= LARGE:
        column.on_progress(STEP, 0, 1)
        kernels(total)
        column.on_progress(STEP, 1, 1)
    try:
        at, read = 0, Read("", pa.array([], pa.large_binary()), 0, 0)
        for parts in column.chunks():
            here = read_values(parts, rules)
            n = len(here.values)
            tag = read.tag or ("" if 0 < n == here.missing else here.tag)
            if tag not in ("", here.tag) and here.missing < n:
                raise DataError("ids are integers in some rows and text in others; cast all to int or to str")
            read = Read(tag, here.values, read.missing + here.missing, read.empty + here.empty)
            if not (read.missing or read.empty):
                rows = pa.array(np.arange(at, at + n))
                shelf.put(drawer_of(here.values, key, shelf.count, total), [here.values, rows])
            at += n
        read.check(rules, at)
        firsts = np.arange(at) if duplicates == "many" else None
        repeats = sum(_distinct(shelf, part, key, total, firsts) for part in range(shelf.count))
        if repeats and duplicates == "error":
            raise repeated(repeats, at)
    except BaseException:
        shelf.close()
        raise
    return StoredIds(read.tag or "str", shelf, at - repeats, repeats, firsts)


def drawer_of(values: pa.LargeBinaryArray, key: bytes, count: int, of: int) -> Rows:
    """A drawer below `count` for each id, int64 (n,): a hash under `key` of its bytes. `of`: how many ids are
    asked about in all, which says whether compiled kernels are worth while."""
    digests = keyed_digests(key, b"vfl bins", values, kernels(of)).view("<u8")
    return (digests[:, 0] % np.uint64(count)).astype(np.int64)


def _distinct(shelf: Shelf, part: int, key: bytes, total: int, firsts: Rows | None) -> int:
    """Leave the first of equal ids in a part; how many others there were, whose first goes to `firsts`."""
    values, rows = shelf.take(part)
    digests = keyed_digests(key, b"vfl bins", values, kernels(total)).view("<u8")[:, 1]
    order = np.argsort(digests)
    same = np.diff(digests[order]) == 0
    # Equal ids have equal digests; whether the others are equal is looked at.
    tied = np.sort(order[np.append(same, False) | np.append(False, same)]) if same.any() else order[:0]
    codes = values.take(pa.array(tied)).dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    if len(first) == len(tied):
        return 0
    if firsts is not None:
        own = rows.to_numpy()[tied]
        firsts[own] = own[first[codes]]
    left = np.ones(len(values), np.bool_)
    left[tied] = False
    left[tied[first]] = True
    shelf.replace(part, [values.filter(pa.array(left)), rows.filter(pa.array(left))])
    return len(tied) - len(first)

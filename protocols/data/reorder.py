"""Rows of a Parquet file in another order, by way of a disk: neither the file nor the result is held in
memory.

One party, about its own table; nothing here leaves it. The file is read once from its beginning to its end,
and each row is put with those that come near it in the result; those are then brought into order piece by
piece. What is put aside is in a folder of its own that only its owner can enter, and goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocols.data.shelf import Shelf
from protocols.data.sources import parquet_batches, readable
from protocols.errors import DataError
from protocols.files import AS_USUAL, whole_file

PIECE = 1 << 24  # bytes of a piece of the result, about; writing one takes several times that
CHUNK = 1 << 16  # rows that are read at a time
SAMPLES = 8  # row groups that are looked into for the size of a row
_PLACE = "\0place"  # no column of a table that came from anywhere is called so


def write_rows(
    source: Path,
    rows: NDArray[np.int64],
    out: Path,
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Write these rows of `source`, in this order, as the Parquet file `out`, whole or not at all.

    rows: positions, which may come more than once. columns: which, in this order; default: all. What is put
    aside is beside `out`, in a hidden folder.

    ConfigError where there is no `source`, DataError for what cannot be read or written.
    """
    try:
        with whole_file(out, mode=AS_USUAL) as file:
            _write(source, rows, file, out.parent, columns)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error


def _write(
    source: Path, rows: NDArray[np.int64], out: BinaryIO, aside: Path, columns: Sequence[str] | None
) -> None:
    with readable(source), pq.ParquetFile(source) as file:
        schema, there = file.schema_arrow.remove_metadata(), file.metadata.num_rows
    if len(rows) and not 0 <= rows.min() <= rows.max() < there:
        raise DataError(f"{source} has {there} rows, and row {rows.max() + 1} is asked for; was it changed?")
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    per = max(1024, int(PIECE / max(_row_size(source, schema.names), 1.0)))
    count = -(-len(rows) // per) or 1
    shelf = Shelf(aside, count, schema.append(pa.field(_PLACE, pa.int64())))
    try:
        _put_aside(source, rows, per, shelf)
        with pq.ParquetWriter(out, schema) as writer:
            for piece in range(count):
                *columns, places = shelf.take(piece)
                shelf.drop(piece)
                order = pa.array(np.argsort(places.to_numpy()))
                writer.write_table(pa.table([column.take(order) for column in columns], schema=schema))
    finally:
        shelf.close()


def _row_size(source: Path, names: Sequence[str]) -> float:
    """Bytes of a row in memory, on average, where it takes most among a few places in the file. What the file
    says of its own size is of columns that are encoded: text that repeats is a hundred times as long.
    """
    sizes = [0.0]
    with readable(source), pq.ParquetFile(source, pre_buffer=False) as file:
        groups = file.metadata.num_row_groups
        for group in np.unique(np.linspace(0, groups - 1, SAMPLES).astype(int)) if groups else ():
            batch = next(file.iter_batches(1024, [int(group)], list(names), use_threads=False), None)
            if batch is not None:
                sizes.append(batch.nbytes / len(batch))
    return max(sizes)


def _put_aside(source: Path, rows: NDArray[np.int64], per: int, shelf: Shelf) -> None:
    order = np.argsort(rows, kind="stable")
    at = 0
    for batch in parquet_batches(source, shelf.schema.names[:-1], CHUNK):
        low, high = np.searchsorted(rows, [at, at + len(batch)], sorter=order)
        places = order[low:high]
        taken = batch.take(pa.array(rows[places] - at))
        shelf.put(places // per, [*taken.columns, pa.array(places)])
        at += len(batch)

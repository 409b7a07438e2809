"""Rows of a Parquet file in another order, by way of a disk: neither the file nor the result is held in
memory.

One party, about its own table; nothing here leaves it. The file is read once from its beginning to its end,
and each row is put with those that come near it in the result; those are then brought into order piece by
piece. What is put aside is in a folder of its own that only its owner can enter, and goes with it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocols.errors import DataError
from protocols.psi.shelf import Shelf
from protocols.sources import parquet_batches, readable

PIECE = 1 << 24  # bytes of a piece of the result, about; writing one takes several times that
CHUNK = 1 << 16  # rows that are read at a time
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
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        _write(source, rows, new, columns)
        os.replace(new, out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _write(source: Path, rows: NDArray[np.int64], new: Path, columns: Sequence[str] | None) -> None:
    with readable(source), pq.ParquetFile(source) as file:
        schema, meta = file.schema_arrow.remove_metadata(), file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    per = max(1024, PIECE * meta.num_rows // max(size, 1))
    count = -(-len(rows) // per) or 1
    shelf = Shelf(new.parent, count, schema.append(pa.field(_PLACE, pa.int64())))
    try:
        _put_aside(source, rows, per, shelf)
        with pq.ParquetWriter(new, schema) as writer:
            for piece in range(count):
                *columns, places = shelf.take(piece)
                shelf.drop(piece)
                order = pa.array(np.argsort(places.to_numpy()))
                writer.write_table(pa.table([column.take(order) for column in columns], schema=schema))
    finally:
        shelf.close()


def _put_aside(source: Path, rows: NDArray[np.int64], per: int, shelf: Shelf) -> None:
    order = np.argsort(rows, kind="stable")
    at = 0
    for batch in parquet_batches(source, shelf.schema.names[:-1], CHUNK):
        low, high = np.searchsorted(rows, [at, at + len(batch)], sorter=order)
        places = order[low:high]
        taken = batch.take(pa.array(rows[places] - at))
        shelf.put(places // per, [*taken.columns, pa.array(places)])
        at += len(batch)

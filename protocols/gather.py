"""Rows of a Parquet file in another order, by way of a disk: neither the file nor the result is held in
memory.

One party, about its own table; nothing here leaves it. The file is read once from its beginning to its end,
and each row is put with those that come near it in the result; those are then brought into order piece by
piece. What is put aside is in a folder of its own that only its owner can enter, and goes with it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocols.errors import DataError
from protocols.psi.shelf import Shelf
from protocols.sources import readable

PIECE = 1 << 26  # bytes of a piece of the result, about
CHUNK = 1 << 16  # rows that are read at a time
_PLACE = "\0place"  # no column of a table that came from anywhere is called so


def write_rows(
    source: Path,
    rows: NDArray[np.int64],
    out: Path,
    *,
    columns: Sequence[str] | None = None,
    scratch: Path | None = None,
) -> None:
    """Write these rows of `source`, in this order, as the Parquet file `out`, whole or not at all.

    rows: positions, which may come more than once. columns: which, in this order; default: all. scratch:
    where there is place for as much as is written.

    ConfigError where there is no `source`, DataError for what cannot be read or written.
    """
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        _write(source, rows, new, columns, scratch)
        os.replace(new, out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _write(
    source: Path, rows: NDArray[np.int64], new: Path, columns: Sequence[str] | None, scratch: Path | None
) -> None:
    with readable(source), pq.ParquetFile(source) as file:
        schema, meta = file.schema_arrow.remove_metadata(), file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    per = max(1024, PIECE * meta.num_rows // max(size, 1))
    count = -(-len(rows) // per) or 1
    shelf = Shelf(scratch, count, schema.append(pa.field(_PLACE, pa.int64())))
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
    wanted = rows[order]
    at = 0
    for batch in _batches(source, shelf.schema.names[:-1]):
        low, high = np.searchsorted(wanted, [at, at + len(batch)])
        places = order[low:high]
        taken = batch.take(pa.array(wanted[low:high] - at))
        shelf.put(places // per, [*taken.columns, pa.array(places)])
        at += len(batch)


def _batches(source: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    # Apart from what is done with them: an error of that is none of reading.
    with readable(source), pq.ParquetFile(source) as file:
        for batch in file.iter_batches(CHUNK, columns=names):
            yield batch.select(names)

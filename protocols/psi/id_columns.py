"""The id column, or columns, of a party's own table, read a part at a time: from memory or from a file.

Takes part: one party, alone; nothing here leaves it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from protocols.data.sources import TableSource, parquet_batches, read_table, readable
from protocols.data.tables import column
from protocols.errors import ConfigError, DataError, nearest
from protocols.progress import Report
from protocols.psi.ids import Column, as_arrow, tag_of

CHUNK = 1 << 17  # rows at a time


class IdColumn(ABC):
    """One or several columns that make an id together."""

    names: Sequence[str]
    rows: int  # of the table
    on_progress: Report | None = None  # told how far it was read
    _fingerprint = ""

    @abstractmethod
    def whole(self) -> pd.DataFrame | pa.Table:
        """All of it in memory, as `protocols.psi.ids.canonical` takes it."""

    @abstractmethod
    def _read(self) -> Iterator[Sequence[Column]]: ...

    def chunks(self) -> Iterator[list[pa.Array]]:
        """Its columns, `CHUNK` rows at a time. DataError for what is not read, and for what are no ids."""
        done = 0
        hashes = [(hashlib.sha256(), hashlib.sha256()) for _ in self.names]
        for parts in self._read():
            arrays = [as_arrow(part) for part in parts]
            for array, pair in zip(arrays, hashes, strict=True):
                tag_of(array.type)
                _note(array, *pair)
            yield arrays
            done += len(arrays[0])
            if self.on_progress is not None:
                self.on_progress("ids read", done, self.rows)
        every = b"".join(one.digest() for pair in hashes for one in pair)
        self._fingerprint = hashlib.sha256(every).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all ids and their order, as they were when they were last read to the end. Not
        for peers: ids can be guessed."""
        if not self._fingerprint:
            for _ in self.chunks():
                pass
        return self._fingerprint


class InTable(IdColumn):
    """Of a DataFrame. DataError if it has no such column, ConfigError for one that is named twice."""

    def __init__(self, table: pd.DataFrame, names: Sequence[str]) -> None:
        self.names, self.rows = _once(names), len(table)
        self._columns = [column(table, name, "id") for name in names]

    def whole(self) -> pd.DataFrame:
        return pd.concat(self._columns, axis=1)

    def _read(self) -> Iterator[Sequence[Column]]:
        for at in range(0, max(self.rows, 1), CHUNK):
            yield [column.iloc[at : at + CHUNK] for column in self._columns]


class InFile(IdColumn):
    """Of a Parquet file, of which nothing else is read. ConfigError for a file or a column that is not there,
    DataError for what is no Parquet file."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.names, self.path = _once(names), path
        with readable(path), pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            for name in names:
                if there.count(name) != 1:
                    found = "two columns are called" if name in there else "no id column"
                    hint = nearest(name, there) if name not in there else "; rename one"
                    raise DataError(f"{path.name}: {found} {name!r} in a table of {len(there)} columns{hint}")
            self.rows = file.metadata.num_rows

    def whole(self) -> pa.Table:
        # In one reading with the fingerprint: the file could be another by the next.
        parts = [pa.table(part, names=list(self.names)) for part in self.chunks()]
        if parts:
            return pa.concat_tables(parts)
        with readable(self.path):
            schema = pq.read_schema(self.path)
        return pa.schema([schema.field(name) for name in self.names]).empty_table()

    def _read(self) -> Iterator[Sequence[Column]]:
        for batch in parquet_batches(self.path, self.names, CHUNK):
            yield batch.columns


def id_column(source: TableSource, base: Path) -> IdColumn:
    """Of a party's own table, as it is configured; errors as of `protocols.data.sources.read_table`."""
    if source.path is not None and source.path.suffix.lower() == ".parquet":
        return InFile(base / source.path, source.ids)
    return InTable(read_table(source, base, []), source.ids)


def _once(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise ConfigError("an id column is named twice")
    return names


def _note(array: pa.Array, letters: hashlib._Hash, lengths: hashlib._Hash) -> None:
    """Add what is in an array to two hashes, in a way that does not depend on how it was cut into chunks."""
    text = pc.cast(array, pa.large_string())
    _, ends, data = text.buffers()
    offsets = np.frombuffer(ends or bytes(8), np.int64)[text.offset : text.offset + len(text) + 1]
    letters.update(memoryview(data or b"")[offsets[0] : offsets[-1]])
    sizes = np.diff(offsets)
    if text.null_count:
        sizes = np.where(text.is_valid().to_numpy(zero_copy_only=False), sizes, -1)
    lengths.update(sizes.tobytes())

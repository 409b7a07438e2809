"""Rows on disk in numbered drawers: filled in any order, and each read alone.

One party, about its own rows; nothing here leaves it. What is in a drawer is as clear as in the table that it
came from, in a folder of its own that only its owner can enter. The folder goes when the shelf is closed or
forgotten; of a process that was killed it stays, until `protocols.service.store.Store.clear_scratch` finds
it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from protocols import private
from protocols.errors import DataError
from protocols.files import make_folder

CHUNK = 1 << 17  # rows that are put in at a time: few enough to be held, enough for long pieces in a file


class Shelf:
    """`count` drawers for rows of one schema, in a new folder below `above` (None: the system's place for
    temporary files). DataError, of any method, for what the disk refuses."""

    def __init__(self, above: Path | None, count: int, schema: pa.Schema) -> None:
        self.count, self.schema = count, schema
        with _disk(above or Path(tempfile.gettempdir())):
            if above is not None:
                make_folder(above)
            self.folder = Path(tempfile.mkdtemp(prefix=".shelf-", dir=above))  # mode 0700
        self._end = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def put(self, drawers: NDArray[np.integer], columns: Sequence[pa.Array]) -> None:
        """Put each row into its drawer. Rows of one drawer stay in the order in which they came."""
        order = np.argsort(drawers.astype(np.min_scalar_type(self.count)), kind="stable")
        rows = pa.record_batch(list(columns), schema=self.schema).take(pa.array(order))
        ends = np.searchsorted(drawers[order], np.arange(self.count), side="right")
        start = 0
        for drawer, end in enumerate(ends.tolist()):
            if end > start:
                self._append(drawer, rows.slice(start, end - start))
            start = end

    def replace(self, drawer: int, columns: Sequence[pa.Array]) -> None:
        """Let these rows be all that is in a drawer."""
        self.drop(drawer)
        self._append(drawer, pa.record_batch(list(columns), schema=self.schema))

    def take(self, drawer: int) -> list[pa.Array]:
        """The columns of all rows in a drawer."""
        path, pieces = self._path(drawer), [self.schema.empty_table()]
        with _disk(self.folder):
            if path.exists():
                size = path.stat().st_size
                with pa.OSFile(str(path)) as file:
                    while file.tell() < size:
                        pieces.append(pa.ipc.open_stream(file).read_all())
        whole = pa.concat_tables(pieces).unify_dictionaries().combine_chunks()
        return [column.combine_chunks() for column in whole.columns]

    def drop(self, drawer: int) -> None:
        """Empty a drawer."""
        with _disk(self.folder):
            self._path(drawer).unlink(missing_ok=True)

    def close(self) -> None:
        """Delete all of it. Closing twice does nothing."""
        self._end()

    def _path(self, drawer: int) -> Path:
        return self.folder / f"{drawer}.arrows"

    def _append(self, drawer: int, rows: pa.RecordBatch) -> None:
        # One stream after another: a file that stays open for each drawer would be too many open files.
        with (
            _disk(self.folder),
            open(self._path(drawer), "ab", opener=private.opener) as file,
            pa.ipc.new_stream(file, self.schema) as stream,
        ):
            stream.write_batch(rows)


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"rows cannot be kept in {place} for the time of this run: {error.strerror or error}; is there "
            "space, and may we write there?"
        ) from error

"""A party's own table, read from where it is: CSV, Parquet, or one query of a database.

Takes part: one party, alone; nothing here leaves it. Only the id and the columns asked for are read. A
database (PostgreSQL or SQLite, with the extra `sql`) is opened read-only, and only the configured query runs,
wrapped to choose columns and ordered by the id, so that the same rows come in the same order each time.

Errors hold no cell, no URL and no query: a driver's own message can quote all three. They are marked with the
party and the step.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, SecretStr, field_validator, model_validator

from protocols.data.tables import check_names
from protocols.errors import ConfigError, DataError, marked, nearest
from protocols.settings import MOST_COLUMNS, Names, Section, fault

PARQUET = (".parquet", ".pq")
SUFFIXES = (".csv", *PARQUET)

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

PATIENCE = 10  # seconds to reach a database
# What pandas takes for a gap, but in the column of ids, where "NA" can be one.
_GAPS = ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"]
_GAPS += ["<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
# Without it pandas 2 misses some numbers' last digit.
_PRECISION: Any = "round_trip" if pd.__version__ < "3" else None
_INDEX = re.compile(r"__index_level_\d+__")
_WHOLE = r"(?:0|-?[1-9][0-9]{0,17})"  # the decimals of 64-bit integers, but for the longest


def read_table(
    source: TableSource,
    base: Path,
    columns: Sequence[str] | None = None,
    *,
    party: str = "",
    step: str = "read",
    unchanged: str | None = None,
) -> pd.DataFrame:
    """The id's columns, then `columns` in the order given (default: all that `source` lets methods use).

    base: the folder that paths in `source` are relative to. unchanged: the `fingerprint` that the table had.
    In a CSV file ids are integers only if each is written as one: "007" is text, an empty cell a missing id.

    ConfigError for a place, a driver or a column that is not there or not granted by `source`; DataError for
    what cannot be read, and for a table that is not `unchanged`; each marked with `party` and `step`.
    """
    with marked(party, step):
        if source.path is not None:
            place = base / source.path
            with readable(place):
                names = _wanted(source, columns, _names(place), place.name)
                table = _parquet(place, names) if _is_parquet(place) else _csv(place, names, source.ids)
        else:
            with _connected(source, base) as connection:
                table = _read_query(connection, source, columns)
        if unchanged is not None:
            check_unchanged(unchanged, fingerprint(table), len(table))
    return table


def read_file(file: Path, ids: Sequence[str] = ()) -> pd.DataFrame:
    """All of a CSV or Parquet file, in the file's order of columns; its `ids` are read as by `read_table`.

    Without the nameless index that pandas may have written to a Parquet file.
    Errors as of `read_table`, unmarked; ConfigError for a file of another kind.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{file}: expected a file that ends in {' or '.join(SUFFIXES)}")
    with readable(file):
        names = [name for name in _names(file) if not _INDEX.fullmatch(name)]
        _check_names(names, file.name)
        _check_there(names, ids, file.name)
        return _parquet(file, names) if _is_parquet(file) else _csv(file, names, ids)


def check_unchanged(before: str, now: str, rows: int) -> None:
    """DataError where two fingerprints of a table, which has so many rows now, differ."""
    if before != now:
        raise DataError(
            f"the table has changed since the job began, and has {rows} rows now; restore it, or start a new "
            "job"
        )


def usable_columns(source: TableSource, base: Path) -> list[str]:
    """The columns that `read_table` reads unless told which, without reading a row. Its errors, unmarked."""
    if source.path is None:
        with _connected(source, base) as connection:
            return _wanted(source, None, _result(connection, source), "the query")[len(source.ids) :]
    place = base / source.path
    with readable(place):
        return _wanted(source, None, _names(place), place.name)[len(source.ids) :]


def fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 (hex) over names, types, rows and their order. Not for peers: rows can be guessed."""
    said = hashlib.sha256(repr([(str(n), str(t)) for n, t in table.dtypes.items()]).encode())
    said.update(pd.util.hash_pandas_object(table, index=False, categorize=False).to_numpy().tobytes())
    return said.hexdigest()


def _wanted(
    source: TableSource, columns: Sequence[str] | None, there: Sequence[str], where: str
) -> list[str]:
    """The columns to read, those of the id first. `there`: the names that the table has."""
    _check_names(there, where)
    usable = source.columns or [name for name in there if name not in source.ids]
    asked = usable if columns is None else columns
    if len(set(asked)) < len(asked):
        raise ConfigError(f"{where}: {len(asked)} columns are asked for, one of them twice")
    for name in asked:
        if name in source.ids or (source.columns is not None and name not in source.columns):
            hint = nearest(name, usable)
            raise ConfigError(f"{where}: column {name!r} is not among those that methods may use{hint}")
    _check_there(there, source.ids, where, asked)
    return [*source.ids, *asked]


def _check_names(there: Sequence[str], where: str) -> None:
    try:
        check_names(there)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _check_there(there: Sequence[str], ids: Sequence[str], where: str, asked: Sequence[str] = ()) -> None:
    """ConfigError for a wanted column that is not `there`."""
    for role, name in [*(("id ", name) for name in ids), *(("", name) for name in asked)]:
        if name not in there:
            hint = nearest(name, there)
            raise ConfigError(f"{where}: no {role}column {name!r} in a table of {len(there)} columns{hint}")


def _csv(place: Path, names: Sequence[str], ids: Sequence[str]) -> pd.DataFrame:
    """Columns of a CSV file. `ids`: those that are numbers only if every cell is written as one."""
    with warnings.catch_warnings():
        # Rows longer than the header: their last cells would be dropped. With `usecols` they always are.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(
            place,
            dtype=dict.fromkeys(ids, "str"),
            keep_default_na=False,
            na_values={name: [""] if name in ids else _GAPS for name in names},
            index_col=False,
            low_memory=False,
            float_precision=_PRECISION,
        )[list(names)]
    for name in ids:
        cells = table[name]
        if cells.dropna().str.fullmatch(_WHOLE).all() and cells.notna().any():
            table = table.assign(**{name: cells.astype("Int64" if cells.isna().any() else "int64")})
    return table


def _is_parquet(place: Path) -> bool:
    return place.suffix.lower() in PARQUET


def parquet_columns(source: TableSource, base: Path) -> list[str]:
    """The columns of a Parquet file that methods may use, the id first; errors as of `read_table`."""
    place = base / (source.path or "")
    with readable(place), pq.ParquetFile(place) as file:
        return _wanted(source, None, file.schema_arrow.names, place.name)


def parquet_batches(place: Path, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file, at most so many `rows` at a time; errors as of `read_table`."""
    with readable(place), pq.ParquetFile(place, pre_buffer=False) as file:
        # One row group after another: in one go the reader would keep all that it has read.
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(rows, row_groups=[group], columns=list(names), use_threads=False):
                yield batch.select(list(names))


def _names(place: Path) -> list[str]:
    return list(pq.read_schema(place).names) if _is_parquet(place) else _header(place)


def _header(place: Path) -> list[str]:
    # As text and without a header: with one, pandas would rename the second of two equal names.
    first = pd.read_csv(place, header=None, nrows=1, dtype=str, keep_default_na=False)
    names: list[str] = first.iloc[0].tolist()
    return names


def _parquet(place: Path, names: Sequence[str]) -> pd.DataFrame:
    with pq.ParquetFile(place) as file:
        # Without pandas' own notes in the file, which would make some columns an index.
        table: pd.DataFrame = file.read(columns=list(names)).to_pandas(ignore_metadata=True)
    return table[list(names)]


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """Errors of reading `place`, without the parser's words: they can quote the cell it stumbled over."""
    if not place.is_file():
        raise ConfigError(f"{place}: {'is no file' if place.exists() else 'no such file'}")
    try:
        yield
    except (ConfigError, DataError):
        raise
    except pd.errors.EmptyDataError:
        raise DataError(f"{place}: the file is empty") from None
    except OSError as error:  # Arrow's own say their number, and more in words
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise DataError(f"{place}: {why}") from None
    except UnicodeDecodeError:
        raise DataError(f"{place}: is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, pa.ArrowException, pd.errors.ParserWarning) as error:
        kind = place.suffix[1:].upper()
        raise DataError(f"{place}: cannot be read as {kind} ({type(error).__name__})") from None


def _read_query(connection: Connection, source: TableSource, columns: Sequence[str] | None) -> pd.DataFrame:
    names = _wanted(source, columns, _result(connection, source), "the query")
    listed = ", ".join(map(_quoted, names))
    order = ", ".join(map(_quoted, source.ids))
    found = connection.exec_driver_sql(f"SELECT {listed} {_inner(source)} ORDER BY {order}")
    # Decimals become floats, as everywhere here.
    return pd.DataFrame.from_records([tuple(row) for row in found], columns=names, coerce_float=True)


def _result(connection: Connection, source: TableSource) -> list[str]:
    return list(connection.exec_driver_sql(f"SELECT * {_inner(source)} LIMIT 0").keys())


def _inner(source: TableSource) -> str:
    return f"FROM ({(source.query or '').rstrip().rstrip(';')}\n) AS vfl_source"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _connected(source: TableSource, base: Path) -> Iterator[Connection]:
    """A read-only connection in one transaction; errors in our words, not the driver's."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise _needed("SQLAlchemy") from None
    engine, options = _engine(source, base)
    try:
        connection = engine.connect().execution_options(no_parameters=True, **options)
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise DataError(
            f"the database cannot be reached ({_kind(error)}); check the URL and the password, and that "
            "it is up"
        ) from None
    try:
        yield connection
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise DataError(f"the query failed ({_kind(error)}); run it by hand to see why") from None
    finally:
        connection.close()  # which ends the transaction
        engine.dispose()


def _engine(source: TableSource, base: Path) -> tuple[Engine, dict[str, Any]]:
    """An engine, and the options that make a connection of it read-only."""
    from sqlalchemy import NullPool, create_engine

    url = _url(source)
    if url.get_backend_name() == "sqlite":
        place = base / (url.database or "")
        if not place.is_file():
            raise ConfigError(f"{place}: no such database file")
        read_only = f"file:{quote(str(place))}?mode=ro"

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(read_only, uri=True, timeout=PATIENCE)

        return create_engine("sqlite://", creator=connect, poolclass=NullPool), {}
    # Every statement is prepared, which refuses a text of several: one could end the read-only transaction.
    arguments = {"prepare_threshold": 0}
    if "connect_timeout" not in url.query:
        arguments["connect_timeout"] = PATIENCE
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
    except ImportError:
        raise _needed("psycopg") from None
    # Two statements follow; both should see the same rows.
    return engine, {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def _url(source: TableSource) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if source.url is not None:
        text, said = source.url.get_secret_value(), "url"
    else:
        text, said = os.environ.get(source.url_env or "", ""), f"the variable {source.url_env}"
        if not text:
            raise ConfigError(f"{said}, which should hold the database's URL, is not set in the environment")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"{said} is no database URL; expected one like postgresql+psycopg://user:password@host/database "
            "(with special characters percent-encoded) or sqlite:///file.db"
        ) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("postgresql+psycopg", "sqlite", "sqlite+pysqlite"):
        raise ConfigError(
            f"{said} should begin with postgresql+psycopg:// or sqlite:///, which can be opened read-only"
        )
    return url


def _kind(error: Exception) -> str:
    """The driver's class and code of an error, which are not about what the tables hold."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__}, {code}" if code else type(cause).__name__


def _needed(package: str) -> ConfigError:
    return ConfigError(f"{package} is needed to read a database: pip install 'vfl-toolkit[sql]'")


class TableSource(Section):
    """Where a table is: exactly one of path, url and url_env; the last two with a query."""

    id: str | Names  # the id column, or those that make an id together; methods never use it as a feature
    path: Path | None = None  # .csv or .parquet
    url: SecretStr | None = None  # postgresql+psycopg://... or sqlite:///...
    url_env: Annotated[str, Field(min_length=1)] | None = None  # the environment variable that holds the URL
    query: Annotated[str, Field(min_length=1)] | None = Field(default=None, repr=False)  # one SELECT
    columns: Annotated[Names, Field(min_length=1)] | None = (
        None  # that methods may use at all; all but the id
    )
    # Columns with which a prediction may only go up (1) or down (-1), for methods that can hold to it.
    monotone: dict[str, Literal[-1, 1]] = Field(default_factory=dict, repr=False)

    @field_validator("id", mode="plain")
    @classmethod
    def _columns(cls, given: object) -> str | Names:
        names = [given] if isinstance(given, str) else given
        if (
            not isinstance(names, list | tuple)
            or not names
            or not all(isinstance(n, str) and n for n in names)
        ):
            raise fault("should be a column's name, or a list of those that make an id together")
        if len(set(names)) < len(names) or len(names) > MOST_COLUMNS:
            raise fault(f"should be 1 to {MOST_COLUMNS} columns, none of them named twice")
        return names[0] if len(names) == 1 else tuple(names)

    @property
    def ids(self) -> Names:
        """The columns of the id: one, or several."""
        return (self.id,) if isinstance(self.id, str) else self.id

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [key for key in ("path", "url", "url_env") if getattr(self, key) is not None]
        if len(given) != 1:
            raise fault(f"needs exactly one of path, url and url_env, got {' and '.join(given) or 'none'}")
        if (self.path is None) != (self.query is not None):
            raise fault("has a path and a query" if self.path else f"needs a query beside {given[0]}")
        if self.path is not None and self.path.suffix.lower() not in SUFFIXES:
            raise fault(f"path should end in {' or '.join(SUFFIXES)}")
        for name in self.ids:
            if name in (self.columns or ()):
                raise fault(f"columns holds the id {name!r}, which methods never use")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise fault("columns names one of them twice")
        return self

"""A table is what its file or its query holds, with no column too many, and no error quotes any of it."""

from __future__ import annotations

import builtins
import sqlite3
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.data import sources
from protocols.data.sources import TableSource, fingerprint, read_table
from protocols.errors import ConfigError, DataError, VflError
from protocols.psi.ids import canonical

CANARY = "c4n4ry"
TABLE = pd.DataFrame(
    {
        "id": [3, 1, 2],
        "age": [30.5, np.nan, 50.0],
        "calls": [7, 8, 9],
        "name": ["Ann", "Bo, jr.", 'C "c"'],
    }
)


def source(**said: Any) -> TableSource:
    return TableSource.model_validate({"id": "id", **said})


def written(folder: Path, kind: str, table: pd.DataFrame = TABLE) -> TableSource:
    """`table` as a file or database of this kind."""
    if kind == "csv":
        table.to_csv(folder / "t.csv", index=False)
    elif kind == "parquet":
        table.to_parquet(folder / "t.parquet")
    else:
        with sqlite3.connect(folder / "t.db") as connection:
            table.to_sql("people", connection, index=False)
        connection.close()
        return source(url="sqlite:///t.db", query="select * from people")
    return source(path=f"t.{kind}")


KINDS = pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite"])


def fails(kind: type[VflError], place: TableSource, base: Path, columns: Sequence[str] | None = None) -> str:
    """The error of reading it, which is marked, and quotes no cell and no secret wherever one looks."""
    with pytest.raises(kind) as caught:
        read_table(place, base, columns, party="telco", step="tables.main")
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    said = str(caught.value)
    assert said.startswith("telco/tables.main: ")
    return said.removeprefix("telco/tables.main: ")


@KINDS
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    place = written(tmp_path, kind)
    expected = TABLE.sort_values("id", ignore_index=True) if kind == "sqlite" else TABLE
    pd.testing.assert_frame_equal(read_table(place, tmp_path), expected)
    some = read_table(place, tmp_path, ["calls", "age"])
    pd.testing.assert_frame_equal(some, expected[["id", "calls", "age"]])
    assert list(read_table(place, tmp_path, []).columns) == ["id"]


@KINDS
def test_a_source_lets_methods_use_what_it_lists(kind: str, tmp_path: Path) -> None:
    place = written(tmp_path, kind).model_copy(update={"columns": ("calls", "age")})
    assert list(read_table(place, tmp_path).columns) == ["id", "calls", "age"]
    assert list(read_table(place, tmp_path, ["age"]).columns) == ["id", "age"]
    said = fails(ConfigError, place, tmp_path, ["name"])
    assert "column 'name' is not among those that methods may use" in said
    assert "'calls'?" in fails(ConfigError, place, tmp_path, ["call"])


@KINDS
def test_a_missing_column_is_named_with_the_nearest(kind: str, tmp_path: Path) -> None:
    place = written(tmp_path, kind)
    said = fails(ConfigError, place, tmp_path, ["agee"])
    assert "no column 'agee' in a table of 4 columns; did you mean 'age'?" in said
    said = fails(ConfigError, place.model_copy(update={"id": "Id"}), tmp_path)
    assert "no id column 'Id' in a table of 4 columns; did you mean 'id'?" in said
    assert "column 'id' is not among those" in fails(ConfigError, place, tmp_path, ["age", "id"])
    assert "2 columns are asked for, one of them twice" in fails(ConfigError, place, tmp_path, ["age", "age"])


@KINDS
def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    said = fails(ConfigError, written(tmp_path, kind), tmp_path / "elsewhere")
    assert "elsewhere/t." in said and "no such" in said


@KINDS
def test_a_table_that_changed_since_is_noticed(kind: str, tmp_path: Path) -> None:
    place = written(tmp_path, kind)
    before = fingerprint(read_table(place, tmp_path))
    read_table(place, tmp_path, unchanged=before)
    (tmp_path / "later").mkdir()
    written(tmp_path / "later", kind, TABLE.assign(calls=[7, 8, 10]))
    with pytest.raises(DataError, match="telco/resume: the table has changed since the job began, and"):
        read_table(place, tmp_path / "later", party="telco", step="resume", unchanged=before)


@given(st.permutations(range(3)), st.sampled_from([{}, {"calls": "age", "age": "calls"}]))
def test_a_fingerprint_is_of_names_rows_and_order(order: Sequence[int], names: Mapping[str, str]) -> None:
    other = TABLE.iloc[list(order)].rename(columns=names)
    same = list(order) == [0, 1, 2] and not names
    assert (fingerprint(other) == fingerprint(TABLE)) == same
    assert fingerprint(TABLE.astype({"calls": "int32"})) != fingerprint(TABLE)


@pytest.mark.parametrize(
    ("cells", "tag", "values"),
    [
        (["3", "-1", "0"], "int", [b"3", b"-1", b"0"]),
        (["3", "007", "1"], "str", [b"3", b"007", b"1"]),
        (["3", "1.0", "1"], "str", [b"3", b"1.0", b"1"]),
        (["NA", "null", "1"], "str", [b"NA", b"null", b"1"]),
        (["9" * 18, "9" * 19, "1"], "str", [b"9" * 18, b"9" * 19, b"1"]),
        ([" 1", "2", "3"], "str", [b" 1", b"2", b"3"]),
        (["Zo\u00eb", "Bo", "\u4e2d"], "str", ["Zoë".encode(), b"Bo", "中".encode()]),
    ],
)
def test_ids_of_a_csv_file_are_what_is_written(
    cells: list[str], tag: str, values: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("id,age\n" + "".join(f"{cell},1\n" for cell in cells), encoding="utf-8")
    ids = canonical(read_table(source(path="t.csv"), tmp_path)["id"])
    assert (ids.tag, ids.values.to_pylist()) == (tag, values)


@pytest.mark.parametrize("known", ["1", "x"])
def test_an_empty_cell_is_a_missing_id(known: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"id,age\n{known},1\n,2\n")
    with pytest.raises(DataError, match="1 of 2 ids are missing"):
        canonical(read_table(source(path="t.csv"), tmp_path)["id"])


def test_gaps_of_other_columns_are_those_of_pandas(tmp_path: Path) -> None:
    cells = ["", " ", "NA", "n/a", "None", "nan", "-NaN", "<NA>", "null", "NULL", "#N/A", "1.#QNAN", "x", "0"]
    (tmp_path / "t.csv").write_text("id,a\n" + "".join(f"{at},{cell}\n" for at, cell in enumerate(cells)))
    expected = pd.read_csv(tmp_path / "t.csv", skip_blank_lines=False)
    pd.testing.assert_frame_equal(read_table(source(path="t.csv"), tmp_path), expected)
    assert sorted(pd._libs.parsers.STR_NA_VALUES) == sorted(sources._GAPS)  # type: ignore[attr-defined]


@settings(max_examples=20)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, some: list[float]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    drawn = np.random.default_rng(0).integers(2**64, size=1000, dtype=np.uint64).view(np.float64)
    numbers = np.array([*some, *drawn[np.isfinite(drawn)], *np.random.default_rng(1).normal(size=1000)])
    table = pd.DataFrame({"id": range(len(numbers)), "a": numbers})
    read = read_table(written(folder, "csv", table), folder)
    assert read["a"].to_numpy().tobytes() == numbers.tobytes()


def test_a_table_may_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,age\n")
    assert read_table(source(path="t.csv"), tmp_path).shape == (0, 2)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,age\n1,2\n", encoding="utf-8-sig")
    assert list(read_table(source(path="t.csv"), tmp_path).columns) == ["id", "age"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the file is empty"),
        (f"id,age\n{CANARY},1,2\n".encode(), "cannot be read as CSV (ParserWarning)"),
        (f"id,age\n1,2\n{CANARY},1,2\n".encode(), "cannot be read as CSV (ParserError)"),
        (f'id,age\n1,"{CANARY}\n'.encode(), "cannot be read as CSV (ParserError)"),
        (f"id,age\n{CANARY}\xe9,1\n".encode("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        (b"id,age,age\n1,2,3\n", "two columns are called 'age'; rename one"),
    ],
)
def test_a_faulty_csv_file_is_an_error_that_quotes_no_cell(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    assert said in fails(DataError, source(path="t.csv"), tmp_path)


def test_a_faulty_parquet_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(CANARY.encode())
    assert "cannot be read as PARQUET (ArrowInvalid)" in fails(DataError, source(path="t.parquet"), tmp_path)
    (tmp_path / "t.csv").mkdir()
    assert "t.csv: is no file" in fails(ConfigError, source(path="t.csv"), tmp_path)


def test_a_parquet_file_with_an_index_has_it_as_a_column(tmp_path: Path) -> None:
    TABLE.set_index("id").to_parquet(tmp_path / "t.parquet")
    read = read_table(source(path="t.parquet"), tmp_path)
    pd.testing.assert_frame_equal(read, TABLE)


def test_only_the_needed_columns_of_a_parquet_file_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    read = pq.ParquetFile.read

    def noted(file: Any, columns: Any) -> Any:
        asked.append(columns)
        return read(file, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", noted)
    read_table(written(tmp_path, "parquet"), tmp_path, ["calls"])
    assert asked == [["id", "calls"]]


def test_a_query_is_only_read(tmp_path: Path) -> None:
    place = written(tmp_path, "sqlite")
    for query in ("delete from people returning id", "insert into people(id) values (1) returning id"):
        said = fails(DataError, place.model_copy(update={"query": query}), tmp_path)
        assert "the query failed (OperationalError, SQLITE_ERROR)" in said
    # Nor could any other text write.
    with pytest.raises(DataError, match="SQLITE_READONLY"), sources._connected(place, tmp_path) as connection:
        connection.exec_driver_sql("delete from people")
    assert connection.closed and len(read_table(place, tmp_path)) == 3


def test_a_name_may_hold_any_character(tmp_path: Path) -> None:
    place = written(tmp_path, "sqlite", TABLE.rename(columns={"age": 'a"g%e:x', "id": 'i"d'}))
    table = read_table(place.model_copy(update={"id": 'i"d'}), tmp_path, ['a"g%e:x'])
    assert table.columns.tolist() == ['i"d', 'a"g%e:x'] and table['a"g%e:x'].tolist()[2] == 30.5


@pytest.mark.parametrize(
    "query",
    [
        "select * from people;",
        "select * from people where name like '%o%' or name not like '%:x%' -- all",
        "with p as (select * from people) select * from p order by age",
    ],
)
def test_any_select_is_a_query(query: str, tmp_path: Path) -> None:
    place = written(tmp_path, "sqlite").model_copy(update={"query": query})
    assert read_table(place, tmp_path, ["calls"])["calls"].tolist() == [8, 9, 7]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (f"select '{CANARY}' from none", "the query failed (OperationalError, SQLITE_ERROR); run it by hand"),
        (f"select {CANARY} from people", "the query failed (OperationalError, SQLITE_ERROR)"),
        (f"select '{CANARY}'; select 1", "the query failed ("),
    ],
)
def test_a_query_that_fails_is_not_quoted(query: str, said: str, tmp_path: Path) -> None:
    place = written(tmp_path, "sqlite").model_copy(update={"query": query})
    assert said in fails(DataError, place, tmp_path)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_text(CANARY * 1000)
    place = source(url="sqlite:///t.db", query="select * from people")
    assert "(DatabaseError, SQLITE_NOTADB)" in fails(DataError, place, tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"://{CANARY}", "url is no database URL; expected one like postgresql+psycopg://"),
        (f"postgresql://u:{CANARY}@h:{CANARY}/d", "url is no database URL"),
        (f"mysql://u:{CANARY}@h/d", "url should begin with postgresql+psycopg:// or sqlite:///"),
        (f"postgresql+asyncpg://u:{CANARY}@h/d", "url should begin with postgresql+psycopg://"),
        ("sqlite://", "no such database file"),
    ],
)
def test_a_url_that_cannot_be_used_is_not_quoted(url: str, said: str, tmp_path: Path) -> None:
    assert said in fails(ConfigError, source(url=url, query="select 1"), tmp_path)


def test_a_url_may_stay_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "sqlite")
    place = source(url_env="TELCO_DB", query="select * from people")
    assert "the variable TELCO_DB, which should hold the database's URL, is not set" in fails(
        ConfigError, place, tmp_path
    )
    monkeypatch.setenv("TELCO_DB", f"{CANARY}://")
    assert "the variable TELCO_DB" in fails(ConfigError, place, tmp_path)
    monkeypatch.setenv("TELCO_DB", "sqlite:///t.db")
    assert len(read_table(place, tmp_path)) == 3


@pytest.mark.parametrize(
    ("package", "url"), [("sqlalchemy", "sqlite:///t.db"), ("psycopg", "postgresql://h")]
)
def test_a_missing_extra_is_an_error_with_the_command(
    package: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    said = fails(ConfigError, source(url=url, query="select 1"), tmp_path)
    assert "is needed to read a database: pip install 'vfl-toolkit[sql]'" in said

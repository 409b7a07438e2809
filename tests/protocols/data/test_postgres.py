"""The same against a real PostgreSQL server. Skipped where Debian's package postgresql is not installed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import psycopg
import pytest

from protocols.data import sources
from protocols.data.sources import TableSource, fingerprint, read_table
from protocols.errors import ConfigError, DataError, VflError
from protocols.psi.ids import canonical
from tests.support.postgres import PASSWORD, programs, server

pytestmark = pytest.mark.skipif(programs() is None, reason="no PostgreSQL here: apt-get install postgresql")
CANARY = "c4n4ry"


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    with server() as place:
        with psycopg.connect(f"host={place} user=owner dbname=postgres", password=PASSWORD) as connection:
            connection.execute(
                "create table people (id bigint, name text, age numeric, calls int, since date, vip bool)"
            )
            connection.execute(
                "insert into people values (3, 'Ann', 30.5, 7, '2020-01-01', true), "
                "(10, 'Bo', null, 8, null, false), (2, %s, 50, null, null, null)",
                [CANARY],
            )
        yield place


def source(socket: Path, query: str = "select * from people", password: str = PASSWORD) -> TableSource:
    url = f"postgresql+psycopg://owner:{quote(password, safe='')}@/postgres?host={socket}"
    return TableSource.model_validate({"id": "id", "url": url, "query": query})


def fails(kind: type[VflError], place: TableSource, columns: list[str] | None = None) -> str:
    with pytest.raises(kind) as caught:
        read_table(place, Path(), columns, party="telco", step="tables.main")
    whole = "".join(traceback.format_exception(caught.value))
    assert CANARY not in whole and PASSWORD not in whole and quote(PASSWORD, safe="") not in whole
    return str(caught.value)


def test_a_query_is_a_table_in_the_order_of_ids(socket: Path) -> None:
    table = read_table(source(socket), Path(), ["age", "calls", "vip"])
    expected = pd.DataFrame(
        {"id": [2, 3, 10], "age": [50, 30.5, None], "calls": [None, 7, 8], "vip": [None, True, False]}
    )
    pd.testing.assert_frame_equal(table, expected)
    assert canonical(table["id"]).tag == "int"
    again = read_table(source(socket, "select * from people order by name desc"), Path())
    assert fingerprint(again) == fingerprint(read_table(source(socket), Path()))
    short = source(socket)
    assert short.url is not None
    plain = short.url.get_secret_value().replace("+psycopg", "")
    assert len(read_table(TableSource.model_validate(short.model_dump() | {"url": plain}), Path())) == 3


def test_text_ids_and_percent_signs(socket: Path) -> None:
    query = "select id::text as id, calls % 5 as \"r%est\" from people where name like 'A%n%' or calls > 7"
    table = read_table(source(socket, query), Path(), ["r%est"])
    assert dict(table.values) == {"10": 3, "3": 2} and canonical(table["id"]).tag == "str"


@pytest.mark.parametrize(
    "query",
    [
        "delete from people returning *",
        "with gone as (delete from people returning *) select * from gone",
        "select * from people) as x; commit; delete from people; select * from (select * from people",
        "select * from people where nextval('counter') > 0",
    ],
)
def test_nothing_is_written(query: str, socket: Path) -> None:
    with psycopg.connect(f"host={socket} user=owner dbname=postgres", password=PASSWORD) as connection:
        connection.execute("create sequence if not exists counter")
    assert "the query failed (" in fails(DataError, source(socket, query))
    assert len(read_table(source(socket), Path())) == 3


def test_the_transaction_is_read_only_and_sees_one_state(socket: Path) -> None:
    with sources._connected(source(socket), Path()) as connection:
        told = [
            connection.exec_driver_sql(f"show transaction_{name}").scalar()
            for name in ("read_only", "isolation")
        ]
    assert told == ["on", "repeatable read"] and connection.closed


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("select * from none", "UndefinedTable, 42P01"),
        (f"select {CANARY} from people", "UndefinedColumn, 42703"),
        (
            "select name::int as id from people",
            "InvalidTextRepresentation, 22P02",
        ),
        (f"select id '{CANARY}", "SyntaxError, 42601"),
    ],
)
def test_a_query_that_fails_gives_its_code_and_no_cell(query: str, code: str, socket: Path) -> None:
    assert fails(DataError, source(socket, query)) == (
        f"telco/tables.main: the query failed ({code}); run it by hand to see why"
    )


def test_a_missing_column_is_named_with_the_nearest(socket: Path) -> None:
    assert "the query: no column 'call'" in fails(ConfigError, source(socket), ["call"])
    assert "two columns are called 'age'" in fails(
        DataError, source(socket, "select id, age, calls as age from people")
    )


def test_a_database_that_cannot_be_reached_is_told_without_the_password(socket: Path, tmp_path: Path) -> None:
    for place in (source(socket, password=CANARY), source(tmp_path)):
        said = fails(DataError, place)
        assert "the database cannot be reached (OperationalError" in said
        assert "check the URL and the password" in said

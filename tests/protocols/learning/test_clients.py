"""Laws of row-clients' tables: any order of columns is one order, and names are compared, never told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from protocols.errors import ConfigError, DataError, VflError
from protocols.federation import Federation, simulate
from protocols.learning.clients import (
    SERVER,
    check_clients,
    check_columns,
    feature_names,
    read_client,
    row_clients,
    same_columns,
    tell_columns,
)
from protocols.party import Coordinator, Role, Unguarded
from protocols.wire.ledger import Ledger
from protocols.wire.transport import Envelope

X = np.random.default_rng(0).normal(size=(12, 4))
TABLE = pd.DataFrame(X, columns=list("qrps")).assign(y=np.arange(12) % 3, key=[f"k{i}" for i in range(12)])


def test_columns_are_sorted_whatever_order_they_came_in() -> None:
    first, turned = (
        read_client(t, "y", "key", "classification") for t in (TABLE, TABLE[TABLE.columns[::-1]])
    )
    assert first.columns == turned.columns == tuple("pqrs")
    np.testing.assert_array_equal(first.x, X[:, [2, 0, 1, 3]])
    np.testing.assert_array_equal(first.x, turned.x)
    assert first.y.tolist() == TABLE["y"].tolist()


def test_whole_numbers_go_by_size_and_before_text() -> None:
    names = ["x10", 10, "x9", 2, "1", 1]
    table = pd.DataFrame(np.zeros((1, 6)), columns=pd.Index(names, dtype=object)).assign(y=1)
    assert feature_names(table, "y", None) == [1, 2, 10, "1", "x10", "x9"]


def test_tables_in_one_process_are_compared_by_counts() -> None:
    other = TABLE.rename(columns={"s": "secret", "r": "t"})
    with pytest.raises(DataError, match="^b/fit: .* 4 feature columns: 2 of .* missing, 2 are not") as raised:
        check_columns({"a": TABLE.rename(columns={"s": "canary"}), "b": other}, "y", "key")
    assert "canary" not in str(raised.value) and "secret" not in str(raised.value)
    with pytest.raises(DataError, match="^a/fit: there is no feature column beside the target"):
        check_columns({"a": TABLE[["y"]]}, "y", None)
    with pytest.raises(DataError, match="^b/fit: no id column 'key'"):
        check_columns({"a": TABLE, "b": TABLE.drop(columns="key")}, "y", "key")
    check_columns({"a": TABLE, "b": TABLE[TABLE.columns[::-1]]}, "y", "key")


def test_a_server_and_clients_take_part() -> None:
    assert row_clients(("a", SERVER, "b")) == ("a", "b")
    for parties in (("a", "b"), (SERVER,), ()):
        with pytest.raises(ConfigError, match="expected a party 'server' and one client or more"):
            row_clients(parties)
    with pytest.raises(ConfigError, match="no client can be named 'server'"):
        check_clients(Federation({"server": TABLE}).here)
    with pytest.raises(ConfigError, match="has no table"):
        read_client(None, "y", None, "regression")


def telling(table: pd.DataFrame, id: str | None = None, guard: Unguarded | None = None) -> Role:
    rows = read_client(table, "y", id, "classification")

    async def role(me: Coordinator) -> None:
        me.desk.guard = guard or me.guard
        await tell_columns(me, SERVER, rows)

    return role


def compare(*tables: pd.DataFrame, job: str = "local") -> tuple[int, Ledger]:
    async def comparing(me: Coordinator) -> int:
        return await same_columns(me, me.roster)

    roles = {f"client{i}": telling(table) for i, table in enumerate(tables)}
    run = simulate({SERVER: comparing, **roles}, job=job)
    return run.results[SERVER], run.ledger


PLAIN = TABLE.drop(columns="key")


def test_the_server_learns_the_count_and_whether_all_have_the_same() -> None:
    count, ledger = compare(PLAIN, PLAIN[PLAIN.columns[::-1]], PLAIN)
    assert count == 4 and len(ledger) == 3


@pytest.mark.parametrize(
    ("other", "count"),
    [
        (PLAIN.rename(columns={"s": "S"}), 4),
        (PLAIN.drop(columns="s"), 3),
        (PLAIN.assign(canary=1), 5),
        (PLAIN.rename(columns={"p": "pq", "q": ""}), 4),  # the names together are the same text
    ],
)
def test_other_columns_are_refused_and_not_named(other: pd.DataFrame, count: int) -> None:
    with pytest.raises(
        DataError, match=f"^server: client1 has {count} feature columns and client0 4"
    ) as raised:
        compare(PLAIN, other)
    assert "canary" not in str(raised.value)


def test_a_column_3_is_no_column_of_the_text_3() -> None:
    numbered = pd.DataFrame(X, columns=range(4)).assign(y=PLAIN["y"])
    compare(numbered, numbered.rename(columns={3: np.int64(3)}))
    with pytest.raises(DataError, match="client1 has 4 .* client0 4, and not the same ones"):
        compare(numbered, numbered.rename(columns={3: "3"}))


def test_no_name_leaves_and_digests_of_two_jobs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Envelope] = []
    record = Ledger._record

    def tap(self: Ledger, envelope: Envelope) -> int:
        seen.append(envelope)
        return record(self, envelope)

    monkeypatch.setattr(Ledger, "_record", tap)
    for job in ("a", "a", "b"):
        compare(PLAIN.rename(columns={"s": "canary-column"}), job=job)
    assert not [e for e in seen if b"canary" in e.body]
    first, again, other = (e.body for e in seen)
    assert first == again != other


@dataclass
class Policy(Unguarded):
    """Notes what it is asked, and refuses groups below `least`."""

    least: int = 0
    asked: list[Any] = field(default_factory=list)

    def rows(self, ids: Iterable[bytes]) -> None:
        self.asked.append(sorted(ids))

    def group(self, rows: int) -> None:
        self.asked.append(rows)
        if rows < self.least:
            raise VflError("too few")


@pytest.mark.parametrize(("id", "table"), [("key", TABLE), (None, PLAIN)])
def test_a_policy_is_asked_about_ids_and_number_before_the_first_word(
    id: str | None, table: pd.DataFrame
) -> None:
    policy = Policy(least=13)
    ledgers: list[Ledger] = []

    async def waiting(me: Coordinator) -> None:
        ledgers.append(me.desk.ledger)
        await same_columns(me, me.roster)

    with pytest.raises(VflError, match="^client0: too few"):
        simulate({SERVER: waiting, "client0": telling(table, id, policy)})
    assert policy.asked == ([sorted(k.encode() for k in TABLE["key"])] if id else []) + [12]
    assert len(ledgers[0]) == 0


def test_ids_that_cannot_be_aligned_do_no_harm_where_no_policy_counts_them() -> None:
    table = TABLE.assign(key=0.5)
    simulate({SERVER: partial(same_columns, clients=["client0"]), "client0": telling(table, "key")})
    with pytest.raises(DataError, match="^client0: ids should be integers or text, got floats"):
        simulate(
            {
                SERVER: partial(same_columns, clients=["client0"]),
                "client0": telling(table, "key", Policy()),
            }
        )


def test_a_repeated_id_counts_once() -> None:
    policy = Policy()
    twice = pd.concat([TABLE, TABLE])
    simulate({SERVER: partial(same_columns, clients=["client0"]), "client0": telling(twice, "key", policy)})
    assert policy.asked == [sorted(k.encode() for k in TABLE["key"]), 24]

"""A mapping of tables is a federation; what cannot be one is refused at once."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from protocols.errors import ConfigError, DataError, LineError
from protocols.federation import Federation, check_name, simulate
from protocols.party import Coordinator
from protocols.wire.faults import Plan
from protocols.wire.message import Message
from protocols.wire.transport import Network

TABLES = {"bank": pd.DataFrame({"id": [1, 2], "x": [0.5, 1.5]}), "shop": pd.DataFrame({"id": [2]})}


class Hello(Message, reveals="test: that one is there"):
    pass


async def greets(me: Coordinator) -> str:
    await me.broadcast(Hello())
    await me.gather(Hello)
    return me.name


def test_a_federation_is_its_tables() -> None:
    federation = Federation.of(TABLES)
    assert dict(federation).keys() == TABLES.keys() and federation["bank"] is TABLES["bank"]
    assert federation.parties == federation.here == ("bank", "shop") and len(federation) == 2
    assert Federation.of(federation) is federation
    assert repr(federation) == "Federation(bank: 2 x 2, shop: 1 x 1)"


@pytest.mark.parametrize("tables", [{}, [], None, "bank", TABLES["bank"]])
def test_what_is_no_mapping_of_tables_is_refused(tables: Any) -> None:
    with pytest.raises((ConfigError, DataError), match="expected a mapping|expected a DataFrame"):
        Federation(tables)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a b", "a|b", "a\tb", "a\0", 3, None])
def test_names_that_cannot_name_a_party_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot name a party"):
        Federation({name: TABLES["bank"]})
    assert check_name("größe-1_x") == "größe-1_x"


def test_bad_tables_are_marked_with_their_party() -> None:
    with pytest.raises(DataError, match=r"^shop: expected a DataFrame, got dict"):
        Federation({"bank": TABLES["bank"], "shop": {}})  # type: ignore[dict-item]
    with pytest.raises(DataError, match=r"^shop: two columns are called 'x'"):
        Federation({"shop": pd.DataFrame([[1, 2]], columns=["x", "x"])})


def test_roles_run_over_the_lines_of_the_federation() -> None:
    run = Federation(TABLES, network=Network(0.5)).run({"bank": greets, "shop": greets})
    assert run.results == {"bank": "bank", "shop": "shop"} and run.seconds == pytest.approx(0.5)
    with pytest.raises(LineError):
        Federation(TABLES, faults=Plan(cut=("bank", "shop"))).run({"bank": greets, "shop": greets})


def test_the_roster_is_everybody_else_in_order() -> None:
    async def roster(me: Coordinator) -> tuple[str, ...]:
        return me.roster

    run = simulate({"c": roster, "a": roster, "b": roster})
    assert run.results == {"c": ("a", "b"), "a": ("c", "b"), "b": ("c", "a")}


def test_seed_and_job_reach_every_party() -> None:
    async def told(me: Coordinator) -> tuple[int, str]:
        await me.send(me.name, Hello())
        return me.desk.seed, me.desk.job

    run = simulate({"a": told, "b": told}, seed=9, job="j1")
    assert set(run.results.values()) == {(9, "j1")} and {e.job for e in run.ledger} == {"j1"}


def test_the_job_changes_neither_randomness_nor_digests() -> None:
    async def draws(me: Coordinator) -> float:
        await me.send(me.name, Hello())
        return float(me.within("fit").rng("x").random())

    one, two = (simulate({"a": draws}, job=job) for job in ("first", "second"))
    assert one.results == two.results
    assert one.ledger.line_digest("a", "a") == two.ledger.line_digest("a", "a")

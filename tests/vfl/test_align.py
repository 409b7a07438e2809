"""Alignment: the rows of pandas' inner join, in one order at every party, and a report that adds up."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import AlignmentError, ConfigError, DataError, LineError, ProtocolError
from protocols.federation import Federation, simulate
from protocols.party import Party
from protocols.psi.ecdh import intersect
from protocols.psi.ids import canonical
from protocols.wire.faults import Plan
from tests.vfl.parties import joined, small
from vfl import align
from vfl.align import Common, align_feature, align_label

PARTIES = ["bank", "shop", "telco"]


def tables(sets: list[list[Any]]) -> dict[str, pd.DataFrame]:
    return {
        party: pd.DataFrame(
            {"customer": pd.Series(ids, dtype=object if ids and isinstance(ids[0], str) else None)}
        )
        for party, ids in zip(PARTIES, sets, strict=False)
    }


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[list[Any]]]:
    """Two or three parties' ids in any order, at least one id in common."""
    distinct = st.lists(
        values, min_size=1, max_size=12, unique_by=lambda v: unicodedata.normalize("NFC", str(v))
    )

    @st.composite
    def draw(draw: st.DrawFn) -> list[list[Any]]:
        pool = draw(distinct)
        parts = draw(st.lists(st.lists(st.sampled_from(pool), unique=True), min_size=2, max_size=3))
        return [draw(st.permutations(list(dict.fromkeys([*part, pool[0]])))) for part in parts]

    return draw()


@settings(max_examples=40)
@given(
    some(st.text(st.characters(exclude_categories=["Cs"]), max_size=4)) | some(st.integers(-(2**62), 2**62))
)
def test_the_aligned_rows_are_the_inner_join_by_id_bytes(sets: list[list[Any]]) -> None:
    found = align(tables(sets), id="customer", label_party="bank").tables
    shared = set(sets[0]).intersection(*sets[1:])
    expected = sorted(shared, key=lambda v: unicodedata.normalize("NFC", str(v)).encode())
    assert [table["customer"].tolist() for table in found.values()] == [expected] * len(sets)


@pytest.mark.parametrize("parties", [2, 3])
def test_whole_rows_follow_their_ids(parties: int) -> None:
    data = small(60, parties)
    found = align(data, id="customer", label_party="bank").tables
    expected = joined(data)
    for party, table in found.items():
        pd.testing.assert_frame_equal(
            table.reset_index(drop=True), expected[data[party].columns], check_names=False
        )
        pd.testing.assert_frame_equal(table, data[party].loc[table.index])  # index labels are kept


def test_the_order_of_rows_and_parties_changes_nothing() -> None:
    data = small(60, 3)
    mixed = {party: data[party].sample(frac=1, random_state=5) for party in reversed(list(data))}
    one, other = (align(d, id="customer", label_party="bank").tables for d in (data, mixed))
    for party in data:
        pd.testing.assert_frame_equal(one[party], other[party])


def test_the_report_adds_up() -> None:
    data = small(100, 3)  # 80 rows are common, each party has 6 or 7 more
    data["shop"] = pd.concat([data["shop"], data["shop"].iloc[:5]])
    report = align(data, id="customer", label_party="bank", duplicates="first").report
    assert list(report.counts.loc["shop"]) == [92, 80, 7, 5]
    assert list(report.counts.loc["bank"]) == [87, 80, 7, 0]
    assert (report.counts["rows"] == report.counts[["matched", "lost", "duplicated"]].sum(axis=1)).all()


def test_the_report_says_what_pairwise_intersection_shows() -> None:
    sets: list[list[Any]] = [list(range(50)), list(range(20, 60)), list(range(30))]
    report = align(tables(sets), id="customer", label_party="bank").report
    assert "pair by pair" in report.shows and "30 with shop, 30 with telco" in report.shows
    assert "10 do" in report.shows  # ids 20 to 29
    assert "pair by pair" not in align(tables(sets[:2]), id="customer", label_party="bank").report.shows


def test_duplicates_first_takes_the_first_row_of_each_id() -> None:
    bank = pd.DataFrame({"customer": ["a", "b", "a"], "v": [1, 2, 3]})
    shop = pd.DataFrame({"customer": ["b", "a"]})
    found = align({"bank": bank, "shop": shop}, id="customer", label_party="bank", duplicates="first").tables
    assert found["bank"]["v"].tolist() == [1, 2]


def test_each_party_may_name_its_id_column_differently() -> None:
    data = small(40)
    data["shop"] = data["shop"].rename(columns={"customer": "card"})
    found = align(data, id={"bank": "customer", "shop": "card"}, label_party="bank").tables
    assert found["bank"]["customer"].tolist() == found["shop"]["card"].tolist()


def test_a_feature_party_is_told_only_about_the_ids_it_shares_with_the_label_party() -> None:
    data = small(50, 3)
    ledger = align(data, id="customer", label_party="bank").ledger
    lines = {(entry.sender, entry.receiver) for entry in ledger}
    assert lines == {("bank", "shop"), ("shop", "bank"), ("bank", "telco"), ("telco", "bank")}
    assert {entry.scope for entry in ledger} == {"align"}


def changed(party: str, ids: list[Any] | pd.Series) -> dict[str, pd.DataFrame]:
    return {**small(20), party: pd.DataFrame({"customer": ids})}


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (
            changed("shop", ["C1", "C1"]),
            DataError,
            'shop/align: 1 of 2 ids are duplicated; pass duplicates="first"',
        ),
        (changed("shop", ["C1", None]), DataError, "shop/align: 1 of 2 ids are missing"),
        (changed("shop", [1, 2]), AlignmentError, "ids of .* are (text|integers), those of .* are"),
        (
            changed("shop", ["c1", "c2"]),
            AlignmentError,
            "bank/align: no id is at every party: of 18 ids here 0 with",
        ),
        (changed("shop", pd.Series([], dtype=str)), AlignmentError, "no id is at every party"),
        (changed("shop", [0.5]), DataError, "shop/align: ids should be integers or text, got floats"),
        (
            {**small(20), "shop": pd.DataFrame({"custoner": ["C1"]})},
            DataError,
            "shop/align: no id column 'customer'",
        ),
        ({"bank": small(20)["bank"]}, ConfigError, "bank is the only party"),
        ({}, ConfigError, "mapping of party name"),
    ],
)
def test_bad_tables_are_clear_errors(
    data: dict[str, pd.DataFrame], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        align(data, id="customer", label_party="bank")


def test_names_that_fit_no_party_are_clear_errors() -> None:
    data = small(20)
    with pytest.raises(ConfigError, match="no party 'bnak'; parties are bank, shop; did you mean 'bank'"):
        align(data, id="customer", label_party="bnak")
    with pytest.raises(ConfigError, match="id lacks shop and names shoop"):
        align(data, id={"bank": "customer", "shoop": "customer"}, label_party="bank")
    with pytest.raises(ConfigError, match="duplicates should be"):
        align(data, id="customer", label_party="bank", duplicates="last")  # type: ignore[arg-type]


def test_no_id_is_in_an_error() -> None:
    with pytest.raises(AlignmentError) as caught:
        align(tables([["alpha-7"], ["omega-9"]]), id="customer", label_party="bank")
    assert "alpha" not in str(caught.value) and "omega" not in str(caught.value)


def test_disturbed_lines_align_the_same_and_a_cut_one_is_an_error() -> None:
    data = small(40, 3)
    plain = align(data, id="customer", label_party="bank")
    noisy = Federation(data, faults=Plan(seed=3, delay=2.0, duplicate=0.5))
    disturbed = align(noisy, id="customer", label_party="bank")
    for party in data:
        pd.testing.assert_frame_equal(plain.tables[party], disturbed.tables[party])
    with pytest.raises(LineError, match="align: the line to"):
        align(
            Federation(data, faults=Plan(cut=("bank", "telco"), cut_after=2)),
            id="customer",
            label_party="bank",
        )


def test_marks_that_do_not_fit_the_pair_are_refused() -> None:
    ids = canonical(pd.Series(["a", "b", "c"]))

    async def liar(me: Party) -> None:
        rows = await intersect(me, "shop", ids)
        await me.send("shop", Common(mask=np.ones(len(rows) + 1, bool)))

    with pytest.raises(ProtocolError, match="expected one mark for each of 3 shared ids, got 4"):
        simulate({"bank": liar, "shop": lambda me: align_feature(me, "bank", ids)})


def test_a_label_party_may_allow_for_an_empty_intersection() -> None:
    here, there = canonical(pd.Series(["a"])), canonical(pd.Series(["b"]))
    run = simulate(
        {
            "bank": lambda me: align_label(me, ["shop"], here, may_be_empty=True),
            "shop": lambda me: align_feature(me, "bank", there),
        }
    )
    assert [len(aligned.rows) for aligned in run.results.values()] == [0, 0]

"""Alignment: the rows of pandas' inner join, in one order at every party, and a report that adds up."""

from __future__ import annotations

import secrets
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import AlignmentError, ConfigError, DataError, LineError
from protocols.federation import Federation, simulate
from protocols.psi.epochs import load_epoch
from protocols.psi.ids import canonical
from protocols.wire.faults import Plan
from tests.support.columns_apart import joined, small
from vfl import align
from vfl.alignment.roles import Reveal, align_feature, align_label

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


def test_the_report_says_what_each_party_learns() -> None:
    sets: list[list[Any]] = [list(range(50)), list(range(20, 60)), list(range(30))]
    report = align(tables(sets), id="customer", label_party="bank").report
    assert report.size == 10  # ids 20 to 29
    assert "bank and shop 30, bank and telco 30, shop and telco 10" in report.learnt["bank"]
    assert (
        "group" not in report.learnt["shop"] and "all other parties also have (10)" in report.learnt["shop"]
    )
    assert "group" not in align(tables(sets[:2]), id="customer", label_party="bank").report.shows


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
            "bank/align: no id is at every party: of 18 ids here none is; are they",
        ),
        (changed("shop", pd.Series([], dtype=str)), AlignmentError, "no id is at every party"),
        (changed("shop", pd.Series([], dtype="int64")), AlignmentError, "no id is at every party"),
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


def test_a_label_party_may_allow_for_an_empty_intersection() -> None:
    here, there = canonical(pd.Series(["a"])), canonical(pd.Series(["b"]))
    run = simulate(
        {
            "bank": lambda me: align_label(me, ["shop"], here, may_be_empty=True),
            "shop": lambda me: align_feature(me, "bank", ["shop"], there),
        }
    )
    assert [len(aligned.rows) for aligned in run.results.values()] == [0, 0]


@pytest.mark.parametrize("parties", [2, 3])
def test_the_label_party_alone_may_learn(parties: int) -> None:
    data = small(60, parties)
    found = align(data, id="customer", label_party="bank", reveal="label-party")
    whole = align(data, id="customer", label_party="bank")
    assert list(found.tables) == ["bank"]
    pd.testing.assert_frame_equal(found.tables["bank"], whole.tables["bank"])
    assert found.report.counts["matched"].isna().tolist() == [False] + [True] * (parties - 1)
    assert "nothing about which" in found.report.learnt["shop"]
    to_features = {e.kind for e in found.ledger if e.sender == "bank"}
    assert not to_features & {"protocols.InAll/1", "protocols.InAllSize/1", "protocols.TwiceBlinded/1"}


@pytest.mark.parametrize("parties", [2, 3])
def test_all_may_learn_the_size_and_nothing_else(parties: int) -> None:
    data = small(60, parties)
    found = align(data, id="customer", label_party="bank", reveal="size")
    assert found.tables == {} and found.report.size == len(joined(data))
    assert found.report.counts["matched"].isna().all()


def test_no_common_id_has_size_zero() -> None:
    found = align(tables([["a"], ["b"], ["c"]]), id="customer", label_party="bank", reveal="size")
    assert found.report.size == 0


few = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@settings(max_examples=60)
@given(few, few.map(lambda ids: list(dict.fromkeys(ids))), st.booleans(), st.sampled_from([2, 3]))
def test_many_is_the_merge_of_pandas(many: list[int], one: list[int], label_has: bool, parties: int) -> None:
    sides = (many, one) if label_has else (one, many)
    frames = {
        party: pd.DataFrame({"customer": ids, party: np.arange(len(ids))})
        for party, ids in zip(PARTIES[:parties], [*sides, list(range(6))], strict=False)
    }
    expected = frames["bank"].merge(frames["shop"], on="customer")
    if expected.empty:
        return
    found = align(frames, id="customer", label_party="bank", duplicates="many")
    got = pd.DataFrame({"customer": found.tables["bank"]["customer"].to_numpy()})
    for party in ("bank", "shop"):
        got[party] = found.tables[party][party].to_numpy()
    order = ["customer", "bank", "shop"]
    pd.testing.assert_frame_equal(
        got.sort_values(order, ignore_index=True), expected[order].sort_values(order, ignore_index=True)
    )
    assert got["customer"].astype(str).is_monotonic_increasing
    counts = found.report.counts
    assert (counts["rows"] == counts[["matched", "lost", "duplicated"]].sum(axis=1)).all()


@pytest.mark.parametrize(("reveal", "told"), [("all", True), ("label-party", False)])
def test_the_report_says_whether_rows_of_each_id_were_counted(reveal: Reveal, told: bool) -> None:
    data = tables([[1, 1, 2], [1, 2, 3]])
    found = align(data, id="customer", label_party="bank", duplicates="many", reveal=reveal)
    sent = "vfl.Repeats/1" in {entry.kind for entry in found.ledger}
    said = ["how many rows each of these has" in words for words in found.report.learnt.values()]
    assert sent == told and said == [told, told]
    once = align(data, id="customer", label_party="bank", duplicates="first", reveal=reveal)
    assert "how many rows" not in once.report.shows


def test_ids_with_several_rows_at_two_parties_are_refused() -> None:
    data = tables([[1, 1, 2], [1, 1, 2]])
    with pytest.raises(AlignmentError, match="bank/align: 1 of 2 common ids have several rows at more than"):
        align(data, id="customer", label_party="bank", duplicates="many")


def test_an_id_of_several_columns_agrees_in_each() -> None:
    bank = pd.DataFrame({"name": ["ab", "a", "x"], "born": ["c", "bc", "y"], "v": [1, 2, 3]})
    shop = pd.DataFrame({"surname": ["a", "ab", "x"], "born": ["bc", "c", "z"]})
    found = align(
        {"bank": bank, "shop": shop},
        id={"bank": ["name", "born"], "shop": ["surname", "born"]},
        label_party="bank",
    ).tables
    assert sorted(found["bank"]["v"]) == [1, 2]
    assert found["bank"]["name"].tolist() == found["shop"]["surname"].tolist()
    with pytest.raises(AlignmentError, match="text and text.*give as many id columns at one as at the other"):
        align(
            {"bank": bank, "shop": shop},
            id={"bank": ["name", "born"], "shop": "surname"},
            label_party="bank",
        )


def test_the_same_normalisation_at_all_parties_makes_one_id_of_many_forms() -> None:
    data = tables([["(030) 12 34", "0 55"], [301234, 55]])
    data["shop"]["customer"] = data["shop"]["customer"].astype("int64")
    with pytest.raises(AlignmentError, match="cast one side, or let both be normalised"):
        align(data, id="customer", label_party="bank")
    data["shop"]["customer"] = ["0301234", "055"]
    assert align(data, id="customer", label_party="bank", normalise="digits").report.size == 2
    mixed = tables([[" STRASSE", "É"], ["straße", "e\u0301 "]])
    assert align(mixed, id="customer", label_party="bank", normalise=["casefold", "strip"]).report.size == 2


def test_names_of_options_are_checked() -> None:
    data = small(10)
    with pytest.raises(ConfigError, match="normalise names 'stripe'; there are strip, casefold, digits; did"):
        align(data, id="customer", label_party="bank", normalise=["stripe"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="reveal='both' should be one of all, label-party, size"):
        align(data, id="customer", label_party="bank", reveal="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("reveal", ["all", "label-party"])
def test_the_protocol_changes_neither_rows_nor_report(reveal: Reveal) -> None:
    data = small(60)
    found, other = (
        align(data, id="customer", label_party="bank", reveal=reveal, protocol=protocol)
        for protocol in ("kkrt", "ecdh")
    )
    assert list(found.tables) == list(other.tables) and str(found.report) == str(other.report)
    for party, table in found.tables.items():
        pd.testing.assert_frame_equal(table, other.tables[party])
    assert "protocols.FunctionValues/1" in {e.kind for e in found.ledger}
    assert "protocols.BlindedIds/1" in {e.kind for e in other.ledger}


def test_a_protocol_that_does_not_fit_is_refused_before_anything_leaves() -> None:
    with pytest.raises(ConfigError, match='protocol="kkrt" is for two parties, got 3'):
        align(small(10, 3), id="customer", label_party="bank", protocol="kkrt")
    for protocol in ("kkrt", "unbalanced"):
        with pytest.raises(ConfigError, match=f'protocol="{protocol}" cannot show the size alone'):
            align(small(10), id="customer", label_party="bank", protocol=protocol, reveal="size")
    data = {**small(60), "shop": small(60)["shop"].iloc[:20]}
    with pytest.raises(ConfigError, match="align: protocol=.* let shop be the label party"):
        align(data, id="customer", label_party="bank", protocol="unbalanced", reveal="label-party")


def test_a_cache_keeps_what_was_worked_on_once(tmp_path: Path) -> None:
    data = small(60)
    data["bank"] = data["bank"].iloc[:20]
    expected = align(data, id="customer", label_party="bank")
    for sent in (True, False):
        found = align(data, id="customer", label_party="bank", protocol="unbalanced", cache=tmp_path)
        assert str(found.report) == str(expected.report)
        for party, table in found.tables.items():
            pd.testing.assert_frame_equal(table, expected.tables[party])
        assert ("protocols.IdMarks/1" in {e.kind for e in found.ledger}) == sent
    assert {path.name for path in tmp_path.iterdir()} == {"bank-store", "shop-store"}


def test_two_peers_hold_marks_that_cannot_be_compared(tmp_path: Path) -> None:
    data = small(60, 3)
    for party in ("bank", "telco"):
        two = {party: data[party].iloc[:20], "shop": data["shop"]}
        align(two, id="customer", label_party=party, protocol="unbalanced", cache=tmp_path)
    one, other = (load_epoch(tmp_path / "shop-store", party) for party in ("bank", "telco"))
    assert one is not None and other is not None
    assert one.key != other.key and one.salt != other.salt
    assert not {bytes(mark[:4]) for mark in one.marks} & {bytes(mark[:4]) for mark in other.marks}


def test_a_cache_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache is for protocol=\"unbalanced\", got protocol='auto'; leave"):
        align(small(10), id="customer", label_party="bank", cache=tmp_path)


def test_the_report_says_how_well_ids_can_be_guessed() -> None:
    rng = np.random.default_rng(0)
    phones = [f"017{n:08d}" for n in rng.integers(0, 10**8, 3000)]
    keys = [secrets.token_hex(16) for _ in range(3000)]
    data = {
        "bank": pd.DataFrame({"phone": phones}),
        "shop": pd.DataFrame({"phone": [*keys[1:], phones[0]]}),
    }
    risks = align(data, id="phone", label_party="bank", duplicates="first").report.risks
    assert risks["bank"].weak and 26 < risks["bank"].bits < 28 and "puts guesses into" in str(risks["bank"])
    assert not risks["shop"].weak and risks["shop"].bits > 120

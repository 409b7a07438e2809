"""A feature party that makes up its sums is named, or learns no more than the guide says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vfl.boosting.grow
from protocols.arrays import Array
from protocols.errors import ProtocolError
from protocols.federation import simulate
from tests.vfl.boosting.boosted import plan, roles
from tests.vfl.boosting.cheats import Claim, Tactic, cheated, goes_left

ROWS, BINS = 320, 31
SETTINGS: dict[str, Any] = {
    "n_estimators": 6,
    "max_depth": 3,
    "min_samples_leaf": 10,
    "min_samples_split": 20,
}


def people() -> tuple[pd.DataFrame, pd.Series]:
    """The bank's table, which tells a little of the label, and the label."""
    rng = np.random.default_rng(0)
    y = pd.Series(rng.permutation(ROWS) % 2, name="y")
    return pd.DataFrame({"x": 0.3 * y + rng.normal(size=ROWS)}), y


def row_by_row(times: int, *, gaps: bool, many: int = BINS) -> Callable[[Array], Claim]:
    """A category for each of `many` rows that no node was asked about, which counts `times`.

    gaps: whether there is a bin of gaps that makes good for that.
    """
    asked: set[int] = set()

    def claim(rows: Array) -> Claim:
        chosen = [row for row in rows.tolist() if row not in asked][:many]
        asked.update(chosen)
        bins = np.zeros((BINS + 1, ROWS), np.int64)
        bins[1 + np.arange(len(chosen)), chosen] = times
        bins[0, rows] = gaps
        bins[0] -= gaps * bins[1:].sum(axis=0)
        return [bins]

    return claim


def named(tactic: Tactic) -> dict[int, int]:
    """What a cheat says of labels: categories of lower gradients, which have label 1, go left. Where all go
    one way it says nothing."""
    labels = dict[int, int]()
    for claim, column, left in tactic.told:
        for rows, goes in zip(claim[column][1:], left[1:], strict=True) if len({*left[1:]}) > 1 else ():
            labels |= {int(row): int(goes) for row in np.flatnonzero(rows)}
    return labels


def right(labels: dict[int, int], y: pd.Series) -> float:
    return float(np.mean([y.iloc[row] == label for row, label in labels.items()])) if labels else 1.0


def run(tactic: Tactic, **settings: Any) -> pd.Series:
    """Train with a cheat; the labels."""
    table, y = people()
    simulate(cheated(table, y, plan(**SETTINGS | settings), tactic))
    return y


@pytest.mark.parametrize("encryption", ["plain", "paillier"])
def test_sums_of_rows_of_a_cheats_choice_are_refused(encryption: str) -> None:
    tactic = Tactic([BINS], row_by_row(1, gaps=False), categorical=True)
    with pytest.raises(ProtocolError, match="bank/fit/0/0: sums from shop: .*do not add up to all rows"):
        run(tactic, encryption=encryption)
    assert not tactic.told


def test_unchecked_they_would_name_labels_by_the_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the checks are for: the same cheat, and a label party that believes what it is sent."""
    for check in ("check_sums", "check_side"):
        monkeypatch.setattr(vfl.boosting.grow, check, lambda *_: None)
    tactic = Tactic([BINS], row_by_row(10, gaps=False), categorical=True)
    y = run(tactic, max_depth=1, n_estimators=10)
    labels = named(tactic)
    assert len(labels) > 250 and right(labels, y) == 1


def test_sums_that_no_rows_have_are_refused() -> None:
    """Gaps make good for what single rows count too often, and so would be fewer than none."""
    tactic = Tactic([BINS], row_by_row(11, gaps=True), categorical=True)
    with pytest.raises(
        ProtocolError, match="bank/fit/0/0: sums from shop: .*that no rows of their node add up to"
    ):
        run(tactic)
    assert not tactic.told


def test_rows_that_count_for_many_are_noticed_once_they_are_split_by() -> None:
    """What is learnt before that is one answer: a label for each bin that the count of rows has room for."""
    tactic = Tactic([BINS], row_by_row(10, gaps=True, many=20), categorical=True)
    with pytest.raises(ProtocolError, match="bank/fit/0/0: rows from shop: .*do not add up to the sums"):
        run(tactic)
    assert len(tactic.told) == 1 and len(named(tactic)) == 20


def test_other_rows_than_those_that_were_summed_up_may_not_go_left() -> None:
    def claim(rows: Array) -> Claim:
        bins = np.zeros((3, ROWS), np.int64)
        bins[1, rows[: len(rows) // 2]], bins[2, rows[len(rows) // 2 :]] = 1, 1
        return [bins]

    def side(rows: Array, claim: Array, left: Array) -> Array:
        goes = goes_left(rows, claim, left)
        goes[[np.argmax(goes), np.argmin(goes)]] ^= True  # one for another
        return goes

    y = people()[1].sort_values()  # the first half has label 0: one for another is a row of another label
    tactic = Tactic([2], claim, side)
    with pytest.raises(ProtocolError, match="bank/fit/0/0: rows from shop: .*do not add up to the sums"):
        simulate(cheated(people()[0], y.reset_index(drop=True), plan(**SETTINGS), tactic))


def test_a_column_that_divided_a_node_divides_its_children_alike() -> None:
    def claim(rows: Array) -> Claim:
        bins = np.zeros((3, ROWS), np.int64)
        bins[1 + (rows % 2 if len(rows) == ROWS else rows // 2 % 2), rows] = 1
        return [bins]

    y = pd.Series((np.arange(ROWS) % 2 + np.arange(ROWS) // 2 % 2 > 0).astype(int))
    with pytest.raises(ProtocolError, match="bank/fit/0/1: sums from shop: .*sent the other way"):
        simulate(cheated(people()[0], y, plan(**SETTINGS), Tactic([2], claim)))


def test_more_bins_than_all_were_told_of_are_refused() -> None:
    with pytest.raises(
        ProtocolError, match="bank: .*BinCounts/1 from shop: a column of 33 bins, .*at most 32"
    ):
        run(Tactic([33], row_by_row(1, gaps=True)))


def test_what_remains_is_which_of_its_divisions_is_best() -> None:
    """Columns that divide the node as they say, but anew in every tree: an answer is one of so many."""
    y, asked = people()[1], set[int]()
    known = np.flatnonzero(y == 1)[
        :40
    ]  # customers whose labels the cheat knows, so that its columns are best
    names = 7  # labels that one answer names: one of 2**7 columns
    patterns = (np.arange(2**names)[:, None] >> np.arange(names) & 1).astype(bool)

    def claim(rows: Array) -> Claim:
        fresh = [row for row in rows.tolist() if row not in {*asked, *known}][:names]
        asked.update(fresh)
        bins = np.zeros((len(patterns), 3, ROWS), np.int64)
        bins[:, 2, rows] = 1
        bins[:, 1, known] = 1
        bins[:, 1, fresh] = patterns
        bins[:, 2] -= bins[:, 1]
        return list(bins)

    tactic, labels = Tactic([2] * len(patterns), claim), dict[int, int]()
    run(tactic, max_depth=1)
    for claimed, column, left in tactic.told:
        fresh = np.setdiff1d(np.flatnonzero(claimed[-1][1]), known)
        labels |= {int(row): int(claimed[column][1, row] == 1) for row in fresh if left[1]}
    assert len(labels) == 6 * names and right(labels, y) == 1
    answers = 2 * sum(tactic.bins) + 1  # a cut after each bin, with gaps on either side; or no split by these
    assert names <= np.log2(answers) < names + 3


def test_a_category_of_few_rows_tells_nothing_of_their_labels() -> None:
    """The feature party follows the protocol, and its rare categories are people."""
    table, y = people()
    rare = pd.DataFrame(
        {"town": [f"town {row}" if row < 28 else "city" if row % 2 else "coast" for row in range(ROWS)]}
    )
    for least, told in ((1, True), (10, False)):
        settings = plan(**SETTINGS | {"max_depth": 1, "n_estimators": 1, "min_samples_leaf": least})
        tables = {"bank": table.iloc[:, :0], "shop": rare}
        splits = simulate(roles(tables, y, settings)).results["shop"][0]
        (split,) = splits.splits.left
        (bins,) = splits.bins
        towns = [
            split[code] for code, name in zip(bins.codes, bins.categories, strict=True) if "town" in name
        ]
        assert (len({*towns}) > 1) == told
        if told:
            order = [int(name.split()[1]) for name in bins.categories if "town" in name]
            assert [int(y[row]) for row in order] == [int(left) for left in towns]

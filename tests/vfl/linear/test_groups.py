"""Columns whose gradient is nearly that of few rows are refused by their owner, where its policy says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.arrays import Array
from protocols.errors import PolicyError
from protocols.federation import simulate
from protocols.party import Coordinator, Role, Unguarded
from protocols.policy.judge import refusal
from protocols.service.caller import Connected
from tests.support.crew import captured
from tests.support.served import lay_out, serving
from tests.vfl.linear.tables import SMALL, TARGET
from tests.vfl.linear.test_estimator import FIT, Data, classifier, dealt, people
from vfl import VerticalLogisticRegression
from vfl.linear.gradient import Sums
from vfl.linear.groups import rows_behind


@given(seed=st.integers(0, 2**32), rows=st.integers(2, 60), values=st.integers(2, 60))
def test_rows_behind_a_column_are_counted_as_said(seed: int, rows: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(1.5, values)[rng.integers(0, values, (rows, 2))]
    for column, behind in zip(x.T, rows_behind(x), strict=True):
        squares = np.sort((column - column.mean()) ** 2)
        differ = min(int((column != value).sum()) for value in column)
        enough = [k for k in range(1, rows + 1) if squares[rows - k :].sum() > squares.sum() / 2 + 1e-9]
        assert behind == min([differ, *enough[:1]])


def test_rows_behind_some_columns() -> None:
    rng = np.random.default_rng(0)
    rare, even = np.arange(400) < 7, np.arange(400) % 2
    powers = 2.0 ** np.where(np.arange(400) < 20, np.arange(400), 0)
    outlier = np.where(np.arange(400) == 0, 100.0, rng.normal(size=400))
    found = rows_behind(np.column_stack([rare, even, powers, outlier, rng.normal(size=400), np.ones(400)]))
    assert found.tolist()[:4] == [4, 200, 1, 1] and 40 < found[4] < 60 and found[5] == 0


def rare(data: Data) -> tuple[Data, list[int]]:
    """With columns at the shop that are 1 for one of 15 rows each, and these rows' ids."""
    common = set.intersection(*(set(table["id"]) for table in data.values()))
    chosen = sorted(common)[:15]
    one_hot = {f"secret {k}": (data["shop"]["id"] == row) * 1.0 for k, row in enumerate(chosen)}
    return {**data, "shop": data["shop"].assign(**one_hot)}, chosen


class Least(Unguarded):
    """The guard of a policy with its default `min_group`."""

    def group(self, rows: int) -> None:
        if rows < 10:
            raise refusal("min_group", "a statistic would be of fewer than 10 rows; take more rows")


def guarded(roles: Mapping[str, Role], party: str) -> dict[str, Role]:
    """The same, where this party has a policy."""

    async def asking(me: Coordinator) -> Any:
        me.desk.guard = Least()
        return await roles[party](me)

    return {**roles, party: asking}


def roles_of(data: Data, **settings: Any) -> Mapping[str, Role]:
    model = classifier(encryption=SMALL, **{"security": "exact", **settings})
    roles, _ = captured(lambda tables: model.fit(tables, **FIT), data)
    return roles


@pytest.fixture(scope="module")
def data() -> Data:
    return dealt(people(400))


@pytest.mark.parametrize("settings", [{}, {"security": "hidden"}, {"l1": 0.01}], ids=str)
def test_an_honest_party_is_kept_from_labels_of_rare_rows(
    data: Data, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Without the check the first gradient of a column of one row tells that row's label, 15 times of 15."""
    table, ids = rare(data)
    first: dict[int, Array] = {}
    opened = Sums.opened

    def listen(self: Sums, message: Any) -> Array:
        found = opened(self, message)
        first.setdefault(len(found), found)
        return found

    monkeypatch.setattr(Sums, "opened", listen)
    roles = roles_of(table, max_iter=1, **settings)
    simulate(roles)
    told = first[17][2:, 0]  # the shop's, of its columns of one row
    labels = table["bank"].set_index("id")[TARGET][ids]
    assert ((told < 0) == (labels == "yes")).all() and len(labels) == 15
    first.clear()
    with pytest.raises(PolicyError, match="shop/setup: min_group: .* of 15 of 17 columns, as of 'secret 0'"):
        simulate(guarded(roles, "shop"))
    assert not first  # nothing was told


@pytest.mark.parametrize("security", ["exact", "hidden"])
def test_the_label_party_checks_its_own_columns_where_it_sees_no_scores(data: Data, security: str) -> None:
    wide = {**data, "bank": data["bank"].assign(b=data["bank"]["b"] ** 9)}
    roles = guarded(roles_of(wide, max_iter=1, security=security), "bank")
    if security == "exact":
        simulate(roles)
        return
    with pytest.raises(PolicyError, match="bank/setup: min_group: .* of 1 of 2 columns, as of 'b'"):
        simulate(roles)


@pytest.mark.parametrize("security", ["exact", "hidden"])
def test_every_batch_is_a_group_of_its_own(data: Data, security: str) -> None:
    """A thirteenth of 400 rows is enough behind the gradient of all, and not behind that of each batch."""
    shop = data["shop"]
    table = {**data, "shop": shop.assign(c=np.sign(shop["c"]), d=(shop["id"] % 13 == 0) * 1.0)}
    settings: dict[str, Any] = {"solver": "sgd", "max_iter": 1, "security": security}
    simulate(guarded(roles_of(table, batch_size=1000, **settings), "shop"))
    with pytest.raises(PolicyError, match="shop/fit/0: min_group: .* of 1 of 2 columns, as of 'd'"):
        simulate(guarded(roles_of(table, batch_size=48, **settings), "shop"))


def test_over_the_network_others_hear_how_many(data: Data, tmp_path: Path) -> None:
    """And neither which columns, nor of how many rows; a policy that asks for nothing lets it be."""
    table, _ = rare(data)
    for folder, policy in (("asks", ""), ("lets", "min_group = 0\n")):
        (tmp_path / folder).mkdir()
        book = lay_out(tmp_path / folder, table, f"min_intersection = 5\n{policy}")
        with serving(book.parent, "shop", "telco"), Connected(book, "bank", table["bank"]) as all_:
            model = VerticalLogisticRegression(solver="sgd", max_iter=1)
            if policy:
                model.fit(all_, **FIT)
                continue
            with pytest.raises(PolicyError) as caught:
                model.fit(all_, **FIT)
    said = "min_group: a statistic would be of fewer than 10 rows: the gradient of 15 of 17 columns"
    assert said in str(caught.value) and caught.value.party == "shop"
    assert "secret" not in str(caught.value) and not re.search("3[0-9][0-9]|400", str(caught.value))

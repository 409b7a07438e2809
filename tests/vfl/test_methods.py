"""The vertical network in a comparison: measured from its ledgers, scored on the same test rows as all."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from protocols.compare.task import Task
from protocols.data.tables import Kind
from protocols.learning.training import Settings
from protocols.wire.transport import Network
from tests.support.columns_apart import small
from vfl.methods import vertical
from vfl.network.estimator import VerticalNetClassifier


def task(label: str = "default") -> Task:
    both = small(150, 2, overlap=1.0)
    table = both["bank"].merge(both["shop"], on="customer")[["customer", "x0", "x1", "x2", "x3", label]]
    kind: Kind = "classification" if label == "default" else "regression"
    return Task(
        name="small",
        table=table,
        id="customer",
        target=label,
        columns={"bank": ["x0", "x1"], "shop": ["x2", "x3"]},
        label_party="bank",
        settings=Settings(kind=kind, epochs=12, learning_rate=0.01),
        hidden=(8, 4),
        metric="auc" if label == "default" else "r2",
    )


@pytest.mark.parametrize("label", ["default", "amount"])
def test_the_outcome_holds_what_the_comparison_reads(label: str) -> None:
    one = task(label)
    (method,) = vertical(one)
    outcome = method.run(one, 0)
    assert outcome.score > 0.8
    outputs = 2 if label == "default" else 1
    top = 8 * 4 + 4 + 4 * outputs + outputs
    assert outcome.parameters == {"bank": 2 * 4 + 4 + top, "shop": 2 * 4 + 4}
    assert outcome.client_roles == {"bank", "shop"} and "no server" in method.architecture
    batches = -(-120 // 32)
    assert outcome.ledger.chain_length(outcome.training_scope) == outcome.epochs * 2 * batches + 1
    # Every computation declares its cost, or a replay under another network would be refused.
    assert outcome.ledger.replay(Network(latency=0.1)) > 0.2 * outcome.epochs * batches
    assert outcome.predict_ledger.replay(Network(latency=0.1)) > 0.3


def test_the_same_seed_gives_the_same_score_and_another_one_another() -> None:
    one = replace(task(), settings=Settings(epochs=1))
    (method,) = vertical(one)
    scores = [method.run(one, seed).score for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_it_is_offered_where_columns_have_several_owners() -> None:
    one = task()
    assert vertical(replace(one, columns={"bank": ["x0", "x1", "x2", "x3"]})) == []
    assert vertical(replace(one, hidden=(1,))) == [] and vertical(replace(one, hidden=())) == []


def test_organisations_hold_their_rows_in_orders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, pd.DataFrame]] = []
    fit = VerticalNetClassifier.fit

    def watched(
        self: VerticalNetClassifier, data: dict[str, pd.DataFrame], target: str, id: str
    ) -> VerticalNetClassifier:
        seen.append(data)
        return fit(self, data, target, id)

    monkeypatch.setattr(VerticalNetClassifier, "fit", watched)
    one = replace(task(), settings=Settings(epochs=1))
    vertical(one)[0].run(one, 0)
    bank, shop = (table["customer"].tolist() for table in seen[0].values())
    assert bank != shop and sorted(bank) == sorted(shop)

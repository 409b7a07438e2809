"""FedAvg as a method of the comparison."""

from __future__ import annotations

import pandas as pd
import pytest

from horizontal.methods import fedavg
from protocols.compare.task import Task
from protocols.learning.training import Settings
from tests.support.row_clients import rows


@pytest.mark.parametrize(("kind", "metric"), [("classification", "auc"), ("regression", "r2")])
def test_it_learns_the_task_and_accounts_for_every_role(kind: str, metric: str) -> None:
    table = rows({"all": 300})["all"].assign(key=range(300))
    if kind == "regression":
        table["y"] = table["x0"] - table["x1"] / 10
    settings = Settings(kind, epochs=8, learning_rate=1e-2)  # type: ignore[arg-type]
    columns = {"bank": ["x0", "x1"], "shop": ["x2", "x3"]}
    task = Task("t", table, "key", "y", columns, "bank", settings, (8,), metric, clients=3)  # type: ignore[arg-type]
    (method,) = fedavg(task)
    outcome, again = method.run(task, 1), method.run(task, 1)
    outputs = 2 if kind == "classification" else 1
    assert outcome.score == again.score > 0.7
    assert outcome.client_roles == {"client0", "client1", "client2"}
    assert outcome.parameters == dict.fromkeys(
        ["server", *sorted(outcome.client_roles)], 4 * 8 + 8 + 9 * outputs
    )
    assert outcome.epochs == 8
    assert any("fresh optimizer in each round" in note for note in outcome.notes)
    assert pd.unique(outcome.ledger.frame().query("scope.str.startswith('fit/')")["round"]).tolist() == list(
        range(8)
    )
    assert len(outcome.predict_ledger) == 0 and set(outcome.predict_ledger.compute) == outcome.client_roles

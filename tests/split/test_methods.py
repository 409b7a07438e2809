"""The comparison's rows for split learning."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from protocols.compare.task import Task
from protocols.learning.training import Settings
from split.methods import split


@pytest.fixture
def task() -> Task:
    table = load_breast_cancer(as_frame=True).frame.head(300).assign(id=lambda t: np.arange(len(t)))
    columns = {"org": [name for name in table.columns if name not in ("id", "target")]}
    return Task("t", table, "id", "target", columns, "org", Settings(epochs=2), clients=3)


def test_both_variants_run_and_account_for_every_parameter(task: Task) -> None:
    outcomes = {method.name: method.run(task, 1) for method in split(task)}
    assert list(outcomes) == ["split: vanilla", "split: U-shaped"]
    held = sum(p.numel() for p in task.network(30, 1).parameters())
    for outcome in outcomes.values():
        assert outcome.score > 0.9
        assert outcome.client_roles == {"client0", "client1", "client2"}
        assert outcome.parameters["client0"] + outcome.parameters["server"] == held
        assert outcome.ledger.within("fit") and outcome.predict_ledger.within("predict")
    vanilla, u_shaped = outcomes.values()
    # The same rows, network and batches: only where the layers stand differs.
    assert vanilla.score == pytest.approx(u_shaped.score, abs=1e-6)
    assert u_shaped.parameters["client0"] > vanilla.parameters["client0"]


def test_a_regression(task: Task) -> None:
    table = task.table.rename(columns={"mean radius": "target", "target": "mean radius"})
    numbers = Task(
        "r", table, "id", "target", task.columns, "org", Settings("regression", epochs=3), metric="r2"
    )
    assert all(method.run(numbers, 0).score > 0.5 for method in split(numbers))


@pytest.mark.parametrize(("hidden", "methods"), [((), 0), ((8,), 2), ((8, 8, 8), 2)])
def test_networks_of_other_depths_are_cut_where_they_can_be(
    task: Task, hidden: tuple[int, ...], methods: int
) -> None:
    table: pd.DataFrame = task.table
    other = Task("o", table, "id", "target", task.columns, "org", Settings(epochs=1), hidden, clients=2)
    found = split(other)
    assert len(found) == methods
    assert all(method.run(other, 0).epochs == 1 for method in found)

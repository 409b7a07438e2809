"""A task deals out the same rows and columns to every method, and scores them alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from protocols.arrays import Arrays
from protocols.compare.task import Task, score
from protocols.errors import ConfigError
from protocols.learning.clients import read_client
from protocols.learning.training import Settings

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "id": np.arange(100) + 1000,
        "y": np.repeat(["no", "yes"], [70, 30]),
        "a": RNG.normal(size=100),
        "b": RNG.normal(size=100),
        "c": RNG.normal(size=100),
    }
)
TASK = Task("t", TABLE, id="id", target="y", columns={"bank": ["a"], "shop": ["b", "c"]}, label_party="bank")
NUMBERS = replace(
    TASK, target="c", columns={"bank": ["a"]}, settings=Settings(kind="regression"), metric="r2"
)


def test_the_split_is_a_stratified_partition_of_the_rows() -> None:
    train, test = TASK.split(3)
    assert sorted([*train["id"], *test["id"]]) == list(TABLE["id"]) and len(test) == 20
    assert (test["y"] == "yes").sum() == 6
    again = TASK.split(3)
    assert train.equals(again[0]) and test.equals(again[1])
    assert set(TASK.split(4)[1]["id"]) != set(test["id"])
    assert len(NUMBERS.split(0)[1]) == 20


def test_row_clients_hold_every_row_once_and_no_id() -> None:
    clients = TASK.row_clients(TABLE, seed=1)
    assert list(clients) == [f"client{i}" for i in range(5)]
    assert all("id" not in rows and set(rows) == {"y", "a", "b", "c"} for rows in clients.values())
    assert sorted(i for rows in clients.values() for i in rows.index) == list(range(100))
    assert all(rows.equals(TASK.row_clients(TABLE, seed=1)[name]) for name, rows in clients.items())


def test_organisations_hold_their_columns_the_id_and_one_the_target() -> None:
    held = TASK.organisations(TABLE)
    assert {name: list(table) for name, table in held.items()} == {
        "bank": ["id", "a", "y"],
        "shop": ["id", "b", "c"],
    }
    assert TASK.features == ["a", "b", "c"]


def test_one_network_over_all_columns_takes_them_in_the_order_that_row_clients_do() -> None:
    mixed = replace(TASK, columns={"bank": ["c", "b"], "shop": ["a"]})
    for rows in mixed.row_clients(TABLE[["c", "y", "b", "id", "a"]], seed=1).values():
        assert list(read_client(rows, "y", None, "classification").columns) == mixed.features


def test_the_network_has_one_output_per_class_or_one() -> None:
    assert TASK.network(3, seed=0)(torch.zeros(4, 3)).shape == (4, 2)
    assert NUMBERS.network(1, seed=0)(torch.zeros(4, 1)).shape == (4, 1)
    assert Arrays.from_module(TASK.network(3, 1)) == Arrays.from_module(TASK.network(3, 1))


def told(*positive: float) -> pd.DataFrame:
    return pd.DataFrame({"no": 1 - np.array(positive), "yes": positive})


def test_scores_are_scikit_learns() -> None:
    truth, guess = pd.Series(["no", "yes", "yes", "no"]), told(0.3, 0.2, 0.9, 0.4)
    assert score(TASK, truth, guess) == roc_auc_score([0, 1, 1, 0], [0.3, 0.2, 0.9, 0.4])
    accuracy = replace(TASK, metric="accuracy")
    assert score(accuracy, truth, guess) == accuracy_score([0, 1, 1, 0], [0, 0, 1, 0])
    numbers = pd.Series([1.0, 2.0, 4.0])
    assert score(NUMBERS, numbers, numbers + 0.5) == r2_score(numbers, numbers + 0.5)


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_a_perfect_guess_of_many_classes_scores_one(metric: Any) -> None:
    truth = pd.Series([2, 0, 1, 2])
    guess = pd.DataFrame(np.eye(3)[truth], columns=[0, 1, 2])
    assert score(replace(TASK, metric=metric), truth, guess) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_called_diverged(bad: float) -> None:
    said = f"training diverged.*learning rate below {TASK.settings.learning_rate:g}$"
    with pytest.raises(ConfigError, match=said):
        score(TASK, pd.Series(["no", "yes"]), told(0.5, bad))
    with pytest.raises(ConfigError, match=said):
        score(NUMBERS, pd.Series([1.0, 2.0]), pd.Series([bad, 1.0]))


def test_labels_cannot_be_scored_as_probabilities() -> None:
    with pytest.raises(ConfigError, match="'auc' needs probabilities"):
        score(TASK, pd.Series(["no"]), pd.Series(["no"]))

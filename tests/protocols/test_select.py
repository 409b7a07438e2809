"""Laws of the choice of settings: it is made on training rows, once, and is reproducible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocols import select
from protocols.select import batch_size, choose
from tests.protocols import tiny


@pytest.fixture(autouse=True)
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "SHAPES", ((4,), (8, 4)))
    monkeypatch.setattr(select, "RULES", (("adam", 1e-2), ("sgd", 1e-5)))
    monkeypatch.setattr(select, "MOST_EPOCHS", 4)
    monkeypatch.setattr(select, "DIVISIONS", 2)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_lowest_validation_loss_wins_and_is_what_the_task_gets(kind: str) -> None:
    choice = choose(tiny.task(kind), 0)
    losses = [c.loss for c in choice.candidates]
    assert losses == sorted(losses) and len(losses) == 4
    best, settings = choice.candidates[0], choice.task.settings
    assert best.optimizer == "adam"  # a rate of 1e-5 learns nothing in four epochs
    assert (settings.optimizer, settings.learning_rate, settings.epochs) == ("adam", 1e-2, best.epochs)
    assert choice.task.hidden == best.hidden
    assert settings.kind == kind
    assert choose(tiny.task(kind), 0).candidates == choice.candidates


def test_the_test_rows_have_no_say() -> None:
    task = tiny.task()
    _, test = task.split(0)
    table = task.table.copy()
    table.loc[test.index, task.features] = 1e6 * np.random.default_rng(0).normal(size=(len(test), 6))
    assert choose(replace(task, table=table), 0).candidates == choose(task, 0).candidates


def test_a_large_table_is_sampled_and_trained_in_larger_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (batch_size(4_999), batch_size(5_000)) == (32, 128)
    monkeypatch.setattr(select, "MOST_ROWS", 40)
    monkeypatch.setattr(select, "SMALL_TABLE", 40)
    choice = choose(tiny.task(), 0)
    assert (choice.rows, choice.divisions) == (40, 1)

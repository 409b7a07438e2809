"""Laws of the choice of settings: it is made on rows that no seed tests on, once, and is reproducible."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from protocols.compare import choose as select
from protocols.compare.choose import batch_size, choose, never_tested
from protocols.compare.run import compare
from tests.support import tiny


@pytest.fixture(autouse=True)
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "SHAPES", ((4,), (8, 4)))
    monkeypatch.setattr(select, "RULES", (("adam", 1e-2), ("sgd", 1e-5)))
    monkeypatch.setattr(select, "MOST_EPOCHS", 4)
    monkeypatch.setattr(select, "DIVISIONS", 2)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_lowest_validation_loss_wins_and_is_what_the_task_gets(kind: str) -> None:
    choice = choose(tiny.task(kind), [0])
    losses = [c.loss for c in choice.candidates]
    assert losses == sorted(losses) and len(losses) == 4
    best, settings = choice.candidates[0], choice.task.settings
    assert best.optimizer == "adam"  # a rate of 1e-5 learns nothing in four epochs
    assert (settings.optimizer, settings.learning_rate, settings.epochs) == ("adam", 1e-2, best.epochs)
    assert choice.task.hidden == best.hidden
    assert settings.kind == kind
    assert choose(tiny.task(kind), [0]).candidates == choice.candidates


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_the_test_rows_of_no_seed_have_a_say(seeds: tuple[int, ...]) -> None:
    task = tiny.task()
    tested = {row for seed in seeds for row in task.split(seed)[1].index}
    table = task.table.copy()
    noise = np.random.default_rng(0).normal(size=(len(tested), 6))
    table.loc[sorted(tested), task.features] = 1e6 * noise
    choice = choose(task, seeds)
    assert choice.candidates and choice.rows == len(table) - len(tested)
    assert choose(replace(task, table=table), seeds).candidates == choice.candidates


def test_rows_are_told_apart_by_position_not_by_index() -> None:
    task = tiny.task()
    same = replace(task, table=task.table.set_axis([0] * len(task.table)))
    assert choose(same, (0, 1)).candidates == choose(task, (0, 1)).candidates


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_where_too_few_rows_are_left_the_task_keeps_its_own(kind: str) -> None:
    task = tiny.task(kind)
    choice = choose(task, range(20))
    assert not choice.candidates and choice.task == task
    assert f"only {choice.rows} rows" in choice.reason and "defaults" in choice.reason


def test_a_comparison_chooses_on_what_none_of_its_seeds_tests_and_says_so() -> None:
    result = compare(tiny.task(), ["alone: bank"], seeds=2)
    rows = len(never_tested(tiny.task(), (0, 1)))
    assert rows < len(tiny.task().split(0)[0])
    said = result.report.constants()["chosen by"]
    assert f"on {rows} pooled rows that no seed tests on" in said
    assert "favours centralised and edge" in said and "no method is favoured" not in said


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_candidate_that_diverges_comes_last_and_is_null_in_json(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "SHAPES", ((4,),))
    monkeypatch.setattr(select, "RULES", (("sgd", 1e30), ("adam", 1e-2)))
    report = compare(tiny.task(kind), ["alone: bank"], seeds=1).report
    tried = json.loads(report.to_json())["candidates"]
    assert [c["optimizer"] for c in tried] == ["adam", "sgd"]
    assert (tried[1]["loss"], tried[1]["score"]) == (None, None) and tried[0]["loss"] > 0
    assert "diverged" in report.html()


def test_where_all_diverge_the_task_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "RULES", (("sgd", 1e30),))
    result = compare(tiny.task(), ["alone: bank"], seeds=1)
    assert result.task.settings == tiny.task().settings
    assert "every candidate diverged" in result.report.constants()["chosen by"]


def test_a_large_table_is_sampled_and_trained_in_larger_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (batch_size(4_999), batch_size(5_000)) == (32, 128)
    monkeypatch.setattr(select, "MOST_ROWS", 40)
    monkeypatch.setattr(select, "SMALL_TABLE", 40)
    choice = choose(tiny.task(), [0])
    assert (choice.rows, choice.divisions) == (40, 1)

"""Tiny tasks that the tests of the comparison share: 80 rows, 2 epochs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from protocols.compare.report import Comparison
from protocols.compare.run import compare
from protocols.compare.task import Task
from protocols.learning.training import Settings


def table(rows: int = 80) -> pd.DataFrame:
    """Six features; the label follows the first and the fourth."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rows, 6)) * [1, 10, 1, 1, 0.1, 1] + 3
    frame = pd.DataFrame(x, columns=list("abcdef"))
    frame["default"] = (frame["a"] + frame["d"] > 6).astype(int)
    frame["amount"] = 100 + 20 * frame["a"] - 5 * frame["d"]
    frame.insert(0, "id", [f"p{i}" for i in range(rows)])
    return frame


def task(kind: str = "classification", clients: int = 3) -> Task:
    """Two organisations; `bank` has the label."""
    classification = kind == "classification"
    target, other = ("default", "amount") if classification else ("amount", "default")
    return Task(
        name="tiny",
        table=table().drop(columns=other),
        id="id",
        target=target,
        columns={"bank": ["a", "b", "c"], "telco": ["d", "e", "f"]},
        label_party="bank",
        settings=Settings(kind="classification" if classification else "regression", epochs=2, batch_size=16),
        hidden=(8, 4),
        metric="auc" if classification else "r2",
        clients=clients,
    )


@lru_cache
def compared() -> Comparison:
    """Every registered method on `task()`, two seeds; run once for all tests."""
    return compare(task(), quick=True, tune=False)

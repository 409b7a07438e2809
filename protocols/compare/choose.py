"""One network shape and one way to train it, chosen once for every network of a comparison.

No line is involved: the choice looks at pooled rows, which a real federation could not do, but at none that
any seed of the comparison tests on. Candidates are ranked by how well one network does on all columns, which
favours the methods that train that very network, centralised and edge; the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split

from protocols.arrays import Array
from protocols.compare.baselines import Sample, Trained, sample, standardise
from protocols.compare.task import Task, score
from protocols.data import tables
from protocols.learning.training import outputs, train
from protocols.progress import Report

SHAPES: tuple[tuple[int, ...], ...] = ((32, 16), (64, 32))
RULES: tuple[tuple[str, float], ...] = (("adam", 1e-3), ("adam", 3e-3), ("adam", 1e-2), ("sgd", 1e-1))
MOST_EPOCHS, MOST_EPOCHS_QUICK = 20, 10
MOST_ROWS = 20_000  # of the training rows, so that choosing stays cheap on a large table
FEWEST_ROWS = 20  # to choose on
SMALL_TABLE = 5_000  # rows; below, batches are smaller and the choice averages over several divisions
DIVISIONS = 3
HELD_OUT = 0.25  # of the rows used to choose


@dataclass(frozen=True)
class Candidate:
    """One shape and rule, at the number of epochs where it validated best."""

    hidden: tuple[int, ...]
    optimizer: str
    learning_rate: float
    epochs: int
    loss: float  # on the rows held out; the candidates are ranked by it
    score: float  # of the task's metric, on the same rows

    @property
    def finite(self) -> bool:
        """Whether training converged to anything; if not, loss and score are missing (NaN)."""
        return math.isfinite(self.loss)


@dataclass(frozen=True)
class Choice:
    """The task with its settings chosen, and what was tried."""

    task: Task
    candidates: tuple[Candidate, ...]  # best first; none if the settings were given or rows were too few
    rows: int  # used to choose
    divisions: int
    reason: str = "shape and settings were given"  # why none was chosen, where none was


def batch_size(rows: int) -> int:
    """32 rows for a small table, 128 for a large one, where smaller batches cost time and gain nothing."""
    return 32 if rows < SMALL_TABLE else 128


def choose(
    task: Task, seeds: Sequence[int], *, quick: bool = False, on_progress: Report | None = None
) -> Choice:
    """Try every shape and rule on the rows that no seed of `seeds` tests on; keep the lowest validation loss.

    The loss ranks because it tells candidates apart where the score is the same for all. Where such rows are
    too few, or no candidate has a finite loss, the task keeps its own settings and `reason` says why.
    """
    rows, seed = never_tested(task, seeds), seeds[0]
    if not _enough(rows, task):
        return Choice(
            task,
            (),
            len(rows),
            0,
            f"only {len(rows)} rows are in no seed's test, too few; the defaults are used",
        )
    if len(rows) > MOST_ROWS:
        rows = rows.sample(MOST_ROWS, random_state=seed)
    base = replace(task.settings, batch_size=batch_size(len(task.table)))
    divisions = DIVISIONS if len(rows) < SMALL_TABLE else 1
    epochs = MOST_EPOCHS_QUICK if quick else MOST_EPOCHS
    tried: list[Candidate] = []
    grid = list(product(SHAPES, RULES))
    for done, (hidden, (optimizer, rate)) in enumerate(grid):
        settings = replace(base, optimizer=optimizer, learning_rate=rate, epochs=epochs)  # type: ignore[arg-type]
        trial = replace(task, hidden=hidden, settings=settings)
        tried.append(_best([_curve(trial, rows, seed + i) for i in range(divisions)], trial))
        if on_progress is not None:
            on_progress("settings tried", done + 1, len(grid))
    tried.sort(key=lambda c: (not c.finite, c.loss))
    win = tried[0]
    if not win.finite:
        return Choice(
            task, tuple(tried), len(rows), divisions, "every candidate diverged; the defaults are used"
        )
    settings = replace(
        base,
        optimizer=win.optimizer,  # type: ignore[arg-type]  # one of RULES
        learning_rate=win.learning_rate,
        epochs=win.epochs,
    )
    return Choice(replace(task, hidden=win.hidden, settings=settings), tuple(tried), len(rows), divisions)


def never_tested(task: Task, seeds: Sequence[int]) -> pd.DataFrame:
    """The rows that are training rows on every one of `seeds`, in the table's order."""
    numbered = replace(task, table=task.table.reset_index(drop=True))  # the same rows, told apart by position
    drawn = [numbered.split(seed)[0].index for seed in seeds]
    common = reduce(lambda a, b: a.intersection(b), drawn)
    return numbered.table.loc[common.sort_values()]


def _enough(rows: pd.DataFrame, task: Task) -> bool:
    """Whether both parts of a division can have rows of every class."""
    if len(rows) < FEWEST_ROWS or task.settings.kind == "regression":
        return len(rows) >= FEWEST_ROWS
    counts = rows[task.target].value_counts()
    return len(counts) == task.outputs and counts.min() * HELD_OUT >= 1


Curve = list[tuple[float, pd.Series, pd.DataFrame | pd.Series]]  # after each epoch: loss, truth, predicted


def _best(curves: list[Curve], task: Task) -> Candidate:
    """The epoch of lowest loss, averaged over the divisions, and the score there."""
    losses = np.mean([[loss for loss, *_ in curve] for curve in curves], axis=0)
    s = task.settings
    if not np.isfinite(losses).any():
        return Candidate(task.hidden, s.optimizer, s.learning_rate, len(losses), math.nan, math.nan)
    at = int(np.nanargmin(losses))
    scores = [score(task, *curve[at][1:]) for curve in curves]
    return Candidate(
        task.hidden, s.optimizer, s.learning_rate, at + 1, float(losses[at]), float(np.mean(scores))
    )


def _curve(task: Task, rows: pd.DataFrame, seed: int) -> Curve:
    """Held-out rows after each epoch of training on the others."""
    stratify = rows[task.target] if task.settings.kind == "classification" else None
    learn, check = train_test_split(rows, test_size=HELD_OUT, random_state=seed, stratify=stratify)
    known = sample(learn, task.features, task.target, task.settings.kind)
    x, y, scaler, target = standardise(known)
    module = task.network(len(task.features), seed)
    trained = Trained(module, scaler, target, known.classes)
    settings = task.settings
    optimizer = settings.new_optimizer(module.parameters())
    rng = np.random.default_rng(seed)
    check_x = tables.features(check, task.features)
    check_y = _targets(check, task, known, target)
    curve: Curve = []
    for _ in range(settings.epochs):
        train(module, x, y, settings, rng, optimizer=optimizer)
        logits = torch.from_numpy(outputs(module, torch.from_numpy(scaler(check_x))))
        loss = float(settings.loss(logits, check_y))
        curve.append((loss, check[task.target], _said(trained, check_x)))
    return curve


def _targets(frame: pd.DataFrame, task: Task, known: Sample, target: tuple[float, float]) -> torch.Tensor:
    if known.classes:
        return torch.from_numpy(tables.encode_labels(frame[task.target], known.classes))
    return torch.from_numpy((tables.numbers(frame[task.target]) - target[0]) / target[1]).float()


def _said(trained: Trained, x: Array) -> pd.DataFrame | pd.Series:
    values = trained.predict(x)
    return (
        pd.DataFrame(values, columns=pd.Index(trained.classes))
        if trained.classes
        else pd.Series(values[:, 0])
    )

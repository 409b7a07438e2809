"""The three values of a comparison: a Task goes in, a Method runs it, an Outcome comes out.

A package offers methods by an entry point in the group `vfl.methods`: a function from a task to
the methods that can run it. Costs are read from the outcome's ledgers, never told by a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split
from torch import nn

from protocols.arrays import Array
from protocols.data.partition import iid
from protocols.errors import ConfigError
from protocols.learning.clients import in_order
from protocols.learning.networks import mlp
from protocols.learning.training import Settings
from protocols.wire.ledger import Ledger

if TYPE_CHECKING:
    from protocols.service.caller import Connected

Metric = Literal["auc", "accuracy", "r2"]
Needs = Literal["pooled data", "row partitions", "column partitions", "own table"]


@dataclass(frozen=True)
class Task:
    """One table, one target, and how its rows, columns and layers are partitioned."""

    name: str
    table: pd.DataFrame  # id, target and features
    id: str
    target: str
    columns: Mapping[str, Sequence[str]]  # organisation -> the feature columns it owns
    label_party: str  # the organisation that owns the target
    settings: Settings = field(default_factory=Settings)  # of every network
    hidden: tuple[int, ...] = (64, 32)  # of every network
    metric: Metric = "auc"
    clients: int = 5  # row-clients, IID
    test_size: float = 0.2
    notes: tuple[str, ...] = ()  # what the report should say about the table

    @property
    def features(self) -> list[str]:
        """All feature columns, in the order that row-clients take them: one network, one order of inputs."""
        return in_order(name for names in self.columns.values() for name in names)

    @property
    def outputs(self) -> int:
        """Outputs of a network: classes, or 1 for regression."""
        return self.table[self.target].nunique() if self.settings.kind == "classification" else 1

    def split(self, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Training and test rows; stratified by label in classification. Equal for all methods."""
        stratify = self.table[self.target] if self.settings.kind == "classification" else None
        train, test = train_test_split(
            self.table, test_size=self.test_size, random_state=seed, stratify=stratify
        )
        return train, test

    def row_clients(self, frame: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
        """`frame`'s rows dealt out IID; no id column, it is not needed."""
        parts = iid(len(frame), self.clients, np.random.default_rng(seed))
        rows = frame.drop(columns=self.id)
        return {f"client{i}": rows.iloc[part] for i, part in enumerate(parts)}

    def organisations(self, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """`frame`'s columns at their owners, each with the id; the target at the label party."""
        return {
            party: frame[[self.id, *names, *([self.target] if party == self.label_party else [])]]
            for party, names in self.columns.items()
        }

    def network(self, inputs: int, seed: int) -> nn.Sequential:
        """The one network shape of this comparison, for so many inputs."""
        return mlp(inputs, self.outputs, self.hidden, seed)


@dataclass(frozen=True)
class Outcome:
    """What one run of one method leaves to be measured."""

    score: float  # of the task's metric, on the test rows
    ledger: Ledger  # of training
    predict_ledger: Ledger  # of predicting the test rows
    parameters: Mapping[str, int]  # role -> trained parameters held when training ends
    client_roles: frozenset[str]  # which roles stand on the data owners' side
    epochs: int
    training_scope: str = "fit"  # the ledger's scope of the epochs, without set-up such as PSI
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Method:
    """One way to learn the task."""

    name: str  # as in the table: "fedavg", "alone: bank"
    column: str  # one of `protocols.compare.claims.WAYS`, else a comparison refuses the method
    architecture: str  # stated: who computes what
    privacy: str  # stated: the primary privacy mechanism, and what it does not cover
    run: Callable[[Task, int], Outcome] = field(repr=False)
    hypothetical: bool = False  # it assumes data where none is
    needs: Needs = "pooled data"  # of connected parties, who are never simulated
    connected: Callable[[Connected, Task, int], Outcome] | None = field(
        default=None, repr=False
    )  # None: `run`


def score(task: Task, truth: pd.Series, predicted: pd.DataFrame | pd.Series) -> float:
    """The task's metric. `predicted`: probabilities (columns are classes), or numbers for regression.

    ConfigError for predictions that are not finite: the training that gave them diverged.
    """
    from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

    if task.metric != "r2" and not isinstance(predicted, pd.DataFrame):
        raise ConfigError(f"metric {task.metric!r} needs probabilities, got a Series")
    if not np.isfinite(predicted.to_numpy(np.float64)).all():
        s = task.settings
        raise ConfigError(
            "training diverged: predictions should be finite numbers, got NaN or infinity; use a learning "
            f"rate below {s.learning_rate:g}" + (" or optimizer='adam'" if s.optimizer == "sgd" else "")
        )
    if task.metric == "r2" or not isinstance(predicted, pd.DataFrame):
        return float(r2_score(truth, _own(predicted)))
    classes = list(predicted.columns)
    if task.metric == "accuracy":
        return float(accuracy_score(truth, np.asarray(classes)[predicted.to_numpy().argmax(axis=1)]))
    if len(classes) == 2:
        return float(roc_auc_score(truth == classes[1], _own(predicted[classes[1]])))
    return float(roc_auc_score(truth, _own(predicted), multi_class="ovr", labels=classes))


def _own(predicted: pd.DataFrame | pd.Series) -> Array:
    """The numbers, as an array that may be written to: scikit-learn 1.5 insists on that."""
    return predicted.to_numpy(np.float64, copy=True)

"""What the two kinds of parties hold while they train: everything that alignment and setup have settled."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from protocols.arrays import Array
from protocols.hazmat.paillier.array import Key
from protocols.sums.masked import Masks
from vfl.linear.columns import Block, Columns
from vfl.linear.line_search import MEMORY
from vfl.linear.losses import Loss
from vfl.linear.parameters import VerticalLinear
from vfl.linear.rows import Answers
from vfl.linear.shared_gradient import Mesh


@dataclass(frozen=True)
class LabelSide:
    """At the label party, whose last column is the intercept's."""

    peers: tuple[str, ...]
    key: Key = field(repr=False)
    columns: Columns = field(repr=False)
    start: Array = field(repr=False)  # (d + 1, outputs)
    answers: Answers = field(repr=False)
    plan: VerticalLinear
    mesh: Mesh | None  # where scores are hidden

    @property
    def penalised(self) -> Array:
        """All columns but the intercept's."""
        return np.arange(self.columns.count) < self.columns.count - 1

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of all rows' scores."""
        return self.answers.y.shape

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        return self.answers.loss

    def block(self, memory: int = MEMORY) -> Block:
        """The columns with their coefficients."""
        return Block(self.columns, self.start, self.penalised, self.plan.l2, self.loss.curvature, memory)

    def residuals(self, z: Array, rows: Array | slice) -> Array:
        """Those of `rows` at scores `z` (b, outputs), times their weights."""
        a = self.answers
        return np.asarray(a.loss.residual(z, a.y[rows]) * a.weights[rows, None])

    def counted(self, rows: Array | slice) -> int:
        """How many of `rows` have a weight that is not 0."""
        return int(np.count_nonzero(self.answers.weights[rows]))

    def summed_loss(self, z: Array, rows: Array | slice) -> float:
        """Of `rows`, times their weights."""
        a = self.answers
        return float(a.weights[rows] @ a.loss.value(z, a.y[rows]))

    def mean_loss(self, z: Array, rows: Array | slice) -> float:
        """Of `rows`, by their weights."""
        return self.summed_loss(z, rows) / float(self.answers.weights[rows].sum())


@dataclass(frozen=True)
class FeatureSide:
    """At a feature party."""

    label_party: str
    key: Key = field(repr=False)  # the label party's, public
    columns: Columns = field(repr=False)
    start: Array = field(repr=False)  # (d, outputs)
    masks: Masks = field(repr=False)
    plan: VerticalLinear
    loss: Loss
    mesh: Mesh | None  # where scores are hidden

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        return int(self.start.shape[1])

    @property
    def penalised(self) -> Array:
        """All columns."""
        return np.ones(self.columns.count, np.bool_)

    def block(self, memory: int = MEMORY) -> Block:
        """The columns with their coefficients."""
        return Block(self.columns, self.start, self.penalised, self.plan.l2, self.loss.curvature, memory)


@dataclass(frozen=True)
class Solved:
    """What training leaves at the label party."""

    coef: Array = field(repr=False)  # (d + 1, outputs)
    steps: int
    converged: bool
    losses: list[float]

"""What the label party knows before the first round: whose columns are where, and how they are divided."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from protocols.arrays import Array
from protocols.hazmat.paillier.array import Key
from protocols.trees.splits import Columns
from vfl.boosting.parameters import Boosting


@dataclass(frozen=True)
class Side:
    """Where one party's columns are among all, which are in roster order."""

    party: str
    at: slice


@dataclass(frozen=True)
class Setting:
    """What stays the same from round to round."""

    plan: Boosting
    me: str
    codes: Array = field(repr=False)  # (own columns, common rows) uint8
    sides: tuple[Side, ...]  # in roster order
    columns: Columns  # all parties'
    key: Key | None  # None: in the clear
    outputs: int

    @property
    def peers(self) -> list[Side]:
        """The feature parties'."""
        return [side for side in self.sides if side.party != self.me]

    @property
    def at(self) -> slice:
        """Where this party's columns are among all."""
        return next(side.at for side in self.sides if side.party == self.me)

    @property
    def own(self) -> Array:
        """Which of all columns are this party's, bool."""
        mask = np.zeros(len(self.columns.counts), bool)
        mask[self.at] = True
        return mask

    def owner(self, column: int) -> int:
        """Whose column this is, as a place in the roster."""
        return next(at for at, side in enumerate(self.sides) if side.at.start <= column < side.at.stop)

    @property
    def width(self) -> int:
        """Statistics of a row."""
        return 2 * self.outputs + 1

    def of_output(self, output: int) -> list[int]:
        """Which statistics a tree of this output is grown from: gradient, hessian and rows."""
        return [2 * output, 2 * output + 1, self.width - 1]

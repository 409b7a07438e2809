"""What a party brings to a boosted model, and what it keeps of it. No line is involved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from protocols.arrays import Array
from protocols.psi.ids import CanonicalIds
from protocols.trees.bins import Bins
from protocols.trees.forest import Forest, Splits
from vfl.boosting.losses import Loss

Classes = list[bool | int | str]


@dataclass(frozen=True)
class Table:
    """What a party brings: ids, and its columns row for row."""

    ids: CanonicalIds
    columns: pd.DataFrame = field(repr=False)
    monotone: Mapping[str, int] = field(default_factory=dict, repr=False)  # column -> 1 up, -1 down


@dataclass(frozen=True)
class Owned:
    """What a party that has columns learns: how they are divided, and its splits."""

    bins: tuple[Bins, ...]
    splits: Splits


@dataclass(frozen=True)
class Learnt:
    """What the label party alone learns."""

    forest: Forest
    baseline: Array = field(repr=False)  # (outputs,) float64
    loss: Loss
    classes: Classes | None  # of classification
    scores: Array = field(repr=False)  # (rounds,) float64: loss of the rows held out; empty if none are
    held_out: int = field(repr=False)  # the key of which rows those are, for who goes on from this model

    @property
    def rounds(self) -> int:
        """How many rounds of trees there are."""
        return len(self.forest) // self.loss.outputs

"""The nodes of a level and the rows in them, as every party of a round keeps them alike.

Takes part: the label party and each feature party that takes part in the round. All know which rows are in
which node; so all know alike which child of each pair is summed up, and nobody has to say whose histogram
comes next. The label party alone draws the rows and columns of a round: Friedman 2002 (subsampling); Ke et
al. 2017 (LightGBM), algorithm 2 (GOSS: rows of large gradients always, some of the others with more weight).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from protocols.arrays import Array
from vfl.boosting.parameters import Boosting


@dataclass(frozen=True)
class Drawing:
    """Which common rows a round learns from."""

    mask: Array  # (common rows,) bool

    @cached_property
    def rows(self) -> Array:
        """Their positions among the common rows."""
        return np.flatnonzero(self.mask)

    @cached_property
    def at(self) -> Array:
        """Of each common row, its position among the drawn ones, if it is one."""
        return np.cumsum(self.mask) - 1

    def among(self, rows: Array) -> Array:
        """Positions among the drawn rows of those of `rows` that are."""
        return self.at[rows[self.mask[rows]]]


@dataclass(frozen=True)
class Level:
    """Nodes in order: the roots of all trees, or left and right children by turns."""

    rows: Sequence[Array]  # of each node, all common rows in it, in order
    drawn: Sequence[Array]  # of each node, positions among the drawn rows
    summed: tuple[int, ...]  # whose histograms are computed; the others' are their parent's less these

    @property
    def smallest(self) -> int:
        """Drawn rows in the smallest node whose histogram leaves, or follows from its sibling's that does."""
        return min(map(len, self.drawn), default=0)


def roots(trees: int, drawing: Drawing, least: int) -> Level:
    """One node for each tree, with all rows; none if fewer than `least` are drawn."""
    drawn = np.arange(len(drawing.rows))
    if len(drawn) < least:
        return Level([], [], ())
    return Level([np.arange(len(drawing.mask))] * trees, [drawn] * trees, tuple(range(trees)))


def below(level: Level, sides: Mapping[int, Array], drawing: Drawing, least: int) -> tuple[Level, list[int]]:
    """The level below, and the nodes whose children it has, in order: those that one child of could be split.

    sides: node -> which of its rows go left.
    """
    rows: list[Array] = []
    drawn: list[Array] = []
    summed, parents = [], []
    mask, at = drawing.mask, drawing.at
    for node, left in sorted(sides.items()):
        halves = [level.rows[node][left], level.rows[node][~left]]
        of_draw = [at[half[mask[half]]] for half in halves]
        sizes = [len(half) for half in of_draw]
        if max(sizes) < least:
            continue
        # The smaller child; but a histogram of a few rows would be nearly the rows.
        smaller = int(sizes[1] < sizes[0])
        summed.append(len(rows) + (smaller if sizes[smaller] >= least else 1 - smaller))
        rows += halves
        drawn += of_draw
        parents.append(node)
    return Level(rows, drawn, tuple(summed)), parents


def drawn_rows(rng: np.random.Generator, plan: Boosting, learning: Array, g: Array) -> tuple[Array, Array]:
    """(which rows, bool; what each one's gradient is multiplied by, float64), both of the common rows.

    learning: which rows may be drawn. g: (rows, outputs) gradients, times the rows' own weights.
    """
    rows, factor = np.flatnonzero(learning), np.ones(len(learning))
    if plan.goss:
        large = max(1, round(plan.top_rate * len(rows)))
        order = rows[np.argsort(-np.abs(g[rows]).sum(axis=1), kind="stable")]
        few = min(max(1, round(plan.other_rate * len(rows))), len(rows) - large)
        others = rng.choice(order[large:], few, replace=False)
        if few:
            factor[others] = (len(rows) - large) / few
        rows = np.concatenate([order[:large], others])
    elif plan.subsample < 1:
        rows = rng.choice(rows, max(1, round(plan.subsample * len(rows))), replace=False)
    mask = np.zeros(len(learning), bool)
    mask[rows] = True
    return mask, factor


def drawn_columns(rng: np.random.Generator, plan: Boosting, columns: int) -> Array:
    """Which of all columns, bool (columns,): at least one, if there is any."""
    mask = np.ones(columns, bool)
    if plan.colsample < 1:
        mask[:] = False
        mask[rng.choice(columns, max(1, round(plan.colsample * columns)), replace=False)] = True
    return mask


def held_out(rng: np.random.Generator, plan: Boosting, rows: int) -> Array:
    """Which of the common rows are for validation, bool (rows,): none without early stopping."""
    mask = np.zeros(rows, bool)
    if plan.early_stopping:
        size = min(max(1, round(plan.validation_fraction * rows)), rows - 1)
        mask[rng.permutation(rows)[:size]] = True
    return mask

"""Which rows and columns a round of trees is grown from.

Takes part: the label party, alone. Sources: Friedman 2002 (subsampling); Ke et al. 2017 (LightGBM), algorithm
2 (GOSS: rows of large gradients always, some of the others with more weight).
"""

from __future__ import annotations

import numpy as np

from protocols.arrays import Array
from vfl.boosting.parameters import Boosting


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

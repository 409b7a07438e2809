"""The best split of each node, from histograms of integers.

No party: pure functions, which the label party alone runs. All nodes of a level at once; ties go to the first
column, then the first bin, then missing values to the right; so whoever has the same integers finds the same
splits. Gains are those of Chen and Guestrin 2016 (XGBoost), equation 7, without its factor 1/2; monotone
columns as in XGBoost and LightGBM's basic method; categories in the order of their gradient over hessian
(Fisher 1958), as XGBoost has it: with l2 or a least hessian, the best of all sets may be another one.
Categories of fewer rows than a leaf needs are not told apart: they go where missing values go. Else a split
would tell whoever has the column about the labels of these few (LightGBM does the same with
`min_data_per_group`, against overfitting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protocols.arrays import Array


@dataclass(frozen=True)
class Rules:
    """What a split has to meet."""

    l2: float = 1.0
    min_child_weight: float = 1.0  # hessian
    min_samples_leaf: int = 1  # drawn rows
    min_gain: float = 0.0


@dataclass(frozen=True)
class Columns:
    """What is known of all columns, whoever's they are, in roster order."""

    counts: Array  # (columns,) bins of each, without that of missing values
    categorical: Array  # (columns,) bool
    monotone: Array  # (columns,) int8: 1 up, -1 down, 0 either

    def at(self, which: Array) -> Columns:
        """Those of the columns `which`, a mask or positions."""
        return Columns(self.counts[which], self.categorical[which], self.monotone[which])


@dataclass(frozen=True)
class Found:
    """The best split of each node; those without one have gain 0."""

    gain: Array  # (nodes,) float64
    column: Array  # (nodes,)
    left: Array  # (nodes, bins + 1) bool: which bins go left, that of missing values first
    low: Array  # (nodes, 2) float64: bounds of the left child's value and of the right one's
    high: Array  # (nodes, 2) float64
    sums: Array  # (nodes, s) int64: of the rows that go left


def weight(g: Array, h: Array, l2: float) -> Array:
    """A leaf's value, before the learning rate."""
    return -g / (h + l2)


def best_splits(
    sums: Array, totals: Array, bits: Array, columns: Columns, rules: Rules, low: Array, high: Array
) -> Found:
    """
    sums: (nodes, columns, bins, s) int64, without what is missing; s is gradient, hessian and rows.
    totals: (nodes, s) int64. bits: (nodes, s) their scales. low, high: (nodes,) float64, bounds of values.
    """
    nodes, width, most, _ = sums.shape
    few = columns.categorical[:, None] & (sums[..., 2] < rules.min_samples_leaf)
    sums = np.where(few[..., None], 0, sums)
    order = _order(sums, bits, columns, rules)
    ordered = np.take_along_axis(sums, order[..., None], axis=2)
    prefix = np.cumsum(ordered, axis=2)
    whole = totals[:, None, None, None, :]
    missing = (
        whole - prefix[:, :, -1:, None, :]
        if most
        else np.zeros((nodes, width, 0, 1, sums.shape[3]), np.int64)
    )
    # (nodes, columns, bins, missing goes right or left, s)
    left = prefix[:, :, :, None, :] + missing * np.array([0, 1])[:, None]
    right = whole - left
    ok = (left[..., 2] >= rules.min_samples_leaf) & (right[..., 2] >= rules.min_samples_leaf)
    ok[..., 1] &= missing[..., 0, 2] > 0  # nothing is missing: one way is enough
    gl, hl, gr, hr = (
        np.ldexp(side[..., at].astype(np.float64), -bits[:, at, None, None, None])
        for side in (left, right)
        for at in (0, 1)
    )
    ok &= (hl >= rules.min_child_weight) & (hr >= rules.min_child_weight)
    g, h = (np.ldexp(totals[:, at].astype(np.float64), -bits[:, at]) for at in (0, 1))
    # All that is there goes left, and what is missing right: no constraint is about these two.
    alone = np.zeros(ok.shape, bool)
    alone[..., 0] = prefix[..., 2] == prefix[:, :, -1:, 2]
    gain = _gains(gl, hl, gr, hr, g, h, ok, alone, columns, rules, low, high)
    flat = gain.reshape(nodes, -1)
    if not flat.shape[1]:
        nothing = np.zeros(nodes)
        both = np.stack([low, low], axis=1), np.stack([high, high], axis=1)
        return Found(nothing, nothing.astype(np.int64), np.zeros((nodes, most + 1), bool), *both, totals * 0)
    best = flat.argmax(axis=1)  # the first of equals
    column, bin_, side = np.unravel_index(best, gain.shape[1:])
    at = np.arange(nodes)
    here = (at, column, bin_, side)
    found = np.maximum(gain[here], 0.0)
    mask = _up_to(order[at, column], bin_)
    nobody = missing[at, column, 0, 0, 2] == 0  # misses a value here: they go with the heavier child
    bigger = hl[here] >= hr[here]
    mask[:, 0] = np.where(nobody, bigger, side == 1)
    empty = columns.categorical[column][:, None] & (sums[at, column, :, 2] == 0)
    mask[:, 1:] = np.where(empty, mask[:, :1], mask[:, 1:])
    held = np.where(alone[here], 0, columns.monotone[column])
    mask[held != columns.monotone[column], 1:] = True  # values above those that are there too
    bounds = _bounds(gl[here], hl[here], gr[here], hr[here], held, rules, low, high)
    return Found(found, column, mask, *bounds, left[here])


def _order(sums: Array, bits: Array, columns: Columns, rules: Rules) -> Array:
    """(nodes, columns, bins): as they are; categories by gradient over hessian, empty ones last."""
    nodes, width, most, _ = sums.shape
    order = np.broadcast_to(np.arange(most), (nodes, width, most)).copy()
    which = np.flatnonzero(columns.categorical)
    if len(which) and most:
        ints = sums[:, which]
        g, h = (np.ldexp(ints[..., at].astype(np.float64), -bits[:, at, None, None]) for at in (0, 1))
        there = ints[..., 2] > 0
        ratio = np.where(there, g / np.where(there, h + rules.l2, 1.0), np.inf)
        order[:, which] = np.argsort(ratio, axis=2, kind="stable")
    return order


def _gains(
    gl: Array,
    hl: Array,
    gr: Array,
    hr: Array,
    g: Array,
    h: Array,
    ok: Array,
    alone: Array,
    columns: Columns,
    rules: Rules,
    low: Array,
    high: Array,
) -> Array:
    """(nodes, columns, bins, 2): how much better two leaves are than one; -inf where they are not allowed."""
    l2 = rules.l2
    with np.errstate(divide="ignore", invalid="ignore"):  # of sides without rows, which are not ok
        if columns.monotone.any():
            lo, hi = (bound[:, None, None, None] for bound in (low, high))
            wl, wr = (np.clip(weight(a, b, l2), lo, hi) for a, b in ((gl, hl), (gr, hr)))
            w = np.clip(weight(g, h, l2), low, high)
            sides = _score(gl, hl, wl, l2) + _score(gr, hr, wr, l2)
            one = _score(g, h, w, l2)
            ok = ok & (alone | ((wr - wl) * columns.monotone[:, None, None] >= 0))
        else:
            sides, one = gl * gl / (hl + l2) + gr * gr / (hr + l2), g * g / (h + l2)
        gain = sides - one[:, None, None, None]
        # Rounding makes a small gain of none.
        ok = ok & (gain > rules.min_gain) & (gain > 1e-9 * sides)
    return np.where(ok, gain, -np.inf)


def _score(g: Array, h: Array, w: Array, l2: float) -> Array:
    return -(2.0 * g * w + (h + l2) * w * w)


def _up_to(order: Array, bin_: Array) -> Array:
    """(nodes, bins + 1) bool: the bins up to the split, in their order."""
    nodes, most = order.shape
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(most), order.shape), axis=1)
    mask = np.zeros((nodes, most + 1), bool)
    mask[:, 1:] = rank <= bin_[:, None]
    return mask


def _bounds(
    gl: Array, hl: Array, gr: Array, hr: Array, monotone: Array, rules: Rules, low: Array, high: Array
) -> tuple[Array, Array]:
    """What the children's values are held to: below a monotone split, to either side of the middle."""
    lows, highs = np.stack([low, low], axis=1), np.stack([high, high], axis=1)
    if monotone.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            wl, wr = (np.clip(weight(a, b, rules.l2), low, high) for a, b in ((gl, hl), (gr, hr)))
            middle = 0.5 * (wl + wr)
        up, down = monotone > 0, monotone < 0
        highs[up, 0], lows[up, 1] = middle[up], middle[up]
        lows[down, 0], highs[down, 1] = middle[down], middle[down]
    return lows, highs

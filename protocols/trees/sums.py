"""Histograms: sums of the drawn rows' statistics by node and bin, as integers.

No party: pure functions. A statistic is an integer, so sums have no order and no rounding: whoever computes
them, in the clear or under encryption, finds the same. Histograms are flat, the bins of all columns one after
another, each column's beginning with bin 0, of what is missing: so the bins of a column add up to the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocols.arrays import Array
from protocols.errors import ConfigError


@dataclass(frozen=True)
class Quantised:
    """Statistics of the drawn rows as integers; a value is integer * 2**-bits of its column.

    Gradients and hessians of each output in turn, and at the end 1 for each row, whose sums are counts.
    """

    values: Array  # (rows, statistics) int64
    bits: Array  # (statistics,) int64, may be negative


def quantised(g: Array, h: Array, bits: int) -> Quantised:
    """Gradients and hessians (rows, outputs) float64 as integers of at most 2**bits; a hessian is at least 1,
    so that a leaf without l2 has a value."""
    stacked = np.stack([g, h], axis=2)  # (rows, outputs, 2)
    largest = np.abs(stacked).max(axis=0, initial=0.0)
    # largest < 2**exponent, so that scaled values are below 2**bits and rounded ones at most that.
    exponent = np.frexp(largest)[1]
    shift = np.where(largest > 0, bits - exponent, bits)
    whole = np.rint(np.ldexp(stacked, shift)).astype(np.int64)
    whole[..., 1] = np.maximum(whole[..., 1], 1)
    values = np.concatenate([whole.reshape(len(g), -1), np.ones((len(g), 1), np.int64)], axis=1)
    return Quantised(values, np.append(shift.reshape(-1), 0).astype(np.int64))


def starts(counts: Sequence[int] | Array) -> Array:
    """Where each column's bins begin in a flat histogram, and its length at the end: int64 (columns + 1,).

    counts: bins of each, without that of missing values.
    """
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64) + 1)]).astype(np.int64)


def histogram(binned: Array, values: Array, counts: Array) -> Array:
    """The flat histogram int64 (bins, statistics) of rows with bins (columns, rows) and values (rows, s)."""
    most = int(np.abs(values).max(initial=0))
    if most * max(len(values), 1) >= 2**53:  # np.bincount sums doubles
        raise ConfigError(
            f"sums of {len(values)} numbers up to {most} are not exact; use fewer gradient bits"
        )
    at, weights = starts(counts), values.T.astype(np.float64)
    sums = np.zeros((int(at[-1]), values.shape[1]), np.int64)
    for column, row in enumerate(binned):
        place, end = at[column], at[column + 1]
        for statistic, weight in enumerate(weights):
            found = np.bincount(row, weight, minlength=int(end - place))
            sums[place:end, statistic] = found.astype(np.int64)
    return sums


def padded(flat: Array, counts: Array, most: int) -> Array:
    """(nodes, bins, s) flat as (nodes, columns, `most` + 1, s); 0 where a column has no bin."""
    there = np.arange(most + 1) <= np.asarray(counts)[:, None]
    wide = np.zeros((len(flat), len(counts), most + 1, flat.shape[2]), np.int64)
    wide[:, there] = flat
    return wide

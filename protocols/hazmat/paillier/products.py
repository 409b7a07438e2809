"""Histograms and X^T [[g]] over an engine: both are products of the ciphertexts in each bucket.

- A histogram of several features takes features together while their joint buckets stay few beside the
  rows, then sums joint buckets into each feature's own: two features of 32 bins over 30,000 rows cost
  30,000 + 2 x 1,024 products and not 60,000.
- X^T [[g]] puts the rows of a column into buckets by the digits of |x|, and weighs each bucket by its digit
  (Pippenger 1976): about two products an entry of up to 20 bits, where square-and-multiply needs thirty.

Both skip zeros and choose digits by the largest |x|, so their time tells something of the plain data; see
`gmp` on timing.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.hazmat.paillier.engine import Cells, Engine, Index

Ints = NDArray[Any]


def bucket_sums(engine: Engine, cells: Cells, index: Index, buckets: int) -> Cells:
    """(f, buckets, ...) from cells (rows, ..., width) and an index (f, rows) of buckets 0 to buckets - 1."""
    features, rows = index.shape
    inner = cells.shape[1:-1]
    across = prod(inner)
    flat = cells.reshape(rows, across, cells.shape[-1])
    together = _together(features, rows, buckets)
    if together == 1:
        sums = engine.bucket_products(_rows(flat), _spread(index, across), buckets * across)
    else:
        sums = _jointly(engine, flat, index, buckets, together)
    return sums.reshape(features, buckets, *inner, cells.shape[-1])


def _together(features: int, rows: int, buckets: int) -> int:
    """How many features to take at once for the fewest products."""

    def products(size: int) -> int:
        groups = -(-features // size)
        return groups * (rows + (size * buckets**size if size > 1 else 0))

    return min(range(1, min(features, 8) + 1), key=products)


def _jointly(engine: Engine, flat: Cells, index: Index, buckets: int, size: int) -> Cells:
    features, across = len(index), flat.shape[1]
    groups = -(-features // size)
    padded = np.zeros((groups * size, index.shape[1]), np.int64)  # features that fill up count as bucket 0
    padded[:features] = index
    digits = padded.reshape(groups, size, -1)
    weight = buckets ** np.arange(size)
    joint = np.einsum("gsr,s->gr", digits, weight)
    sums = engine.bucket_products(_rows(flat), _spread(joint, across), buckets**size * across)
    # Each feature of a group reads its own digit of the joint bucket's number.
    own = (np.arange(buckets**size) // weight[:, None]) % buckets
    of_group = np.arange(groups)[:, None] * buckets + own[:, None, :]  # (size, groups, joint)
    parts = engine.bucket_products(
        _rows(sums), _spread(of_group.reshape(size, -1), across), groups * buckets * across
    )
    each = parts.reshape(size, groups, buckets, across, -1).swapaxes(0, 1)
    return each.reshape(groups * size, buckets, across, -1)[:features]


def matmul(engine: Engine, cells: Cells, X: Ints) -> Cells:
    """X^T [[g]]: (d, ..., width) from cells (rows, ..., width) and plain integers X (rows, d)."""
    rows, columns = X.shape
    inner, width = cells.shape[1:-1], cells.shape[-1]
    across = prod(inner)
    flat = cells.reshape(rows, across, width)
    size: Ints = abs(X)
    longest = int(size.max()).bit_length() if size.size else 0
    if not longest or not across:
        return np.broadcast_to(engine.wrap([0]), (columns, *inner, width))
    digit = _digit_bits(longest, rows)
    base, windows = 2**digit, -(-longest // digit)
    sign = np.where(X < 0, base, 0).T
    index: Index = np.empty((windows, columns, rows), np.int64)
    for window in range(windows):
        index[window] = ((size >> (digit * window)) & (base - 1)).astype(np.int64).T
    index = np.where(index > 0, index + sign, -1)
    held = engine.bucket_products(_rows(flat), _spread(index.reshape(-1, rows), across), 2 * base * across)
    # (windows, columns, sign, digit, across) -> weigh along the digits
    digits_last = held.reshape(windows * columns * 2, base, across, width).swapaxes(1, 2)
    weighed = engine.weigh(digits_last.reshape(-1, base, width))
    by_sign = weighed.reshape(windows, columns, 2, across, width)
    plus, minus = (_rows(by_sign[:, :, side]) for side in (0, 1))
    each = engine.multiply(plus, engine.invert(minus)).reshape(windows, -1, width)
    total = each[-1]
    for window in range(windows - 2, -1, -1):
        total = engine.multiply(engine.power(total, [base] * len(total)), each[window])
    found: Cells = total.reshape(columns, *inner, width)
    return found


def _digit_bits(longest: int, rows: int) -> int:
    """The digit size with the fewest products: `rows` a digit, and four a bucket to weigh two signs."""
    return min(range(1, 17), key=lambda bits: -(-longest // bits) * (rows + 4 * 2**bits))


def _rows(cells: Cells) -> Cells:
    rows: Cells = np.ascontiguousarray(cells).reshape(-1, cells.shape[-1])
    return rows


def _spread(index: Index, across: int) -> Index:
    """The index of (rows, across) cells, flattened, from that of rows: each keeps its place across."""
    if across == 1:
        return index
    wide = np.where(index[..., None] < 0, -1, index[..., None] * across + np.arange(across))
    return wide.reshape(len(index), index.shape[1] * across)

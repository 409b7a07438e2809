"""The order of ids by their bytes, several times as fast as Arrow's own sort, and the same.

One party, about its own ids. Ids are mostly alike at their beginning (a prefix, leading digits) and differ
within the eight bytes after that, so those are compared as one number; what still ties, Arrow sorts.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Places = NDArray[np.int64]


def by_bytes(values: pa.LargeBinaryArray) -> Places:
    """The positions of `values` in ascending order of their bytes, a shorter one before what it begins:
    int64 (n,). values: no nulls.
    """
    n = len(values)
    if n < 2:
        return np.arange(n)
    heads = _heads(values)
    order: Places = np.argsort(heads).astype(np.int64)
    placed = heads[order]
    same = placed[1:] == placed[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if len(tied):
        # Each group of ties is in a row, so all of them can be sorted at once and put back.
        members = order[tied]
        order[tied] = members[pc.array_sort_indices(values.take(pa.array(members))).to_numpy()]
    return order


def _heads(values: pa.LargeBinaryArray) -> NDArray[np.uint64]:
    """The eight bytes after what all values have in common, as numbers; beyond a value's end zeros."""
    ends = pc.min_max(values)
    least, most = ends["min"].as_py(), ends["max"].as_py()
    shared = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
    cut = pc.binary_slice(values, shared, shared + 8)
    _, offsets, data = cut.buffers()
    starts = np.frombuffer(offsets, np.int64)[cut.offset : cut.offset + len(cut) + 1]
    raw = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(8, np.uint8)])
    table = raw[starts[:-1, None] + np.arange(8)]
    lengths = np.diff(starts)
    if lengths.min() < 8:
        table[np.arange(8) >= lengths[:, None]] = 0
    heads: NDArray[np.uint64] = table.view(">u8").reshape(-1).astype(np.uint64)
    return heads

"""A cuckoo table: each item in one of three bins that its hash names, at most one item in a bin.

The bins are in three thirds, one for each hash, so an item's three bins always differ. `insert` is plain
Python that numba compiles as it stands, so a table does not depend on who filled it.

Whether all items find a place depends on the hash. With 1.3 bins an item (0.77 items a bin, where the
threshold for three hashes is 0.918) what stands in the way is almost only a small group of items that share
too few bins. The most frequent, four items with the same three bins, has probability C(n, 4) / third^9, below
2^-40 for every n with the 96 bins that are added to each third. That larger groups do not matter at 1.27 bins
an item is known from experiments (Pinkas, Schneider and Zohner), not from a proof. Whoever fails takes other
hashes.

Sources: Pagh and Rodler 2004, "Cuckoo hashing"; Fotakis et al. 2005, "Space efficient hash tables with worst
case constant access time" (more than two hashes); Pinkas, Schneider, Zohner 2018, "Scalable private set
intersection based on OT extension", section 3.2 (how many bins).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bins = NDArray[np.int32]  # (n, 3): the bins of each item, one in each third
Table = NDArray[np.int32]  # (3·third,): which item is in each bin, -1 for none

_MOVES = 10_000  # of items that make room for one; a walk is a few steps long where a table can be filled


def third_of(n: int) -> int:
    """How many bins a third of the table for n items has."""
    return -(-13 * n // 30) + 96


def bins_of(hashed: NDArray[np.uint32], third: int) -> Bins:
    """The bins of each item from three uniform words of its hash: uint32 (n, 3)."""
    within = (hashed.astype(np.uint64) * np.uint64(third)) >> np.uint64(32)
    bins: Bins = within.astype(np.int32) + np.array([0, third, 2 * third], np.int32)
    return bins


def fill(bins: Bins, third: int, kernels: ModuleType | None = None) -> Table | None:
    """A table with all items in it, or None where no place was found for one."""
    table = np.full(3 * third, -1, np.int32)
    if kernels is not None:
        return table if kernels.insert(bins, table, _MOVES) else None
    slots = table.tolist()  # lists are five times as fast as arrays here
    return np.array(slots, np.int32) if insert(bins.tolist(), slots, _MOVES) else None


def insert(bins: Any, table: Any, moves: int) -> bool:
    """Put items into an empty table, each into a free bin of its own or, by a random walk, one made free."""
    random = 1  # decides whom to move, and needs no secrecy: the table stays here
    for item in range(len(bins)):
        placed = False
        for third in range(3):
            if table[bins[item][third]] < 0:
                table[bins[item][third]] = item
                placed = True
                break
        homeless, left = item, 2
        for _ in range(moves):
            if placed:
                break
            random = (random * 1103515245 + 12345) % 2147483648
            left = (left + 1 + (random >> 20) % 2) % 3  # not the third that it has just left
            taken = bins[homeless][left]
            homeless, table[taken] = table[taken], homeless
            for step in range(1, 3):
                other = bins[homeless][(left + step) % 3]
                if table[other] < 0:
                    table[other] = homeless
                    placed = True
                    break
        if not placed:
            return False
    return True

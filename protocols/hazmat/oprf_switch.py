"""Whether the compiled kernels of oblivious evaluation serve, decided without importing numba for small sets.

The environment variable `VFL_KERNELS`, read at each call, is `auto` (or unset): for sets that are large
enough to pay for loading or compiling them; `on`: for any size; `off`: never. The result is the same to the
bit.
"""

from __future__ import annotations

import secrets
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from protocols.hazmat.switch import chosen

# Items of the larger set. An item takes about 10 µs without kernels, loading them a second, compiling ten.
LARGE = 100_000
STEP = "kernels made ready (compiled once on a machine)"  # as whoever watches is told


def kernels(count: int) -> ModuleType | None:
    """`protocols.hazmat.oprf_kernels` for sets of `count` items, or None where the libraries are to serve."""
    setting = chosen()
    if setting == "off" or (setting == "auto" and count < LARGE):
        return None
    return _tried()


@cache
def _tried() -> ModuleType | None:
    try:
        from protocols.hazmat import oprf_kernels
    except ImportError as error:  # a numba that does not know this numpy or Python says so when imported
        warnings.warn(f"numba cannot be imported, so PSI is slower: {error}", RuntimeWarning, stacklevel=3)
        return None
    wrong = "they differ from hashlib and numpy"
    try:
        try:
            good = agree(oprf_kernels)
        except OSError:  # a full disk: what was compiled cannot be kept, but it can be used
            from protocols.hazmat.compiled import keep_nothing

            keep_nothing()
            good = agree(oprf_kernels)
    except Exception as error:  # numba's and LLVM's are of many kinds, and none should cost a user the run
        good, wrong = False, f"{type(error).__name__}: {error}"
    if not good:
        said = f"PSI is slower: its compiled kernels are left out on this machine, {wrong}"
        warnings.warn(said, RuntimeWarning, stacklevel=3)
        return None
    return oprf_kernels


def agree(module: ModuleType) -> bool:
    """Whether a module of kernels gives what hashlib, numpy and Python give, on inputs drawn for this."""
    from protocols.hazmat.blake2s import keyed_digests, row_digests
    from protocols.hazmat.cuckoo import bins_of, fill, third_of
    from protocols.hazmat.equal_rows import find
    from protocols.hazmat.oblivious import as_rows

    key, n = secrets.token_bytes(32), 150
    values = pa.array([secrets.token_bytes(size) for size in range(n)], pa.large_binary())
    words = np.frombuffer(secrets.token_bytes(448 * 8 * 9), np.uint64)
    columns, rows, salts = words.reshape(448, 9), words.reshape(-1, 7)[:n], words[:n]
    own, plain = keyed_digests(key, b"a test", values, module), keyed_digests(key, b"a test", values)
    third, marks = third_of(n), plain.view(np.uint8)[:, :10]
    bins = bins_of(plain[:, :3], third)
    tables: list[Any] = [
        [] if table is None else table for table in (fill(bins, third, module), fill(bins, third))
    ]
    return (
        np.array_equal(own, plain)
        and np.array_equal(row_digests(b"a test", rows, salts, module), row_digests(b"a test", rows, salts))
        and np.array_equal(tables[0], tables[1])
        and np.array_equal(as_rows(columns, module), as_rows(columns))
        and np.array_equal(find(marks, marks[::2], module), find(marks, marks[::2]))
    )

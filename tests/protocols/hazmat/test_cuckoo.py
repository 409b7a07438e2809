"""A cuckoo table: every item in one of its bins, no two in one, the same table whoever fills it."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from protocols.hazmat import oprf_kernels
from protocols.hazmat.cuckoo import bins_of, fill, third_of


def hashed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (n, 3), np.uint32)


@pytest.mark.parametrize("n", [0, 1, 2, 30, 1000, 20_000])
def test_every_item_is_in_one_of_its_bins(n: int) -> None:
    third = third_of(n)
    bins = bins_of(hashed(n), third)
    table = fill(bins, third)
    assert table is not None and len(table) == 3 * third
    full = np.flatnonzero(table >= 0)
    assert sorted(table[full]) == list(range(n))
    assert (bins[table[full]] == full[:, None]).any(axis=1).all()
    compiled = fill(bins, third, oprf_kernels)
    assert compiled is not None
    np.testing.assert_array_equal(table, compiled)


def test_bins_are_in_one_third_each_up_to_its_ends() -> None:
    ends = np.array([[0, 0, 0], [2**32 - 1] * 3], np.uint32)
    assert bins_of(ends, 97).tolist() == [[0, 97, 194], [96, 193, 290]]
    third = third_of(10_000)
    counts = np.bincount(bins_of(hashed(10_000), third)[:, 1] - third, minlength=third)
    # 10,000 into 4,430 bins: Poisson with mean 2.26; a bin of 16 has probability below 1e-9.
    assert counts.max() < 16 and abs(int((counts == 0).sum()) - third * np.exp(-10_000 / third)) < 150


@pytest.mark.parametrize("kernels", [None, oprf_kernels])
def test_items_that_share_too_few_bins_find_no_place(kernels: object) -> None:
    bins = np.array([[0, 100, 200]] * 3, np.int32)
    assert fill(bins, 100, kernels) is not None  # type: ignore[arg-type]
    assert fill(np.array([[0, 100, 200]] * 4, np.int32), 100, kernels) is None  # type: ignore[arg-type]


def test_four_items_with_the_same_bins_are_rarer_than_stated() -> None:
    for n in [*range(4, 3000), 10**4, 10**5, 10**6, 10**7]:
        assert comb(n, 4) / third_of(n) ** 9 < 2**-40
        assert third_of(n) >= 1.3 * n / 3 + 96


def test_tables_are_filled_again_and_again() -> None:
    third = third_of(1500)
    assert all(
        fill(bins_of(hashed(1500, seed), third), third, oprf_kernels) is not None for seed in range(300)
    )

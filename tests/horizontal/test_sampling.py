"""Client sampling: the right number, in roster order, by the seed, and fair."""

from __future__ import annotations

from collections import Counter
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horizontal.sampling import others, sample
from protocols.errors import ConfigError


@given(clients=st.integers(1, 60), percent=st.integers(1, 100), seed=st.integers(0, 2**32))
def test_so_many_distinct_clients_in_roster_order(clients: int, percent: int, seed: int) -> None:
    roster = tuple(f"c{i}" for i in range(clients))
    chosen = sample(roster, percent / 100, np.random.default_rng(seed))
    assert len(chosen) == -(-percent * clients // 100)  # the ceiling, in whole numbers
    assert list(chosen) == [name for name in roster if name in set(chosen)]
    assert set(others(roster, chosen)) == set(roster) - set(chosen)
    assert chosen == sample(roster, percent / 100, np.random.default_rng(seed))


def test_everybody_with_fraction_one() -> None:
    assert sample(("b", "a"), 1.0, np.random.default_rng(0)) == ("b", "a")


def test_a_rounding_error_samples_nobody_more() -> None:
    assert ceil(0.07 * 100) == 8  # which is the trap
    assert len(sample([str(i) for i in range(100)], 0.07, np.random.default_rng(0))) == 7


def test_each_client_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(name for _ in range(2000) for name in sample("abcde", 0.4, rng))
    assert all(abs(counts[name] / 2000 - 0.4) < 0.05 for name in "abcde")


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction="):
        sample(("a", "b"), fraction, np.random.default_rng(0))

"""A cost is FLOPs, or counts of operations that have a price."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from protocols.costs import REFERENCE_SPEED, SECONDS_PER_OPERATION, Cost, flops
from protocols.errors import ConfigError


@pytest.mark.parametrize("cost", [0, 3, 2.5, np.float64(1e12), True])
def test_a_number_is_flops(cost: float) -> None:
    assert flops(cost) == float(cost)


def test_an_operation_costs_its_seconds_on_the_reference_core() -> None:
    for name, seconds in SECONDS_PER_OPERATION.items():
        assert flops({name: 7}) == pytest.approx(7 * seconds * REFERENCE_SPEED)
    assert flops(dict.fromkeys(SECONDS_PER_OPERATION, 1)) == pytest.approx(
        sum(SECONDS_PER_OPERATION.values()) * REFERENCE_SPEED
    )
    assert flops({}) == 0.0


def test_an_operation_without_a_price_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'x2551' has no price; did you mean 'x25519'\?"):
        flops({"x2551": 1})


@pytest.mark.parametrize("cost", [-1, -0.5, nan, inf, {"x25519": -1}])
def test_time_does_not_run_backwards(cost: Cost) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        flops(cost)

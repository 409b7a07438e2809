"""Who holds which model: a first layer divided by columns, and modules that cannot be meant refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protocols.errors import ConfigError
from vfl.network.layout import check_top, embedding_width, shares


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(8, 300))
def test_units_are_divided_by_columns_and_none_is_lost(columns: list[int], total: int) -> None:
    units = shares(total, {f"party{i}": count for i, count in enumerate(columns)})
    assert sum(units.values()) == total and min(units.values()) >= 1
    by_columns = sorted(zip(columns, units.values(), strict=True))
    for (few, less), (many, more) in pairwise(by_columns):
        assert less <= more or (few == many and less == more + 1)  # a tie's odd unit goes to one of them


def test_equal_columns_get_equal_units() -> None:
    assert shares(64, {"bank": 10, "shop": 10}) == {"bank": 32, "shop": 32}
    assert shares(64, {"bank": 5, "telco": 18}) == {"bank": 14, "telco": 50}


def test_more_parties_than_units_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hidden\[0\] = 1 units cannot be divided among 2 parties"):
        shares(1, {"bank": 3, "shop": 3})


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Linear(4, 2), "the bottom model fails on 2 rows of 3 numbers"),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), r"makes torch.float32 \(4,\) of 2 rows of 3 columns"),
        (nn.Identity(), "has no weights to train"),
        (nn.Linear(3, 2).double(), "weight is torch.float64, expected float32"),
        (Pair(), "returns a tuple"),
    ],
)
def test_a_bottom_model_that_cannot_be_meant_is_refused(module: nn.Module, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        embedding_width(module, 3)


def test_a_top_model_has_one_output_per_class() -> None:
    check_top(nn.Linear(6, 3), 6, 3)
    with pytest.raises(ConfigError, match=r"the top model makes \(2, 2\) of 2 rows, expected \(2, 3\)"):
        check_top(nn.Linear(6, 2), 6, 3)
    with pytest.raises(ConfigError, match="the top model fails on 2 rows of 6 numbers"):
        check_top(nn.Linear(5, 3), 6, 3)
    with pytest.raises(ConfigError, match="the top model has no weights"):
        check_top(nn.Identity(), 3, 3)


def test_looking_at_a_module_leaves_it_and_the_random_generator_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout())
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    embedding_width(module, 3)
    assert module.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())

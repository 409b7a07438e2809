"""Laws of sample weights: a model whose sums are those of a few rows is not trained, in any estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocols.errors import DataError
from protocols.hazmat.paillier import Plain
from protocols.trees.sums import histogram, quantised
from vfl import (
    VerticalGradientBoostingClassifier,
    VerticalGradientBoostingRegressor,
    VerticalLinearRegression,
    VerticalLogisticRegression,
    VerticalPoissonRegressor,
)
from vfl.weights import FEWEST, LARGEST, carrying_half, check_weights

_weights = st.lists(st.floats(1e-3, 1e6) | st.just(0.0), min_size=1, max_size=60).filter(any).map(np.array)
BOOSTED: dict[str, Any] = {"n_estimators": 2, "encryption": Plain()}
MODELS: dict[str, Any] = {
    "classifier": VerticalGradientBoostingClassifier(**BOOSTED),
    "regressor": VerticalGradientBoostingRegressor(**BOOSTED),
    "logistic": VerticalLogisticRegression(security="plain", max_iter=200, tol=1e-3),
    "linear": VerticalLinearRegression(security="plain"),
    "poisson": VerticalPoissonRegressor(security="plain", max_iter=200, tol=1e-3),
}


@given(_weights)
def test_no_fewer_rows_carry_more_than_half(weights: Any) -> None:
    few, heaviest = carrying_half(weights), np.sort(weights)[::-1]
    assert heaviest[:few].sum() > 0.5 * weights.sum() * (1 - 1e-12)
    assert heaviest[: few - 1].sum() <= 0.5 * weights.sum() * (1 + 1e-12)


@given(_weights, st.floats(0.001, 1000))
def test_weights_are_judged_by_their_ratios(weights: Any, unit: float) -> None:
    used, heaviest = weights[weights > 0], np.sort(weights)[::-1]
    ratio, share = used.max() / used.min(), heaviest[: FEWEST - 1].sum() / weights.sum()
    assume(abs(ratio / LARGEST - 1) > 1e-9 and abs(share - 0.5) > 1e-9)  # where rounding decides
    if len({*weights}) == 1 or (ratio < LARGEST and share < 0.5):
        return check_weights(weights * unit)
    with pytest.raises(DataError) as caught:
        check_weights(weights * unit)
    assert caught.value.told == "sample_weight is too unequal; clip it"


def test_where_many_carry_the_whole_their_ratio_still_counts() -> None:
    """Who weighs next to nothing leaves sums that are of all others alone."""
    for ratio in (LARGEST, 1.001 * LARGEST):
        weights = np.repeat([1.0, ratio], [1, 100])
        if ratio == LARGEST:
            check_weights(weights)
            continue
        with pytest.raises(DataError, match="the largest sample_weight is 1025 times the smallest"):
            check_weights(weights)


def tables(rows: int = 300) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    x, id = rng.normal(size=(rows, 3)), np.arange(rows)
    y = (x[:, 0] + rng.normal(size=rows) > 0).astype(int)
    bank = pd.DataFrame({"id": id, "y": y, "x0": x[:, 1]})
    return {"bank": bank, "shop": pd.DataFrame({"id": id, "x1": x[:, 0], "x2": x[:, 2]})}


def weighted(name: str) -> np.ndarray[Any, Any]:
    rng, weights = np.random.default_rng(0), np.ones(300)
    match name:
        case "thirteen people":  # whose bins could be read off the digits of sums
            weights[rng.permutation(300)[:13]] = 2.0 ** np.arange(10, 23)
        case "nine people":
            weights[:9] = 1000.0
        case "fourteen people and nobody else":
            weights[14:] = 0.0
        case "a rare class":  # ten rows count as much as all others
            weights[::30] = 29.0
        case "propensities":
            weights = 1 / rng.uniform(0.01, 0.99, 300)
        case "exposures":
            weights = rng.integers(1, 366, 300) / 365
        case "some left out":
            weights[::7] = 0.0
    return weights


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["thirteen people", "nine people", "fourteen people and nobody else"])
def test_a_few_rows_do_not_carry_a_model(model: str, name: str) -> None:
    with pytest.raises(DataError, match="bank/setup: .*sample_weight"):
        MODELS[model].fit(tables(), "bank.y", "id", sample_weight=weighted(name))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["a rare class", "propensities", "exposures", "some left out"])
def test_weights_that_statisticians_use_will_do(model: str, name: str) -> None:
    MODELS[model].fit(tables(), "bank.y", "id", sample_weight=weighted(name))


@pytest.mark.parametrize("bits", [8, 16, 24])
def test_what_remains_is_a_person_for_nearly_each_bit_of_a_hessian(bits: int) -> None:
    """Weights that are nearly alike mark people as well: whose bin it is are the digits by which its hessian
    exceeds its count. The guide says so, and of how many people."""
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 9, (1, 300)).astype(np.uint8)
    people, weights = rng.permutation(300)[: bits - 1], np.ones(300)
    weights[people] += 2.0 ** -np.arange(1, bits)  # a smaller one would be rounded off
    check_weights(weights)
    said = quantised(np.zeros((300, 1)), weights[:, None], bits)
    bins = histogram(codes, said.values, np.array([8]))
    digits = bins[:, 1] - bins[:, 2] * 2 ** (bits - 1)  # what a row of weight 1 counts
    for at, person in enumerate(people):
        assert np.flatnonzero(digits >> (bits - 2 - at) & 1).tolist() == [codes[0, person]]

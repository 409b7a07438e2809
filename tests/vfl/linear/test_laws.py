"""Exact mode reaches the optimum of the pooled table, however its columns are divided."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.vfl.linear.tables import FIT, SMALL, breast_cancer, divided, pooled, united
from vfl import VerticalLogisticRegression

NEAR = 1e-4


@pytest.mark.parametrize("feature_parties", [1, 2, 3])
@pytest.mark.parametrize("at_label", [None, 0])
def test_logistic_regression_is_the_pooled_one(feature_parties: int, at_label: int | None) -> None:
    table = breast_cancer()
    x, y = pooled(table)
    best = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=10_000).fit(x, y)
    model = VerticalLogisticRegression(l2=0.01, encryption=SMALL)
    model.fit(divided(table, feature_parties, seed=feature_parties, at_label=at_label), **FIT)
    assert model.converged_ and model.n_iter_ < 60
    np.testing.assert_allclose(united(model.coef_, x.columns), best.coef_[0], atol=NEAR)
    assert abs(model.intercept_ - best.intercept_[0]) < NEAR

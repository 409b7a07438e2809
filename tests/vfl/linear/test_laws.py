"""Linear models reach the optimum of the pooled table, however its columns are divided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.datasets import load_iris
from sklearn.linear_model import Lasso, LogisticRegression, PoissonRegressor, Ridge

from protocols.arrays import Array
from tests.vfl.linear.tables import (
    FIT,
    SMALL,
    TARGET,
    breast_cancer,
    credit,
    diabetes,
    divided,
    names_of,
    pooled,
    united,
)
from vfl import VerticalLinearRegression, VerticalLogisticRegression, VerticalPoissonRegressor
from vfl.linear.losses import LOSSES, Loss

NEAR = 1e-4


def logistic(table: pd.DataFrame, l2: float, weights: Array | None = None) -> LogisticRegression:
    x, y = pooled(table)
    total = len(x) if weights is None else weights.sum()
    return LogisticRegression(C=1 / (l2 * total), tol=1e-10, max_iter=10_000).fit(x, y, weights)


def taylor(table: pd.DataFrame, l2: float) -> Array:
    """The coefficients, and last the intercept, of the pooled optimum of the Taylor form."""
    x, y = pooled(table)
    design = np.column_stack([x, np.ones(len(x))])
    penalty = np.diag([*[l2] * x.shape[1], 0.0])
    curved = design.T @ design / 4 / len(x) + penalty
    return np.asarray(np.linalg.solve(curved, design.T @ (y - 0.5) / len(x)))


def counts() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    means = np.exp(1 + x @ rng.normal(size=6) / 8)
    return pd.DataFrame(x, columns=list("abcdef")).assign(**{TARGET: rng.poisson(means)})


def flowers() -> pd.DataFrame:
    data = load_iris(as_frame=True)
    return pd.DataFrame(data.data).assign(**{TARGET: data.target.map(dict(enumerate(data.target_names)))})


@pytest.mark.parametrize("feature_parties", [1, 2, 3])
@pytest.mark.parametrize("at_label", [None, 0])
def test_logistic_regression(feature_parties: int, at_label: int | None) -> None:
    table = breast_cancer()
    best, names = logistic(table, 0.01), names_of(table)
    model = VerticalLogisticRegression(l2=0.01, encryption=SMALL)
    model.fit(divided(table, feature_parties, seed=feature_parties, at_label=at_label), **FIT)
    assert model.converged_ and model.n_iter_ < 60
    np.testing.assert_allclose(united(model.coef_, names), best.coef_[0], atol=NEAR)
    assert abs(model.intercept_ - best.intercept_[0]) < NEAR


def test_logistic_regression_with_a_key_of_full_length() -> None:
    table = breast_cancer()
    best, names = logistic(table, 0.01), names_of(table)
    model = VerticalLogisticRegression(l2=0.01).fit(divided(table, 1), **FIT)
    assert model.encryption.bits == 2048 and not model.is_plain_
    np.testing.assert_allclose(united(model.coef_, names), best.coef_[0], atol=NEAR)


@pytest.mark.tables
@pytest.mark.parametrize("feature_parties", [1, 2, 3])
def test_logistic_regression_on_the_credit_table(feature_parties: int) -> None:
    table = credit(3000)
    best, names = logistic(table, 0.01), names_of(table)
    model = VerticalLogisticRegression(l2=0.01, encryption=SMALL)
    model.fit(divided(table, feature_parties), **FIT)
    np.testing.assert_allclose(united(model.coef_, names), best.coef_[0], atol=NEAR)


def test_more_classes_have_a_score_each() -> None:
    table = flowers()
    best, names = logistic(table, 0.01), names_of(table)
    data = divided(table, 2)
    model = VerticalLogisticRegression(l2=0.01, encryption=SMALL).fit(data, **FIT)
    assert model.classes_.tolist() == best.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    np.testing.assert_allclose(united(model.coef_, names).T, best.coef_, atol=NEAR)
    shifted = best.intercept_ - best.intercept_.mean()  # all alike shifted predict the same
    np.testing.assert_allclose(model.intercept_ - np.mean(model.intercept_), shifted, atol=NEAR)
    chances = model.predict_proba(data)
    assert chances.columns.tolist() == best.classes_.tolist() and np.allclose(chances.sum(axis=1), 1)
    assert (chances.idxmax(axis=1) == model.predict(data)).all() and model.score(data) > 0.95


@pytest.mark.parametrize("seed", range(4))
def test_to_ask_for_more_than_scores_can_tell_does_no_harm(seed: int) -> None:
    """Scores are rounded to 2^-44, so a step that follows from them alone leads away in the end."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(120, 6))
    table = pd.DataFrame(x, columns=list("abcdef"))
    table[TARGET] = x[:, 0] - x[:, 2] + rng.logistic(size=120) > 0
    best = logistic(table, 0.01)
    model = VerticalLogisticRegression(l2=0.01, tol=0.0, security="plain")
    model.fit(divided(table, 1, at_label=0), **FIT)
    np.testing.assert_allclose(united(model.coef_, "abcdef"), best.coef_[0], atol=1e-6)


@pytest.mark.parametrize(("seed", "l2"), [(1, 1e-3), (2, 1e-5)])
def test_logistic_regression_of_a_rare_class(seed: int, l2: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20_000, 6)) @ rng.normal(size=(6, 6))
    rare = rng.random(20_000) < expit(x @ np.linspace(-0.3, 0.3, 6) - 7.5)
    table = pd.DataFrame(x, columns=list("abcdef")).assign(**{TARGET: rare})
    assert 10 < rare.sum() < 20
    best = logistic(table, l2)
    model = VerticalLogisticRegression(l2=l2, security="plain").fit(divided(table, 2), **FIT)
    assert model.converged_
    np.testing.assert_allclose(united(model.coef_, "abcdef"), best.coef_[0], atol=NEAR)
    assert abs(model.intercept_ - best.intercept_[0]) < NEAR


@pytest.mark.parametrize(("times", "l2"), [(1e-3, 1e-5), (1e6, 1.0)])
def test_poisson_regression_of_rare_events_and_of_large_counts(times: float, l2: float) -> None:
    table = counts()
    table[TARGET] = table[TARGET] * times
    x, y = pooled(table)
    best = PoissonRegressor(alpha=l2, tol=1e-10 * times, max_iter=1000).fit(x, y)
    model = VerticalPoissonRegressor(l2=l2, encryption=SMALL).fit(divided(table, 2), **FIT)
    assert model.converged_
    np.testing.assert_allclose(united(model.coef_, x.columns), best.coef_, atol=NEAR)
    assert abs(model.intercept_ - best.intercept_) < NEAR


@pytest.mark.parametrize("security", ["exact", "hidden"])
def test_columns_of_any_scale_may_stay_as_they_are(security: Any) -> None:
    table = diabetes()
    scales = dict(zip(names_of(table), 10.0 ** np.linspace(-9, 9, 10), strict=True))
    wide = table.assign(**{name: (table[name] - table[name].mean()) * by for name, by in scales.items()})
    x, y = wide.drop(columns=TARGET), wide[TARGET]
    model = VerticalLinearRegression(l2=0.0, standardise=False, security=security, encryption=SMALL)
    model.fit(divided(wide, 2), **FIT)
    assert model.converged_
    found = united(model.coef_, x.columns) * np.array([*scales.values()])
    best = np.linalg.lstsq(x / pd.Series(scales), y - y.mean(), rcond=None)[0]
    spread = (x / pd.Series(scales)).std().to_numpy()
    np.testing.assert_allclose(found * spread, best * spread, atol=NEAR * y.std())


@pytest.mark.parametrize("security", ["exact", "hidden"])
@pytest.mark.parametrize("feature_parties", [1, 2, 3])
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_linear_regression(security: Any, feature_parties: int, l2: float) -> None:
    table = diabetes()
    x, y = pooled(table)
    best = Ridge(alpha=l2 * len(x), tol=1e-12, solver="cholesky").fit(x, y)
    model = VerticalLinearRegression(l2=l2, security=security, encryption=SMALL)
    data = divided(table, feature_parties)
    model.fit(data, **FIT)
    # In the target's unit, in which it has a deviation of 77.
    np.testing.assert_allclose(united(model.coef_, x.columns), best.coef_, atol=NEAR * y.std())
    assert abs(model.intercept_ - best.intercept_) < NEAR * y.std()
    assert model.score(data) == pytest.approx(best.score(x, y), abs=1e-6)


@pytest.mark.parametrize("feature_parties", [1, 3])
def test_poisson_regression(feature_parties: int) -> None:
    table = counts()
    x, y = pooled(table)
    best = PoissonRegressor(alpha=0.01, tol=1e-10, max_iter=1000).fit(x, y)
    data = divided(table, feature_parties)
    model = VerticalPoissonRegressor(l2=0.01, encryption=SMALL).fit(data, **FIT)
    np.testing.assert_allclose(united(model.coef_, x.columns), best.coef_, atol=NEAR)
    assert abs(model.intercept_ - best.intercept_) < NEAR
    assert model.score(data) == pytest.approx(best.score(x, y), abs=1e-6)


@pytest.mark.parametrize("feature_parties", [1, 2, 3])
@pytest.mark.parametrize("at_label", [None, 0])
def test_hidden_scores_reach_the_optimum_of_the_taylor_form(
    feature_parties: int, at_label: int | None
) -> None:
    table = breast_cancer()
    best, names = taylor(table, 0.01), names_of(table)
    model = VerticalLogisticRegression(l2=0.01, security="hidden", encryption=SMALL)
    data = divided(table, feature_parties, at_label=at_label)
    model.fit(data, **FIT)
    assert model.converged_
    found = np.array([*united(model.coef_, names), model.intercept_])
    np.testing.assert_allclose(found, best, atol=NEAR)
    assert not {"vfl.PartialScores/1"} & {entry.kind for entry in model.ledger_}
    # Which is not that of the logistic loss, and predicts about as well.
    logistic_one = logistic(table, 0.01)
    assert 0.1 < np.abs(found[:-1] - logistic_one.coef_[0]).max() < 1
    x, y = pooled(table)
    assert model.score(data) > logistic_one.score(x, y) - 0.04


def test_columns_may_stay_as_they_are() -> None:
    table = diabetes()
    x, y = table.drop(columns=TARGET).astype(np.float64), table[TARGET]
    best = Ridge(alpha=0.01 * len(x), tol=1e-12, solver="cholesky").fit(x, y)
    model = VerticalLinearRegression(l2=0.01, standardise=False, encryption=SMALL)
    data = divided(table, 2)
    model.fit(data, **FIT)
    np.testing.assert_allclose(united(model.coef_, x.columns), best.coef_, rtol=1e-3, atol=1e-3)
    assert model.score(data) == pytest.approx(best.score(x, y), abs=1e-6)


def test_l1_leaves_coefficients_at_0() -> None:
    table = breast_cancer()
    x, y = pooled(table)
    model = VerticalLogisticRegression(l1=0.02, l2=0.01, max_iter=500, security="plain")
    model.fit(divided(table, 2), **FIT)
    found = united(model.coef_, x.columns)
    assert model.converged_ and 3 < np.count_nonzero(found == 0) < 27
    assert model.n_iter_ < 250  # it takes 450 if what is carried on is never forgotten
    # The optimum is where each slope is -l1 times the sign of its coefficient, and of those at 0 no steeper.
    residuals = expit(x.to_numpy() @ found + model.intercept_) - y
    slopes = x.to_numpy().T @ residuals / len(x) + 0.01 * found
    np.testing.assert_allclose(slopes[found != 0], -0.02 * np.sign(found[found != 0]), atol=1e-5)
    assert np.abs(slopes[found == 0]).max() <= 0.02 + 1e-5 and abs(residuals.mean()) < 1e-5


@pytest.mark.parametrize("security", ["exact", "hidden"])
def test_l1_of_least_squares_is_the_lasso(security: Any) -> None:
    table = diabetes()
    x, y = pooled(table)
    best = Lasso(alpha=0.05 * y.std(), tol=1e-12, max_iter=100_000).fit(x, y)
    model = VerticalLinearRegression(l1=0.05, l2=0.0, max_iter=500, security=security, encryption=SMALL)
    model.fit(divided(table, 2), **FIT)
    found = united(model.coef_, x.columns)
    assert model.converged_ and ((found == 0) == (best.coef_ == 0)).all() and (found == 0).any()
    np.testing.assert_allclose(found, best.coef_, atol=NEAR * y.std())


def test_l1_of_a_poisson_model_finds_its_own_curvature() -> None:
    table = counts()
    x, y = pooled(table)
    design = np.column_stack([x, np.ones(len(x))])

    def objective(parts: Array) -> float:
        w = parts[:7] - np.append(parts[7:], 0)
        z = design @ w
        return float((np.exp(z) - y * z).mean() + 0.05 * (parts[:6].sum() + parts[7:].sum()))

    bounds = [(0, None)] * 6 + [(None, None)] + [(0, None)] * 6
    best = minimize(objective, np.ones(13) / 10, bounds=bounds, tol=1e-14, options={"maxfun": 10**6})
    model = VerticalPoissonRegressor(l1=0.05, l2=0.0, max_iter=500, security="plain")
    model.fit(divided(table, 1), **FIT)
    found = united(model.coef_, x.columns)
    assert model.converged_
    np.testing.assert_allclose(found, best.x[:6] - best.x[7:], atol=1e-3)
    assert "vfl.ProximalStep/1" in {entry.kind for entry in model.ledger_}


def test_weights_count_as_repeated_rows() -> None:
    table = breast_cancer()
    names = names_of(table)
    data = divided(table, 1)
    weights = np.random.default_rng(0).integers(0, 4, len(table)).astype(np.float64)
    model = VerticalLogisticRegression(l2=0.01, encryption=SMALL)
    model.fit(data, **FIT, sample_weight=weights)
    by_row = pd.Series(weights, index=data["bank"].index).sort_index().to_numpy()
    best = logistic(table, 0.01, by_row)
    np.testing.assert_allclose(united(model.coef_, names), best.coef_[0], atol=NEAR)
    assert model.score(data, sample_weight=weights) > 0.95


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, VerticalLogisticRegression),
        ({"l1": 0.01, "max_iter": 20}, VerticalLogisticRegression),
        ({"solver": "sgd", "max_iter": 2, "batch_size": 130, "momentum": 0.5}, VerticalLogisticRegression),
        ({}, VerticalPoissonRegressor),
    ],
)
@pytest.mark.filterwarnings("ignore:.*without reaching tol")
def test_encryption_changes_no_bit(settings: dict[str, Any], kind: type) -> None:
    table = breast_cancer()
    data = divided(table, 2, at_label=6)
    plain = kind(security="plain", random_state=3, **settings).fit(data, **FIT)
    sealed = kind(encryption=SMALL, random_state=3, **settings).fit(data, **FIT)
    names = names_of(table)
    np.testing.assert_array_equal(united(plain.coef_, names), united(sealed.coef_, names))
    assert plain.intercept_ == sealed.intercept_ and plain.loss_curve_ == sealed.loss_curve_
    assert {e.kind for e in plain.ledger_} == {e.kind for e in sealed.ledger_}
    assert plain.is_plain_ and sealed.is_plain_  # its key is one for tests


def descended(x: Array, y: Array, loss: Loss, steps: int) -> Array:
    """Gradient descent with momentum over all rows of a pooled table: the coefficients."""
    design = np.column_stack([x, np.ones(len(x))])
    penalised = np.append(np.ones(x.shape[1]), 0.0)[:, None]
    w = np.append(np.zeros(x.shape[1]), loss.start(y, np.ones(len(y))))[:, None]
    velocity = np.zeros_like(w)
    for _ in range(steps):
        gradient = design.T @ loss.residual(design @ w, y) / len(x) + 0.01 * penalised * w
        velocity = 0.8 * velocity + gradient
        w = w - 0.02 * velocity
    return np.asarray(w[:-1, 0])


DESCENTS: list[tuple[str, Any, Callable[[], pd.DataFrame], str]] = [
    ("exact", VerticalLogisticRegression, breast_cancer, "binomial"),
    ("hidden", VerticalLogisticRegression, breast_cancer, "taylor"),
    ("exact", VerticalLinearRegression, diabetes, "squared"),
    ("hidden", VerticalLinearRegression, diabetes, "squared"),
    ("exact", VerticalPoissonRegressor, counts, "poisson"),
]


@pytest.mark.parametrize(("security", "kind", "brought", "loss"), DESCENTS)
def test_batches_of_all_rows_are_gradient_descent(
    security: str, kind: Any, brought: Callable[[], pd.DataFrame], loss: str
) -> None:
    """On the way to the optimum too, what sums and residuals are rounded to does not show."""
    table = brought()
    x, y = pooled(table)
    unit, shift = (y.std(), y.mean()) if loss == "squared" else (1.0, 0.0)
    best = descended(x.to_numpy(), ((y - shift) / unit)[:, None], LOSSES[loss], 40)
    how = {"solver": "sgd", "max_iter": 40, "batch_size": 10_000, "learning_rate": 0.02, "momentum": 0.8}
    model = kind(l2=0.01, security=security, encryption=SMALL, **how).fit(divided(table, 2), **FIT)
    np.testing.assert_allclose(united(model.coef_, x.columns) / unit, best, atol=NEAR)


@pytest.mark.parametrize("security", ["exact", "hidden"])
def test_mini_batches_come_near_the_optimum(security: Any) -> None:
    table = breast_cancer()
    names = names_of(table)
    best = taylor(table, 0.1)[:-1] if security == "hidden" else logistic(table, 0.1).coef_[0]
    model = VerticalLogisticRegression(
        l2=0.1,
        solver="sgd",
        max_iter=40,
        batch_size=200,
        learning_rate=0.05,
        momentum=0.8,
        security=security,
        encryption=SMALL,
    )
    model.fit(divided(table, 2), **FIT)
    np.testing.assert_allclose(united(model.coef_, names), best, atol=0.02)

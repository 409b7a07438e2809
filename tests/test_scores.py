"""One signature of `score` for all estimators; the truth is in the tables, or comes as y, by id or order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, d2_tweedie_score, mean_squared_error, r2_score, roc_auc_score

from horizontal import FedClassifier, FedRegressor
from protocols.errors import ConfigError, DataError, VflError
from protocols.estimator import Estimator
from protocols.hazmat.paillier import Plain
from split import SplitClassifier, SplitRegressor
from tests.test_estimators import ESTIMATORS
from vfl import (
    VerticalGradientBoostingClassifier,
    VerticalGradientBoostingRegressor,
    VerticalLinearRegression,
    VerticalLogisticRegression,
    VerticalNetClassifier,
    VerticalNetRegressor,
    VerticalPoissonRegressor,
)

RNG = np.random.default_rng(0)
WHOLE = pd.DataFrame(RNG.normal(size=(160, 4)), columns=list("abcd"))
WHOLE["id"] = RNG.permutation(160) + 1000
WHOLE["y"] = (WHOLE["a"] + WHOLE["c"] + RNG.normal(size=160) > 0).astype(int)
WHOLE["z"] = WHOLE["a"] - 2 * WHOLE["d"] + 5 + RNG.normal(size=160)
WHOLE["n"] = RNG.poisson(np.exp(WHOLE["a"] * 0.3 + 1))
TARGETS = ["y", "z", "n"]
EXACT: dict[str, Any] = {"security": "plain"}
TREES: dict[str, Any] = {"encryption": Plain(), "n_estimators": 3, "max_depth": 2}
KINDS: list[tuple[Any, str, dict[str, Any]]] = [
    (FedClassifier, "y", {"rounds": 2}),
    (FedRegressor, "z", {"rounds": 2}),
    (SplitClassifier, "y", {"epochs": 2}),
    (SplitRegressor, "z", {"epochs": 2}),
    (VerticalNetClassifier, "y", {"epochs": 2}),
    (VerticalNetRegressor, "z", {"epochs": 2}),
    (VerticalLogisticRegression, "y", EXACT),
    (VerticalLinearRegression, "z", EXACT),
    (VerticalPoissonRegressor, "n", EXACT),
    (VerticalGradientBoostingClassifier, "y", TREES),
    (VerticalGradientBoostingRegressor, "z", TREES),
    (VerticalGradientBoostingRegressor, "n", {**TREES, "loss": "poisson"}),
]
every = pytest.mark.parametrize(
    ("kind", "target", "how"), KINDS, ids=[f"{kind.__name__}-{t}" for kind, t, _ in KINDS]
)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def fitted(kind: Any, target: str, how: dict[str, Any]) -> tuple[Any, Any]:
    """A model, and tables to score; in vertical ones the label party has rows that nobody else has."""
    others = [name for name in TARGETS if name != target]
    table = WHOLE.drop(columns=others)
    if issubclass(kind, FedClassifier | FedRegressor | SplitClassifier | SplitRegressor):
        return kind(**how).fit({"n": table[:80], "s": table[80:]}, target=target, id="id"), table
    bank = table[["id", "a", "b", target]].sample(frac=1.0, random_state=1)
    shop = table[["id", "c", "d"]][:150]
    tables = {"bank": bank, "shop": shop}
    return kind(**how).fit(tables, f"bank.{target}", "id"), tables


def usual(kind: Any, target: str) -> Callable[..., float]:
    if target == "y":
        return lambda truth, said: float(accuracy_score(truth, said))
    if target == "n":
        return lambda truth, said: float(d2_tweedie_score(truth, said, power=1))
    return lambda truth, said: float(r2_score(truth, said))


@every
def test_score_is_scikit_learns_of_what_is_predicted(kind: Any, target: str, how: dict[str, Any]) -> None:
    model, data = fitted(kind, target, how)
    said = model.predict(data)
    by_id = WHOLE.set_index("id")[target]
    expected = usual(kind, target)(by_id.loc[said.index], said)
    table = data["bank"] if isinstance(data, dict) else data
    shuffled = by_id.sample(frac=1.0, random_state=5)
    ways = [None, by_id, shuffled, table[target], table[target].to_numpy(), table[target].tolist()]
    ways += [table[target].sample(frac=1.0, random_state=6), table[[target]]]
    for y in ways:
        assert model.score(data, y) == pytest.approx(expected, abs=1e-12)
    if target == "y":
        chances = model.predict_proba(data)
        auc = roc_auc_score(by_id.loc[chances.index], chances[1])
        assert model.score(data, scoring="roc_auc") == pytest.approx(auc, abs=1e-12)
    else:
        error = -mean_squared_error(by_id.loc[said.index], said)
        assert model.score(data, scoring="neg_mean_squared_error") == pytest.approx(error)
    weights = pd.Series(np.arange(160.0), index=pd.Index(WHOLE["id"]))
    first = model.score(data, sample_weight=weights.loc[table["id"]].to_numpy())
    assert first == pytest.approx(model.score(data, sample_weight=weights.sample(frac=1.0, random_state=7)))
    assert first != pytest.approx(expected)


@pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=list(ESTIMATORS))
def test_all_have_one_signature(kind: Any) -> None:
    assert inspect.signature(kind.score) == inspect.signature(Estimator.score)


WRONG: list[tuple[Any, type[VflError], str]] = [
    (lambda t: t["y"].to_numpy()[:9], DataError, "y has 9 values, and the table 160 rows"),
    (lambda t: np.full(160, 0.25), DataError, "none of 1[56]0 labels is among the model's 2 classes"),
    (lambda t: t["y"].astype(str), DataError, "none of 1[56]0 labels .* in another type"),
    (lambda t: t["y"].where(t["y"] > 0), DataError, "the truth is missing for"),
    (lambda t: t.set_index("id")["y"][:30], DataError, "y: 130 of the table's 160 ids are not in its index"),
    (lambda t: t["y"].set_axis(range(500, 660)).iloc[::-1], DataError, "its index is neither the table's"),
    (lambda t: 3, DataError, "y"),
]


@pytest.mark.parametrize(("make", "error", "said"), WRONG, ids=[said for _, _, said in WRONG])
@pytest.mark.parametrize("kind", [FedClassifier, VerticalLogisticRegression])
def test_a_truth_that_does_not_fit_is_named(kind: Any, make: Any, error: type[VflError], said: str) -> None:
    model, data = fitted(kind, "y", {"rounds": 1} if kind is FedClassifier else EXACT)
    table = data["bank"] if isinstance(data, dict) else data
    with pytest.raises(error, match=said):
        model.score(data, make(table))


def test_what_cannot_be_scored_says_so() -> None:
    model, data = fitted(VerticalLogisticRegression, "y", EXACT)
    with pytest.raises(ConfigError, match="scoring='acuracy' is none of scikit-learn's"):
        model.score(data, scoring="acuracy")
    with pytest.raises(DataError, match="scoring='neg_mean_poisson_deviance' does not fit|r2"):
        model.score(data, scoring="neg_mean_poisson_deviance")
    objects = {**data, "bank": data["bank"].astype({"y": object})}
    assert model.score(objects) == model.score(data)


REGRESSORS = [(kind, how) for kind, target, how in KINDS if target == "z"]


@pytest.mark.parametrize(("kind", "how"), REGRESSORS, ids=[kind.__name__ for kind, _ in REGRESSORS])
def test_where_a_target_lies_changes_no_score(kind: Any, how: dict[str, Any]) -> None:
    """Unix times lie around 1.7e9, where float32 knows steps of 128."""
    found = []
    for offset in (0.0, 1e7, 1.7e9):
        table = WHOLE[["id", *"abcd"]].assign(z=6 * WHOLE["z"] + offset)
        if issubclass(kind, FedRegressor | SplitRegressor):
            data: Any = {"n": table[:80], "s": table[80:]}
            model = kind(**how, learning_rate=0.01, random_state=1).fit(data, target="z", id="id")
        else:
            data = {"bank": table[["id", "a", "b", "z"]], "shop": table[["id", "c", "d"]]}
            model = kind(**how, random_state=1).fit(data, "bank.z", "id")
        found.append(model.score(data))
    assert found == pytest.approx([found[0]] * 3, abs=2e-3)

"""Equal to XGBoost's exact trees, and as good as XGBoost and scikit-learn on three real tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from xgboost import XGBClassifier, XGBRegressor

from examples import secureboost_credit
from protocols.hazmat.paillier import Plain
from tests.support import real
from tests.vfl.boosting.boosted import shared
from tests.vfl.boosting.test_estimator import classifier, regressor
from tests.vfl.customers import find
from vfl import VerticalGradientBoostingClassifier

DEPTH, BINS, TREES, RATE = 5, 64, 40, 0.15
CATEGORY = "category"


def table_of(name: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """With the column `y`; text is a category."""
    if name == "made up":
        made = find(name, secureboost_credit, monkeypatch)
        return made.drop(columns="ID").rename(columns={"default": "y"})
    if name == "credit":
        table = pd.read_csv(real.file(real.CREDIT)).drop(columns="ID")
        return table.rename(columns={"default.payment.next.month": "y"})
    if name == "adult":
        table = pd.read_csv(real.file("adult/adult.data"), skipinitialspace=True, na_values="?")
        table["y"] = (table.pop("classification") == ">50K").astype(int)
    else:
        table = pd.read_csv(real.file("bank_marketing/bank-full.csv"))
        table["y"] = (table["y"] == "yes").astype(int)
    text: list[str] = [*table.select_dtypes("str").columns.astype(str)]
    return table.astype(dict.fromkeys(text, CATEGORY))


REAL = [pytest.param(name, marks=pytest.mark.tables) for name in ("credit", "adult", "bank marketing")]


@pytest.mark.parametrize("name", ["made up", *REAL])
def test_it_is_as_good_as_the_pooled_trees_of_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(name, monkeypatch)
    columns = [column for column in table.columns if column != "y"]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(table))
    test, train = table.iloc[order[: len(table) // 4]], table.iloc[order[len(table) // 4 :]]
    at_bank = columns[::3]
    names = {"bank": [*at_bank, "y"], "shop": [c for c in columns if c not in at_bank]}

    def apart(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return {
            party: rows[own].assign(id=rows.index).sample(frac=1, random_state=1)
            for party, own in names.items()
        }

    ours = VerticalGradientBoostingClassifier(
        n_estimators=TREES,
        learning_rate=RATE,
        max_depth=DEPTH,
        max_bins=BINS,
        min_samples_split=2,
        encryption=Plain(),
    )
    said = ours.fit(apart(train), "bank.y", "id").predict_proba(apart(test))[1]
    found = roc_auc_score(test["y"].loc[said.index], said)
    peers: dict[str, Any] = {
        "XGBoost": XGBClassifier(
            n_estimators=TREES,
            learning_rate=RATE,
            max_depth=DEPTH,
            max_bin=BINS,
            tree_method="hist",
            enable_categorical=True,
            n_jobs=1,
        ),
        "scikit-learn": HistGradientBoostingClassifier(
            max_iter=TREES,
            learning_rate=RATE,
            max_depth=DEPTH,
            max_leaf_nodes=None,
            max_bins=BINS,
            min_samples_leaf=1,
            l2_regularization=1.0,
            early_stopping=False,
            categorical_features="from_dtype",
        ),
    }
    for peer, made in peers.items():
        made.fit(train[columns], train["y"])
        theirs = roc_auc_score(test["y"], made.predict_proba(test[columns])[:, 1])
        print(f"{name}: {found:.4f}, {peer} {theirs:.4f}")
        assert found > theirs - 0.005


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("columns", [(2, 3), (2, 3, 1)])
@pytest.mark.parametrize("loss", ["logistic", "squared", "poisson"])
def test_trees_are_those_of_xgboost(loss: Any, columns: tuple[int, ...], depth: int) -> None:
    """The only reference that shares no line with ours; where no two splits gain alike, as they do below."""
    rows = 400
    tables, y = shared(rows, columns)
    x, rng = pd.concat(tables.values(), axis=1), np.random.default_rng(0)
    if loss == "squared":
        y = pd.Series(x.fillna(0).to_numpy() @ rng.normal(size=x.shape[1]) + rng.normal(size=rows))
    elif loss == "poisson":
        y = pd.Series(rng.poisson(np.exp(x["x0"].fillna(0))))
    weights = rng.integers(1, 4, rows).astype(float)
    data = {party: table.assign(id=np.arange(rows)) for party, table in tables.items()}
    data["bank"] = data["bank"].assign(y=y)
    how: dict[str, Any] = {"n_estimators": 5, "max_depth": depth, "learning_rate": 0.3, "min_samples_leaf": 1}
    same: dict[str, Any] = {
        "tree_method": "exact",
        "base_score": float(np.average(y, weights=weights)),
        "n_jobs": 1,
    }
    fine = {"max_bins": 255, "gradient_bits": 24}  # a bin for each value
    theirs = {name: value for name, value in how.items() if name != "min_samples_leaf"}
    if loss == "logistic":
        ours = classifier(**how, **fine).fit(data, "bank.y", "id", sample_weight=weights)
        peer = XGBClassifier(**theirs, **same).fit(x, y, sample_weight=weights)
        found, expected = ours.predict_proba(data)[1], peer.predict_proba(x)[:, 1]
    else:
        task = {"squared": "reg:squarederror", "poisson": "count:poisson"}[loss]
        model = regressor(**how, **fine, loss=loss).fit(data, "bank.y", "id", sample_weight=weights)
        peer = XGBRegressor(**theirs, **same, objective=task, max_delta_step=0)
        found, expected = model.predict(data), peer.fit(x, y, sample_weight=weights).predict(x)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)

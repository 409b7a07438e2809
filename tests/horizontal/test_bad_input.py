"""What cannot be meant is refused at the caller, and says which party, before a line opens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from torch import nn

from horizontal import FedClassifier, FedRegressor
from protocols.errors import ConfigError, DataError
from protocols.estimator import NotFittedError
from tests.support.row_clients import rows

Change = Callable[[pd.DataFrame], pd.DataFrame]

TABLES: dict[str, tuple[Change, str]] = {
    "no target": (lambda t: t.rename(columns={"y": "Y"}), "b/fit: no target column 'y'.*did you mean 'Y'"),
    "no rows": (lambda t: t.iloc[:0], "b/fit: the table has 0 rows"),
    "a gap": (lambda t: t.assign(x1=t["x1"].where(t.index > 2)), "b/fit: column 'x1' has 3 missing"),
    "text": (lambda t: t.assign(x2="?"), "b/fit: column 'x2' is .*expected numbers"),
    "a missing label": (lambda t: t.assign(y=t["y"].where(t.index > 2)), "b/fit: .*'y'.* 3 of 15"),
    "a column less": (lambda t: t.drop(columns="x3"), "b/fit: .* 3 feature columns: 1 of .* are missing, 0"),
    "a column more": (lambda t: t.assign(z=1), "b/fit: .* 5 feature columns: 0 of .* are missing, 1"),
    "another name": (lambda t: t.rename(columns={"x3": "X3"}), "b/fit: .* 1 of .* are missing, 1"),
    "no id": (lambda t: t.drop(columns="key"), "b/fit: no id column 'key'"),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("kind", [FedClassifier, FedRegressor])
def test_a_table_that_cannot_be_used(kind: type[FedClassifier | FedRegressor], case: str) -> None:
    change, said = TABLES[case]
    tables = {
        name: table.assign(key=np.arange(len(table))) for name, table in rows({"a": 12, "b": 15}).items()
    }
    tables["b"] = change(tables["b"])
    with pytest.raises(DataError, match=said):
        kind(hidden=(4,)).fit(tables, target="y", id="key")


def test_no_client_reads_anothers_column_names() -> None:
    tables = rows({"a": 12, "b": 15})
    tables["a"] = tables["a"].rename(columns={"x3": "secret"})
    tables["b"] = tables["b"].rename(columns={"x3": "secrets"})
    with pytest.raises(DataError, match="^b/fit: ") as raised:
        FedClassifier(hidden=(4,)).fit(tables, target="y")
    assert "secret" not in str(raised.value)


def test_no_feature_beside_the_target() -> None:
    with pytest.raises(DataError, match="a/fit: there is no feature column"):
        FedClassifier().fit({"a": rows({"a": 12})["a"][["y"]]}, target="y")


def test_one_class_overall() -> None:
    tables = {name: table.assign(y=1) for name, table in rows({"a": 12, "b": 15}).items()}
    with pytest.raises(DataError, match="server/setup: the target has 1 class"):
        FedClassifier(hidden=(4,)).fit(tables, target="y")


def test_labels_of_two_types() -> None:
    tables = rows({"a": 12, "b": 15})
    tables["b"]["y"] = tables["b"]["y"].astype(str)
    with pytest.raises(DataError, match="labels are int at a and str at b"):
        FedClassifier(hidden=(4,)).fit(tables, target="y")


@pytest.mark.parametrize("standardise", [True, False])
def test_one_row_is_not_told_as_its_mean(standardise: bool) -> None:
    tables = rows({"a": 12, "b": 15})
    tables["b"] = tables["b"].iloc[:1]
    model = FedClassifier(hidden=(4,), rounds=1, standardise=standardise)
    if not standardise:
        assert len(model.fit(tables, target="y").ledger_)
        return
    with pytest.raises(DataError, match="^b/setup: 1 training row, expected at least 2"):
        model.fit(tables, target="y")


def test_a_client_named_server() -> None:
    with pytest.raises(ConfigError, match="no client can be named 'server'"):
        FedClassifier().fit({"server": rows({"a": 12})["a"]}, target="y")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"local_epochs": 0}, "local_epochs=0"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": None}, "fraction=None"),
        ({"algorithm": "fedadam"}, "algorithm='fedadam' should be"),
        ({"algorithm": "fedsgd", "local_epochs": 2}, "fedsgd takes one step"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"hidden": (0,)}, "whole numbers above 0"),
        ({"learning_rate": "x"}, "learning_rate='x' should be a number above 0"),
        ({"weight_decay": None}, "weight_decay=None should be a number, at least 0"),
        ({"batch_size": None}, "batch_size=None should be a whole number above 0"),
        ({"hidden": 8}, "hidden=8 should be a list of whole numbers"),
        ({"hidden": None}, "hidden=None should be a list of whole numbers"),
        ({"standardise": "no"}, "standardise='no' should be True or False"),
        ({"random_state": -1}, "random_state=-1 should be a whole number"),
        ({"rounds": "x"}, "rounds='x' should be a whole number above 0"),
        ({"local_epochs": None}, "local_epochs=None should be a whole number above 0"),
        ({"model": "mpl"}, "model 'mpl' is not among those registered, mlp; did you mean 'mlp'"),
        ({"model": 3}, "should be a torch.nn.Module, the name of a registered network, or None, got int"),
        ({"model": nn.Linear(4, 3)}, "model gives 3 outputs for a row, expected 2: one for each class"),
        (
            {"model": nn.Linear(5, 2)},
            "model fails on 2 rows of 4 features, all zeros in float32, with Runt",
        ),
        ({"model": nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (2, 1)))}, "outputs of shape"),
        ({"model": nn.Linear(4, 2).double()}, "model: weight is torch.float64, expected float32; call float"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, object], said: str) -> None:
    model = FedClassifier().set_params(**settings)
    with pytest.raises(ConfigError, match=said):
        model.fit(rows({"a": 12, "b": 15}), target="y")
    assert not hasattr(model, "ledger_")


def test_predicting() -> None:
    tables = rows({"a": 12, "b": 15})
    model = FedClassifier(hidden=(4,), rounds=1)
    with pytest.raises(NotFittedError, match="this FedClassifier is not fitted; call fit"):
        model.predict(tables)
    model.fit(tables, target="y")
    with pytest.raises(DataError, match=r"b/predict: 1 of 4 columns .*'x2'"):
        model.predict({"a": tables["a"], "b": tables["b"].drop(columns="x2")})
    with pytest.raises(DataError, match="client/predict: the table has 0 rows"):
        model.predict_proba(tables["a"].iloc[:0])

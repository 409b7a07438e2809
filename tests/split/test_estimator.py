"""The estimators' face: scikit-learn's contract, parts on disk, bad input."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn

from protocols.errors import ConfigError, DataError, VflError
from protocols.estimator import NotFittedError
from split import SplitClassifier, SplitRegressor
from tests.support.split_rows import tables

DATA = {name: table.drop(columns="z") for name, table in tables([60, 50]).items()}
NUMBERS = {name: table.drop(columns="y") for name, table in tables([120, 120]).items()}
NEW = tables([40], seed=7)["client0"].set_index(np.arange(100, 140))


@pytest.fixture(scope="module", params=[2, (2, 4)])
def fitted(request: pytest.FixtureRequest) -> SplitClassifier:
    return SplitClassifier(cut=request.param, epochs=5, learning_rate=0.01).fit(DATA, target="y")


def test_it_learns_and_answers_by_row(fitted: SplitClassifier) -> None:
    shares, labels = fitted.predict_proba(NEW), fitted.predict(NEW)
    assert shares.columns.to_list() == fitted.classes_.tolist() == ["no", "yes"]
    assert shares.index.equals(NEW.index) and labels.index.equals(NEW.index) and labels.name == "y"
    assert (labels == shares.idxmax(axis=1)).all()
    assert fitted.score(NEW, NEW["y"]) > 0.7


def test_the_tables_of_several_clients_are_asked_about_at_once(fitted: SplitClassifier) -> None:
    together = fitted.predict_proba({"a": NEW.head(15), "b": NEW.tail(25)})
    pd.testing.assert_frame_equal(together, fitted.predict_proba(NEW), rtol=1e-5)


@pytest.mark.parametrize("cut", [2, (2, 4)])
def test_a_regressor_answers_in_the_targets_unit(cut: int | tuple[int, int]) -> None:
    model = SplitRegressor(cut=cut, epochs=12, learning_rate=0.02).fit(NUMBERS, target="z")
    assert model.score(NEW, NEW["z"]) > 0.9


def test_an_id_is_no_feature_and_indexes_predictions() -> None:
    data = {name: table.assign(who=np.arange(len(table))) for name, table in DATA.items()}
    model = SplitClassifier(epochs=1).fit(data, target="y", id="who")
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3", "x4"]
    asked = NEW.assign(who=np.arange(len(NEW)) + 7)
    assert model.predict(asked).index.tolist() == asked["who"].tolist()
    assert model.predict(NEW).index.equals(NEW.index)


def test_columns_may_stand_in_another_order() -> None:
    shuffled = {"client0": DATA["client0"], "client1": DATA["client1"][["y", "x3", "x0", "x4", "x2", "x1"]]}
    plain, other = (SplitClassifier(epochs=1).fit(data, target="y") for data in (DATA, shuffled))
    assert plain.predict_proba(NEW).equals(other.predict_proba(NEW[NEW.columns[::-1]]))


def test_clone_and_pickle(fitted: SplitClassifier) -> None:
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params() and not hasattr(fresh, "parts_")
    copied = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own bytes
    assert copied.predict_proba(NEW).equals(fitted.predict_proba(NEW))
    assert copied.ledger_.nbytes == fitted.ledger_.nbytes


def test_saved_parts_predict_the_same(fitted: SplitClassifier, tmp_path: Path) -> None:
    run = fitted.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client0", "client1", "server"]
    loaded = SplitClassifier.load(tmp_path, run)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.predict_proba(NEW).equals(fitted.predict_proba(NEW))
    assert loaded.save(tmp_path, run) == run  # the same parts again


def test_saved_regressors_with_a_model_of_the_callers_own(tmp_path: Path) -> None:
    first = nn.Linear(5, 4)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(4, 1))
    fitted = SplitRegressor(model, 1, epochs=1).fit(NUMBERS, target="z")
    fitted.save(tmp_path, "mine")
    with torch.no_grad():
        first.weight.zero_()
    assert SplitRegressor.load(tmp_path, "mine", model=model).predict(NEW).equals(fitted.predict(NEW))
    with pytest.raises(ConfigError, match="bring the saved one"):
        SplitRegressor.load(tmp_path, "mine")
    with pytest.raises(ConfigError, match=r"^client0/load: .*SplitRegressor, expected SplitClassifier"):
        SplitClassifier.load(tmp_path, "mine")


def test_parts_of_two_runs_are_not_put_together(tmp_path: Path) -> None:
    for seed, store in ((0, tmp_path / "a"), (1, tmp_path / "b")):
        SplitClassifier(epochs=1, random_state=seed).fit(DATA, target="y").save(store, "r")
    (tmp_path / "a/server").rename(tmp_path / "old")
    (tmp_path / "b/server").rename(tmp_path / "a/server")
    with pytest.raises(DataError, match=r"^client0/load: .*part of server is not of the same training"):
        SplitClassifier.load(tmp_path / "a", "r")


def test_predict_before_fit_says_so() -> None:
    with pytest.raises(NotFittedError, match="call fit"):
        SplitClassifier().predict(NEW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cut": 0}, "cut=0 lies outside a model of 5 layers; valid cuts: from 1 to 4"),
        ({"cut": 5}, "cut=5 lies outside a model of 5 layers; valid cuts: from 1 to 4"),
        (
            {"cut": (2, 5)},
            r"cut=\(2, 5\) does not fit a model of 5 layers; valid cuts: 1 <= first < second <= 4",
        ),
        ({"cut": (3, 3)}, "valid cuts: 1 <= first < second <= 4"),
        ({"cut": 1.0}, "should be a number of layers"),
        ({"cut": (1, 2, 3)}, "should be a number of layers"),
        ({"model": nn.Sequential(nn.Linear(5, 2)), "cut": 1}, "valid cuts: none"),
        ({"model": nn.Linear(5, 2)}, "should be an nn.Sequential"),
        (
            {"model": nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "cut": 1},
            "fails on 2 rows of 5 columns, all zeros in float32, with RuntimeError: mat1 and mat2",
        ),
        ({"model": nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 9)), "cut": 1}, r"\(9,\), expected \(2,\)"),
        ({"epochs": 0}, "epochs=0 should be"),
        ({"learning_rate": "x"}, "learning_rate='x' should be a number above 0"),
        ({"weight_decay": None}, "weight_decay=None should be a number, at least 0"),
        ({"batch_size": None}, "batch_size=None should be a whole number above 0"),
        ({"hidden": 8}, "hidden=8 should be a list of whole numbers"),
        ({"hidden": None}, "hidden=None should be a list of whole numbers"),
        ({"standardise": "no"}, "standardise='no' should be True or False"),
        ({"random_state": -1}, "random_state=-1 should be a whole number"),
        ({"optimizer": "rmsprop"}, "should be 'adam' or 'sgd'"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SplitClassifier(**settings).fit(DATA, target="y")


def test_layers_may_not_share_weights_across_the_cut() -> None:
    tied = nn.Linear(5, 5)
    with pytest.raises(ConfigError, match="share weights"):
        SplitClassifier(nn.Sequential(tied, nn.ReLU(), tied, nn.Linear(5, 2)), 2).fit(DATA, target="y")
    SplitClassifier(nn.Sequential(tied, nn.ReLU(), tied, nn.Linear(5, 2)), 3, epochs=1).fit(DATA, target="y")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.assign(x1=np.nan), "client1/fit: column 'x1' has 50 missing or infinite"),
        (lambda t: t.assign(x1="a"), "client1/fit: column 'x1' is str, expected numbers"),
        (lambda t: t.head(0), "client1/fit: the table has 0 rows"),
        (lambda t: t.drop(columns="y"), "client1/fit: no target column 'y'"),
        (
            lambda t: t.drop(columns="x1"),
            "client1/fit: the table has 4 feature columns: 1 of the first client's",
        ),
        (
            lambda t: t.assign(extra=1.0),
            "client1/fit: the table has 6 feature columns: 0 of the first client's",
        ),
        (lambda t: t.assign(y=None), "client1/fit: target 'y': 50 of 50 labels are missing"),
        (lambda t: t.head(1), "client1/setup: 1 training row, expected at least 2"),
        (lambda t: t.assign(y=1), "server/setup: labels are str at client0 and int at client1"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    with pytest.raises(DataError, match=f"^{said}"):
        SplitClassifier(epochs=1).fit({**DATA, "client1": spoil(DATA["client1"])}, target="y")


@pytest.mark.parametrize("cut", [2, (2, 4)])
@pytest.mark.parametrize("types", [(bool, int), (int, bool)])
def test_truth_values_are_not_numbers(cut: int | tuple[int, int], types: tuple[Any, Any]) -> None:
    mixed = {
        name: table.assign(y=(table["y"] == "yes").astype(kind))
        for (name, table), kind in zip(DATA.items(), types, strict=True)
    }
    first, second = (kind.__name__ for kind in types)
    said = f"labels are {first} at client0 and {second} at client1; give the target one type"
    with pytest.raises(DataError, match=f"^server/setup: {said}"):
        SplitClassifier(cut=cut, epochs=1).fit(mixed, target="y")


def test_other_things_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="^server/setup: the target has 1 class, expected at least 2"):
        SplitClassifier().fit({name: table.assign(y="no") for name, table in DATA.items()}, target="y")
    with pytest.raises(ConfigError, match="no client can be named 'server'"):
        SplitClassifier().fit({"server": DATA["client0"]}, target="y")
    with pytest.raises(DataError, match="^client0/fit: target 'y' is str, not numbers"):
        SplitRegressor().fit(DATA, target="y")
    with pytest.raises(VflError, match="^client0/fit: target 'z' is float64, not labels"):
        SplitClassifier().fit(NUMBERS, target="z")


def test_a_table_that_cannot_be_predicted_is_named(fitted: SplitClassifier) -> None:
    with pytest.raises(DataError, match="^client/predict: 1 of 5 columns of the fitted table are missing"):
        fitted.predict(NEW.drop(columns="x2"))
    with pytest.raises(DataError, match="^shop/predict: the table has 0 rows"):
        fitted.predict({"shop": NEW.head(0)})


def test_a_class_may_be_missing_at_a_client() -> None:
    lacking = {**DATA, "client1": DATA["client1"].assign(y="maybe")}
    model = SplitClassifier(epochs=1).fit(lacking, target="y")
    assert model.classes_.tolist() == ["maybe", "no", "yes"]

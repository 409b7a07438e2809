"""The estimators keep scikit-learn's contract and learn real tables."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from torch import nn

from horizontal import FedClassifier, FedRegressor
from protocols.arrays import Arrays
from protocols.data.partition import dirichlet, iid
from protocols.errors import ConfigError
from protocols.learning.training import outputs_flops
from tests.support.row_clients import diabetes, digits, rows


def test_learns_digits_and_beats_each_client_alone() -> None:
    train, test = digits()
    parts = dirichlet(train["digit"], 4, 0.3, np.random.default_rng(0), min_rows=50)
    clients = {f"c{i}": train.iloc[part] for i, part in enumerate(parts)}
    model = FedClassifier(hidden=(32,), rounds=8, local_epochs=2, learning_rate=3e-3)
    score = model.fit(clients, target="digit").score(test.drop(columns="digit"), test["digit"])
    alone = clone(model).fit({"c0": clients["c0"]}, target="digit")
    assert score > 0.9
    assert score > 0.05 + alone.score(test.drop(columns="digit"), test["digit"])
    assert model.history_["loss"].iloc[-1] < 0.5 * model.history_["loss"].iloc[0]


def test_regression_comes_near_pooled_ridge() -> None:
    train, test = diabetes()
    parts = iid(len(train), 4, np.random.default_rng(0))
    model = FedRegressor(hidden=(16,), rounds=20, learning_rate=1e-2)
    model.fit({f"c{i}": train.iloc[part] for i, part in enumerate(parts)}, target="progress")
    x, y = test.drop(columns="progress"), test["progress"]
    pooled = Ridge(1e-2).fit(train.drop(columns="progress"), train["progress"])
    assert model.score(x, y) > pooled.score(x, y) - 0.06


def test_predictions_are_indexed_and_local() -> None:
    tables = rows({"a": 12, "b": 15})
    tables = {name: t.assign(key=[f"{name}{i}" for i in range(len(t))]) for name, t in tables.items()}
    model = FedClassifier(hidden=(4,), rounds=2).fit(tables, target="y", id="key")
    assert list(model.feature_names_in_) == ["x0", "x1", "x2", "x3"] and model.n_features_in_ == 4
    assert model.classes_.tolist() == [0, 1]
    said, sure = model.predict(tables), model.predict_proba(tables)
    assert said.index.tolist() == [f"a{i}" for i in range(12)] + [f"b{i}" for i in range(15)]
    assert said.name == "y" and sure.index.equals(said.index) and sure.columns.equals(pd.Index([0, 1]))
    np.testing.assert_allclose(sure.sum(axis=1), 1)
    assert (sure.idxmax(axis=1) == said).all()
    assert len(model.predict_ledger_) == 0 and model.predict_ledger_.compute["b"].flops > 0
    # One table, without target and id, columns in another order: its own index.
    alone = model.predict_proba(tables["b"][["x3", "x1", "x0", "x2"]].set_index(np.arange(15) + 100))
    assert alone.index.tolist() == list(range(100, 115))
    np.testing.assert_allclose(alone, sure.iloc[12:], rtol=1e-5)


@pytest.mark.parametrize("standardise", [True, False])
def test_predicting_costs_standardising_and_the_network(standardise: bool) -> None:
    tables = rows({"a": 12, "b": 15})
    model = FedClassifier(hidden=(4,), rounds=1, standardise=standardise).fit(tables, target="y")
    model.predict(tables)
    spent = {name: compute.flops for name, compute in model.predict_ledger_.compute.items()}
    scaling = 2 * 4 * standardise
    assert spent == {n: outputs_flops(model.model_, (k, 4)) + scaling * k for n, k in (("a", 12), ("b", 15))}


def test_columns_are_taken_in_sorted_order_whatever_order_they_came_in() -> None:
    tables = rows({"a": 12, "b": 15})
    turned = {
        "a": tables["a"][["x3", "x1", "y", "x2", "x0"]],
        "b": tables["b"][["y", "x2", "x0", "x3", "x1"]],
    }
    first, second = (FedClassifier(hidden=(4,), rounds=2).fit(t, target="y") for t in (tables, turned))
    assert second.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3"]
    assert Arrays.from_module(first.model_) == Arrays.from_module(second.model_)


def test_labels_unite_and_a_client_may_hold_one_class() -> None:
    tables = rows({"a": 12, "b": 15})
    tables["a"]["y"], tables["b"]["y"] = "yes", ["no", "who"] * 7 + ["no"]
    model = FedClassifier(hidden=(4,), rounds=2).fit(tables, target="y")
    assert model.classes_.tolist() == ["no", "who", "yes"]
    assert set(model.predict(tables)) <= {"no", "who", "yes"}


def test_without_standardising_no_moments_are_told() -> None:
    tables = rows({"a": 12, "b": 15}, columns=9)
    plain = FedClassifier(hidden=(4,), rounds=1, standardise=False).fit(tables, target="y")
    assert not [e for e in plain.ledger_ if "Moments" in e.kind or "Scaling" in e.kind]
    regressor = FedRegressor(hidden=(4,), rounds=1, standardise=False).fit(tables, target="y")
    told = [e.nbytes for e in regressor.ledger_ if "Moments" in e.kind]
    both = FedRegressor(hidden=(4,), rounds=1).fit(tables, target="y")
    assert len(told) == 2 and told[0] < next(e.nbytes for e in both.ledger_ if "Moments" in e.kind)
    assert np.isfinite(regressor.predict(tables)).all()


def test_parameters_clone_and_pickle() -> None:
    tables = rows({"a": 12, "b": 15})
    net = nn.Linear(4, 2)
    model = FedClassifier(net, rounds=2, fraction=0.5, random_state=3)
    copied = clone(model)
    given, held = model.get_params(), copied.get_params()
    assert given["model"] is net
    assert {k: v for k, v in given.items() if k != "model"} == {k: v for k, v in held.items() if k != "model"}
    assert not hasattr(copied, "model_")
    model.fit(tables, target="y")
    back = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    pd.testing.assert_frame_equal(back.predict_proba(tables), model.predict_proba(tables))
    pd.testing.assert_frame_equal(back.ledger_.frame(), model.ledger_.frame())
    assert model.set_params(rounds=1).fit(tables, target="y").history_.shape == (1, 4)


@pytest.mark.parametrize("kind", [FedClassifier, FedRegressor])
def test_what_is_saved_predicts_the_same(kind: type[FedClassifier | FedRegressor], tmp_path: Path) -> None:
    tables = rows({"a": 12, "b": 15})
    model = kind(hidden=(4,), rounds=2).fit(tables, target="y")
    run = model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "server"]
    for party in ("a", "b", "server"):
        back = kind.load(tmp_path, run, party=party)
        pd.testing.assert_series_equal(back.predict(tables), model.predict(tables))
    assert back.get_params() == model.get_params() and back.target_ == "y"
    other = FedRegressor if kind is FedClassifier else FedClassifier
    with pytest.raises(ConfigError, match=f"is of horizontal.{kind.__name__}, expected"):
        other.load(tmp_path, run)


def test_an_own_network_is_loaded_into_a_module_of_its_shape(tmp_path: Path) -> None:
    tables = rows({"a": 12, "b": 15})
    model = FedClassifier(nn.Linear(4, 2), rounds=2).fit(tables, target="y")
    run = model.save(tmp_path, "mine")
    assert run == "mine"
    back = FedClassifier.load(tmp_path, run, model=nn.Linear(4, 2))
    pd.testing.assert_frame_equal(back.predict_proba(tables), model.predict_proba(tables))


def test_lazy_layers_are_built_from_the_seed() -> None:
    tables = rows({"a": 12, "b": 15})
    state = torch.get_rng_state()
    net = nn.LazyLinear(2)
    first, again = (FedClassifier(net, rounds=1).fit(tables, target="y") for _ in range(2))
    assert isinstance(net.weight, nn.UninitializedParameter)  # the caller's own is left alone
    assert Arrays.from_module(first.model_) == Arrays.from_module(again.model_)
    assert torch.equal(state, torch.get_rng_state())


def test_fits_inside_a_running_event_loop() -> None:
    async def notebook() -> FedClassifier:
        return FedClassifier(hidden=(4,), rounds=2).fit(rows({"a": 12}), target="y")

    assert len(asyncio.run(notebook()).history_) == 2

"""Laws of all estimators: scikit-learn's contract, and settings that are written once."""

from __future__ import annotations

import importlib
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from torch import nn

from horizontal import FedClassifier
from horizontal.algorithms.choice import Choice
from horizontal.parameters import Horizontal
from protocols.hazmat.paillier import Fixed, Paillier, Plain
from protocols.programs import Parameters
from protocols.settings import plain
from split import SplitClassifier
from split.parameters import SplitNet
from tests.test_surface import SURFACE
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier
from vfl.base import Vertical
from vfl.boosting.parameters import Boosting
from vfl.linear.parameters import VerticalLinear
from vfl.network.parameters import VerticalNet

PARAMETERS: dict[str, type[Parameters]] = {
    "Fed": Horizontal,
    "Split": SplitNet,
    "VerticalNet": VerticalNet,
    "VerticalGradientBoosting": Boosting,
    "VerticalL": VerticalLinear,
    "VerticalPoisson": VerticalLinear,
}
ESTIMATORS = {
    name: getattr(importlib.import_module(package), name)
    for package in ("horizontal", "split", "vfl")
    for name in SURFACE[package]
    if name.endswith(("Classifier", "Regressor", "Regression"))
}
every = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=list(ESTIMATORS))
OTHER: dict[str, Any] = {  # a value that no default is
    "model": nn.Sequential(nn.Linear(2, 2)),
    "bottoms": {"shop": nn.Linear(2, 2)},
    "encryption": Paillier(3072),
    "cut": (1, 2),
    "hidden": [7],
    "normalise": ["strip"],
}


def test_there_are_eleven() -> None:
    assert len(ESTIMATORS) == 11


@every
def test_settings_go_in_and_come_out(estimator: Any) -> None:
    names = list(estimator().get_params())
    assert names == sorted(inspect.signature(estimator).parameters) and len(names) >= 11
    values = {name: OTHER.get(name, object()) for name in names}
    made = estimator(**values)
    assert all(made.get_params(deep=False)[name] is value for name, value in values.items())
    assert {*vars(made)} == {*names}  # nothing is learnt yet, and nothing is looked at
    again = estimator().set_params(**values)
    assert all(getattr(again, name) is value for name, value in values.items())
    with pytest.raises(TypeError, match="unexpected keyword argument 'round'"):
        estimator(round=1)


@every
def test_clone_pickle_and_repr(estimator: Any) -> None:
    made = estimator(random_state=7)
    assert repr(made) == f"{estimator.__name__}(random_state=7)"
    assert clone(made).get_params() == made.get_params() and clone(made) is not made
    copied = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own bytes
    assert copied.get_params() == made.get_params()
    assert made != clone(made) and len({made, clone(made)}) == 2  # an estimator is itself and no value
    weighty = estimator(**{name: value for name, value in OTHER.items() if name in made.get_params()})
    given, held = weighty.get_params(), clone(weighty).get_params()
    assert {name for name in given if type(given[name]) is not type(held[name])} == set()


@every
def test_what_may_be_given_by_place(estimator: Any) -> None:
    by_place = [
        name
        for name, one in inspect.signature(estimator).parameters.items()
        if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    first = {"Fed": ["model"], "Spl": ["model", "cut"]}
    assert by_place == first.get(estimator.__name__[:3], [])
    with pytest.raises(TypeError, match="positional argument"):
        estimator(*range(len(by_place) + 1))


@every
def test_an_estimators_defaults_are_those_of_its_program(estimator: Any) -> None:
    told = next(kind for start, kind in PARAMETERS.items() if estimator.__name__.startswith(start))
    mine = estimator().get_params()
    shared = {name: field for name, field in told.model_fields.items() if name in mine}
    assert len(shared) >= 10
    for name, field in shared.items():
        theirs = field.default.name if isinstance(field.default, Choice) else field.default
        if name not in ("model", "cut", "encryption"):  # there in other words: None, 2 and Paillier()
            assert mine[name] == theirs, name


NUMPYS: list[tuple[Any, dict[str, Any]]] = [
    (FedClassifier, {"rounds": np.int64(2), "hidden": (np.int64(4), 3), "learning_rate": np.float32(0.01)}),
    (SplitClassifier, {"epochs": np.int64(1), "hidden": [np.int32(4), 3], "cut": np.int64(2)}),
    (VerticalNetClassifier, {"epochs": np.int64(1), "hidden": (np.int64(8), 4), "random_state": np.int64(3)}),
    (VerticalLogisticRegression, {"l2": np.float32(0.1), "max_iter": np.int64(3), "security": "plain"}),
    (VerticalGradientBoostingClassifier, {"n_estimators": np.int64(2), "learning_rate": np.float32(0.3)}),
]


@pytest.mark.parametrize(("kind", "settings"), NUMPYS, ids=[kind.__name__ for kind, _ in NUMPYS])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_numpys_numbers_are_settings_as_pythons_are(
    kind: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(rng.normal(size=(120, 4)), columns=list("abcd")).assign(id=np.arange(120))
    whole["y"] = (whole["a"] + whole["c"] > 0).astype(int)
    vertical = issubclass(kind, Vertical)
    rows = {"north": whole[:60], "south": whole[60:]}
    columns = {"bank": whole[["id", "a", "b", "y"]], "shop": whole[["id", "c", "d"]]}
    if kind is VerticalGradientBoostingClassifier:
        settings = {**settings, "encryption": Plain()}

    def fitted(how: dict[str, Any]) -> Any:
        model = kind(**how)
        return model.fit(columns, "bank.y", "id") if vertical else model.fit(rows, target="y", id="id")

    def said(model: Any) -> pd.DataFrame:
        found: pd.DataFrame = model.predict_proba(columns if vertical else whole.drop(columns="y"))
        return found

    model = fitted(settings)
    plainly = {name: plain(value) for name, value in settings.items()}
    expected = said(fitted(plainly))
    pd.testing.assert_frame_equal(said(model), expected, check_exact=True)
    again = kind.load(tmp_path, model.save(tmp_path))
    pd.testing.assert_frame_equal(said(again), expected, check_exact=True)


def test_numpys_numbers_bound_what_is_encrypted() -> None:
    limit, bits = np.array([100, 3])
    assert Fixed(limit, bits) == Fixed(100, 3)

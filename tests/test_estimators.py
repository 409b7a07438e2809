"""Laws of all estimators: scikit-learn's contract, and settings that are written once."""

from __future__ import annotations

import importlib
import inspect
import pickle
from typing import Any

import pytest
from sklearn.base import clone
from torch import nn

from horizontal.algorithms.choice import Choice
from horizontal.parameters import Horizontal
from protocols.hazmat.paillier import Paillier
from protocols.programs import Parameters
from split.parameters import SplitNet
from tests.test_surface import SURFACE
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

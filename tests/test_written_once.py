"""A hyperparameter is written once where the roles read it: in the parameters that the program is told."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal

import pytest

from protocols.programs import Parameters, program, registered

# Weights, a rule and a function that have the name of what they were chosen by.
NAMESAKES = {("_Kept", "model"), ("Algorithm", "server"), ("Learnt", "loss")}


class Tuned(Parameters):
    """As a program's."""

    label_party: str
    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    l2: float = 0.0


@dataclass
class Copied:
    """What there may not be."""

    label_party: str
    l2: float = 0.0


def hyperparameters(parameters: type[Parameters]) -> set[str]:
    """All that may be left out, as estimators' users may."""
    return {name for name, field in parameters.model_fields.items() if not field.is_required()}


def copies(parameters: type[Parameters], classes: list[type]) -> list[str]:
    """The fields of dataclasses among `classes` that repeat a hyperparameter."""
    return [
        f"{one.__name__}.{field.name}"
        for one in classes
        if is_dataclass(one)
        for field in fields(one)
        if field.name in hyperparameters(parameters) and (one.__name__, field.name) not in NAMESAKES
    ]


def classes_beside(parameters: type[Parameters]) -> Iterator[type]:
    """The classes of the package of `parameters`, but for the estimators, whose own settings these are."""
    package = importlib.import_module(parameters.__module__.rpartition(".")[0])
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        if not found.name.endswith(".estimator"):
            yield from (one for one in vars(module).values() if getattr(one, "__module__", "") == found.name)


@pytest.mark.parametrize("name", [*registered()])
def test_no_dataclass_of_a_method_repeats_a_hyperparameter(name: str) -> None:
    parameters = program(name).parameters
    assert hyperparameters(parameters)
    assert copies(parameters, [one for one in classes_beside(parameters) if isinstance(one, type)]) == []


def test_a_dataclass_that_repeats_one_is_found() -> None:
    assert copies(Tuned, [Copied]) == ["Copied.l2"]

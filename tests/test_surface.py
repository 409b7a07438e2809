"""What users may rely on is listed here; a change of it is a change of this file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest

SURFACE: dict[str, list[str]] = {
    "protocols": [
        "Arrays",
        "Coordinator",
        "Federation",
        "Message",
        "Parameters",
        "Party",
        "Program",
        "Seat",
        "Spec",
        "simulate",
    ],
    "protocols.compare": ["Method", "Outcome", "Task", "compare"],
    "horizontal": ["FedClassifier", "FedRegressor"],
    "split": ["SplitClassifier", "SplitRegressor"],
    "vfl": [
        "Alignment",
        "AlignmentReport",
        "VerticalGradientBoostingClassifier",
        "VerticalGradientBoostingRegressor",
        "VerticalLinearRegression",
        "VerticalLogisticRegression",
        "VerticalNetClassifier",
        "VerticalNetRegressor",
        "VerticalPoissonRegressor",
        "align",
    ],
}
TAKEN = ("annotations", "lazily", "TYPE_CHECKING")  # imported, and no name of the package's own
NAMES = [(package, name) for package, names in SURFACE.items() for name in names]


@pytest.mark.parametrize("package", SURFACE)
def test_the_exported_names_are_the_committed_ones(package: str) -> None:
    module = importlib.import_module(package)
    exported = getattr(module, "__all__", [])
    assert sorted(exported) == SURFACE[package] and len(set(exported)) == len(exported)
    public = [n for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v)]
    assert {*public} - {"annotations", "lazily", "TYPE_CHECKING"} <= {*exported}, (
        "a public name that is not exported"
    )


def callables(package: str, name: str) -> Iterator[tuple[str, object]]:
    value = getattr(importlib.import_module(package), name)
    yield name, value
    if inspect.isclass(value):
        for inner, member in vars(value).items():
            if not inner.startswith("_") and (
                inspect.isfunction(member) or isinstance(member, property | classmethod)
            ):
                yield f"{name}.{inner}", member


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_everything_exported_is_documented(package: str, name: str) -> None:
    for where, value in callables(package, name):
        text = inspect.getdoc(value)
        own = value.__doc__ if inspect.isclass(value) else text
        assert own and len(own.split()) >= 3, f"{package}.{where} has no docstring"


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_no_public_signature_is_a_bag(package: str, name: str) -> None:
    for where, value in callables(package, name):
        if inspect.isfunction(value):
            kinds = {p.kind for p in inspect.signature(value).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{package}.{where} takes **kwargs"

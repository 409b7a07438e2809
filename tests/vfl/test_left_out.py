"""Between organisations: rows that are left out of a training are a difference to those who see which they
are, and weights that make it one of a few rows are refused by those who see weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vfl.boosting.label
from protocols.errors import PolicyError
from protocols.hazmat.paillier import Paillier, Plain
from protocols.service.caller import Connected
from tests.support.networked import columns
from tests.support.served import lay_out, serving
from vfl import VerticalGradientBoostingClassifier, VerticalLinearRegression

FIT: dict[str, Any] = {"target": "bank.y", "id": "id"}
ROWS = 72  # of the bank


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Connected]:
    """The bank's connection to a telco whose policy says nothing of `min_difference`, nor by default of
    `min_group`."""
    found = columns()
    tables: dict[str, pd.DataFrame] = {party: found[party] for party in ("bank", "telco")}
    more = getattr(request, "param", "")
    lay_out(tmp_path, tables, f"min_intersection = 5\nmax_predictions = 0\n{more}")
    with serving(tmp_path, "telco"), Connected(tmp_path / "parties.toml", "bank", tables["bank"]) as all_:
        yield all_


def boosting(**settings: Any) -> VerticalGradientBoostingClassifier:
    few: dict[str, Any] = {"n_estimators": 2, "max_depth": 1, "encryption": Plain()}
    return VerticalGradientBoostingClassifier(**few | settings)


def linear(**settings: Any) -> VerticalLinearRegression:
    few: dict[str, Any] = {"security": "plain", "max_iter": 20, "tol": 1e-2}
    return VerticalLinearRegression(**few | settings)


def without(rows: int) -> np.ndarray[Any, Any]:
    """Weights that leave some out."""
    return (np.arange(ROWS) >= rows).astype(float)


# The few rows of a linear model's columns would be refused before.
@pytest.mark.parametrize("served", ["min_group = 3\n"], indirect=True)
@pytest.mark.parametrize("model", [boosting, linear])
def test_few_rows_that_are_held_out_are_a_difference(served: Connected, model: Any) -> None:
    with pytest.raises(PolicyError, match="min_difference"):
        model(early_stopping=True, validation_fraction=0.05).fit(served, **FIT)
    model().fit(served, **FIT)
    model(early_stopping=True, validation_fraction=0.25).fit(served, **FIT)
    with pytest.raises(PolicyError, match="min_difference"):  # nine rows more, of some other
        model(early_stopping=True, validation_fraction=0.05).fit(served, **FIT)


def test_few_rows_of_weight_0_are_a_difference(served: Connected) -> None:
    with pytest.raises(PolicyError, match="min_difference"):
        boosting().fit(served, **FIT, sample_weight=without(3))
    boosting().fit(served, **FIT, sample_weight=without(20))
    with pytest.raises(PolicyError, match="min_difference"):
        boosting().fit(served, **FIT, sample_weight=without(23))


def test_rounds_that_learn_from_nearly_the_same_rows_are_a_difference(served: Connected) -> None:
    with pytest.raises(PolicyError, match="min_difference"):
        boosting(subsample=0.95).fit(served, **FIT)
    boosting(subsample=0.7).fit(served, **FIT)


def test_weights_in_the_clear_are_held_to_min_group(
    served: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label party that does not check its own; sealed, they are seen by nobody, as the guide says."""
    monkeypatch.setattr(vfl.boosting.label, "check_weights", lambda _: None)
    weights = np.where(np.arange(ROWS) < 8, 1000.0, 1.0)
    with pytest.raises(PolicyError, match="min_group"):
        boosting().fit(served, **FIT, sample_weight=weights)
    boosting(encryption=Paillier(backend="gmpy2"), n_estimators=1).fit(served, **FIT, sample_weight=weights)

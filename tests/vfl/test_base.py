"""What vertical estimators share: weights of rows, and one party's own part of a model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from protocols.errors import ConfigError, DataError
from protocols.hazmat.paillier import Plain
from protocols.parts import load_part, save_part
from protocols.scores import weights_of
from protocols.service.caller import Connected
from tests.support.networked import columns
from tests.support.served import lay_out, serving
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier


def test_weights_come_back_as_numbers_in_their_order() -> None:
    assert weights_of(pd.Series([2, 0, 1], index=[5, 3, 4]), 3).tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, 1.0], r"each of the table's 3 rows, got shape \[2\]"),
        (1.0, r"got shape \[\]"),
        ([1.0, -1.0, np.nan], "of 3 sample weights 2 are negative, infinite or missing"),
        ([0.0, 0.0, 0.0], "0 are not 0"),
        (["a", "b", "c"], "got a list that holds none"),
        ("weight", "got a str that holds none"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(given: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        weights_of(given, 3)


@pytest.mark.parametrize(
    "model",
    [
        VerticalLogisticRegression(security="plain", max_iter=20, random_state=7),
        VerticalGradientBoostingClassifier(n_estimators=2, max_depth=2, encryption=Plain(), random_state=7),
        VerticalNetClassifier(hidden=(4,), epochs=1, random_state=7),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_part_that_was_trained_over_a_network_is_saved_and_loaded(model: Any, tmp_path: Path) -> None:
    found = columns(120)
    data, store = {party: found[party] for party in ("bank", "telco")}, tmp_path / "models"
    lay_out(tmp_path, data, "min_intersection = 5\nmin_group = 0\nmax_predictions = 0\n")
    with serving(tmp_path, "telco"), Connected(tmp_path / "parties.toml", "bank", data["bank"]) as all_:
        expected = model.fit(all_, "bank.y", "id").predict_proba(all_)
        run = model.save(store)
        assert run == model.run_ and [party.name for party in store.iterdir()] == ["bank"]
        with pytest.raises(ConfigError, match=f"the other parties know this training as '{run}'"):
            model.save(store, "mine")
        loaded = type(model).load(store, run)
        pd.testing.assert_frame_equal(loaded.predict_proba(all_), expected)
    with pytest.raises(ConfigError, match="the parts of telco are not here.*connected as bank"):
        loaded.predict(data)
    # What the job itself kept says of the settings what all were told, and makes nothing up.
    kept = {party: load_part(tmp_path / f"{party}-store" / "parts", run) for party in data}
    assert kept["telco"].settings == {} and {"random_state", "unmatched"}.isdisjoint(kept["bank"].settings)
    for party, part in kept.items():
        save_part(tmp_path / "kept" / party, run, part)
    again = type(model).load(tmp_path / "kept", run)
    assert again.get_params() == {**loaded.get_params(), "random_state": 0} and loaded.random_state == 7
    assert again.classes_.tolist() == loaded.classes_.tolist()


@pytest.mark.parametrize(
    ("model", "step"),
    [
        (VerticalLogisticRegression(security="plain", max_iter=2, tol=10.0), "iterations"),
        (VerticalLogisticRegression(security="plain", max_iter=2, solver="sgd"), "epochs"),
        (VerticalGradientBoostingClassifier(n_estimators=2, max_depth=1, encryption=Plain()), "trees"),
    ],
)
def test_who_watches_sees_training_begin(model: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int, int]] = []
    monkeypatch.setattr("protocols.estimator.bar", lambda label: nullcontext(lambda *told: said.append(told)))
    found = columns(120)
    model.fit({party: found[party] for party in ("bank", "telco")}, "bank.y", "id")
    steps = [told for told in said if told[0] == step]
    assert steps[:2] == [(step, 0, 2), (step, 1, 2)]

"""Boosted trees between organisations: each party its own seat, its own constraints, its own policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vfl.boosting.feature
from protocols.errors import ConfigError, PolicyError, ProtocolError, VflError
from protocols.federation import Federation
from protocols.hazmat.paillier import Paillier, Plain
from protocols.service.caller import Connected
from protocols.wire.transport import Network
from tests.support.networked import columns
from tests.support.seeds import known_seeds
from tests.support.served import lay_out, serving
from tests.vfl.boosting.test_estimator import classifier, tables
from vfl import VerticalGradientBoostingClassifier
from vfl.boosting.sums import sum_up

SEALED = Paillier(backend="gmpy2")
FIT: dict[str, Any] = {"target": "bank.y", "id": "id"}


def two(rows: int = 80) -> dict[str, pd.DataFrame]:
    found = columns(rows)
    return {party: found[party] for party in ("bank", "telco")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lay_out(tmp_path, two(), "min_intersection = 5\nmax_predictions = 0\n")
    return tmp_path


def change(folder: Path, before: str, after: str) -> None:
    config = folder / "telco.toml"
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))


def test_going_on_over_the_network_is_going_on(folder: Path) -> None:
    data = two()
    how: dict[str, Any] = {"subsample": 0.8, "min_samples_split": 20}  # no sums of fewer than min_group rows
    here = classifier(n_estimators=4, **how).fit(data, **FIT)
    bank = Connected(folder / "parties.toml", "bank", data["bank"])
    with serving(folder, "telco"), known_seeds(0), bank as all_:
        model = classifier(n_estimators=2, warm_start=True, **how).fit(all_, **FIT)
        model.set_params(n_estimators=4).fit(all_, **FIT)
        assert model.parts_.keys() == {"bank"} and model.n_iter_ == 4
        pd.testing.assert_frame_equal(model.predict_proba(all_), here.predict_proba(data))
        model.run_ = "0" * 16
        with pytest.raises(VflError, match="telco"):
            model.set_params(n_estimators=5).fit(all_, **FIT)


def test_each_party_says_what_is_monotone_in_its_own_configuration(folder: Path) -> None:
    change(folder, 'id = "id"', 'id = "id"\nmonotone = { c = -1 }')
    data = two()
    here = classifier(monotone={"telco": {"c": -1}}, min_samples_split=20).fit(data, **FIT)
    free = classifier(min_samples_split=20).fit(data, **FIT)
    with serving(folder, "telco"), Connected(folder / "parties.toml", "bank", data["bank"]) as all_:
        with pytest.raises(ConfigError, match="monotone names 'telco'.*each party configures its own"):
            classifier(monotone={"telco": {"c": -1}}, min_samples_split=20).fit(all_, **FIT)
        said = classifier(min_samples_split=20).fit(all_, **FIT).predict_proba(all_)
    pd.testing.assert_frame_equal(said, here.predict_proba(data))
    assert not said.equals(free.predict_proba(data))


@pytest.mark.parametrize(("encryption", "granted"), [(SEALED, True), (Plain(), False)])
def test_nothing_plain_runs_where_it_is_not_granted(folder: Path, encryption: Any, granted: bool) -> None:
    change(folder, "allow_plain = true", "allow_plain = false")
    with serving(folder, "telco"), Connected(folder / "parties.toml", "bank", two()["bank"]) as all_:
        model = classifier(n_estimators=1, max_depth=1, encryption=encryption)
        if granted:
            assert not model.fit(all_, **FIT).is_plain_
            return
        with pytest.raises(PolicyError, match="in the clear are not granted"):
            model.fit(all_, **FIT)


def test_a_policy_sees_how_many_rows_are_behind_a_histogram(folder: Path) -> None:
    with serving(folder, "telco"), Connected(folder / "parties.toml", "bank", two()["bank"]) as all_:
        with pytest.raises(PolicyError, match="min_group"):
            classifier(max_depth=6, min_samples_leaf=2, min_child_weight=0.0).fit(all_, **FIT)
        classifier(max_depth=6, min_samples_split=20).fit(all_, **FIT)


def test_a_policy_sees_how_many_rows_a_split_tells_apart(tmp_path: Path) -> None:
    data = two()
    few = data["telco"].set_index("id")["b"].reindex(data["bank"]["id"]).rank() <= 5
    data["bank"] = data["bank"].assign(y=few.to_numpy().astype(int))
    lay_out(tmp_path, data, "min_intersection = 5\n")
    with serving(tmp_path, "telco"), Connected(tmp_path / "parties.toml", "bank", data["bank"]) as all_:
        how: dict[str, Any] = {"max_depth": 1, "min_child_weight": 0.0}
        with pytest.raises(PolicyError, match="min_group"):
            classifier(**how, min_samples_leaf=2).fit(all_, **FIT)
        classifier(**how).fit(all_, **FIT)


@pytest.mark.parametrize("encryption", [Plain(), SEALED])
def test_who_makes_up_its_sums_is_named(
    folder: Path, encryption: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_one(statistics: Any, binned: Any, counts: Any, nodes: Any) -> Any:
        return sum_up(statistics, binned, counts, [rows[1:] for rows in nodes])

    monkeypatch.setattr(vfl.boosting.feature, "sum_up", without_one)
    with serving(folder, "telco"), Connected(folder / "parties.toml", "bank", two()["bank"]) as all_:
        with pytest.raises(ProtocolError, match="bank/fit/0/0: sums from telco: of 1 nodes and 2 columns, 2"):
            classifier(encryption=encryption).fit(all_, **FIT)
        monkeypatch.undo()
        classifier(n_estimators=1).fit(all_, **FIT)


@pytest.mark.parametrize("encryption", [Plain(), Paillier(512, "gmpy2", small_key=True)])
def test_every_computation_declares_what_it_costs(encryption: Any) -> None:
    data = tables(3, 120)
    slow = Federation(data, network=Network(latency=0.1))
    model = classifier(n_estimators=2, encryption=encryption).fit(slow, "bank.default", "customer")
    assert model.ledger_.replay(Network(latency=0.1)) > 0.1 * model.ledger_.chain_length("fit")
    for protocol, least in (("levels", 0.7), ("bitmask", 0.1)):
        model.set_params(predict_protocol=protocol).predict(slow)
        assert model.predict_ledger_.replay(Network(latency=0.1)) > least


def test_a_fitted_estimator_can_be_kept_by_its_caller(tmp_path: Path) -> None:
    import joblib

    data = tables()
    model = classifier().fit(data, "bank.default", "customer")
    joblib.dump(model, tmp_path / "model")
    again: VerticalGradientBoostingClassifier = joblib.load(tmp_path / "model")
    pd.testing.assert_frame_equal(again.predict_proba(data), model.predict_proba(data))
    assert np.array_equal(again.classes_, model.classes_)

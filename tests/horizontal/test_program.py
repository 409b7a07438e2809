"""FedAvg as a program: each party fills its own seat, and what it ends with is enough for itself."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from horizontal import FedClassifier, FedRegressor
from horizontal.parameters import Horizontal
from horizontal.program import fit, program
from protocols import programs
from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError
from protocols.learning import networks
from protocols.parts import load_part, save_part
from protocols.programs import Seat
from tests.support.apart import Apart
from tests.support.row_clients import rows

PARTIES = ("a", "server", "b")
IDS = {"a": "key", "b": "who"}
SETTINGS: dict[str, Any] = {"hidden": (4,), "rounds": 3, "fraction": 0.6, "random_state": 5}


def with_ids(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {name: table.assign(**{IDS[name]: range(len(table))}) for name, table in tables.items()}


PLAIN = rows({"a": 12, "b": 15})
TABLES = with_ids({"a": PLAIN["a"], "b": PLAIN["b"][["x3", "y", "x1", "x0", "x2"]]})


def tower(inputs: int, outputs: int, depth: int = 2) -> nn.Module:
    return nn.Sequential(*(nn.Linear(inputs, inputs) for _ in range(depth)), nn.Linear(inputs, outputs))


def narrow(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs + 1)


def needy(inputs: int, outputs: int, width: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [EntryPoint(name, f"{__name__}:{name}", networks.GROUP) for name in ("tower", "narrow", "needy")]
    monkeypatch.setattr(networks, "entry_points", lambda group: here)


def weights(model: FedClassifier | FedRegressor) -> Arrays:
    return Arrays.from_module(model.model_)


def test_it_is_registered() -> None:
    assert programs.program("fedavg") is program and program.plain


@pytest.mark.parametrize("kind", [FedClassifier, FedRegressor])
@pytest.mark.parametrize("me", PARTIES)
def test_each_party_learns_what_the_run_in_one_process_does(
    kind: type[FedClassifier | FedRegressor], me: str
) -> None:
    here = kind(**SETTINGS).fit(PLAIN, target="y")
    model = kind(**SETTINGS).fit(Apart(me, PARTIES, TABLES, IDS), target="y", id=IDS.get(me))
    assert weights(model) == weights(here)
    assert model.clients_ == ("a", "b") and model.n_features_in_ == 4
    assert hasattr(model, "classes_") == (kind is FedClassifier)
    assert hasattr(model, "history_") == (me == "server") == (not hasattr(model, "feature_names_in_"))
    if me == "server":
        pd.testing.assert_frame_equal(model.history_, here.history_)
        with pytest.raises(ConfigError, match="told no column names; predict at a client"):
            model.predict(TABLES["a"])
        return
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3"]
    said = model.predict(TABLES[me])
    assert said.index.name == IDS[me]
    np.testing.assert_array_equal(said, here.predict(PLAIN[me]))
    # A federation is predicted where its tables are: this party's own.
    pd.testing.assert_series_equal(model.predict(Apart(me, PARTIES, TABLES)), said)
    with pytest.raises(ConfigError, match="no table is here"):
        model.predict(Apart("server", PARTIES, TABLES))


def test_what_a_party_keeps_is_a_part_that_the_estimator_loads(tmp_path: Path) -> None:
    here = FedClassifier(**SETTINGS).fit(PLAIN, target="y")
    there = Apart("a", PARTIES, TABLES, IDS)
    model = FedClassifier(**SETTINGS).fit(there, target="y", id="key")
    for party, part in there.kept.items():
        save_part(tmp_path / party, "run", part)
        assert "random_state" not in part.settings  # nobody told it
        back = FedClassifier.load(tmp_path, "run", party=party)
        assert weights(back) == weights(here) and back.clients_ == ("a", "b")
        if party != "server":
            said = back.predict(TABLES[party])
            assert said.index.name == IDS[party]
            np.testing.assert_array_equal(said, here.predict(PLAIN[party]))
    with pytest.raises(ConfigError, match="predict at a client"):
        FedClassifier.load(tmp_path, "run").predict(TABLES["a"])
    kept = program.recall(model._parameters("y"), load_part(tmp_path / "b", "run"))
    assert kept.weights == weights(here) and kept.columns == ("x0", "x1", "x2", "x3")
    assert model.save(tmp_path / "own", "run") == "run"
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["a"]


def test_columns_that_differ_are_refused_by_the_server_without_a_name() -> None:
    tables = {**TABLES, "b": TABLES["b"].rename(columns={"x3": "canary"})}
    with pytest.raises(DataError, match="^server/setup: b has 4 feature columns and a 4, and not") as raised:
        FedClassifier(**SETTINGS).fit(Apart("a", PARTIES, tables, IDS), target="y", id="key")
    assert "canary" not in str(raised.value)


def test_a_registered_network_is_named_and_its_weights_are_the_seeds(registry: None, tmp_path: Path) -> None:
    model, again, other = (
        FedClassifier("tower", rounds=1, random_state=seed).fit(PLAIN, target="y") for seed in (1, 1, 2)
    )
    assert weights(model) == weights(again) != weights(other)
    apart = FedClassifier("tower", rounds=1, random_state=1).fit(Apart("a", PARTIES, TABLES, IDS), "y", "key")
    assert weights(apart) == weights(model)
    model.save(tmp_path, "run")
    back = FedClassifier.load(tmp_path, "run")
    assert back.model == "tower" and weights(back) == weights(model)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("towr", "model 'towr' is not among those registered, .*did you mean 'tower'"),
        ("needy", "model 'needy': missing a required argument: 'width'"),
    ],
)
@pytest.mark.parametrize("party", PARTIES)
def test_a_network_that_is_not_registered_is_refused_before_any_line_opens(
    registry: None, name: str, said: str, party: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        FedClassifier(name).fit(PLAIN, target="y")
    seat = Seat(party, PARTIES, TABLES.get(party), IDS.get(party))
    with pytest.raises(ConfigError, match=said):
        fit(program.read({"kind": "classification", "target": "y", "model": name}), seat)


def test_a_registered_network_of_another_width_is_refused(registry: None) -> None:
    with pytest.raises(ConfigError, match="model gives 3 outputs for a row, expected 2: one for each class"):
        FedClassifier("narrow").fit(PLAIN, target="y")


def test_a_network_of_ones_own_is_asked_for_again(tmp_path: Path) -> None:
    FedClassifier(nn.Linear(4, 2), rounds=1).fit(PLAIN, target="y").save(tmp_path, "run")
    with pytest.raises(
        ConfigError, match="model was a network of the caller's own.* one of its shape: pass model=module"
    ):
        FedClassifier.load(tmp_path, "run")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"fraction": 2.0}, "fraction=2.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"algorithm": "fedsgd", "local_epochs": 2}, "fedsgd takes one step"),
        ({"hidden": [0]}, "whole numbers above 0"),
        ({"epochs": 3}, "epochs: Extra inputs are not permitted"),
        ({"algorithm": "fedadam"}, "algorithm=.* should be one of fedavg, fedsgd"),
    ],
)
@pytest.mark.parametrize("party", ["a", "server"])
def test_parameters_off_the_wire_are_checked_at_every_party(
    told: dict[str, Any], said: str, party: str
) -> None:
    seat = Seat(party, PARTIES, TABLES.get(party), IDS.get(party))
    with pytest.raises(ConfigError, match=said):
        program.role("fit", program.read({"kind": "classification", "target": "y", **told}), seat)


def test_seats_that_cannot_be_taken() -> None:
    told = Horizontal(kind="classification", target="y")
    with pytest.raises(ConfigError, match="expected a party 'server'"):
        program.role("fit", told, Seat("a", ("a", "b"), TABLES["a"]))
    with pytest.raises(ConfigError, match="has no table"):
        program.role("fit", told, Seat("a", PARTIES))
    with pytest.raises(DataError, match="no target column 'y'"):
        program.role("fit", told, Seat("a", PARTIES, TABLES["a"].drop(columns="y")))
    with pytest.raises(ConfigError, match="fedavg has no action 'predict'; it has fit"):
        program.role("predict", told, Seat("a", PARTIES, TABLES["a"]))

"""Split learning as a program: each party fills its own seat, in training and when predicting."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from protocols import programs
from protocols.errors import ConfigError, DataError, VflError
from protocols.learning import networks
from protocols.learning.networks import mlp
from protocols.parts import load_part, save_part
from protocols.party import Unguarded
from protocols.programs import Seat
from split import SplitClassifier, SplitRegressor
from split.agreement import ClientPart, ServerPart
from split.parameters import SplitNet
from split.program import program
from tests.support.apart import Apart
from tests.support.split_rows import same, tables

CLIENTS = ("client0", "client1")
PARTIES = ("server", *CLIENTS)
IDS = {"client0": "key", "client1": "who"}
PLAIN = {name: table.drop(columns="z") for name, table in tables([30, 20]).items()}
TABLES = {name: t[t.columns[::-1]].assign(**{IDS[name]: range(len(t))}) for name, t in PLAIN.items()}
SETTINGS: dict[str, Any] = {"hidden": (6, 5), "epochs": 2, "random_state": 5}
CUTS = pytest.mark.parametrize("cut", [2, (2, 4)])
Cut = int | tuple[int, int]


def tower(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, outputs))


def one(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [EntryPoint(name, f"{__name__}:{name}", networks.GROUP) for name in ("tower", "one")]
    monkeypatch.setattr(networks, "entry_points", lambda group: here)


def layers(model: SplitClassifier | SplitRegressor, side: str) -> dict[str, torch.Tensor]:
    held = model.server_model_ if side == "server" else model.client_model_
    return dict(held.state_dict())


def test_it_is_registered() -> None:
    assert programs.program("split-net") is program and program.plain


@CUTS
@pytest.mark.parametrize("kind", [SplitClassifier, SplitRegressor])
@pytest.mark.parametrize("me", PARTIES)
def test_each_party_ends_with_its_own_layers_of_the_run_in_one_process(
    kind: type[SplitClassifier | SplitRegressor], me: str, cut: Cut
) -> None:
    numeric = kind is SplitRegressor
    plain, apart = (
        {n: t.assign(y=(t["y"] == "yes").astype(float)) if numeric else t for n, t in given.items()}
        for given in (PLAIN, TABLES)
    )
    here = kind(cut=cut, **SETTINGS).fit(plain, target="y")
    there = Apart(me, PARTIES, apart, IDS)
    model = kind(cut=cut, **SETTINGS).fit(there, target="y", id=IDS.get(me))
    side = "server" if me == "server" else "client"
    assert same(layers(model, side), layers(here, side)) and model.clients_ == CLIENTS
    assert list(model.parts_) == [side] and model.n_features_in_ == 5
    assert hasattr(model, "server_model_") == (me == "server") == (not hasattr(model, "client_model_"))
    if me == "server":
        assert not hasattr(model, "feature_names_in_")
        with pytest.raises(ConfigError, match="the server's part, which knows no columns"):
            model.predict(there)
        return
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3", "x4"]
    # Only who asks and the server take part.
    said = model.predict(Apart(me, PARTIES, apart, IDS, there.kept))
    assert said.index.name == IDS[me]
    np.testing.assert_array_equal(said, here.predict(plain[me]))
    assert set(model.predict_ledger_.summary(by=["sender"]).index) == {me, "server"}
    with pytest.raises(ConfigError, match="^server/predict: its part is not here"):
        model.predict(apart)


@CUTS
def test_what_a_party_keeps_is_a_part_that_the_estimator_loads_alone(tmp_path: Path, cut: Cut) -> None:
    here = SplitClassifier(cut=cut, **SETTINGS).fit(PLAIN, target="y")
    there = Apart("client0", PARTIES, TABLES, IDS)
    model = SplitClassifier(cut=cut, **SETTINGS).fit(there, target="y", id="key")
    for party, part in there.kept.items():
        save_part(tmp_path / party, "run", part)
        assert "random_state" not in part.settings  # nobody told it
        back = SplitClassifier.load(tmp_path, "run", party=party)
        assert back.cut == cut and back.hidden == (6, 5) and back.clients_ == CLIENTS
        side = "server" if party == "server" else "client"
        assert list(back.parts_) == [side] and same(layers(back, side), layers(here, side))
        if party != "server":
            asked = back.predict_proba(Apart(party, PARTIES, TABLES, IDS, there.kept))
            assert asked.index.name == IDS[party]
            np.testing.assert_array_equal(asked, here.predict_proba(PLAIN[party]))
    # Layers are those that were trained, whatever the job that asks says.
    other = SplitNet(kind="classification", target="y", hidden=(9,), cut=(1,))
    kept = program.recall(other, load_part(tmp_path / "server", "run"))
    assert isinstance(kept, ServerPart) and kept.u_shaped == (cut != 2)
    kept = program.recall(other, load_part(tmp_path / "client1", "run"))
    assert isinstance(kept, ClientPart) and kept.columns == ("x0", "x1", "x2", "x3", "x4")
    assert model.save(tmp_path / "own", "run") == "run"
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["client0"]


def test_one_part_of_a_run_in_one_process_is_loaded_alone(tmp_path: Path) -> None:
    fitted = SplitClassifier(**SETTINGS).fit(PLAIN, target="y")
    run = fitted.save(tmp_path)
    alone = SplitClassifier.load(tmp_path, run, party="client1")
    assert same(layers(alone, "client"), layers(fitted, "client")) and not hasattr(alone, "server_model_")
    with pytest.raises(ConfigError, match="^nobody/load: "):
        SplitClassifier.load(tmp_path, run, party="nobody")


def test_columns_that_differ_are_refused_by_the_server_without_a_name() -> None:
    spoilt = {**TABLES, "client1": TABLES["client1"].rename(columns={"x3": "canary"})}
    said = "^server/setup: client1 has 5 feature columns and client0 5, and not"
    with pytest.raises(DataError, match=said) as raised:
        SplitClassifier(**SETTINGS).fit(Apart("client0", PARTIES, spoilt, IDS), target="y", id="key")
    assert "canary" not in str(raised.value)


@CUTS
def test_the_default_network_is_that_of_the_seed(cut: Cut) -> None:
    named = SplitClassifier(cut=cut, **SETTINGS).fit(PLAIN, target="y")
    whole = SplitClassifier(mlp(5, 2, (6, 5), seed=5), cut, **SETTINGS).fit(PLAIN, target="y")
    for side in ("client", "server"):
        assert same(layers(named, side), layers(whole, side))


def test_a_registered_network_is_named(registry: None, tmp_path: Path) -> None:
    here = SplitClassifier("tower", **SETTINGS).fit(PLAIN, target="y")
    there = SplitClassifier("tower", **SETTINGS).fit(Apart("client1", PARTIES, TABLES, IDS), "y", "who")
    assert same(layers(here, "client"), layers(there, "client"))
    here.save(tmp_path, "run")
    back = SplitClassifier.load(tmp_path, "run")
    assert back.model == "tower" and same(layers(back, "server"), layers(here, "server"))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"model": "towr"}, "model 'towr' is not among those registered, .*did you mean 'tower'"),
        ({"cut": [5]}, "cut=5 lies outside a model of 5 layers"),
        ({"cut": [1, 2, 3]}, "should be a number of layers"),
        ({"epochs": 0}, "epochs=0"),
        ({"hidden": [0]}, "whole numbers above 0"),
        ({"cuts": [1]}, "cuts: Extra inputs are not permitted; did you mean 'cut'"),
    ],
)
@pytest.mark.parametrize("party", PARTIES)
def test_parameters_off_the_wire_are_checked_at_every_party(
    registry: None, told: dict[str, Any], said: str, party: str
) -> None:
    seat = Seat(party, PARTIES, TABLES.get(party), IDS.get(party))
    with pytest.raises(ConfigError, match=said):
        program.role("fit", program.read({"kind": "classification", "target": "y", **told}), seat)


def test_a_network_that_cannot_be_cut_is_refused(registry: None) -> None:
    with pytest.raises(ConfigError, match="should be an nn.Sequential .* got Linear"):
        SplitClassifier("one", cut=1).fit(PLAIN, target="y")
    with pytest.raises(ConfigError, match="name of a registered network, or None, got int"):
        SplitClassifier(3).fit(PLAIN, target="y")  # type: ignore[arg-type]


def test_seats_that_cannot_be_taken() -> None:
    told = SplitNet(kind="classification", target="y")
    with pytest.raises(ConfigError, match="expected a party 'server'"):
        program.role("fit", told, Seat("client0", CLIENTS, TABLES["client0"]))
    for action in ("fit", "predict"):
        with pytest.raises(ConfigError, match="has no table"):
            program.role(action, told, Seat("client0", PARTIES))


@pytest.mark.parametrize("action", ["fit", "predict"])
def test_a_policy_is_asked_about_the_ids_before_anything_leaves(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"client0": PLAIN["client0"].assign(key=[f"k{i}" for i in range(30)])}
    model = SplitClassifier(**SETTINGS).fit(data, target="y", id="key")
    asked: list[list[bytes]] = []

    def refuse(self: Unguarded, ids: Any) -> None:
        asked.append(list(ids))
        raise VflError("refused")

    monkeypatch.setattr(Unguarded, "rows", refuse)
    with pytest.raises(VflError, match="^client0(/setup)?: refused"):
        model.fit(data, target="y", id="key") if action == "fit" else model.predict(data)
    assert asked == [[f"k{i}".encode() for i in range(30)]]


def test_ids_are_optional_when_predicting() -> None:
    data = {"client0": PLAIN["client0"].assign(key=range(30))}
    model = SplitClassifier(**SETTINGS).fit(data, target="y", id="key")
    plain = model.predict(PLAIN["client0"])
    assert isinstance(plain, pd.Series) and plain.index.equals(PLAIN["client0"].index)

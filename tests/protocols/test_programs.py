"""Programs are found by name, and two parties that speak the same messages say so alike."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

from horizontal import FedClassifier, FedRegressor
from protocols import programs
from protocols.errors import ConfigError
from protocols.learning.cut import CutGradient
from protocols.programs import GROUP, Seat, program, told
from protocols.psi import choose
from protocols.psi.ecdh import BlindedIds
from protocols.service.consent import reveals
from protocols.service.role import Abort
from split import SplitClassifier, SplitRegressor
from tests.support.networked import columns, rows
from vfl import VerticalNetClassifier, VerticalNetRegressor


@pytest.mark.parametrize("package", ["horizontal", "split", "vfl"])
def test_schemas_are_in_words_that_no_release_of_python_or_numpy_changes(package: str) -> None:
    said = told(package)
    assert said == sorted(said) and {line.partition(".")[0] for line in said} == {package, "protocols"}
    assert not [line for line in said if re.search(r"typing|numpy|pydantic|<class|FieldInfo|metadata", line)]
    assert "protocols.Smashed/1|`h`: float32 \\[b, k]" in said
    if package == "vfl":
        assert "vfl.Columns/1|`count`: int; `width`: int or none" in said


def test_schemas_differ_where_messages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {programs._schemas.__wrapped__(package) for package in ("horizontal", "split", "vfl")}
    assert len(digests) == 3 and program("vertical-net").schemas() in digests
    monkeypatch.setattr(programs, "fields", lambda kind: "another field")
    assert programs._schemas.__wrapped__("vfl") not in digests


def test_a_broken_program_is_in_the_way_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_package:program", GROUP)
    entries = [broken, EntryPoint("vertical-net", "vfl.network.program:program", GROUP)]
    monkeypatch.setattr(programs, "entry_points", lambda group: entries)
    programs.registered.cache_clear()
    assert program("vertical-net").package == "vfl"
    with pytest.raises(
        ConfigError, match=r"no method 'brokn' .*; there are broken, vertical-net; did you mean"
    ):
        program("brokn")
    programs.import_all()
    programs.registered.cache_clear()


def said(*models: Any) -> dict[str, set[str]]:
    """The kinds of messages of each action, in runs of these fitted models."""
    ledgers = {"fit": "ledger_", "predict": "predict_ledger_"}
    found = {
        action: {entry.kind for model in models for entry in getattr(model, ledger, ())}
        for action, ledger in ledgers.items()
    }
    return {action: kinds for action, kinds in found.items() if kinds}


def vertical() -> list[Any]:
    models: list[Any] = [VerticalNetClassifier(epochs=1), VerticalNetRegressor(epochs=1)]
    for model, target in zip(models, ("bank.y", "bank.a"), strict=True):
        model.fit(columns(), target=target, id="id").predict(columns())
    two = {party: table for party, table in columns().items() if party != "shop"}
    models.append(VerticalNetClassifier(epochs=1, unmatched="nan").fit(two, target="bank.y", id="id"))
    models.append(copy.deepcopy(models[-1]))
    models[-1].predict({**two, "telco": two["telco"].assign(id=two["telco"]["id"] + 10_000)})  # none match
    models[-2].predict(two)
    with pytest.MonkeyPatch.context() as patch:  # as if two tables were large
        patch.setattr(choose, "LARGE", 1)
        models.append(VerticalNetClassifier(epochs=1).fit(two, target="bank.y", id="id"))
        models[-1].predict(two)
    return models


def averaged() -> list[Any]:
    models = [FedClassifier(rounds=3, fraction=0.5, hidden=(4,)), FedRegressor(rounds=1, hidden=(4,))]
    return [model.fit(rows(), target=target) for model, target in zip(models, "ya", strict=True)]


def cut() -> list[Any]:
    models: list[Any] = [SplitClassifier(cut=cut, epochs=1, hidden=(4, 4)) for cut in (2, (2, 4))]
    models.append(SplitRegressor(epochs=1, hidden=(4, 4)))
    for model, target in zip(models, "yya", strict=True):
        model.fit(rows(), target=target, id="id").predict(rows())
    return models


@pytest.mark.parametrize(
    ("name", "play"), [("vertical-net", vertical), ("fedavg", averaged), ("split-net", cut)]
)
def test_a_program_says_which_messages_its_roles_send(name: str, play: Callable[[], list[Any]]) -> None:
    """A person consents to what these reveal: none may be missing, and none too many."""
    speaks = program(name).speaks
    assert {action: {kind.kind for kind in kinds} for action, kinds in speaks.items()} == said(*play())
    assert list(speaks) == list(program(name).prepare)


def test_what_a_person_is_shown_is_what_leaves() -> None:
    fit, predict = (reveals(program("vertical-net"), action) for action in ("fit", "predict"))
    assert BlindedIds.reveals in fit and BlindedIds.reveals in predict
    assert CutGradient.reveals in fit and CutGradient.reveals not in predict and Abort.reveals in predict


def test_what_a_job_is_resumed_with_is_all_that_a_seat_brings() -> None:
    table = rows()["north"]
    weights = np.linspace(1.0, 2.0, len(table))
    seats = [
        Seat("bank", ("bank", "telco"), table),
        Seat("bank", ("bank", "telco"), table.iloc[::-1]),
        Seat("bank", ("bank", "telco"), table, sample_weight=weights),
        Seat("bank", ("bank", "telco"), table, sample_weight=weights[::-1]),
        Seat("bank", ("bank", "telco"), table, monotone={"a": 1}),
        Seat("bank", ("bank", "telco"), table, monotone={"a": -1}),
    ]
    assert len({seat.fingerprint for seat in seats}) == len(seats)
    again = Seat("bank", ("bank", "telco"), table.copy(), sample_weight=weights.copy())
    assert again.fingerprint == seats[2].fingerprint

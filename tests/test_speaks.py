"""A program says everything that its roles let leave: who approves a job reads it."""

from __future__ import annotations

import pandas as pd
import pytest
from numpy.random import default_rng

from horizontal import FedClassifier
from protocols.programs import program
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from split import SplitClassifier
from vfl import VerticalNetClassifier

NUMBERS = pd.DataFrame(default_rng(3).normal(size=(40, 6)), columns=list("abcdef"))
PEOPLE = NUMBERS.assign(id=range(40), y=(NUMBERS["a"] > 0).astype(int))
ROWS = {"north": PEOPLE[:20], "south": PEOPLE[20:]}
FIT = {"target": "y", "id": "id"}


def vertical() -> list[Ledger | None]:
    tables = {"bank": PEOPLE[["id", "y", "a"]], "shop": PEOPLE[["id", "b", "c"]]}
    model = VerticalNetClassifier(epochs=1).fit(tables, target="bank.y", id="id")
    model.predict(tables)
    return [model.ledger_, model.predict_ledger_]


def fedavg() -> list[Ledger | None]:
    return [FedClassifier(rounds=2, fraction=0.5).fit(ROWS, **FIT).ledger_]


def split() -> list[Ledger | None]:
    ledgers: list[Ledger | None] = []
    for cut in (2, (2, 4)):
        model = SplitClassifier(epochs=1, cut=cut).fit(ROWS, **FIT)
        model.predict(ROWS)
        ledgers += [model.ledger_, model.predict_ledger_]
    return ledgers


@pytest.mark.parametrize(
    ("name", "train"), [("vertical-net", vertical), ("fedavg", fedavg), ("split-net", split)]
)
def test_what_leaves_was_said_and_what_is_said_leaves(name: str, train: object) -> None:
    assert callable(train)
    sent = {entry.kind for ledger in train() for entry in ledger.entries}
    found = program(name)
    assert {Message.kinds[kind].reveals for kind in sent} <= set(found.reveals())
    ours = {kind for kind in sent if kind.startswith("protocols.")}
    assert ours == {kind.kind for kind in found.speaks}

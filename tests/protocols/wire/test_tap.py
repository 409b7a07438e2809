"""A tap shows one party's whole view, and nothing besides."""

from __future__ import annotations

import numpy as np
import pytest

from horizontal import FedClassifier
from horizontal.rules import Model, Update
from protocols.arrays import Arrays
from protocols.federation import Federation
from protocols.wire.faults import Plan
from protocols.wire.tap import Tap
from tests.support.row_clients import rows

TABLES = rows({"a": 30, "b": 21})


def fitted(tap: Tap | None, faults: Plan | None = None) -> FedClassifier:
    model = FedClassifier(hidden=(5,), rounds=2, optimizer="sgd", learning_rate=0.01, random_state=1)
    return model.fit(Federation(TABLES, tap=tap, faults=faults), target="y")


@pytest.mark.parametrize("party", ["server", "a"])
@pytest.mark.parametrize("faults", [None, Plan(seed=3, delay=0.01, duplicate=0.5)], ids=["calm", "wild"])
def test_a_tap_keeps_what_its_party_sent_and_took_as_the_ledger_has_it(
    party: str, faults: Plan | None
) -> None:
    tap = Tap(party)
    model = fitted(tap, faults)
    entries = {(e.sender, e.receiver, e.scope, e.sequence): e.digest for e in model.ledger_}
    for seen, at in ((tap.received, 1), (tap.sent, 0)):
        kept = {(e.sender, e.receiver, e.scope, e.sequence): e.digest for e in seen}
        assert kept == {key: digest for key, digest in entries.items() if key[at] == party}
    assert all(e.body for e in tap.received)


def test_a_tap_changes_nothing() -> None:
    assert Arrays.from_module(fitted(Tap("server")).model_) == Arrays.from_module(fitted(None).model_)


def test_messages_are_what_came_decoded() -> None:
    tap = Tap("server")
    model = fitted(tap)
    first, last = tap.messages(Update, "a"), tap.messages(Update, "b")
    assert [update.rows for update in first] == [30, 30] and [update.rows for update in last] == [21, 21]
    mean = (first[-1].weights["2.bias"] * 30 + last[-1].weights["2.bias"] * 21) / 51
    np.testing.assert_allclose(Arrays.from_module(model.model_)["2.bias"], mean, rtol=1e-5)
    assert tap.messages(Model) == []  # which it sent

"""What leaves: the U shape sends no labels, hand-overs go among clients, and the ledger says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from protocols.data.tables import Scaler, moments, numbers
from protocols.wire.codec import decode
from protocols.wire.ledger import Ledger
from protocols.wire.message import message_class
from protocols.wire.transport import Envelope
from split import SplitClassifier, SplitRegressor
from tests.support.split_rows import SEED, mlp5, order, tables

BATCH, EPOCHS = 64, 2
DTYPES = [np.dtype(f"{sign}{size}") for sign in "iu" for size in (1, 2, 4, 8)]
DTYPES += [np.dtype(f"f{size}") for size in (2, 4, 8)]


@pytest.fixture
def envelopes(monkeypatch: pytest.MonkeyPatch) -> list[Envelope]:
    """Every envelope that leaves any party."""
    seen: list[Envelope] = []
    record = Ledger._record

    def tap(self: Ledger, envelope: Envelope) -> int:
        seen.append(envelope)
        return record(self, envelope)

    monkeypatch.setattr(Ledger, "_record", tap)
    return seen


def carriers(envelopes: list[Envelope], labels: dict[str, np.ndarray[Any, Any]]) -> list[Envelope]:
    """Envelopes that hold 64 labels of a client in a row, as they stand in its table or in one of its
    batches, in any dtype and byte order."""
    needles = set()
    for client, y in labels.items():
        orders = [np.arange(len(y)), *(order(client, epoch, len(y)).numpy() for epoch in range(EPOCHS))]
        for rows in orders:
            for start in range(0, len(y) - BATCH + 1, BATCH):
                taken = y[rows[start : start + BATCH]]
                for dtype in DTYPES:
                    cast = taken.astype(dtype)
                    if np.array_equal(cast, taken):
                        needles |= {cast.tobytes(), cast.byteswap().tobytes()}
    assert needles
    return [e for e in envelopes if any(needle in said for said in _bodies(e) for needle in needles)]


def _bodies(e: Envelope) -> Iterator[bytes]:
    """What an envelope holds row by row, and each of its tables column by column."""
    yield e.body
    for value in decode(message_class(e.kind), e.body).__dict__.values():
        if isinstance(value, np.ndarray) and value.ndim == 2:
            yield value.T.tobytes()


@pytest.mark.parametrize(("cut", "leaks"), [(2, True), ((2, 4), False)])
def test_class_labels_leave_only_in_the_vanilla_shape(
    cut: int | tuple[int, int], leaks: bool, envelopes: list[Envelope]
) -> None:
    # The labels are numbers, so that they might also leave as they are and not as positions.
    data = {
        n: t.drop(columns="z").assign(y=np.where(t["y"] == "yes", 7, 3)) for n, t in tables([130, 64]).items()
    }
    model = SplitClassifier(mlp5(), cut, epochs=EPOCHS, batch_size=BATCH, random_state=SEED)
    model.fit(data, target="y").predict(data["client0"])
    own = {name: table["y"].to_numpy() for name, table in data.items()}
    positions = {name: (y == 7).astype(int) for name, y in own.items()}
    found = carriers(envelopes, own) + carriers(envelopes, positions)
    assert {e.kind for e in found} == ({"protocols.LabelledSmashed/1"} if leaks else set())
    assert len(found) == (EPOCHS * 3 if leaks else 0)


@pytest.mark.parametrize(("cut", "leaks"), [(2, True), ((2, 4), False)])
def test_numbers_to_predict_leave_only_in_the_vanilla_shape(
    cut: int | tuple[int, int], leaks: bool, envelopes: list[Envelope]
) -> None:
    data = {name: table.drop(columns="y") for name, table in tables([130, 64]).items()}
    model = SplitRegressor(cut=cut, epochs=EPOCHS, batch_size=BATCH, random_state=SEED)
    model.fit(data, target="z").predict(data["client0"])
    raw = {name: numbers(table["z"]) for name, table in data.items()}
    scaler = Scaler.combine([moments(y.astype(np.float64)) for y in raw.values()])
    assert not carriers(envelopes, raw)
    found = carriers(envelopes, {name: scaler(y) for name, y in raw.items()})
    assert {e.kind for e in found} == ({"protocols.LabelledSmashed/1"} if leaks else set())


@pytest.mark.parametrize("cut", [2, (2, 4)])
def test_no_row_leaves_and_target_statistics_stay_among_clients(
    cut: int | tuple[int, int], envelopes: list[Envelope]
) -> None:
    data = {name: table.drop(columns="y") for name, table in tables([70, 40]).items()}
    SplitRegressor(cut=cut, epochs=1, standardise=False).fit(data, target="z")
    cells = {
        table.drop(columns="z").to_numpy(d)[i].tobytes()
        for table in data.values()
        for d in "df"
        for i in (0, 9)
    }
    assert not [e for e in envelopes if any(cell in e.body for cell in cells)]
    statistics = [e for e in envelopes if e.kind in ("protocols.Moments/1", "protocols.Scaling/1")]
    assert [(e.sender, e.receiver) for e in statistics] == [("client1", "client0"), ("client0", "client1")]


def test_client_layers_go_to_the_next_client_and_not_to_the_server() -> None:
    data = {name: table.drop(columns="z") for name, table in tables([30, 20, 10]).items()}
    model = SplitClassifier(epochs=2).fit(data, target="y")
    moved = model.ledger_.frame().query("kind == 'split.HandOver/1'")
    lines = [tuple(line) for line in moved[["sender", "receiver"]].to_numpy()]
    ring = [("client0", "client1"), ("client1", "client2")]
    last = [("client2", "client0"), ("client2", "client1")]
    assert lines == [*ring, ("client2", "client0"), *ring, *last]
    # What ends training carries no optimizer state; before, Adam's is twice the weights.
    sizes = moved["bytes"].to_numpy()
    assert sizes[-2:].max() * 2.5 < sizes[:-2].min()

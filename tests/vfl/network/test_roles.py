"""The roles: they learn what one network on the joined rows would, and tell nothing beyond the messages."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Scaler
from protocols.errors import ConfigError, LineError, ProtocolError, StallError
from protocols.federation import Federation, simulate
from protocols.learning.cut import CutGradient, Smashed
from protocols.learning.networks import mlp
from protocols.learning.training import Settings, outputs, probabilities, train
from protocols.party import Coordinator, Party, Role
from protocols.programs import Seat
from protocols.psi.ids import canonical
from protocols.wire.codec import decode
from protocols.wire.faults import Plan as Faults
from protocols.wire.transport import Envelope, Network
from tests.support.columns_apart import joined, overlapping, small
from vfl import VerticalNetClassifier, VerticalNetRegressor, align
from vfl.alignment.roles import align_feature, align_label
from vfl.network.layout import Columns, Width
from vfl.network.parameters import VerticalNet
from vfl.network.program import program
from vfl.network.roles import Table, feature_party, label_party
from vfl.order import Order

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


class Joint(nn.Module):
    """The same network in one place: bottoms side by side, below one top."""

    def __init__(self, bottoms: list[nn.Module], top: nn.Module) -> None:
        super().__init__()
        self.bottoms, self.top = nn.ModuleList(bottoms), top

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        h = [bottom(x) for bottom, x in zip(self.bottoms, parts, strict=True)]
        result: torch.Tensor = self.top(torch.cat(h, dim=1))
        return result


def orders(carried: list[Envelope], receiver: str = "shop") -> list[Array]:
    """The row order of each epoch, as `receiver` was told."""
    mine = [e for e in carried if e.receiver == receiver and e.kind == Order.kind]
    return [decode(Order, e.body).rows.astype(np.int64) for e in mine]


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_is_that_of_one_network_on_the_inner_join_bit_for_bit(
    parties: int, optimizer: Any, carried: list[Envelope]
) -> None:
    data = small(150, parties)
    bottoms = {party: nn.Sequential(mlp(2, 5, (6,), i), nn.Tanh()) for i, party in enumerate(data)}
    top = mlp(5 * parties, 2, (8,), 9)
    tables = {**data, "bank": data["bank"].drop(columns="amount")}
    model = VerticalNetClassifier(
        bottoms=bottoms, top=top, epochs=3, batch_size=16, learning_rate=0.01, optimizer=optimizer
    ).fit(tables, target="bank.default", id="customer")

    rows = joined(data)
    names = [[f"x{2 * i}", f"x{2 * i + 1}"] for i in range(parties)]
    x = [torch.from_numpy(Scaler.fit(v)(v)) for v in (rows[own].to_numpy() for own in names)]
    y = torch.from_numpy(rows["default"].to_numpy(copy=True))
    joint, settings = Joint(list(bottoms.values()), top), Settings(learning_rate=0.01, optimizer=optimizer)
    each = [settings.new_optimizer(part.parameters()) for part in (*joint.bottoms, joint.top)]
    for order in orders(carried):
        for start in range(0, len(order), 16):
            batch = order[start : start + 16]
            joint.zero_grad()
            nn.functional.cross_entropy(joint(*(v[batch] for v in x)), y[batch]).backward()  # type: ignore[no-untyped-call]
            for one in each:
                one.step()

    assert [sorted(order) for order in orders(carried)] == [list(range(len(rows)))] * 3
    twins = {f"{party}.bottom": twin for party, twin in zip(data, joint.bottoms, strict=True)}
    twins["bank.top"] = joint.top
    expected = {
        f"{at}.{k}": v.numpy().tobytes() for at, m in twins.items() for k, v in m.state_dict().items()
    }
    assert dict(weights(model)) == expected


def test_the_score_is_that_of_a_pooled_network() -> None:
    table, y = load_breast_cancer(return_X_y=True, as_frame=True)
    names = list(table.columns)
    table = table.assign(y=y, customer=[f"C{i}" for i in range(len(table))])
    columns = {"clinic": [*names[10:20], "y"], "lab": names[:10], "registry": names[20:]}
    pooled, vertical = [], []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(table))
        test, training = table.iloc[order[:150]], overlapping(table.iloc[order[150:]], columns, seed)
        model = VerticalNetClassifier(epochs=4, batch_size=64, learning_rate=0.005, random_state=seed)
        model.fit(training, target="clinic.y", id="customer")
        held_out = {party: test[["customer", *own]] for party, own in columns.items()}
        vertical.append(roc_auc_score(test["y"], model.predict_proba(held_out)[1]))

        rows = joined(training)
        scaler, network = Scaler.fit(rows[names].to_numpy()), mlp(30, 2, (64, 32), seed)
        x, labels = (
            torch.from_numpy(scaler(rows[names].to_numpy())),
            torch.from_numpy(rows["y"].to_numpy(copy=True)),
        )
        settings = Settings(batch_size=64, learning_rate=0.005)
        train(network, x, labels, settings, np.random.default_rng(seed), epochs=4)
        scores = probabilities(outputs(network, torch.from_numpy(scaler(test[names].to_numpy()))))
        pooled.append(roc_auc_score(test["y"], scores[:, 1]))
    assert abs(np.mean(vertical) - np.mean(pooled)) < 0.01 and np.mean(vertical) > 0.97


def traces(ids: list[str]) -> Iterator[bytes]:
    """What an id must never look like on a line: itself, an encoding of it, or a hash that needs no key."""
    for text in ids:
        for raw in (text.encode(), bytes.fromhex(text)):
            yield from (raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="))
            for name in ("sha256", "sha512", "blake2b", "blake2s", "md5", "sha1"):
                digest = hashlib.new(name, raw).digest()
                yield from (digest[:8], digest.hex()[:16].encode(), base64.b64encode(digest)[:11])


def found(needles: Iterator[bytes], bodies: bytes) -> int:
    return sum(needle in bodies for needle in needles)


def test_no_id_and_no_hash_of_one_crosses_a_line(carried: list[Envelope]) -> None:
    data = small(40, 3)
    names = {
        customer: secrets.token_hex(16) for customer in pd.concat([t["customer"] for t in data.values()])
    }
    data = {party: table.assign(customer=table["customer"].map(names)) for party, table in data.items()}
    model = VerticalNetClassifier(epochs=1).fit(data, target="bank.default", id="customer")
    model.predict(data)
    bodies = b"".join(e.body for e in carried)
    ids = list(names.values())
    assert len(ids) == 40 and found(traces(ids), bodies) == 0
    leak = hashlib.sha256(ids[7].encode()).digest() + base64.b64encode(bytes.fromhex(ids[8]))
    assert found(traces(ids), bodies + leak) == 2  # the search does find what is there


def test_no_label_crosses_a_line(carried: list[Envelope]) -> None:
    data = small(200, 3)
    VerticalNetClassifier(epochs=2, batch_size=80).fit(data, target="bank.default", id="customer")
    y = joined(data)["default"].to_numpy()
    vectors = [y, data["bank"]["default"].to_numpy()]
    for order in orders(carried):
        vectors += [y[order], y[order][80:160]]
    needles = [
        v[:64].astype(dtype).tobytes() for v in (v for y in vectors for v in (y, 1 - y)) for dtype in DTYPES
    ]
    needles += [np.packbits(v[:64]).tobytes() for v in vectors]
    needles += [v[:64].astype(int).astype(str).astype("S1").tobytes() for v in vectors]
    told = [e for e in carried if e.receiver != "bank"]
    bodies = [e.body for e in told]
    bodies += [decode(CutGradient, e.body).g.T.tobytes() for e in told if e.kind == CutGradient.kind]
    assert len(told) > 12 and not any(needle in body for body in bodies for needle in needles)
    assert any(needle in vectors[3].astype("f4").tobytes() for needle in needles)  # the search finds a label


def weights(model: Any) -> list[tuple[str, bytes]]:
    modules = [
        (f"{party}.{name}", part.module)
        for party, own in sorted(model.parts_.items())
        for name, part in (("bottom", own.bottom), ("top", own.top))
        if part is not None
    ]
    return [(f"{at}.{k}", v.numpy().tobytes()) for at, m in modules for k, v in m.state_dict().items()]


def test_disturbed_lines_change_nothing_and_a_simulated_network_neither() -> None:
    data = small(60, 3)
    noisy = Federation(data, faults=Faults(seed=1, delay=1.0, duplicate=0.4))
    slow = Federation(data, network=Network(latency=0.05, bandwidth=1e6))
    models = [
        VerticalNetClassifier(epochs=2).fit(tables, target="bank.default", id="customer")
        for tables in (data, noisy, slow)
    ]
    assert weights(models[0]) == weights(models[1]) == weights(models[2])
    expected = models[0].predict_proba(data)
    pd.testing.assert_frame_equal(models[1].predict_proba(noisy), expected)
    sent = [sorted((e.scope, e.sequence, e.sender, e.receiver, e.nbytes) for e in m.ledger_) for m in models]
    assert sent[0] == sent[1] == sent[2]  # contents differ where alignment drew new secrets


@pytest.mark.parametrize("faults", [Faults(cut=("bank", "telco"), cut_after=12), Faults(seed=1, drop=0.02)])
def test_a_line_that_fails_ends_the_run_with_one_error_and_nothing_fitted(faults: Faults) -> None:
    model = VerticalNetClassifier(epochs=2)
    with pytest.raises((LineError, StallError), match=r"^(bank|telco|shop)/(align|fit)"):
        model.fit(Federation(small(60, 3), faults=faults), target="bank.default", id="customer")
    assert not hasattr(model, "parts_")


@pytest.mark.parametrize("parties", [2, 3])
def test_each_batch_is_one_message_each_way_for_each_feature_party(parties: int) -> None:
    model = VerticalNetClassifier(epochs=2, batch_size=16).fit(
        small(100, parties), target="bank.default", id="customer"
    )
    kinds = [e.kind for e in model.ledger_.within("fit")]
    batches = 2 * 5 * (parties - 1)  # 80 common rows
    assert kinds.count("protocols.Smashed/1") == kinds.count("protocols.CutGradient/1") == batches
    assert kinds.count("vfl.Order/1") == 2 * (parties - 1) and len(kinds) == 2 * batches + 2 * (parties - 1)
    assert {e.scope.partition("/")[0] for e in model.ledger_} == {"align", "setup", "fit"}


def table_of(ids: list[str]) -> Table:
    return Table(canonical(pd.Series(ids)), np.arange(2.0 * len(ids)).reshape(-1, 2))


IDS = ["a", "b", "c", "d"]
PLAN = VerticalNet(label_party="bank", kind="classification", epochs=1, hidden=(4, 3))


def against(bank: Role | None = None, shop: Role | None = None) -> None:
    """A run in which one role is not ours."""
    y = pd.Series([0, 1, 0, 1])
    simulate(
        {
            "bank": bank or (lambda me: label_party(me, ["shop"], table_of(IDS), y, None, None, PLAN)),
            "shop": shop or (lambda me: feature_party(me, "bank", table_of(IDS), None, PLAN)),
        }
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden": (1 << 14, 1 << 14)}, "268435456 weights; at most"),
        ({"hidden": ()}, "one or more widths above 0"),
        ({"epochs": 0}, "epochs=0 should be a whole number above 0"),
    ],
)
def test_what_a_caller_cannot_mean_is_refused_before_any_line_opens(settings: Any, said: str) -> None:
    table = pd.DataFrame({"id": IDS, "x": [0.0, 1.0, 2.0, 3.0]})
    told = program.read({"label_party": "bank", "kind": "classification", **settings})
    with pytest.raises(ConfigError, match=said):
        program.role("fit", told, Seat("shop", ("bank", "shop"), table, "id"))


@pytest.mark.parametrize("order", [[0, 1, 2, 2], [0, 1, 2], [0, 1, 2, 4], []])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    async def liar(me: Coordinator) -> None:
        async with me.within("align") as at:
            await align_label(at, ["shop"], canonical(pd.Series(IDS)))
        async with me.within("setup") as at:
            await at.recv("shop", Columns)
            await at.send("shop", Width(width=3))
        async with me.within("fit") as fit, fit.within(0) as at:
            await at.send("shop", Order(rows=np.array(order, np.uint32)))

    with pytest.raises(
        ProtocolError, match=r"shop/fit/0: vfl.Order/1 from bank: expected each of 4 rows once"
    ):
        against(bank=liar)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2), (0, 0)])
def test_an_embedding_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    async def liar(me: Party) -> None:
        async with me.within("align") as at:
            await align_feature(at, "bank", ["shop"], canonical(pd.Series(IDS)))
        async with me.within("setup") as at:
            await at.send("bank", Columns(count=2, width=None))
            assert (await at.recv("bank", Width)).width == 2
        async with me.within("fit") as fit, fit.within(0) as at:
            await at.recv("bank", Order)
            await at.send("bank", Smashed(h=np.zeros(shape, np.float32)))

    with pytest.raises(ProtocolError, match="bank/fit/0: expected 4 rows of 2 numbers at the cut"):
        against(shop=liar)


def test_the_order_of_tables_in_rows_does_not_matter() -> None:
    data = small(60, 3)
    mixed = {party: table.sample(frac=1, random_state=1) for party, table in data.items()}
    one, other = (
        VerticalNetRegressor(epochs=2).fit(d, target="bank.amount", id="customer") for d in (data, mixed)
    )
    assert weights(one) == weights(other)
    aligned = align(mixed, id="customer", label_party="bank").tables["bank"]
    assert aligned["customer"].tolist() == joined(data)["customer"].tolist()

"""The laws of sums: every way gives the weighted mean, and what the taker sees besides is what it claims."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from horizontal.algorithms.fedavg import Average, local_training
from horizontal.rounds import serve_rounds, train_rounds
from horizontal.rules import Algorithm, Update
from protocols.arrays import Arrays, weighted_mean
from protocols.data.tables import Moments, Scaler, features
from protocols.errors import ProtocolError
from protocols.federation import simulate
from protocols.learning.agreement import Agreement, collect, tell
from protocols.learning.networks import mlp
from protocols.learning.training import Settings
from protocols.party import Coordinator, Role, Run
from protocols.sums.masked import Masked
from protocols.sums.plain import Plain, Pooled, Sum
from tests.support.row_clients import rows

NAMES = ("a", "b", "c")
LIKE = Arrays({"mean": np.zeros(4), "variance": np.zeros(4)})


def summed(way: Sum, values: dict[str, Arrays], weights: dict[str, float], like: Arrays) -> Run:
    async def give(me: Coordinator) -> None:
        async with me.within("sum") as at:
            await way.give(at, "server", tuple(values), values[me.name], weights[me.name])

    async def take(me: Coordinator) -> Pooled:
        async with me.within("sum") as at:
            return await way.take(at, tuple(values), like)

    return simulate({"server": take, **dict.fromkeys(values, give)})


@settings(max_examples=25)
@given(st.data())
@pytest.mark.parametrize("way", [Plain(Moments), Masked()], ids=["plain", "masked"])
def test_every_way_gives_the_weighted_mean(way: Sum, data: st.DataObject) -> None:
    names = NAMES[: data.draw(st.integers(1, 3))]
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = {name: LIKE.map(lambda a: rng.normal(scale=3, size=a.shape)) for name in names}
    weights = {name: float(data.draw(st.integers(1, 500))) for name in names}
    pooled: Pooled = summed(way, values, weights, LIKE).results["server"]
    expected = weighted_mean([*values.values()], [*weights.values()])
    assert pooled.weight == sum(weights.values())
    assert pooled.mean.like(LIKE)
    for name, array in expected.items():
        np.testing.assert_allclose(pooled.mean[name], array, rtol=0, atol=1e-11)


def test_who_takes_a_masked_sum_sees_no_part_and_a_plain_one_shows_each() -> None:
    values = {name: LIKE.map(lambda a: np.full(a.shape, 7.0)) for name in NAMES}
    weights = dict.fromkeys(NAMES, 2.0)
    shown: Pooled = summed(Plain(Moments), values, weights, LIKE).results["server"]
    assert {name: part.value for name, part in shown.parts.items()} == values
    hidden = summed(Masked(), values, weights, LIKE)
    assert not hidden.results["server"].parts
    assert {e.kind for e in hidden.ledger if e.receiver == "server"} == {"protocols.MaskedPart/1"}
    # Equal parts cross as different words.
    assert len({e.digest for e in hidden.ledger if e.receiver == "server"}) == 3


def test_a_part_of_another_shape_names_its_party() -> None:
    values = dict.fromkeys(NAMES, LIKE) | {"b": LIKE.map(lambda a: a[:3])}
    with pytest.raises(ProtocolError, match=r"protocols.Moments/1 from b in 'sum': expected .*float64\[4\]"):
        summed(Plain(Moments), values, dict.fromkeys(NAMES, 1.0), LIKE)
    with pytest.raises(ProtocolError, match="from b should have shape"):
        summed(Masked(), values, dict.fromkeys(NAMES, 1.0), LIKE)


def averaged(way: Sum | None) -> Run:
    """FedAvg's roles as they are, over this way to sum."""
    algorithm = Algorithm(local_training(Settings(optimizer="sgd", learning_rate=0.1)), Average().rule())
    serve = partial(
        serve_rounds, module=mlp(4, 2, (5,)), algorithm=algorithm, rounds=3, fraction=1.0, way=way
    )
    roles: dict[str, Role] = {"server": serve}
    for name, table in rows({"a": 30, "b": 11, "c": 23}).items():
        x = Scaler(np.full(4, 1.0), np.full(4, 30.0))(features(table.drop(columns="y")))
        y = table["y"].to_numpy(np.int64, copy=True)
        roles[name] = partial(
            train_rounds,
            server="server",
            module=mlp(4, 2, (5,)),
            x=torch.from_numpy(x),
            y=torch.from_numpy(y),
            algorithm=algorithm,
            rounds=3,
            way=way,
        )
    return simulate(roles, seed=1)


def test_rounds_are_the_same_where_the_server_sees_sums_alone() -> None:
    plain, masked = averaged(None), averaged(Masked())
    assert Update.kind in {e.kind for e in plain.ledger}
    assert Update.kind not in {e.kind for e in masked.ledger}
    (weights, history), (same, noted) = plain.results["server"], masked.results["server"]
    for name, array in weights.items():
        np.testing.assert_allclose(same[name], array, atol=1e-6)
    assert [note.rows for note in history] == [note.rows for note in noted] == [64, 64, 64]
    np.testing.assert_allclose([n.loss for n in noted], [n.loss for n in history], rtol=1e-6)


def agreed(way: Sum, offset: float) -> list[Agreement]:
    x = offset + np.random.default_rng(0).normal(3.0, 2.0, size=(30, 4))
    parts = {"a": x[:5], "b": x[5:7], "c": x[7:]}

    async def uniting(me: Coordinator) -> Agreement:
        return await collect(me, me.roster, 4, labelled=False, way=way)

    async def telling(me: Coordinator) -> Agreement:
        return await tell(me, "server", parts[me.name], None, way=way)

    return [*simulate({"server": uniting, **dict.fromkeys(parts, telling)}).results.values()]


def test_moments_over_a_masked_sum_are_those_of_the_pooled_rows() -> None:
    shown, hidden = agreed(Plain(Moments), 0.0), agreed(Masked(), 0.0)
    for (one, _), (other, _) in zip(shown, hidden, strict=True):
        assert one is not None and other is not None
        np.testing.assert_allclose(other.mean, one.mean, rtol=1e-11)
        np.testing.assert_allclose(other.scale, one.scale, rtol=1e-11)

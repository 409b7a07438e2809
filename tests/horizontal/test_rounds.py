"""The laws of FedAvg and FedSGD, and what a run of them sends."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from horizontal import FedClassifier, FedRegressor
from horizontal.algorithms.fedavg import Average, local_training
from horizontal.rounds import train_rounds
from horizontal.rules import Algorithm
from protocols.arrays import Arrays, weighted_mean
from protocols.data.tables import Scaler, features
from protocols.errors import DataError, ProtocolError, VflError
from protocols.federation import Federation, simulate
from protocols.learning.networks import mlp
from protocols.learning.training import Settings, train
from protocols.party import Coordinator, Desk, Party, Unguarded
from protocols.wire.faults import Plan
from protocols.wire.ledger import Ledger
from protocols.wire.transport import Network
from tests.support.row_clients import rows

SGD = Settings(optimizer="sgd", learning_rate=0.1, batch_size=8)


def rng_of(party: str, seed: int, round: int) -> np.random.Generator:
    """What a client shuffles with."""
    return Party(Desk(party, Ledger(), seed), f"fit/{round}").rng("batches")


def tensors(table: pd.DataFrame, scaler: Scaler) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(scaler(features(table.drop(columns="y"))))
    return x, torch.from_numpy(table["y"].to_numpy(np.int64, copy=True))


def weights(module: nn.Module) -> Arrays:
    return Arrays.from_module(module)


def lines(ledger: Ledger) -> dict[tuple[str, str], bytes]:
    pairs = {(e.sender, e.receiver) for e in ledger}
    return {pair: ledger.line_digest(*pair) for pair in pairs}


def close(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], rtol: float = 1e-5) -> None:
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-7)


def test_one_client_is_plain_sgd_bit_for_bit() -> None:
    table = rows({"a": 50})["a"]
    model = FedClassifier(
        hidden=(8,),
        rounds=3,
        local_epochs=2,
        batch_size=8,
        learning_rate=0.1,
        optimizer="sgd",
        random_state=5,
    ).fit({"a": table}, target="y")
    plain = mlp(4, 2, (8,), seed=5)
    x, y = tensors(table, Scaler.fit(features(table.drop(columns="y"))))
    for r in range(3):
        train(plain, x, y, SGD, rng_of("a", 5, r), epochs=2)
    assert weights(plain) == weights(model.model_)


def test_fedavg_is_the_mean_by_rows_of_the_clients_own_training() -> None:
    tables = rows({"a": 50, "b": 9, "c": 23})
    model = FedClassifier(hidden=(8,), rounds=2, batch_size=8, learning_rate=0.1, optimizer="sgd")
    model.fit(tables, target="y")
    scaler = Scaler.fit(features(pd.concat(tables.values()).drop(columns="y")))
    module = mlp(4, 2, (8,))
    current = weights(module)
    for r in range(2):
        trained, losses = [], []
        for name, table in tables.items():
            current.load_into(module)
            losses.append(train(module, *tensors(table, scaler), SGD, rng_of(name, 0, r)))
            trained.append(weights(module))
        current = weighted_mean(trained, [50, 9, 23])
    close(current, weights(model.model_))
    assert model.history_["loss"].iloc[-1] == pytest.approx(np.average(losses, weights=[50, 9, 23]))


@pytest.mark.parametrize("algorithm", ["fedsgd", "fedavg"])
def test_full_batch_steps_of_clients_are_the_pooled_full_batch_step(
    algorithm: Literal["fedsgd", "fedavg"],
) -> None:
    tables = rows({"a": 40, "b": 7, "c": 21})
    pooled = pd.concat(tables.values())
    model = FedClassifier(
        hidden=(8,), rounds=3, algorithm=algorithm, batch_size=68, learning_rate=0.5, optimizer="sgd"
    ).fit(tables, target="y")  # fmt: skip
    plain = mlp(4, 2, (8,))
    x, y = tensors(pooled, Scaler.fit(features(pooled.drop(columns="y"))))
    full = Settings(optimizer="sgd", learning_rate=0.5, batch_size=68)
    train(plain, x, y, full, np.random.default_rng(0), epochs=3)
    close(weights(plain), weights(model.model_))


def test_so_many_clients_are_sampled_and_the_rest_skip() -> None:
    tables = rows(dict.fromkeys("abcdefg", 12))
    model = FedClassifier(hidden=(2,), rounds=4, fraction=0.4).fit(tables, target="y")
    frame = model.ledger_.frame()
    counts = frame[frame.scope.str.startswith("fit/")].groupby(["round", "kind"]).size().unstack()
    assert (counts["horizontal.Model/1"] == 3).all()
    assert (counts["horizontal.Update/1"] == 3).all()
    assert (counts["horizontal.Skip/1"] == 4).all()
    chosen = frame[frame.kind == "horizontal.Update/1"].groupby("round")["sender"].apply(tuple)
    assert chosen.nunique() > 1
    assert model.history_["clients"].tolist() == [3] * 4
    assert model.history_["rows"].tolist() == [36] * 4
    everyone = FedClassifier(hidden=(2,), rounds=1).fit(tables, target="y").ledger_.frame()
    assert "horizontal.Skip/1" not in set(everyone.kind)


def test_the_seed_decides_the_run() -> None:
    tables = rows({"a": 20, "b": 30, "c": 10})

    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def fit(seed: int) -> FedClassifier:
        return FedClassifier(net, rounds=3, fraction=0.6, random_state=seed).fit(tables, target="y")

    state = torch.get_rng_state()
    first, again, other = fit(1), fit(1), fit(2)
    assert torch.equal(state, torch.get_rng_state())
    assert lines(first.ledger_) == lines(again.ledger_)
    assert weights(first.model_) == weights(again.model_)
    assert lines(first.ledger_) != lines(other.ledger_)
    assert weights(first.model_) != weights(other.model_)


@pytest.mark.parametrize("seed", range(3))
def test_disturbed_lines_change_nothing(seed: int) -> None:
    tables = rows({"a": 20, "b": 30, "c": 10})
    model = FedRegressor(hidden=(4,), rounds=3, fraction=0.6)
    calm = copy.deepcopy(model).fit(tables, target="y")
    disturbed = model.fit(Federation(tables, faults=Plan(seed=seed, delay=3.0, duplicate=0.5)), target="y")
    assert weights(calm.model_) == weights(disturbed.model_)
    assert lines(calm.ledger_) == lines(disturbed.ledger_)
    pd.testing.assert_frame_equal(calm.history_, disturbed.history_)


def test_time_under_a_network_is_that_of_the_message_pattern() -> None:
    tables = rows({"a": 20, "b": 30})
    model = FedClassifier(hidden=(4,), rounds=5)
    calm = model.fit(tables, target="y").ledger_
    network = Network(latency=0.1, speed=float("inf"))
    # Moments and labels go up; a model goes down (the first with what set-up found) and comes back trained;
    # the result goes down.
    assert calm.replay(network) == pytest.approx(0.1 * (1 + 2 * 5 + 1))
    run = model.fit(Federation(tables, network=Network(latency=0.1, speed=1e9)), target="y").ledger_
    assert lines(run) == lines(calm)
    assert run.compute["a"].unpriced == 0 and run.compute["a"].flops > 0 and run.compute["server"].flops > 0


def test_buffers_travel_and_counters_stay_whole() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = weights(net)
    model = FedClassifier(net, rounds=2, batch_size=8).fit(rows({"a": 16, "b": 40}), target="y")
    after = weights(model.model_)
    assert weights(net) == before and net.training  # the caller's own is left alone
    assert after.like(before)
    # Two batches a round at a, five at b; the mean by rows, rounded every round: 4.14 -> 4, 8.14 -> 8.
    assert after["1.num_batches_tracked"] == 8
    assert np.abs(after["1.running_mean"]).max() > 0


def test_a_policy_is_asked_about_the_group_before_an_update_leaves() -> None:
    class Least(Unguarded):
        def group(self, rows: int) -> None:
            raise VflError(f"{rows} rows are too few")

    async def few(me: Coordinator) -> Arrays:
        me.desk.guard = Least()
        x, y = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
        return await train_rounds(
            me, "server", mlp(4, 2), x, y, Algorithm(local_training(SGD), Average().rule()), 1
        )

    with pytest.raises(VflError, match="^a: 5 rows are too few"):
        simulate({"a": few})


def test_divergence_names_the_clients() -> None:
    tables = rows({"a": 20, "b": 30})
    model = FedRegressor(hidden=(4,), rounds=9, learning_rate=1e30, optimizer="sgd")
    with pytest.raises(ProtocolError, match="server/fit/.*are not finite: training diverged"):
        model.fit(tables, target="y")


@pytest.mark.filterwarnings("ignore:the FLOPs of a")
def test_a_client_that_fails_stops_the_run_and_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    tables = rows({"a": 20, "b": 17})
    with pytest.raises(
        DataError, match=r"b/fit/0: .*batch of 1 row \(ValueError: Expected more than 1 value"
    ):
        FedClassifier(net, batch_size=4).fit(tables, target="y")  # b's last batch has one row


def test_a_mask_of_infinities_and_frozen_weights_come_back_as_they_were() -> None:
    class Masked(nn.Module):
        mask: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.frozen = nn.Linear(4, 2), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
            self.register_buffer("salt", torch.tensor(2**62 + 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raw = self.frozen(self.layer(x))
            return torch.where(torch.isinf(self.mask), raw, raw + self.mask)

    table = pd.DataFrame(np.random.default_rng(0).normal(size=(90, 4)), columns=list("abcd"))
    table["y"] = (table["a"] > 0).astype(int)
    clients = {"north": table[:50], "south": table[50:57], "west": table[57:]}
    module = Masked()
    model = FedClassifier(module, rounds=2, batch_size=16).fit(clients, target="y")
    before, after = module.state_dict(), model.model_.state_dict()
    for name in ("frozen.weight", "frozen.bias", "mask", "salt"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["layer.weight"], after["layer.weight"])

"""Laws of the baselines: they are plain training, and differ only in who holds what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from protocols.arrays import Arrays
from protocols.compare.baselines import (
    SERVER,
    Sample,
    Trained,
    alone,
    centralised,
    edge,
    pool,
    source,
    trainer,
)
from protocols.compare.task import Method, Task, score
from protocols.data.tables import Scaler, encode_labels, features
from protocols.errors import DataError
from protocols.federation import simulate
from protocols.learning.training import outputs, probabilities, train
from protocols.party import Coordinator, Role
from protocols.wire.transport import Network
from tests.support import tiny


def methods(task: Task) -> dict[str, Method]:
    return {m.name: m for m in [*centralised(task), *alone(task), *edge(task)]}


async def batches(me: Coordinator) -> np.random.Generator:
    return me.within("fit").rng("batches")


def pooled(task: Task, seed: int) -> Trained:
    """Plain training, written out: pool, standardise, train."""
    rows, _ = task.split(seed)
    frame = pd.concat(task.row_clients(rows, seed).values())
    x = features(frame, task.features)
    scaler = Scaler.fit(x)
    module = task.network(x.shape[1], seed)
    y = torch.from_numpy(encode_labels(frame[task.target], [0, 1]))
    rng = simulate({SERVER: batches}, seed=seed).results[SERVER]
    train(module, torch.from_numpy(scaler(x)), y, task.settings, rng, epochs=task.settings.epochs)
    return Trained(module, scaler, (0.0, 1.0), [0, 1])


def test_centralised_is_plain_training_on_the_pooled_rows_bit_for_bit() -> None:
    task, seed = tiny.task(), 3
    rows, test = task.split(seed)
    parts = {
        name: Sample(features(r, task.features), r[task.target].to_numpy(), [0, 1])
        for name, r in task.row_clients(rows, seed).items()
    }
    module = task.network(len(task.features), seed)
    roles: dict[str, Role] = {SERVER: lambda me: trainer(me, module, task.settings)}
    for name, part in parts.items():
        roles[name] = lambda me, part=part: source(me, part)  # type: ignore[misc]
    got = simulate(roles, seed=seed).results[SERVER]
    expected = pooled(task, seed)
    assert Arrays.from_module(got.module) == Arrays.from_module(expected.module)
    x = features(test, task.features)
    wanted = probabilities(outputs(expected.module, torch.from_numpy(expected.scaler(x))))
    assert np.array_equal(got.predict(x), wanted)
    outcome = centralised(task)[0].run(task, seed)
    assert outcome.score == score(task, test[task.target], pd.DataFrame(wanted, columns=[0, 1]))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_edge_predicts_as_centralised_and_sends_nothing_to_do_it(kind: str) -> None:
    task = tiny.task(kind)
    at_server, at_device = centralised(task)[0].run(task, 1), edge(task)[0].run(task, 1)
    assert at_device.score == at_server.score
    assert at_server.predict_ledger.nbytes > 0
    assert at_device.predict_ledger.nbytes == 0
    assert at_device.predict_ledger.compute["client0"].flops > 0
    # What edge adds to training is one model for each client.
    added = at_device.ledger.entries[len(at_server.ledger) :]
    assert [e.receiver for e in added] == ["client0", "client1", "client2"]
    assert {e.kind for e in added} == {"protocols.Model/1"}


def test_alone_sends_nothing_at_all_and_names_the_hypothetical() -> None:
    task = tiny.task()
    for method in alone(task):
        outcome = method.run(task, 0)
        assert len(outcome.ledger) == len(outcome.predict_ledger) == 0
        assert method.hypothetical == method.name.endswith("(hypothetical)")
    assert [m.name for m in alone(task)] == ["alone: bank", "alone: telco (hypothetical)"]


def test_regression_is_learnt_in_the_targets_own_units() -> None:
    task = tiny.task("regression")
    task = dataclasses.replace(
        task, settings=dataclasses.replace(task.settings, epochs=60, learning_rate=0.01)
    )
    assert centralised(task)[0].run(task, 0).score > 0.8


@pytest.mark.parametrize("name", ["centralised", "edge", "alone: bank", "alone: telco (hypothetical)"])
def test_every_computation_is_priced_so_the_ledger_can_be_replayed(name: str) -> None:
    task = tiny.task()
    outcome = methods(task)[name].run(task, 0)
    for ledger in (outcome.ledger, outcome.predict_ledger):
        assert all(meter.unpriced == 0 for meter in ledger.compute.values())
        assert ledger.replay(Network(latency=0.1)) > 0
    again = methods(task)[name].run(task, 0)
    assert again.score == outcome.score
    assert [e.digest for e in again.ledger] == [e.digest for e in outcome.ledger]


def test_labels_are_united_whatever_each_client_has() -> None:
    one = Sample(np.zeros((2, 1)), np.array([0, 1]), ["no", "yes"])
    two = Sample(np.ones((2, 1)), np.array([0, 0]), ["maybe"])
    rows = pool([one, two])
    assert [rows.classes[i] for i in rows.y] == ["no", "yes", "maybe", "maybe"]


def test_a_bad_cell_is_an_error_at_its_owner_before_anything_is_sent() -> None:
    task = tiny.task()
    task.table.loc[:, "a"] = np.nan
    with pytest.raises(DataError, match=r"^bank/fit: column 'a' has"):
        alone(task)[0].run(task, 0)

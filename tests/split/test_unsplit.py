"""Split training is the unsplit training on the same batches in the same order, bit for bit."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from protocols.data.tables import Scaler, encode_labels, features, moments, numbers
from protocols.federation import simulate
from protocols.flops import training_flops
from protocols.learning.clients import read_client
from protocols.learning.training import Settings
from split import SplitClassifier, SplitRegressor
from split.roles import client, server
from tests.support.split_rows import SEED, convnet, held, images, mlp5, plan, same, tables, unsplit

SIZES = {1: [70], 3: [40, 33, 20]}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
}
CUTS = [*range(1, 5), *combinations(range(1, 5), 2)]


def state(model: SplitClassifier | SplitRegressor) -> dict[str, torch.Tensor]:
    return {**model.client_model_.state_dict(), **model.server_model_.state_dict()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clients", SIZES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_classifier_cut_anywhere(cut: int | tuple[int, int], clients: int, optimizer: str) -> None:
    data = tables(SIZES[clients])
    data = {name: table.drop(columns="z") for name, table in data.items()}
    settings = Settings(epochs=3, batch_size=16, **OPTIMIZERS[optimizer])
    split = SplitClassifier(
        mlp5(), cut, epochs=3, batch_size=16, random_state=SEED, **OPTIMIZERS[optimizer]
    ).fit(data, target="y")
    x = {name: features(table.drop(columns="y")) for name, table in data.items()}
    scaler = Scaler.combine([moments(one) for one in x.values()])
    rows = {
        name: (
            torch.from_numpy(scaler(x[name])),
            torch.from_numpy(encode_labels(table["y"], ["no", "yes"])),
        )
        for name, table in data.items()
    }
    assert same(unsplit(mlp5(), rows, settings), state(split))


@pytest.mark.parametrize("cut", [2, (2, 4)])
def test_a_regressor(cut: int | tuple[int, int]) -> None:
    model = torch.nn.Sequential(*list(mlp5())[:4], torch.nn.Linear(6, 1))
    data = {name: table.drop(columns="y") for name, table in tables([40, 33]).items()}
    split = SplitRegressor(model, cut, epochs=2, batch_size=16, standardise=False, random_state=SEED).fit(
        data, target="z"
    )
    y = {name: numbers(table["z"]) for name, table in data.items()}
    scaler = Scaler.combine([moments(one.astype(np.float64)) for one in y.values()])
    rows = {
        name: (
            torch.from_numpy(features(table.drop(columns="z")).astype(np.float32)),
            torch.from_numpy(scaler(y[name])),
        )
        for name, table in data.items()
    }
    expected = unsplit(model, rows, Settings("regression", epochs=2, batch_size=16))
    assert same(expected, state(split))


@pytest.mark.parametrize("cut", [*range(1, 7), (1, 3), (2, 4), (3, 5), (4, 6)], ids=str)
def test_a_convolutional_network_with_running_statistics(cut: int | tuple[int, int]) -> None:
    data = images([20, 12])
    split = SplitClassifier(convnet(), cut, epochs=2, batch_size=8, standardise=False, random_state=SEED)
    split.fit(data, target="digit")
    rows = {
        name: (
            torch.tensor(table.drop(columns="digit").to_numpy(np.float32)),
            torch.tensor(table["digit"].to_numpy()),
        )
        for name, table in data.items()
    }
    assert same(unsplit(convnet(), rows, Settings(epochs=2, batch_size=8)), state(split))


@pytest.mark.parametrize("cut", [(2,), (2, 4)])
def test_every_client_ends_with_the_same_layers(cut: tuple[int, ...]) -> None:
    agreed, model = plan(cut, Settings(epochs=2, batch_size=16)), mlp5()
    data = tables([30, 20, 17])
    names = list(data)
    roles: dict[str, Any] = {
        name: partial(
            client,
            plan=agreed,
            module=model,
            rows=read_client(t.drop(columns="z"), "y", None, "classification"),
            clients=names,
        )
        for name, t in data.items()
    }
    results = simulate({**roles, "server": partial(server, plan=agreed, module=model, clients=names)}).results
    states = [held(results[name]) for name in names]
    assert same(states[0], states[1]) and same(states[0], states[2])
    # And the model that was given is left as it was.
    assert same(dict(model.state_dict()), dict(mlp5().state_dict()))


@pytest.mark.parametrize(("cut", "messages"), [(2, 2), ((2, 4), 4)])
def test_messages_and_flops_are_those_of_the_batches(cut: int | tuple[int, int], messages: int) -> None:
    data = {name: table.drop(columns="z") for name, table in tables([32, 16]).items()}
    model = SplitClassifier(mlp5(), cut, epochs=2, batch_size=16, standardise=False).fit(data, target="y")
    exchanged = model.ledger_.frame().query(
        "scope.str.startswith('fit') and not kind.str.contains('HandOver')"
    )
    assert exchanged.groupby("round").size().to_list() == [3 * messages, 3 * messages]
    # Each message waits for the one before; so do the clients.
    assert model.ledger_.chain_length("fit/0") == 3 * messages + 2
    assert model.ledger_.compute_summary()["flops"].sum() == 6 * training_flops(mlp5(), (16, 5))


@pytest.mark.parametrize("cut", [2, (2, 4)])
def test_predictions_are_those_of_the_unsplit_network(cut: int | tuple[int, int]) -> None:
    data = {name: table.drop(columns="z") for name, table in tables([40]).items()}
    model = SplitClassifier(mlp5(), cut, epochs=1, standardise=False).fit(data, target="y")
    new = tables([5000], seed=9)["client0"]
    whole = mlp5()
    whole.load_state_dict(state(model))
    with torch.no_grad():
        logits = whole.eval()(torch.tensor(new[list(model.feature_names_in_)].to_numpy(np.float32)))
    expected = pd.DataFrame(logits.double().softmax(dim=1).numpy(), new.index, ["no", "yes"])
    pd.testing.assert_frame_equal(model.predict_proba(new), expected, rtol=1e-5)
    assert model.predict_ledger_.summary(by=["sender"])["messages"].to_dict() == {"client": 3, "server": 2}

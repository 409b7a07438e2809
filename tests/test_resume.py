"""A run that starts again from what its parties kept after any step ends with the unbroken run's bits."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from horizontal import FedClassifier, FedRegressor
from horizontal.algorithms.fedavg import local_training
from horizontal.rounds import serve_rounds, train_rounds
from horizontal.rules import Algorithm, ServerRule
from protocols.arrays import Arrays
from protocols.errors import ConfigError
from protocols.federation import simulate
from protocols.hazmat.paillier import Paillier
from protocols.learning.networks import mlp
from protocols.learning.training import Settings
from protocols.party import Role
from protocols.testing import resuming
from protocols.testing.resuming import Memory, Roles, play, prints
from split import SplitClassifier, SplitRegressor
from tests.support.crew import captured
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier

STEPS = 3
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adam", "learning_rate": 0.01},
]


check = partial(resuming.check, steps=STEPS)


def table(seed: int, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    return pd.DataFrame(x, columns=list("abcd")).assign(label=(x[:, 0] + x[:, 1] > 0).astype(int))


def clients(count: int) -> dict[str, pd.DataFrame]:
    rows = {"ann": 32, "bob": 24, "cleo": 40, "dan": 20}
    return {name: table(seed, rows[name]) for seed, name in enumerate([*rows][:count])}


def net() -> nn.Sequential:
    """Draws random numbers and keeps running statistics, on both sides of either cut."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        middle = (nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.3))
        return nn.Sequential(*first, *middle, nn.Tanh(), nn.Linear(6, 6), nn.Dropout(0.2), nn.Linear(6, 2))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adam"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_fedavg(optimizer: dict[str, Any], fraction: float) -> None:
    model = FedClassifier(
        net(), rounds=STEPS, local_epochs=2, batch_size=8, fraction=fraction, random_state=3, **optimizer
    )
    check(lambda: captured(lambda data: model.fit(data, target="label"), clients(4)))


def test_fedsgd_and_a_regressor() -> None:
    model = FedRegressor(rounds=STEPS, algorithm="fedsgd", hidden=(5,), random_state=3)
    check(lambda: captured(lambda data: model.fit(data, target="label"), clients(2)))


def momentum(state: Arrays, model: Arrays, mean: Arrays) -> tuple[Arrays, Arrays]:
    state = 0.9 * state + (mean - model)
    return model + state, state


def rounds(rule: ServerRule[Any]) -> tuple[Roles, int]:
    """The rounds alone, with a rule of the server's own."""
    algorithm, start = Algorithm(local_training(Settings()), rule), mlp(4, 2, (5,))
    serve = partial(serve_rounds, module=start, algorithm=algorithm, rounds=STEPS, fraction=1.0)

    def train(own: pd.DataFrame) -> Role:
        x = torch.tensor(own[list("abcd")].to_numpy(np.float32))
        y = torch.tensor(own["label"].to_numpy())
        return lambda me: train_rounds(me, "server", mlp(4, 2, (5,)), x, y, algorithm, STEPS)

    return {"server": serve, **{name: train(own) for name, own in clients(2).items()}}, 3


def test_a_server_rule_with_state() -> None:
    check(lambda: rounds(ServerRule(lambda model: 0.0 * model, momentum)))


def test_a_server_rule_whose_state_cannot_be_kept_says_so() -> None:
    counting: ServerRule[int] = ServerRule(lambda model: 0, lambda state, model, mean: (mean, state + 1))
    roles, _ = rounds(counting)
    simulate(roles)  # it may run where nothing is kept
    with pytest.raises(
        ConfigError, match="^server/fit: a rule.s state should be Arrays or None to be kept, got int"
    ):
        play(lambda: rounds(counting), {name: Memory() for name in roles})


@pytest.mark.parametrize(
    ("cut", "count", "optimizer"),
    [*product([3, (3, 6)], [1, 3], OPTIMIZERS)],
    ids=str,
)
def test_split_learning(cut: int | tuple[int, int], count: int, optimizer: dict[str, Any]) -> None:
    model = SplitClassifier(net(), cut, epochs=STEPS, batch_size=8, random_state=3, **optimizer)
    check(lambda: captured(lambda data: model.fit(data, target="label"), clients(count)))


@pytest.mark.parametrize("cut", [1, (1, 2)])
def test_split_learning_of_a_number(cut: int | tuple[int, int]) -> None:
    # The middle of the U shape is a lone ReLU, without weights and so without an optimizer.
    model = SplitRegressor(cut=cut, hidden=(5,), epochs=STEPS, random_state=3)
    check(lambda: captured(lambda data: model.fit(data, target="label"), clients(2)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adam"])
@pytest.mark.parametrize("parties", [2, 3])
def test_the_vertical_network(optimizer: dict[str, Any], parties: int) -> None:
    whole = table(7, 64).assign(id=np.arange(64))
    columns = {"ann": ["a", "label"], "bob": ["b"], "cleo": ["c"]}
    tables = {
        party: whole[["id", *columns[party]]].sample(frac=1, random_state=1)
        for party in list(columns)[:parties]
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bottoms = {
            party: nn.Sequential(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)) for party in tables
        }
        top = nn.Sequential(nn.Linear(6 * parties, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    model = VerticalNetClassifier(
        bottoms=bottoms, top=top, epochs=STEPS, batch_size=16, random_state=3, **optimizer
    )
    check(lambda: captured(lambda data: model.fit(data, target="ann.label", id="id"), tables))


@pytest.mark.parametrize(
    "how",
    [
        {"subsample": 0.7},
        {"early_stopping": True, "complete_secure": True},
        {"top_rate": 0.3, "other_rate": 0.3},
    ],
    ids=["subsampling", "held out", "GOSS"],
)
@pytest.mark.parametrize("parties", [2, 3])
def test_boosted_trees(how: dict[str, Any], parties: int) -> None:
    """The key is a new one in each attempt."""
    whole = table(7, 90).assign(id=np.arange(90))
    columns = {"ann": ["a", "label"], "bob": ["b"], "cleo": ["c"]}
    tables = {
        party: whole[["id", *columns[party]]].sample(frac=1, random_state=1)
        for party in list(columns)[:parties]
    }
    key = Paillier(bits=512, small_key=True, backend="gmpy2")
    model = VerticalGradientBoostingClassifier(
        n_estimators=STEPS, max_depth=2, encryption=key, random_state=3, **how
    )
    check(lambda: captured(lambda data: model.fit(data, target="ann.label", id="id"), tables))


LINEAR: list[dict[str, Any]] = [
    {},
    {"security": "hidden"},
    {"early_stopping": True, "n_iter_no_change": 9},
    {"l1": 0.01, "early_stopping": True, "n_iter_no_change": 9},
    {"l1": 0.01, "security": "hidden"},
    {"solver": "sgd", "momentum": 0.5},
    {"solver": "sgd", "security": "hidden"},
    {"solver": "sgd", "early_stopping": True, "n_iter_no_change": 9, "security": "plain"},
]


@pytest.mark.parametrize("settings", LINEAR, ids=str)
@pytest.mark.parametrize("parties", [2, 3])
def test_linear_models(settings: dict[str, Any], parties: int) -> None:
    """With new keys and masks, which change no bit."""
    whole = table(7, 90).assign(id=np.arange(90))
    whole["label"] = (whole["a"] + np.random.default_rng(3).logistic(size=90) > 0).astype(int)
    columns = {"ann": ["a", "label"], "bob": ["b", "d"], "cleo": ["c"]}
    tables = {
        party: whole[["id", *columns[party]]].sample(frac=1, random_state=1)
        for party in list(columns)[:parties]
    }
    model = VerticalLogisticRegression(
        max_iter=STEPS,
        tol=0.0,
        batch_size=40,
        encryption=Paillier(512, small_key=True),
        random_state=3,
        **settings,
    )
    check(lambda: captured(lambda data: model.fit(data, target="ann.label", id="id"), tables))


BOOSTED = VerticalGradientBoostingClassifier(
    n_estimators=30,
    max_depth=2,
    learning_rate=1.0,
    min_samples_leaf=1,
    min_samples_split=2,
    early_stopping=True,
    n_iter_no_change=1,
    encryption=Paillier(bits=512, small_key=True, backend="gmpy2"),
    random_state=3,
)
LINEARS = [
    VerticalLogisticRegression(max_iter=30, encryption=Paillier(512, small_key=True), random_state=3, **how)
    for how in ({"tol": 0.1}, {"tol": 0.1, "l1": 0.01}, {"tol": 0.1, "security": "hidden"})
] + [
    VerticalLogisticRegression(
        max_iter=30,
        solver="sgd",
        batch_size=40,
        learning_rate=3.0,
        early_stopping=True,
        n_iter_no_change=1,
        encryption=Paillier(512, small_key=True),
        random_state=3,
    )
]


@pytest.mark.parametrize("model", [BOOSTED, *LINEARS], ids=["trees", "lbfgs", "l1", "hidden", "sgd"])
def test_a_run_that_ends_by_itself_keeps_what_was_trained_and_ends_again_there(model: Any) -> None:
    whole = table(7, 90).assign(id=np.arange(90))
    whole["label"] = (whole["a"] + np.random.default_rng(3).logistic(size=90) > 0).astype(int)
    tables = {"ann": whole[["id", "a", "label"]], "bob": whole[["id", "b", "c"]]}

    def make() -> tuple[Roles, int]:
        return captured(lambda data: model.fit(data, target="ann.label", id="id"), tables)

    kept = {name: Memory() for name in tables}
    run = play(make, kept)
    done = max(kept["ann"].states)
    learnt = run.results["ann"][1]
    assert done == (len(learnt.scores) if model is BOOSTED else learnt.steps)
    assert 1 <= done < 30
    assert all(sorted(memory.states) == [*range(1, done + 1)] for memory in kept.values())
    again = {name: Memory(done, dict(memory.states), memory.aligned) for name, memory in kept.items()}
    assert prints(play(make, again)) == prints(run)
    assert {name: m.states for name, m in again.items()} == {name: m.states for name, m in kept.items()}

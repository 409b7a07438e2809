"""The shared loop is the loop one would write by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protocols.arrays import Arrays
from protocols.errors import ConfigError
from protocols.flops import forward_flops, training_flops
from protocols.learning.networks import mlp
from protocols.learning.training import (
    Settings,
    batches,
    check_network,
    epoch_flops,
    outputs,
    outputs_flops,
    probabilities,
    train,
)

X = torch.from_numpy(np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32))
TARGETS = {"classification": (X[:, 0] > 0).long(), "regression": X[:, 1:2] * 2}


@given(st.integers(0, 60), st.integers(1, 20))
def test_an_epoch_is_every_row_once(rows: int, size: int) -> None:
    parts = list(batches(rows, size, np.random.default_rng(1)))
    assert sorted(np.concatenate([*parts, np.zeros(0, np.int64)]).tolist()) == list(range(rows))
    assert all(len(part) == size for part in parts[:-1]) and all(0 < len(part) <= size for part in parts)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer": "adam", "weight_decay": 0.01},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd"},
    ],
)
def test_training_is_the_loop_written_by_hand(kind: Any, optimizer: dict[str, Any]) -> None:
    settings = Settings(kind=kind, batch_size=8, learning_rate=0.05, **optimizer)
    y = TARGETS[kind]
    ours, theirs = (mlp(5, 2 if kind == "classification" else 1, (6,), seed=3) for _ in range(2))
    last = train(ours, X, y, settings, np.random.default_rng(4), epochs=3)

    rng = np.random.default_rng(4)
    rest: Any = {"weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "adam":
        hand: torch.optim.Optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05, **rest)
    else:
        hand = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=settings.momentum, **rest)
    measure = nn.CrossEntropyLoss() if kind == "classification" else nn.MSELoss()
    mean = 0.0
    for _ in range(3):
        mean = 0.0
        order = rng.permutation(37)
        for start in range(0, 37, 8):
            rows = torch.from_numpy(order[start : start + 8])
            hand.zero_grad()
            loss = measure(theirs(X[rows]), y[rows])
            loss.backward()
            hand.step()
            mean += loss.item() * len(rows) / 37
    assert Arrays.from_module(ours) == Arrays.from_module(theirs)
    assert last == pytest.approx(mean)


def test_an_optimizer_that_is_given_keeps_its_memory() -> None:
    settings = Settings(batch_size=8)
    whole, parts = mlp(5, 2, (6,)), mlp(5, 2, (6,))
    train(whole, X, TARGETS["classification"], settings, np.random.default_rng(0), epochs=2)
    rng, kept = np.random.default_rng(0), settings.new_optimizer(parts.parameters())
    for _ in range(2):
        train(parts, X, TARGETS["classification"], settings, rng, optimizer=kept)
    assert Arrays.from_module(whole) == Arrays.from_module(parts)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", -1),
        ("batch_size", "32"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("optimizer", "adamw"),
        ("kind", "clustering"),
        ("momentum", -0.1),
        ("weight_decay", float("nan")),
        ("batch_size", None),
        ("learning_rate", None),
        ("learning_rate", "x"),
        ("learning_rate", True),
        ("momentum", "0.9"),
        ("weight_decay", None),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{setting}="):
        Settings(**{setting: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("hidden", value) for value in (8, None, "64", (0,), (8, 4.0), (True,), (1 << 14, 1 << 14))],
        *[("standardise", value) for value in ("no", 1, None)],
        *[("random_state", value) for value in (-1, 0.5, None, "0", True, 2**63)],
    ],
)
def test_parameters_that_all_networks_have(name: str, value: Any) -> None:
    fine: dict[str, Any] = {"hidden": [8], "standardise": np.bool(True), "random_state": np.int64(3)}
    check_network(**fine)
    with pytest.raises(ConfigError, match=rf"^{name}="):
        check_network(**{**fine, name: value})


def test_numpy_numbers_are_settings() -> None:
    settings: Any = {"epochs": np.int64(3), "learning_rate": np.float32(0.1)}
    assert Settings(**settings).epochs == 3


def test_outputs_are_in_evaluation_mode_and_leave_the_mode() -> None:
    module = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    before = Arrays.from_module(module)
    whole, pieces = outputs(module, X), outputs(module, X, batch_size=10)
    assert whole.shape == (37, 3) and whole.dtype == np.float32 and np.allclose(whole, pieces, atol=1e-6)
    assert module.training and Arrays.from_module(module) == before
    module.eval()
    outputs(module, X)
    assert not module.training


def test_an_epoch_costs_its_batches() -> None:
    module = mlp(5, 2, (6,))
    by_hand = 4 * training_flops(module, (8, 5)) + training_flops(module, (5, 5))
    assert epoch_flops(module, (37, 5), 8) == by_hand
    assert epoch_flops(module, (32, 5), 8) == 4 * training_flops(module, (8, 5))
    assert epoch_flops(module, (3, 5), 8) == training_flops(module, (3, 5))
    assert outputs_flops(module, (37, 5), 10) == forward_flops(module, (37, 5))


def test_settings_are_an_estimators_parameters_and_back() -> None:
    settings = Settings("regression", 7, 16, 0.5, "sgd", 0.9, 0.1)
    own = settings.parameters()
    assert own.keys() == {"batch_size", "learning_rate", "optimizer", "momentum", "weight_decay"}
    assert Settings.of(SimpleNamespace(**own, epochs=1, hidden=(4,)), "regression", 7) == settings


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_probabilities_are_a_softmax(logits: list[list[float]]) -> None:
    given = np.array(logits, dtype=np.float32)
    expected = torch.softmax(torch.from_numpy(given).double(), dim=-1).numpy()
    found = probabilities(given)
    assert found.dtype == np.float64 and np.allclose(found, expected) and np.allclose(found.sum(axis=1), 1)

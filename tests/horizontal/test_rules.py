"""The server's mean: by rows, in the model's dtypes; and rules that take a step of their own."""

from __future__ import annotations

import numpy as np
import pytest

from horizontal.algorithms.fedavg import Average
from horizontal.rounds import following
from horizontal.rules import LOSS, ServerRule, in_dtypes
from protocols.arrays import Arrays, weighted_mean
from protocols.errors import ProtocolError
from protocols.sums.plain import Part, Pooled


def pooled(**values: Arrays) -> Pooled:
    """What a plain sum gives, of parties of one row each."""
    given = {party: Arrays({**value, LOSS: np.zeros(())}) for party, value in values.items()}
    parts = {party: Part(value, 1.0) for party, value in given.items()}
    return Pooled(weighted_mean([*given.values()], [1.0] * len(given)), float(len(given)), parts)


def test_the_mean_weighs_by_rows_and_keeps_dtypes() -> None:
    model = Arrays({"w": np.zeros(2, np.float32), "batches": np.array(0), "seen": np.array([True, False])})
    a = Arrays({"w": np.array([1, 2], np.float32), "batches": np.array(4), "seen": np.array([True, False])})
    b = Arrays({"w": np.array([5, 6], np.float32), "batches": np.array(7), "seen": np.array([True, True])})
    mean = in_dtypes(model, weighted_mean([a, b], [3, 1]))
    assert mean.like(model)
    np.testing.assert_allclose(mean["w"], [2, 3])
    assert mean["batches"] == 5  # 4.75, rounded
    assert mean["seen"].tolist() == [True, False]


def test_a_rule_steps_along_the_mean_less_the_model_and_keeps_state() -> None:
    def apply(speed: Arrays, model: Arrays, mean: Arrays) -> tuple[Arrays, Arrays]:
        speed = 0.5 * speed + (mean - model)
        return model + speed, speed

    momentum: ServerRule[Arrays] = ServerRule(lambda model: 0.0 * model, apply)
    model = Arrays({"w": np.array([0], np.float64)})
    state = momentum.init(model)
    for expected in (1.0, 2.5):  # 0 + 1, then 1 + (0.5 * 1 + 1)
        answers = pooled(a=model + Arrays({"w": np.array([1], np.float64)}))
        model, state = following(momentum, state, model, answers, {"w"})
        assert model["w"] == expected


def test_a_diverged_update_is_refused_and_its_client_named() -> None:
    model = Arrays({"w": np.zeros(1, np.float32)})
    bad = Arrays({"w": np.full(1, np.nan, np.float32)})
    with pytest.raises(ProtocolError, match=r"from b \(1 of 2 clients\) are not finite.*learning_rate"):
        following(Average().rule(), None, model, pooled(a=model, b=bad), {"w"})
    hidden = Pooled(pooled(a=model, b=bad).mean, 2.0)
    with pytest.raises(ProtocolError, match="the mean of the weights of the clients is not finite"):
        following(Average().rule(), None, model, hidden, {"w"})

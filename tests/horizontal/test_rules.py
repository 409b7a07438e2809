"""The server's mean: by rows, in the model's dtypes; and rules that take a step of their own."""

from __future__ import annotations

import numpy as np
import pytest

from horizontal.algorithms.fedavg import Average
from horizontal.rounds import following
from horizontal.rules import LOSS, ServerRule
from protocols.arrays import Array, Arrays, weighted_mean
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
    mean = weighted_mean([a, b], [3, 1])
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


def test_what_no_client_changed_stays_to_the_bit() -> None:
    """Averaged at such weights, a third of each would be another number."""
    held: dict[str, Array] = {
        "w": np.zeros(2, np.float32),
        "frozen": np.array([0.1, 0.7, 1e-30], np.float32),
        "mask": np.array([[0.0, -np.inf], [np.inf, np.nan]], np.float32),
        "hash": np.array([2**63 - 1, -(2**53) - 1, 7], np.int64),
    }
    model = Arrays(held)
    answers = [Arrays({**model, "w": np.full(2, k, np.float32)}) for k in range(3)]
    rows = [7.0, 9.0, 3.0]
    given = [Arrays({**answer, LOSS: np.zeros(())}) for answer in answers]
    parts = {str(k): Part(value, weight) for k, (value, weight) in enumerate(zip(given, rows, strict=True))}
    after, _ = following(
        Average().rule(), None, model, Pooled(weighted_mean(given, rows), sum(rows), parts), {"w"}
    )
    for name in ("frozen", "mask", "hash"):
        assert after[name].tobytes() == model[name].tobytes()
    np.testing.assert_allclose(after["w"], (9 + 2 * 3) / 19)
    hidden = Arrays({**model, "mask": np.zeros((2, 2), np.float32) - np.inf})
    with pytest.raises(ProtocolError, match=r"from b \(1 of 2 clients\) are not finite"):
        following(Average().rule(), None, model, pooled(a=model, b=hidden), {"w"})

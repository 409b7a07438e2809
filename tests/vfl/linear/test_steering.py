"""What a party reads that sends numbers of its own choice where its sums should be: as the guide says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

import vfl.linear.lbfgs
import vfl.linear.sgd
from protocols.arrays import Array
from protocols.errors import PolicyError
from protocols.federation import simulate
from protocols.party import Coordinator, Party
from protocols.sums import masked
from tests.support.crew import captured
from tests.vfl.linear.tables import TARGET
from tests.vfl.linear.test_estimator import FIT, Data, classifier, dealt, people
from tests.vfl.linear.test_hostile import asking
from vfl import VerticalLinearRegression
from vfl.linear.gradient import MaskedGradient, OpenedGradient, Sealer
from vfl.linear.lbfgs import _Following
from vfl.linear.messages import Move, PartialScores
from vfl.linear.state import LabelSide
from vfl.linear.whole import WINDOW
from vfl.order import Order

pytestmark = pytest.mark.filterwarnings("ignore:.*without reaching tol")


@pytest.fixture(scope="module")
def data() -> Data:
    return dealt(people())


def standardised(values: Array) -> Array:
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))


def test_a_label_party_that_steers_reads_columns_of_one_party_among_others(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It seals nothing but 0, and adds what it likes to the windows that it returns: a step along one column
    of the shop, and none of the telco. Of the sum of scores only that column then changes."""
    told: list[Array] = []
    orders: list[Array] = []
    opened: list[MaskedGradient] = []
    total, opens, broadcast = masked.total, Sealer.open, Coordinator.broadcast

    def listen(parts: Mapping[str, Array], shape: tuple[int, int]) -> Array:
        told.append(total(parts, shape)[:, 0])
        return np.zeros(shape)

    def steer(self: Sealer, came: MaskedGradient) -> OpenedGradient:
        opened.append(came)
        words = opens(self, came).words.astype(object)
        column, of_telco = divmod(len(opened) - 1, 2)
        if not of_telco and column < len(words):
            words[column] += 2 ** (WINDOW - 3)
        return OpenedGradient(words=(words % 2**WINDOW).astype(np.uint64))

    async def overhear(self: Coordinator, message: Any, to: Any = None) -> None:
        if isinstance(message, Order):
            orders.append(message.rows.astype(np.int64))
        await broadcast(self, message, to)

    monkeypatch.setattr(vfl.linear.sgd, "total", listen)
    monkeypatch.setattr(Sealer, "open", steer)
    monkeypatch.setattr(LabelSide, "residuals", lambda self, z, rows: np.zeros_like(z))
    monkeypatch.setattr(Coordinator, "broadcast", overhear)
    model = classifier(solver="sgd", max_iter=3, l2=0.0, batch_size=1000)
    roles, seed = captured(lambda tables: model.fit(tables, **FIT), data)
    results = simulate({**roles}, seed=seed).results
    table = data["shop"].iloc[results["shop"][1].rows][["c", "d"]].to_numpy()
    scores = np.empty((3, len(table)))
    for at, rows, z in zip(scores, orders, told, strict=True):
        at[rows] = z
    for step, column in zip(np.diff(scores, axis=0), table.T, strict=True):
        # To the sign, which the label party chooses.
        np.testing.assert_allclose(-standardised(step), standardised(column), atol=1e-6)


def test_weights_are_in_the_step_that_all_are_told(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature party that makes up scores hears in `Move` how far a step goes along them: along one row's,
    as far as the row's weight has it. Labels are not in it: slopes are held against what the party says."""
    tables = {"bank": data["bank"][["id"]], "shop": data["shop"]}
    weights = np.where(np.arange(len(data["bank"])) % 2, 1.0, 3.0)
    for modulus in (7, 5):
        y = np.arange(len(weights)) % modulus
        named = {**tables, "bank": tables["bank"].assign(**{TARGET: y})}
        steps = {}
        for row in range(8):
            rows, steps[row] = along(named, weights, row, monkeypatch)
        heavy = weights[rows[:8]] > 1
        assert 0 < heavy.sum() < 8
        shortest = min(steps.values())
        assert [step < 1.5 * shortest for step in steps.values()] == heavy.tolist(), steps


def along(data: Data, weights: Array, row: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Array, float]:
    """The common rows, and how far a step goes along scores that the shop has for one `row` alone."""
    told: list[float] = []
    move = _Following.move

    async def lie(at: Party, side: Any, vector: Any, block: Any, cost: float, exponent: int = 0) -> None:
        z = np.zeros((len(side.columns.values), 1))
        z[row] = float(at.scope.startswith("fit"))
        await at.send(side.label_party, PartialScores(scores=side.masks(z, exponent)))

    def hear(self: _Following, message: Move) -> None:
        told.append(message.step)
        move(self, message)

    with monkeypatch.context() as patch:
        patch.setattr(vfl.linear.lbfgs, "_tell", lie)
        patch.setattr(_Following, "move", hear)
        model = VerticalLinearRegression(security="plain", max_iter=1, l2=0.0)
        roles, seed = captured(lambda tables: model.fit(tables, **FIT, sample_weight=weights), data)
        results = simulate({**roles}, seed=seed).results
    return results["bank"][2].rows, told[0]


def test_a_policy_of_the_label_party_is_asked_about_rows_that_weigh(data: Data) -> None:
    """Sums over rows of weight 0 are about the others alone."""
    weights = np.zeros(len(data["bank"]))
    weights[:60] = 1.0
    for settings in ({}, {"l1": 0.01}, {"solver": "sgd", "batch_size": 10_000}):
        fit = partial(classifier(max_iter=1, **settings).fit, **FIT, sample_weight=weights)
        roles, seed = captured(fit, data)
        simulate({**roles, "bank": asking(roles["bank"], 20)}, seed=seed)
        with pytest.raises(PolicyError, match="bank/fit/0: a statistic would be of 5. rows"):
            simulate({**roles, "bank": asking(roles["bank"], 60)}, seed=seed)

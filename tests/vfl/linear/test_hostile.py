"""What a peer says that no run leads to is refused, by whom it could harm and with an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from protocols.arrays import Array
from protocols.errors import ConfigError, DataError, PolicyError, ProtocolError
from protocols.federation import simulate
from protocols.party import Coordinator, Role, Unguarded
from protocols.programs import Seat
from protocols.wire.codec import encode
from protocols.wire.message import Message
from tests.support.crew import captured
from tests.vfl.linear.tables import SMALL, TARGET
from tests.vfl.linear.test_estimator import FIT, Data, classifier, dealt, people
from vfl import VerticalLogisticRegression
from vfl.linear.messages import InnerProducts, LinearStart, Move, PartialScores, ProximalStep, TrialProducts
from vfl.linear.program import plain_program
from vfl.linear.shared_gradient import ShareKey

pytestmark = pytest.mark.filterwarnings("ignore:.*without reaching tol")


@pytest.fixture
def data() -> Data:
    return dealt(people())


def twisted(
    monkeypatch: pytest.MonkeyPatch, kind: type[Message], change: Callable[[Any], dict[str, Any]]
) -> None:
    """From here on, every message of this kind leaves with other fields."""

    def twist(message: Message) -> bytes:
        return encode(message.model_copy(update=change(message)) if isinstance(message, kind) else message)

    monkeypatch.setattr("protocols.party.encode", twist)


def first(array: Array, value: float) -> Array:
    changed = array.copy()
    changed.flat[0] = value
    return changed


def flipped(key: bytes) -> bytes:
    """With another proof."""
    return key[:-1] + bytes([key[-1] ^ 1])


EXACT = {"security": "exact", "encryption": SMALL}
HIDDEN = {"security": "hidden", "encryption": SMALL}
WRONG: list[tuple[dict[str, Any], type[Message], Callable[[Any], dict[str, Any]], str]] = [
    ({}, InnerProducts, lambda m: {"gram": first(m.gram, np.nan)}, "from shop in .*: field gram: .* finite"),
    ({}, InnerProducts, lambda m: {"penalty": first(m.penalty, np.inf)}, "field penalty: .* finite"),
    ({}, InnerProducts, lambda m: {"gram": first(m.gram, -1.0)}, "from shop: expected squares of lengths"),
    ({}, InnerProducts, lambda m: {"gram": np.eye(9)}, "from shop: expected 1 vectors, got 9"),
    ({}, PartialScores, lambda m: {"scores": m.scores[:-1]}, "scores from shop should have shape"),
    ({}, Move, lambda m: {"step": np.nan}, "from bank in .*: field step: .* finite"),
    ({}, Move, lambda m: {"coefficients": first(m.coefficients, np.inf)}, "field coefficients: .* finite"),
    (HIDDEN, TrialProducts, lambda m: {"gram": first(m.gram, np.nan)}, "field gram: .* finite"),
    (HIDDEN, TrialProducts, lambda m: {"gram": np.eye(9)}, "from shop: expected 2 vectors, got 9"),
    (HIDDEN, Move, lambda m: {"coefficients": np.ones(7)}, "expected 3 coefficients, got 7"),
    ({"l1": 0.01}, ProximalStep, lambda m: {"curvature": np.inf}, "field curvature: .* finite"),
    ({"l1": 0.01}, ProximalStep, lambda m: {"momentum": -3.0}, "field momentum: "),
    (EXACT, LinearStart, lambda m: {"key": flipped(m.key)}, "shop/setup|telco/setup.*without a valid proof"),
    (HIDDEN, ShareKey, lambda m: {"key": flipped(m.key)}, "/setup.*without a valid proof"),
    ({}, LinearStart, lambda m: {"outputs": 2}, "2 outputs are none that such a model of .* rows has"),
    ({}, LinearStart, lambda m: {"outputs": 2**40}, "outputs are none that such a model of .* rows has"),
    ({"security": "hidden"}, LinearStart, lambda m: {"outputs": 3}, "3 outputs are none"),
    (
        {},
        LinearStart,
        lambda m: {"held_out": np.arange(100, dtype=np.uint32)},
        "expected 0 different ones of .* common rows to be held out, got 100",
    ),
    (
        {"early_stopping": True, "validation_fraction": 0.1},
        LinearStart,
        lambda m: {"held_out": np.arange(100, dtype=np.uint32)},
        "expected 1. different ones of .* common rows to be held out, got 100",
    ),
]


@pytest.mark.parametrize(("settings", "kind", "change", "said"), WRONG)
def test_what_no_run_says_is_refused(
    data: Data,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    kind: type[Message],
    change: Callable[[Any], dict[str, Any]],
    said: str,
) -> None:
    model = classifier(max_iter=3, **settings)
    twisted(monkeypatch, kind, change)
    with pytest.raises(ProtocolError, match=said):
        model.fit(data, **FIT)


def test_a_step_is_not_tried_without_end(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt shows scores of other coefficients."""
    twisted(monkeypatch, ProximalStep, lambda m: {"taken": False})
    with pytest.raises(ProtocolError, match="expected a curvature of 2, got 1"):
        classifier(l1=0.01).fit(data, **FIT)


def test_rows_without_weight_keep_no_label_hidden(data: Data) -> None:
    """Two columns' gradient of fewer than 20 rows that count says too much of these rows' labels."""
    weights = np.zeros(len(data["bank"]))
    weights[:21] = 1.0
    for settings in ({}, {"l1": 0.01}, {"solver": "sgd", "batch_size": 10_000}):
        with pytest.raises(DataError, match="bank/fit.*: a batch of 1. rows is too small for 2 columns"):
            classifier(**settings).fit(data, **FIT, sample_weight=weights)
    weights[:60] = 1.0
    assert classifier().fit(data, **FIT, sample_weight=weights).converged_


class AtLeast(Unguarded):
    """A policy's guard that asks for so many rows behind each statistic."""

    def __init__(self, least: int) -> None:
        self.least = least

    def group(self, rows: int) -> None:
        if rows < self.least:
            raise PolicyError(f"a statistic would be of {rows} rows")


def asking(role: Role, least: int) -> Role:
    """The same, with such a policy."""

    async def asked(me: Coordinator) -> Any:
        me.desk.guard = AtLeast(least)
        return await role(me)

    return asked


@pytest.mark.parametrize("guarded", ["bank", "shop"])
def test_a_policy_is_asked_about_the_rows_of_a_batch(data: Data, guarded: str) -> None:
    """Not about all rows: every batch has a gradient of its own."""
    # Columns of signs, so that about half of a batch's rows are behind each gradient.
    signs = {
        party: table.assign(**{str(name): np.sign(table[name]) for name in table.select_dtypes("float")})
        for party, table in data.items()
    }
    model = classifier(solver="sgd", batch_size=40, max_iter=1)
    roles, seed = captured(lambda tables: model.fit(tables, **FIT), signs)

    simulate({**roles, guarded: asking(roles[guarded], 12)}, seed=seed)
    with pytest.raises(PolicyError, match=f"{guarded}.*a statistic would be of 4. rows"):
        simulate({**roles, guarded: asking(roles[guarded], 50)}, seed=seed)


def test_coefficients_are_used_only_by_the_parties_that_trained_them(data: Data) -> None:
    """Of two feature parties the label party may see the sum of scores, and not one's alone."""
    model = classifier().fit(data, **FIT)
    told = {"label_party": "bank", "family": "logistic", "security": "plain"}

    def role(action: str, parties: tuple[str, ...], **more: Any) -> Role:
        seat = Seat("shop", parties, data["shop"], "id", kept=model.parts_["shop"])
        return plain_program.role(action, plain_program.read(told | more), seat)

    role("predict", ("bank", "shop", "telco"))
    role("fit", ("bank", "shop", "telco", "club"), warm_start=True)
    for action, more in (("predict", {}), ("fit", {"warm_start": True})):
        with pytest.raises(ConfigError, match="are for the label party bank with shop, telco, got bank"):
            role(action, ("bank", "shop"), **more)
        with pytest.raises(ConfigError, match="are for the label party bank with shop, telco, got telco"):
            role(action, ("bank", "shop", "telco"), label_party="telco", **more)


def test_a_warm_start_with_the_label_elsewhere_is_refused(data: Data) -> None:
    model = classifier(warm_start=True).fit(data, **FIT)
    moved = {
        "bank": data["bank"].drop(columns=TARGET),
        "shop": data["shop"].merge(data["bank"][["id", TARGET]], on="id"),
        "telco": data["telco"],
    }
    with pytest.raises(ConfigError, match="for the label party bank with shop, telco, got shop"):
        model.fit(moved, target=f"shop.{TARGET}", id="id")


def test_nothing_is_told_of_coefficients_that_cost_nothing(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[InnerProducts] = []

    def look(message: InnerProducts) -> dict[str, Any]:
        seen.append(message)
        return {}

    twisted(monkeypatch, InnerProducts, look)
    classifier(l2=0.0, max_iter=3).fit(data, **FIT)
    assert len(seen) == 6 and all((m.gram != 0).any() and (m.penalty == 0).all() for m in seen)


def test_the_label_party_of_hidden_scores_counts_its_intercept() -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(25)
    y = rng.permutation(np.repeat([0, 1], [12, 13]))
    bank = pd.DataFrame({"id": ids, "a": rng.normal(size=25), "b": rng.normal(size=25), TARGET: y})
    shop = pd.DataFrame({"id": ids, "c": rng.normal(size=25)})
    with pytest.raises(DataError, match="bank/setup: a batch of 25 rows is too small for 3 columns"):
        VerticalLogisticRegression(security="hidden", encryption=SMALL).fit(
            {"bank": bank, "shop": shop}, **FIT
        )

"""Whatever cannot be meant is a clear error at the caller, and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from protocols.errors import AlignmentError, ConfigError, DataError, ProtocolError, VflError
from protocols.federation import simulate
from protocols.hazmat.paillier import Fixed, Paillier
from protocols.party import Coordinator, Party
from tests.protocols.hazmat.keys import other, small
from tests.vfl.boosting.boosted import plan, roles, shared
from tests.vfl.boosting.test_estimator import classifier, regressor, tables, without
from vfl.boosting.messages import ClearSums, Divided, Drawn, Reached, SealedSums, Sides, TreeKey
from vfl.boosting.sums import open_sums, seal, sum_up, take

Change = Callable[[dict[str, pd.DataFrame]], object]


def bank(**columns: Any) -> Change:
    return lambda data: data.update(bank=data["bank"].assign(**columns))


def shop(**columns: Any) -> Change:
    return lambda data: data.update(shop=data["shop"].assign(**columns))


TABLES: dict[str, tuple[Change, type[VflError], str]] = {
    "one class": (bank(default=1), DataError, "bank/.*1 class, expected at least 2"),
    "NaN in the label": (
        bank(default=lambda t: t["default"].where(t.index > 50)),
        DataError,
        "bank/.*labels are missing",
    ),
    "a constant column": (
        shop(x2=7.0),
        DataError,
        "shop/.*'x2' has one and the same value in every row; drop it",
    ),
    "an empty column": (shop(x2=np.nan), DataError, "shop/.*'x2' has no value in any row; drop it"),
    "an infinite number": (shop(x2=np.inf), DataError, "shop/.*'x2' has 180 infinite values"),
    "dates": (shop(x2=pd.Timestamp("2020-01-01")), DataError, "shop/.*'x2' is datetime64"),
    "no features": (lambda d: d.update(shop=d["shop"][["customer"]]), DataError, "shop/.*at least one"),
    "no rows": (lambda d: d.update(shop=d["shop"][:0]), DataError, "shop/.*0 rows"),
    "no common rows": (
        shop(customer=lambda t: "Z" + t["customer"]),
        AlignmentError,
        "no id is at every party",
    ),
    "no target": (
        lambda d: d.update(bank=without(d)["bank"]),
        DataError,
        "bank/.*no target column 'default'",
    ),
}


@pytest.mark.parametrize("what", TABLES)
def test_tables_that_cannot_be_learnt_from(what: str) -> None:
    change, kind, said = TABLES[what]
    data = tables()
    change(data)
    before, model = copy.deepcopy(data), classifier()
    with pytest.raises(kind, match=said):
        model.fit(data, "bank.default", "customer")
    assert not hasattr(model, "parts_")
    for party, table in data.items():
        pd.testing.assert_frame_equal(table, before[party])


def test_a_model_survives_a_failed_training() -> None:
    data = tables()
    model = classifier().fit(data, "bank.default", "customer")
    expected = model.predict_proba(data)
    with pytest.raises(DataError):
        model.fit(dict(data, shop=data["shop"].assign(x2=0.0)), "bank.default", "customer")
    pd.testing.assert_frame_equal(model.predict_proba(data), expected)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.ones(3), "one number for each of the table's 180 rows"),
        (np.full(180, -1.0), "180 are negative"),
        (np.zeros(180), "0 are not 0"),
    ],
)
def test_weights_that_fit_no_table(weights: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"bank/.*{said}"):
        classifier().fit(tables(), "bank.default", "customer", sample_weight=weights)


def test_a_class_that_is_only_held_out() -> None:
    data = tables()
    common = data["bank"]["customer"].isin(data["shop"]["customer"]).to_numpy()
    label = data["bank"]["default"].astype(str).to_numpy(object)
    label[np.flatnonzero(common)[0]] = "rare"
    data["bank"] = data["bank"].assign(default=label)
    model = classifier(early_stopping=True, validation_fraction=0.95)
    with pytest.raises(DataError, match="bank/setup: class 'rare' is only among the rows held out"):
        model.fit(data, "bank.default", "customer")


def test_a_class_without_weight() -> None:
    data = tables()
    weights = (data["bank"]["default"] == 1).to_numpy(float)
    with pytest.raises(DataError, match="class 0 is only among rows of weight 0"):
        classifier().fit(data, "bank.default", "customer", sample_weight=weights)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_estimators": 0}, "n_estimators"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"max_bins": 256}, "max_bins"),
        ({"max_depth": 2.5}, "max_depth"),
        ({"subsample": 1.5}, "subsample"),
        ({"top_rate": 0.5}, r"vertical-boosting-plain: top_rate and other_rate go together"),
        ({"top_rate": 0.7, "other_rate": 0.7}, "add up to at most 1"),
        ({"top_rate": 0.2, "other_rate": 0.1, "subsample": 0.5}, "exclude each other"),
        ({"encryption": "paillier"}, r"encryption='paillier' should be Paillier\(...\)"),
        ({"encryption": Paillier(bits=1024)}, "1024 bits can be broken"),
        ({"predict_protocol": "all"}, "predict_protocol"),
        ({"monotone": {"shop": {"x9": 1}}}, "shop/.*monotone names 'x9'"),
        ({"monotone": {"shop": {"x2": 2}}}, "shop/.*expected 1, -1 or 0"),
        ({"monotone": {"shpo": {"x2": 1}}}, "monotone names 'shpo'.*shop"),
        ({"monotone": {"x2": 1}}, r"monotone=\{'x2': 1\} should be \{party: \{column: 1 or -1\}\}"),
        ({"monotone": ["x2"]}, r"monotone=\['x2'\] should be \{party"),
        ({"random_state": None}, "random_state=None should be a whole number"),
        ({"unmatched": "all", "n_estimators": 1}, None),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], said: str | None) -> None:
    if said is None:
        model = classifier(**settings).fit(tables(), "bank.default", "customer")
        with pytest.raises(ConfigError, match="unmatched"):
            model.predict(tables())
        return
    with pytest.raises((ConfigError, DataError), match=said):
        classifier(**settings).fit(tables(), "bank.default", "customer")


def test_complete_secure_needs_columns_of_its_own() -> None:
    data = tables()
    data["bank"] = data["bank"][["customer", "default"]]
    classifier().fit(data, "bank.default", "customer")
    with pytest.raises(DataError, match="bank/.*complete_secure"):
        classifier(complete_secure=True).fit(data, "bank.default", "customer")


def test_targets_that_no_loss_has() -> None:
    data = {party: table.drop(columns="default", errors="ignore") for party, table in tables().items()}
    data["bank"] = data["bank"].assign(amount=np.linspace(-1, 5, len(data["bank"])))
    with pytest.raises(DataError, match="targets are below 0"):
        regressor(loss="poisson").fit(data, "bank.amount", "customer")
    data["bank"] = data["bank"].assign(amount=0.0)
    with pytest.raises(DataError, match="0 in every training row"):
        regressor(loss="poisson").fit(data, "bank.amount", "customer")


def test_columns_at_prediction() -> None:
    data = tables()
    data["shop"]["kind"] = np.where(data["shop"]["x2"] > 0, "new", "old")
    model = classifier().fit(data, "bank.default", "customer")
    expected = model.predict_proba(data)
    turned = {party: table[table.columns[::-1]].assign(more=1) for party, table in data.items()}
    pd.testing.assert_frame_equal(model.predict_proba(turned), expected)
    with pytest.raises(DataError, match="shop/.*1 of 3 columns of the fitted table are missing"):
        model.predict(dict(data, shop=data["shop"].drop(columns="x3")))
    with pytest.raises(DataError, match="shop/.*'x2' is .*, and was numbers in training"):
        model.predict(dict(data, shop=data["shop"].astype({"x2": str})))
    # A category that nobody saw in training goes where missing values go.
    unseen, missing = (
        model.predict_proba(dict(data, shop=data["shop"].assign(kind=value))) for value in ("odd", None)
    )
    pd.testing.assert_frame_equal(unseen, missing)


def test_going_on_needs_the_same_columns_and_classes() -> None:
    data = tables()
    model = classifier(n_estimators=2, warm_start=True).fit(data, "bank.default", "customer")
    with pytest.raises(ConfigError, match="n_estimators=2 should be above the 2 rounds"):
        model.fit(data, "bank.default", "customer")
    model.set_params(n_estimators=4)
    with pytest.raises(ConfigError, match="shop/.*not those of the model that is continued"):
        model.fit(dict(data, shop=data["shop"].assign(more=lambda t: t["x2"])), "bank.default", "customer")
    other_labels = dict(data, bank=data["bank"].assign(default=lambda t: t["default"] + 1))
    with pytest.raises(DataError, match="other classes"):
        model.fit(other_labels, "bank.default", "customer")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (Drawn, {"columns": np.ones(9, bool)}, "expected 3 columns, got 9"),
        (Drawn, {"rows": np.zeros(1, np.uint8)}, "bytes for 60 rows, got 1"),
        (Divided, {"fate": np.zeros(9, np.uint8)}, "do not fit"),
        (Divided, {"columns": np.full(1, 77, np.uint32)}, "no part in this round|do not fit"),
        (Sides, {"left": np.zeros(99, np.uint8)}, "bytes for .* rows, got 99"),
    ],
)
def test_words_that_no_honest_party_says_are_refused(
    kind: Any, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Party.send

    async def lying(self: Party, to: str, message: Any) -> None:
        if isinstance(message, kind):
            message = kind(**(dict(message) | changes))
        await send(self, to, message)

    monkeypatch.setattr(Party, "send", lying)
    tables_, y = shared(60, (2, 3))
    with pytest.raises((ProtocolError, VflError), match=said):
        simulate(roles(tables_, y, plan(n_estimators=1, max_depth=3)))


def test_splits_that_are_not_there_are_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tables()
    model = classifier().fit(data, "bank.default", "customer")
    send = Party.send

    async def lying(self: Party, to: str, message: Any) -> None:
        if isinstance(message, Reached) and len(message.splits):
            message = Reached(splits=message.splits + np.uint32(1000), rows=message.rows)
        await send(self, to, message)

    monkeypatch.setattr(Party, "send", lying)
    with pytest.raises(ProtocolError, match="a split that is not among the"):
        model.predict(data)


def test_sums_under_another_key_or_of_another_size_are_refused() -> None:
    key, rows = small(), np.arange(12).reshape(6, 2)
    sealed = seal(rows, 8, 6, key)
    with pytest.raises(ProtocolError, match="under another key than the one agreed on"):
        take(sealed, other().public(), (6, 2), 8, 6)
    with pytest.raises(ProtocolError, match="expected numbers of"):
        take(sealed, key.public(), (6, 3), 8, 6)
    codes = np.array([[1, 2, 1, 2, 0, 1]], np.uint8)
    sums = sum_up(take(sealed, key.public(), (6, 2), 8, 6), codes, np.array([2]), [np.arange(6)])
    assert open_sums(sums, key, (1, 3, 2), 6 * 2**8, "shop").tolist() == [[[8, 9], [14, 17], [8, 10]]]
    with pytest.raises(ProtocolError, match="expected sums of 1 nodes, 4 bins"):
        open_sums(sums, key, (1, 4, 2), 6 * 2**8, "shop")


def test_a_model_is_continued_only_as_what_it_is() -> None:
    data = {party: table.drop(columns="default", errors="ignore") for party, table in tables(3).items()}
    data["bank"] = data["bank"].assign(y=lambda t: np.exp(t["x0"]).round())
    data["shop"] = data["shop"].assign(y=lambda t: np.exp(t["x2"]).round())
    model = regressor(n_estimators=2, warm_start=True).fit(data, "bank.y", "customer")
    parts = model.parts_
    model.set_params(n_estimators=4)
    with pytest.raises(ConfigError, match="bank/.*has its target at another party"):
        model.fit(data, "shop.y", "customer")
    with pytest.raises(ConfigError, match="is of bank, shop, telco, and this training of bank, shop; train"):
        model.fit({party: data[party] for party in ("bank", "shop")}, "bank.y", "customer")
    model.set_params(loss="poisson")
    with pytest.raises(ConfigError, match="bank/.*trained with loss='squared', not 'poisson'; train anew"):
        model.fit(data, "bank.y", "customer")
    assert model.parts_ is parts


def test_a_target_of_too_many_classes_is_none() -> None:
    data = tables(2, 1400)
    data["bank"] = data["bank"].assign(default=np.arange(len(data["bank"])))
    with pytest.raises(DataError, match=r"bank/setup: the target has \d+ classes.* at most 1000"):
        classifier().fit(data, "bank.default", "customer")


@pytest.mark.parametrize("party", ["bank", "shop"])
def test_a_constraint_on_the_chances_of_many_classes_is_refused(party: str) -> None:
    data = tables(2, 300)
    data["bank"] = data["bank"].assign(default=pd.qcut(data["bank"]["x0"], 3, labels=False))
    name = {"bank": "x1", "shop": "x2"}[party]
    with pytest.raises(ConfigError, match=f"{party}/setup: monotone .* 3 classes; leave monotone") as caught:
        classifier(monotone={party: {name: 1}}).fit(data, "bank.default", "customer")
    assert name not in str(caught.value)
    classifier(n_estimators=1, monotone={party: {name: 0}}).fit(data, "bank.default", "customer")


def test_a_training_that_runs_off_is_refused() -> None:
    data = {party: table.drop(columns="default", errors="ignore") for party, table in tables(2, 400).items()}
    counts = np.zeros(len(data["bank"]))
    counts[(data["bank"]["x0"] > 1.5).to_numpy()] = 1e9
    data["bank"] = data["bank"].assign(y=counts)
    wild = regressor(
        loss="poisson", n_estimators=60, learning_rate=50.0, l2_regularization=0.0, min_child_weight=0.0
    )
    with pytest.raises(DataError, match="bank/.*the gradients of .* rows are beyond 1e100: training runs"):
        wild.fit(data, "bank.y", "customer")
    weights = np.full(len(counts), 1e200)
    with pytest.raises(DataError, match="bank/.*smaller targets or weights"):
        regressor().fit(data, "bank.y", "customer", sample_weight=weights)


def test_gradients_that_are_packed_otherwise_are_refused() -> None:
    key, rows = small(), np.arange(12).reshape(6, 2)
    for message, at in ((seal(rows, 8, 6, key), key.public()), (seal(rows, 8, 6, None), None)):
        assert take(message, at, (6, 2), 8, 6).shape == (6, 2)
    for bits, terms in ((9, 6), (8, 60)):
        with pytest.raises(ProtocolError, match="not as large, or packed, as agreed"):
            take(seal(rows, bits, terms, key), key.public(), (6, 2), 8, 6)
    with pytest.raises(ProtocolError, match="not as large"):
        take(seal(rows, 8, 6, None), None, (6, 2), 3, 6)


@pytest.mark.parametrize("largest", [2**61, 2**80])
def test_sums_beyond_those_of_all_rows_are_refused(largest: int) -> None:
    key = small()
    words, head = key.public().encrypt(np.array([largest, 1], object), Fixed(largest)).dump()
    for changes in ({}, {"bits": -8000}, {"bits": 3}):
        message = SealedSums(words=words, head=head | changes)
        with pytest.raises(ProtocolError, match="SealedSums/1 from shop: sums that are larger"):
            open_sums(message, key, (1, 1, 2), 100, "shop")
    modest = SealedSums(words=words, head=head | {"bound": hex(100)})
    with pytest.raises(ProtocolError, match="SealedSums/1 from shop: .*declare"):
        open_sums(modest, key, (1, 1, 2), 100, "shop")
    for value in (101, -101, -(2**63)):
        with pytest.raises(ProtocolError, match="ClearSums/1 from shop: sums that are larger"):
            open_sums(ClearSums(values=np.array([[value, 1]])), None, (1, 1, 2), 100, "shop")


def test_a_key_without_its_proof_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is sealed with it."""
    send, broadcast = Party.send, Coordinator.broadcast
    sent: list[str] = []

    async def forging(self: Coordinator, message: Any, to: Any = None) -> None:
        if isinstance(message, TreeKey):
            message = message.model_copy(update={"key": message.key[:-1] + bytes([message.key[-1] ^ 1])})
        await broadcast(self, message, to)

    async def noting(self: Party, to: str, message: Any) -> None:
        sent.append(message.kind)
        await send(self, to, message)

    monkeypatch.setattr(Coordinator, "broadcast", forging)
    monkeypatch.setattr(Party, "send", noting)
    tables_, y = shared(60, (2, 3))
    with pytest.raises(ProtocolError, match="shop/setup: .*without a valid proof that n is prime to phi"):
        simulate(roles(tables_, y, plan(encryption="paillier")))
    assert not {"vfl.BinCounts/1", "vfl.SealedGradients/1"} & {*sent}


def test_a_node_of_too_few_rows_is_not_split_for_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Party.send

    async def greedy(self: Party, to: str, message: Any) -> None:
        if isinstance(message, Divided) and len(message.fate) > 1:
            every = np.full(len(message.fate), 1, np.uint8)
            left = np.zeros((len(every), 32), np.uint8)
            message = Divided(fate=every, columns=np.zeros(len(every), np.uint32), left=left)
        await send(self, to, message)

    monkeypatch.setattr(Party, "send", greedy)
    tables_, y = shared(60, (2, 3))
    wants = plan(n_estimators=1, max_depth=3, min_samples_split=30, min_child_weight=0.0)
    with pytest.raises(ProtocolError, match="shop/.*a split of fewer than 30 rows"):
        simulate(roles(tables_, y, wants))


def test_a_leaf_of_fewer_rows_than_all_were_told_of_is_made_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = Party.send

    async def greedy(self: Party, to: str, message: Any) -> None:
        if isinstance(message, Divided):
            left = np.zeros((1, 32), np.uint8)
            left[0, 0] = 0b01000000  # bin 1 alone
            message = Divided(fate=np.array([1], np.uint8), columns=np.zeros(1, np.uint32), left=left)
        await send(self, to, message)

    monkeypatch.setattr(Party, "send", greedy)
    tables_, y = shared(60, (2, 3))
    with pytest.raises(ProtocolError, match="shop/.*a split that leaves fewer than 10 rows on a side"):
        simulate(roles(tables_, y, plan(n_estimators=1, max_depth=3, min_samples_leaf=10)))


def test_rounds_learn_from_the_same_rows_unless_all_were_told_that_they_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = Party.send

    async def choosing(self: Party, to: str, message: Any) -> None:
        if isinstance(message, Drawn) and "/1" in self.scope:
            message = Drawn(rows=np.invert(message.rows), columns=message.columns)
        await send(self, to, message)

    monkeypatch.setattr(Party, "send", choosing)
    tables_, y = shared(64, (2, 3))
    weights = (np.arange(64) % 2).astype(float)
    with pytest.raises(ProtocolError, match="shop/fit/1: .*other rows than in the rounds before"):
        simulate(roles(tables_, y, plan(n_estimators=2), weights=weights))


class Kept:
    """Where a party's states are kept, as over a network."""

    def __init__(self) -> None:
        self.done, self.state = 0, None

    def latest(self) -> tuple[int, Any]:
        return self.done, self.state

    def save(self, done: int, state: Any) -> None:
        self.done, self.state = done, state

    def alignment(self) -> None:
        return None

    def save_alignment(self, state: Any) -> None: ...


def test_a_constraint_that_is_changed_between_attempts_is_noticed() -> None:
    tables_, y = shared(60, (2, 3))
    kept = {party: Kept() for party in tables_}

    def attempt(rounds: int, way: int) -> Any:
        everybody = roles(tables_, y, plan(n_estimators=rounds), monotone={"shop": {"x2": way}})

        def resumed(party: str) -> Any:
            async def role(me: Any) -> Any:
                me.desk.checkpoints = kept[party]
                return await everybody[party](me)

            return role

        return simulate({party: resumed(party) for party in everybody})

    attempt(2, 1)
    with pytest.raises(ConfigError, match="shop/setup: monotone is another than when this training began"):
        attempt(4, -1)
    assert attempt(4, 1).results["bank"][1].rounds == 4

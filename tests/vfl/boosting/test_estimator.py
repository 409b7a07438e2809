"""The estimators: scikit-learn's contract, over tables whose rows are aligned first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score

from protocols.errors import ConfigError, DataError
from protocols.estimator import NotFittedError
from protocols.federation import Federation
from protocols.hazmat.paillier import Paillier, Plain
from protocols.party import Party
from tests.support.columns_apart import joined, overlapping, small
from tests.vfl.boosting.boosted import plan, shared, train
from vfl import VerticalGradientBoostingClassifier, VerticalGradientBoostingRegressor
from vfl.boosting.messages import Drawn
from vfl.boosting.nodes import drawn_rows

PLAIN = Plain()
TESTING = Paillier(bits=512, small_key=True)


def classifier(**settings: Any) -> VerticalGradientBoostingClassifier:
    told: dict[str, Any] = {"n_estimators": 5, "max_depth": 3, "encryption": PLAIN, "min_samples_split": 2}
    return VerticalGradientBoostingClassifier(**(told | settings))


def regressor(**settings: Any) -> VerticalGradientBoostingRegressor:
    told: dict[str, Any] = {"n_estimators": 5, "max_depth": 3, "encryption": PLAIN, "min_samples_split": 2}
    return VerticalGradientBoostingRegressor(**(told | settings))


def tables(parties: int = 2, n: int = 200) -> dict[str, pd.DataFrame]:
    found = small(n, parties)
    return {**found, "bank": found["bank"].drop(columns="amount")}


def without(found: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {party: table.drop(columns="default", errors="ignore") for party, table in found.items()}


@pytest.mark.parametrize("parties", [2, 3])
def test_it_learns_and_predicts_in_the_label_partys_order(parties: int) -> None:
    data = tables(parties)
    model = classifier(n_estimators=20).fit(data, "bank.default", "customer")
    chances = model.predict_proba(without(data))
    assert np.allclose(chances.sum(axis=1), 1) and chances.columns.to_numpy().tolist() == [0, 1]
    common = [c for c in data["bank"]["customer"] if c in set(joined(data)["customer"])]
    assert [*chances.index] == common and chances.index.name == "customer"
    truth = data["bank"].set_index("customer")["default"]
    predicted = model.predict(without(data))
    assert predicted.name == "default" and (predicted == truth.loc[predicted.index]).mean() > 0.85
    assert model.score(data) == (predicted == truth.loc[predicted.index]).mean()
    weights = np.arange(len(data["bank"]), dtype=float)
    weighted = pd.Series(weights, index=data["bank"]["customer"]).loc[predicted.index]
    assert model.score(data, sample_weight=weights) == pytest.approx(
        np.average(predicted == truth.loc[predicted.index], weights=weighted)
    )


@pytest.mark.parametrize("parties", [2, 3])
def test_bitmask_predicts_the_same_and_shows_owners_nothing(parties: int) -> None:
    data = tables(parties)
    model = classifier().fit(data, "bank.default", "customer")
    by_level = model.predict_proba(without(data))
    levels = model.predict_ledger_
    assert levels.chain_length("predict") == 2 * 3 + 1
    model.set_params(predict_protocol="bitmask")
    pd.testing.assert_frame_equal(model.predict_proba(without(data)), by_level)
    told = {(e.sender, e.kind) for e in model.predict_ledger_ if e.scope.startswith("predict")}
    assert told == {(party, "vfl.Outcomes/1") for party in data if party != "bank"}


def test_parts_are_saved_apart_and_predict_the_same_in_a_new_process(tmp_path: Path) -> None:
    data = tables()
    data["shop"]["kind"] = np.where(data["shop"]["x2"] > 0, "new", "old")
    model = classifier(subsample=0.8, encryption=TESTING).fit(data, "bank.default", "customer")
    run = model.save(tmp_path)
    expected = model.predict_proba(without(data))
    loaded = VerticalGradientBoostingClassifier.load(tmp_path, run)
    pd.testing.assert_frame_equal(loaded.predict_proba(without(data)), expected)
    assert loaded.get_params() == model.get_params()
    assert loaded.n_iter_ == 5 and loaded.classes_.tolist() == [0, 1]
    pd.testing.assert_series_equal(loaded.party_importances_, model.party_importances_)
    for party, table in without(data).items():
        table.to_parquet(tmp_path / f"{party}.parquet")
    code = (
        "import pandas as pd, sys; from vfl import VerticalGradientBoostingClassifier as C; f = sys.argv[1];"
        "data = {p: pd.read_parquet(f'{f}/{p}.parquet') for p in ('bank', 'shop')};"
        "C.load(f, sys.argv[2]).predict_proba(data).to_pickle(f'{f}/said.pickle')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path), run], check=True)
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / "said.pickle"), expected)  # noqa: S301


def test_columns_may_be_numbered(tmp_path: Path) -> None:
    data = tables()
    expected = classifier().fit(data, "bank.default", "customer").predict_proba(data)
    numbered = {p: t.rename(columns={f"x{at}": at for at in range(4)}) for p, t in data.items()}
    model = classifier().fit(numbered, "bank.default", "customer")
    pd.testing.assert_frame_equal(model.predict_proba(numbered), expected)
    loaded = VerticalGradientBoostingClassifier.load(tmp_path, model.save(tmp_path))
    pd.testing.assert_frame_equal(loaded.predict_proba(numbered), expected)
    assert loaded.feature_importances_["shop"].index.tolist() == [2, 3]


def test_regression_with_either_loss() -> None:
    data = {party: table.drop(columns="default", errors="ignore") for party, table in small(400).items()}
    model = regressor(n_estimators=40).fit(data, "bank.amount", "customer")
    assert model.score(data) > 0.9
    counts = {**data, "bank": data["bank"].assign(amount=lambda t: (t["amount"] / 40).clip(0).round())}
    poisson = regressor(loss="poisson", n_estimators=40).fit(counts, "bank.amount", "customer")
    assert poisson.score(counts) > 0.8 and (poisson.predict(counts) > 0).all()


def test_more_than_two_classes_of_text() -> None:
    data = tables(3, 400)
    names = pd.cut(data["bank"]["x0"] + data["bank"]["x1"], 3, labels=["low", "middle", "top"]).astype(str)
    data["bank"] = data["bank"].assign(default=names)
    model = classifier(n_estimators=20).fit(data, "bank.default", "customer")
    assert model.classes_.tolist() == ["low", "middle", "top"] and model.score(data) > 0.9
    assert np.allclose(model.predict_proba(data).sum(axis=1), 1)


def test_going_on_is_as_if_it_had_never_stopped() -> None:
    data = tables()
    whole = classifier(n_estimators=6, subsample=0.7).fit(data, "bank.default", "customer")
    model = classifier(n_estimators=2, subsample=0.7, warm_start=True).fit(data, "bank.default", "customer")
    model.set_params(n_estimators=6).fit(data, "bank.default", "customer")
    assert model.n_iter_ == 6
    pd.testing.assert_frame_equal(model.predict_proba(data), whole.predict_proba(data))
    assert (
        model.parts_["shop"].owned.splits.column.tolist() == whole.parts_["shop"].owned.splits.column.tolist()
    )


def test_early_stopping_keeps_the_best_rounds() -> None:
    data = tables(2, 300)
    model = classifier(n_estimators=60, learning_rate=1.0, early_stopping=True, n_iter_no_change=3)
    model.fit(data, "bank.default", "customer")
    best = int(np.argmin(model.validation_loss_)) + 1
    assert model.n_iter_ == best < 60 and len(model.validation_loss_) == best + 3
    learnt = model.parts_["bank"].learnt
    assert learnt is not None
    for party, own in model.parts_.items():
        assert len(own.owned.splits) == learnt.forest.splits(party)
    short = classifier(n_estimators=best, learning_rate=1.0, early_stopping=True, n_iter_no_change=99)
    pd.testing.assert_frame_equal(
        short.fit(data, "bank.default", "customer").predict_proba(data), model.predict_proba(data)
    )


def test_what_is_held_by_whom() -> None:
    data = tables(3)
    model = classifier().fit(data, "bank.default", "customer")
    for party in ("shop", "telco"):
        own = model.parts_[party]
        assert own.learnt is None and own.target == ""
        assert own.columns == [name for name in data[party].columns if name != "customer"]
    learnt = model.parts_["bank"].learnt
    assert learnt is not None
    text = repr(model.parts_["bank"]) + repr({k: v.tolist() for k, v in learnt.forest.arrays().items()})
    assert not any(name in text for name in ("x2", "x3", "x4", "x5"))
    thresholds = np.concatenate([one.thresholds for one in model.parts_["shop"].owned.bins])
    held = np.concatenate([np.asarray(a, float).ravel() for a in learnt.forest.arrays().values()])
    assert not np.isin(thresholds, held).any()


def test_importances_say_nothing_of_others_columns() -> None:
    data = tables(2, 300)
    data["shop"]["noise"] = np.random.default_rng(0).normal(size=len(data["shop"]))
    model = classifier(n_estimators=10).fit(data, "bank.default", "customer")
    assert model.party_importances_.index.tolist() == ["bank", "shop"]
    assert model.party_importances_.sum() == pytest.approx(1)
    shop = model.feature_importances_["shop"]
    assert shop.index.tolist() == ["x2", "x3", "noise"] and shop["noise"] < shop["x2"]


def test_monotone_predictions_rise_with_their_column() -> None:
    data = tables(2, 400)
    model = classifier(n_estimators=20, monotone={"shop": {"x2": -1}}).fit(data, "bank.default", "customer")
    ids = [f"N{i}" for i in range(50)]
    rising = {
        "bank": pd.DataFrame({"customer": ids, "x0": 0.0, "x1": 0.0}),
        "shop": pd.DataFrame({"customer": ids, "x2": np.linspace(-3, 3, 50), "x3": 0.0}),
    }
    assert (np.diff(model.predict_proba(rising)[1]) <= 0).all()
    free = classifier(n_estimators=20).fit(data, "bank.default", "customer")
    assert (np.diff(free.predict_proba(rising)[1]) > 0).any()


@pytest.mark.parametrize("l2", [0.0, 1.0])
def test_deep_trees_hold_every_constraint_at_every_row(l2: float) -> None:
    tables_, y = shared(400, (2, 2), seed=5)
    data = {party: table.assign(id=np.arange(400)) for party, table in tables_.items()}
    data["bank"] = data["bank"].assign(y=y)
    ways: dict[str, dict[str, int]] = {"bank": {"x0": -1}, "shop": {"x2": 1, "x3": -1}}
    model = classifier(
        n_estimators=8,
        max_depth=6,
        learning_rate=0.5,
        min_child_weight=0.0,
        l2_regularization=l2,
        monotone=ways,
    ).fit(data, "bank.y", "id")
    rows, steps = pd.concat(tables_.values(), axis=1)[:60], np.linspace(-4, 4, 41)
    for party, held in ways.items():
        for name, way in held.items():
            asked = (
                rows.loc[rows.index.repeat(41)].reset_index(drop=True).assign(**{name: np.tile(steps, 60)})
            )
            asked = asked.assign(id=asked.index)
            said = model.predict_proba({"bank": asked[["id", "x0", "x1"]], "shop": asked[["id", "x2", "x3"]]})
            rises = np.diff(said[1].to_numpy().reshape(60, 41), axis=1) * way
            assert (rises >= 0).all() and (rises > 0).any(), (party, name)


def test_it_says_whether_anything_was_encrypted() -> None:
    data = tables(2, 60)
    kinds = {}
    for encryption, plain in ((PLAIN, True), (TESTING, True), (Paillier(), False)):
        model = classifier(n_estimators=1, max_depth=1, encryption=encryption)
        model.fit(data, "bank.default", "customer")
        assert model.is_plain_ == plain
        kinds[encryption] = {entry.kind for entry in model.ledger_}
    assert "vfl.ClearGradients/1" in kinds[PLAIN] and "vfl.SealedGradients/1" not in kinds[PLAIN]
    for encryption in (TESTING, Paillier()):
        assert not {"vfl.ClearGradients/1", "vfl.ClearSums/1"} & kinds[encryption]


def test_it_is_scikit_learns() -> None:
    model = classifier(subsample=0.5)
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(NotFittedError, match="not fitted"):
        model.predict(tables())
    with pytest.raises(NotFittedError, match="not fitted"):
        model.save("nowhere")


def aucs(
    table: pd.DataFrame, label: str, bank: list[str], quarter: int = 0, **settings: Any
) -> tuple[float, float]:
    """(ours, scikit-learn's on the pooled columns) on the same test rows, a quarter of all."""
    rest = [name for name in table.columns if name not in (*bank, label)]
    rows = table.assign(customer=np.arange(len(table)))
    test, train = rows.iloc[quarter::4], rows.drop(rows.index[quarter::4])
    names = {"bank": [*bank, label], "shop": rest}
    data = overlapping(train, names, overlap=1.0)
    model = classifier(**settings).fit(data, f"bank.{label}", "customer")
    asked = {party: test[["customer", *columns]] for party, columns in names.items()}
    said = model.predict_proba(asked)[model.classes_[1]]
    peer = HistGradientBoostingClassifier(
        max_iter=settings["n_estimators"],
        max_depth=settings["max_depth"],
        max_leaf_nodes=None,
        min_samples_leaf=1,
        l2_regularization=1.0,
        max_bins=settings["max_bins"],
        early_stopping=False,
        categorical_features="from_dtype",
    ).fit(train[[*bank, *rest]], train[label])
    truth = test[label] == model.classes_[1]
    theirs = peer.predict_proba(test[[*bank, *rest]])[:, 1]
    return float(roc_auc_score(truth, said.loc[test["customer"]])), float(roc_auc_score(truth, theirs))


def test_it_is_as_good_as_scikit_learns() -> None:
    table = load_breast_cancer(as_frame=True).frame
    settings = {"n_estimators": 30, "max_depth": 3, "max_bins": 64}
    # Of a quarter of 569 rows, one pair in the other order is 0.0002; so over all four.
    found = [aucs(table, "target", list(table.columns[:10]), quarter, **settings) for quarter in range(4)]
    ours, theirs = np.mean(found, axis=0)
    assert ours > theirs - 0.005


def test_it_is_as_good_as_scikit_learns_with_categories_and_gaps() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    table = pd.DataFrame(
        {
            "job": pd.Categorical(rng.choice([f"job{i}" for i in range(12)], n)),
            "age": rng.integers(18, 90, n).astype(float),
            "town": pd.Categorical(rng.choice(list("abcdef"), n)),
            "income": rng.lognormal(size=n),
        }
    )
    effect = rng.normal(size=12)[table["job"].cat.codes] + rng.normal(size=6)[table["town"].cat.codes]
    table["y"] = (effect + 0.03 * table["age"] + table["income"] + rng.normal(size=n) > 3.5).astype(int)
    table["income"] = table["income"].mask(rng.random(n) < 0.2)
    settings = {"n_estimators": 60, "max_depth": 4, "max_bins": 64}
    ours, theirs = aucs(table, "y", ["job", "age"], **settings)
    assert ours > theirs - 0.005


def test_squared_loss_is_as_good_as_scikit_learns() -> None:
    data = {party: table.drop(columns="default", errors="ignore") for party, table in small(600, 2).items()}
    model = regressor(n_estimators=60, max_bins=64).fit(data, "bank.amount", "customer")
    both = joined(data)
    peer = HistGradientBoostingRegressor(max_iter=60, max_depth=3, min_samples_leaf=1, l2_regularization=1.0)
    columns = ["x0", "x1", "x2", "x3"]
    assert (
        model.score(data)
        > peer.fit(both[columns], both["amount"]).score(both[columns], both["amount"]) - 0.01
    )


@pytest.mark.parametrize("bits", [16, 8])
def test_rounding_gradients_costs_little(bits: int) -> None:
    data = tables(2, 600)
    exact = classifier(n_estimators=20, gradient_bits=24).fit(data, "bank.default", "customer")
    coarse = classifier(n_estimators=20, gradient_bits=bits).fit(data, "bank.default", "customer")
    truth = data["bank"].set_index("customer")["default"]
    scores = []
    for model in (exact, coarse):
        said = model.predict_proba(data)[1]
        scores.append(roc_auc_score(truth.loc[said.index], said))
    assert abs(scores[0] - scores[1]) < 0.003


def test_a_federation_of_tables_will_do() -> None:
    data = tables()
    a = (
        classifier()
        .fit(Federation(data), "bank.default", "customer")
        .predict_proba(Federation(without(data)))
    )
    pd.testing.assert_frame_equal(a, classifier().fit(data, "bank.default", "customer").predict_proba(data))


def test_who_is_left_out_and_why(tmp_path: Path) -> None:
    data = tables()
    model = classifier(unmatched="nan").fit(data, "bank.default", "customer")
    said = model.predict_proba(data)
    assert said.index.tolist() == data["bank"]["customer"].tolist() and said[1].isna().sum() == 20
    with pytest.raises(ConfigError, match="no table of shop"):
        model.predict({"bank": data["bank"]})
    other = classifier(random_state=1, subsample=0.5).fit(data, "bank.default", "customer")
    runs = [model.save(tmp_path, "one"), other.save(tmp_path, "two")]
    (tmp_path / "shop" / "two").rename(tmp_path / "shop" / "kept")
    (tmp_path / "shop" / "one").rename(tmp_path / "shop" / "two")
    with pytest.raises(DataError, match="not of the same training"):
        VerticalGradientBoostingClassifier.load(tmp_path, runs[1])


def test_going_on_in_another_order_of_parties_is_going_on() -> None:
    data = tables(3)
    model = classifier(n_estimators=2, warm_start=True).fit(data, "bank.default", "customer")
    turned = {party: data[party] for party in ("telco", "bank", "shop")}
    said = model.set_params(n_estimators=4).fit(turned, "bank.default", "customer").predict_proba(data)
    whole = classifier(n_estimators=4).fit(data, "bank.default", "customer")
    pd.testing.assert_frame_equal(said, whole.predict_proba(data))


@pytest.mark.parametrize("stopped", [True, False])
def test_going_on_with_early_stopping_keeps_what_is_there(stopped: bool) -> None:
    data = tables(2, 300)
    how: dict[str, Any] = {"early_stopping": True, "n_iter_no_change": 3}
    model = classifier(n_estimators=4, warm_start=True, early_stopping=stopped, n_iter_no_change=9)
    first = model.fit(data, "bank.default", "customer").n_iter_
    model.set_params(n_estimators=30, **how).fit(data, "bank.default", "customer")
    losses = model.validation_loss_
    assert np.isnan(losses[: first - 1]).all() != stopped and np.isfinite(losses[first - 1 :]).all()
    assert model.n_iter_ == first + int(np.argmin(losses[first - 1 :])) > first
    # Nothing gains so much: the model that there was is kept as it is.
    kept = model.n_iter_
    model.set_params(n_estimators=60, tol=100.0).fit(data, "bank.default", "customer")
    assert model.n_iter_ == kept and len(model.validation_loss_) == kept + 3


def test_goss_counts_the_rows_that_it_draws_for_those_that_it_does_not() -> None:
    g, learning = np.random.default_rng(0).normal(size=(500, 2)), np.arange(500) % 5 > 0
    settings = plan(top_rate=0.1, other_rate=0.2)
    drawn, factor = drawn_rows(np.random.default_rng(1), settings, learning, g)
    size = np.abs(g).sum(axis=1)
    large = learning & (size >= np.sort(size[learning])[-40])
    assert drawn.sum() == 120 and drawn[large].all() and not drawn[~learning].any()
    assert (factor[large] == 1).all() and factor[drawn].sum() == pytest.approx(learning.sum())


def test_goss_draws_rows_of_more_weight_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tables_, y = shared(200, (2, 3))
    weights = np.where(np.arange(200) % 10 == 0, 3.0, 1.0)
    drawn, send = [], Party.send

    async def listening(self: Party, to: str, message: Any) -> None:
        if isinstance(message, Drawn):
            drawn.append(np.unpackbits(message.rows, count=200).astype(bool))
        await send(self, to, message)

    monkeypatch.setattr(Party, "send", listening)
    train(tables_, y, plan(n_estimators=1, top_rate=0.1, other_rate=0.1), weights=weights)
    (first,) = drawn  # all gradients are nearly alike, but for the weights
    assert first.sum() == 40 and first[::10].all()

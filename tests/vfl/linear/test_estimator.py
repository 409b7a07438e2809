"""The estimators: what they leave, refuse and keep apart."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from protocols.arrays import Array
from protocols.errors import AlignmentError, ConfigError, DataError
from protocols.estimator import NotFittedError
from protocols.federation import simulate
from protocols.hazmat.paillier import Paillier, Plain
from protocols.party import Coordinator
from protocols.sums.masked import FRACTION
from protocols.wire.codec import decode
from protocols.wire.message import message_class
from protocols.wire.transport import Envelope
from tests.vfl.linear.tables import SMALL, TARGET, united
from vfl import VerticalLinearRegression, VerticalLogisticRegression, VerticalPoissonRegressor
from vfl.linear.messages import PartialScores

Data = dict[str, pd.DataFrame]
FIT: dict[str, Any] = {"target": f"bank.{TARGET}", "id": "id"}


def people(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    whole = pd.DataFrame(rng.normal(size=(rows, 6)), columns=list("abcdef")).assign(id=rng.permutation(rows))
    noise = rng.logistic(size=rows)
    whole[TARGET] = (whole["a"] - whole["c"] + whole["e"] + noise > 0).map({True: "yes", False: "no"})
    return whole


def dealt(whole: pd.DataFrame) -> Data:
    """Three parties, of which each has rows of its own."""
    columns = {"bank": ["a", "b", TARGET], "shop": ["c", "d"], "telco": ["e", "f"]}
    return {
        party: whole[["id", *names]].sample(frac=0.95, random_state=i)
        for i, (party, names) in enumerate(columns.items())
    }


def classifier(**settings: Any) -> VerticalLogisticRegression:
    return VerticalLogisticRegression(**{"l2": 0.01, "security": "plain", **settings})


@pytest.fixture(scope="module")
def data() -> Data:
    return dealt(people())


@pytest.fixture(scope="module")
def fitted(data: Data) -> VerticalLogisticRegression:
    return classifier().fit(data, **FIT)


def without_target(data: Data) -> Data:
    return {**data, "bank": data["bank"].drop(columns=TARGET)}


def shared(data: Data) -> set[int]:
    return set.intersection(*(set(table["id"]) for table in data.values()))


def test_predictions_are_of_the_shared_rows_in_the_label_partys_order(
    data: Data, fitted: VerticalLogisticRegression
) -> None:
    expected = [number for number in data["bank"]["id"] if number in shared(data)]
    predicted, chances = fitted.predict(without_target(data)), fitted.predict_proba(without_target(data))
    assert predicted.index.tolist() == chances.index.tolist() == expected
    assert predicted.name == TARGET and chances.columns.tolist() == ["no", "yes"]
    assert (chances.idxmax(axis=1) == predicted).all()
    truth = data["bank"].set_index("id")[TARGET][expected]
    assert fitted.score(data) == pytest.approx((truth == predicted).mean())
    assert fitted.alignment_.counts["matched"].tolist() == [len(expected)] * 3
    assert fitted.predict_alignment_.size == len(expected)


def test_columns_may_come_in_another_order_and_are_not_missed(
    data: Data, fitted: VerticalLogisticRegression
) -> None:
    turned = {party: table[table.columns[::-1]] for party, table in data.items()}
    pd.testing.assert_frame_equal(fitted.predict_proba(turned), fitted.predict_proba(data))
    wanting = {**data, "shop": data["shop"].drop(columns="d")}
    with pytest.raises(DataError, match="shop/predict: 1 of 2 columns of the fitted table are missing"):
        fitted.predict(wanting)
    with pytest.raises(ConfigError, match="no table of telco"):
        fitted.predict({party: data[party] for party in ("bank", "shop")})
    with pytest.raises(NotFittedError, match="not fitted"):
        classifier().predict(data)


def test_rows_far_from_those_of_training_are_said_to_be_so(
    data: Data, fitted: VerticalLogisticRegression
) -> None:
    far = {**data, "shop": data["shop"].assign(c=data["shop"]["c"] * 1e9)}
    with pytest.raises(DataError, match="shop/predict: .* rows are far from those of training"):
        fitted.predict(far)


def test_unmatched_rows_can_be_listed(data: Data) -> None:
    model = classifier(unmatched="nan").fit(data, **FIT)
    chances = model.predict_proba(data)
    assert chances.index.tolist() == data["bank"]["id"].tolist()
    assert (chances.notna().all(axis=1).to_numpy() == data["bank"]["id"].isin(shared(data)).to_numpy()).all()
    strangers = {**data, "shop": data["shop"].assign(id=data["shop"]["id"] + 10_000)}
    assert model.predict_proba(strangers).isna().all(axis=None)
    with pytest.raises(AlignmentError, match="no id is at every party"):
        model.set_params(unmatched="drop").predict(strangers)


def test_coefficients_stand_by_party_and_column(data: Data, fitted: VerticalLogisticRegression) -> None:
    assert {party: coef.index.tolist() for party, coef in fitted.coef_.items()} == {
        "bank": ["a", "b"],
        "shop": ["c", "d"],
        "telco": ["e", "f"],
    }
    assert united(fitted.coef_, "ac")[0] > 0.3 and united(fitted.coef_, "ac")[1] < -0.3
    assert isinstance(fitted.intercept_, float) and fitted.converged_
    assert fitted.loss_curve_ == sorted(fitted.loss_curve_, reverse=True)


def test_scikit_learns_contract(data: Data, fitted: VerticalLogisticRegression) -> None:
    model = clone(VerticalPoissonRegressor(l2=0.5, encryption=Paillier(3072)))
    assert model.get_params()["l2"] == 0.5 and model.encryption.bits == 3072
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own bytes
    pd.testing.assert_frame_equal(again.predict_proba(data), fitted.predict_proba(data))


def test_parts_are_saved_apart_and_predict_the_same_in_a_new_process(data: Data, tmp_path: Path) -> None:
    model = classifier(security="exact", encryption=SMALL, normalise=()).fit(data, **FIT)
    run = model.save(tmp_path / "store")
    assert sorted(p.parent.parent.name for p in (tmp_path / "store").glob("*/*/part.json")) == sorted(data)
    for party, table in data.items():
        table.to_pickle(tmp_path / f"{party}.pkl")
    program = f"""
import pandas as pd
from pathlib import Path
from vfl import VerticalLogisticRegression
here = Path({str(tmp_path)!r})
model = VerticalLogisticRegression.load(here / "store", {run!r})
data = {{p: pd.read_pickle(here / (p + ".pkl")) for p in {list(data)!r}}}
model.predict_proba(data).to_pickle(here / "said.pkl")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    said = pd.read_pickle(tmp_path / "said.pkl")  # noqa: S301 - our own bytes
    pd.testing.assert_frame_equal(said, model.predict_proba(data), check_exact=True)
    loaded = VerticalLogisticRegression.load(tmp_path / "store", run)
    assert loaded.encryption == SMALL and loaded.get_params() == model.get_params()
    assert loaded.intercept_ == model.intercept_ and loaded.loss_curve_ == model.loss_curve_
    assert loaded.n_iter_ == model.n_iter_
    other = classifier(l2=0.5).fit(data, **FIT)
    other.save(tmp_path / "store", "other")
    (tmp_path / "store" / "shop" / "other").rename(tmp_path / "store" / "shop" / "away")
    (tmp_path / "store" / "shop" / run).rename(tmp_path / "store" / "shop" / "other")
    with pytest.raises(DataError, match="the part of .* is not of the same training"):
        VerticalLogisticRegression.load(tmp_path / "store", "other")
    with pytest.raises(ConfigError, match="is of VerticalLogisticRegression, expected"):
        VerticalLinearRegression.load(tmp_path / "store", run)


def test_regressors_are_saved_too(data: Data, tmp_path: Path) -> None:
    money = {**data, "bank": data["bank"].assign(**{TARGET: 10 * data["bank"]["a"] + 100})}
    model = VerticalLinearRegression(security="plain").fit(money, **FIT)
    loaded = VerticalLinearRegression.load(tmp_path, model.save(tmp_path))
    pd.testing.assert_series_equal(loaded.predict(money), model.predict(money))
    assert loaded.intercept_ == model.intercept_ and abs(float(model.intercept_) - 100) < 1


def test_each_party_ends_with_its_own(fitted: VerticalLogisticRegression) -> None:
    for party, own in fitted.parts_.items():
        assert own.columns == fitted.coef_[party].index.tolist() and own.fitted.coef.shape == (2, 1)
        assert (own.head is not None) == (party == "bank") == (own.target != "")


@pytest.mark.parametrize("settings", [{}, {"solver": "sgd", "batch_size": 64, "max_iter": 3}, {"l1": 0.01}])
@pytest.mark.parametrize("security", ["exact", "hidden"])
@pytest.mark.filterwarnings("ignore:.*without reaching tol")
def test_what_crosses_is_encrypted_masked_or_said_to_be_shown(
    data: Data, carried: list[Envelope], settings: dict[str, Any], security: Any
) -> None:
    model = classifier(security=security, encryption=SMALL, **{"max_iter": 5, **settings}).fit(data, **FIT)
    kinds = {e.kind for e in carried if not e.scope.startswith("align")}
    sealed = {f"vfl.{name}/1" for name in ("LinearStart", "SealedResiduals", "MaskedGradient")}
    sealed |= {"protocols.MaskPoint/1"}
    shown = {f"vfl.{name}/1" for name in ("OpenedGradient", "Move", "Order")}
    scalars = {f"vfl.{name}/1" for name in ("InnerProducts", "ProximalSums", "ProximalStep", "ShareKey")}
    scalars |= {"vfl.TrialProducts/1"}
    allowed = sealed | shown | scalars | ({"vfl.PartialScores/1"} if security == "exact" else set())
    assert sealed <= kinds <= allowed
    # Whoever listens between shop and bank sees no score: only the sum of shop's and telco's tells one.
    for e in carried:
        if e.kind == PartialScores.kind:
            message = decode(PartialScores, e.body, sender=e.sender, scope=e.scope)
            assert np.abs(message.scores / 2.0**FRACTION).max() > 2**10
        words = message_class(e.kind)
        assert "label" not in words.model_fields and words.carries == frozenset()
    numbers = {*united(model.coef_, "cd").tolist(), model.intercept_}
    assert not any(np.float64(number).tobytes() in e.body for number in numbers for e in carried)


def test_one_feature_partys_scores_are_its_own_numbers(data: Data, carried: list[Envelope]) -> None:
    """The documents say that the label party sees them: if that changes, so should the documents."""
    two = {party: data[party] for party in ("bank", "shop")}
    model = classifier(solver="sgd", max_iter=1, batch_size=10_000).fit(two, **FIT)
    carried.clear()
    model.predict(two)
    (scores,) = (e for e in carried if e.kind == PartialScores.kind)
    message = decode(PartialScores, scores.body, sender="shop", scope=scores.scope)
    ids = sorted(shared(two), key=lambda number: str(number).encode())
    own = model.parts_["shop"].fitted(data["shop"].set_index("id").loc[ids].to_numpy())
    np.testing.assert_allclose(message.scores / 2.0**FRACTION, own, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"l1": 1e-9}, {"solver": "sgd", "batch_size": 144}])
def test_early_stopping_goes_back_to_the_best(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    noise = pd.DataFrame(rng.normal(size=(240, 18)), columns=[f"n{i}" for i in range(18)])
    whole = pd.concat([people(240, seed=9), noise], axis=1)
    data = {
        "bank": whole[["id", TARGET, "a", *noise.columns[:9]]],
        "shop": whole[["id", "c", *noise.columns[9:]]],
    }
    how = {"l2": 0.0, "early_stopping": True, "validation_fraction": 0.4, "n_iter_no_change": 3}
    model = classifier(**how, **settings, max_iter=60, learning_rate=0.5).fit(data, **FIT)
    assert 3 < model.n_iter_ < 60 and model.converged_
    fewer = classifier(**how, **settings, max_iter=model.n_iter_ - 3, learning_rate=0.5).fit(data, **FIT)
    for party in data:
        np.testing.assert_array_equal(model.coef_[party], fewer.coef_[party])
    assert model.intercept_ == fewer.intercept_


def test_the_loss_of_an_epoch_is_its_rows_by_their_weights(data: Data) -> None:
    weights = np.random.default_rng(0).permutation(np.repeat([0.0, 1.0, 50.0], [100, 70, 20]))
    how = {"solver": "sgd", "learning_rate": 1e-12, "max_iter": 1}
    parts = classifier(**how, batch_size=57).fit(data, **FIT, sample_weight=weights)
    whole = classifier(**how, batch_size=1000).fit(data, **FIT, sample_weight=weights)
    assert parts.loss_curve_ == pytest.approx(whole.loss_curve_, rel=1e-9)


def test_a_warm_start_goes_on(data: Data) -> None:
    cold = classifier(tol=1e-8).fit(data, **FIT)
    warm = classifier(tol=1e-8, warm_start=True).fit(data, **FIT)
    assert warm.n_iter_ == cold.n_iter_ > 3
    warm.fit(data, **FIT)
    assert warm.n_iter_ <= 2
    np.testing.assert_allclose(warm.coef_["shop"], cold.coef_["shop"], atol=1e-6)
    with pytest.raises(ConfigError, match="shop/fit: the columns are not those of the training"):
        warm.fit({**data, "shop": data["shop"].drop(columns="d")}, **FIT)
    assert warm.set_params(warm_start=False).fit(data, **FIT).n_iter_ == cold.n_iter_


@pytest.mark.parametrize("settings", [{"security": "hidden"}, {"l1": 0.02}, {"solver": "sgd", "max_iter": 5}])
def test_a_warm_start_of_every_solver(data: Data, settings: dict[str, Any]) -> None:
    model = classifier(**{"warm_start": True, "encryption": SMALL, "batch_size": 64, **settings})
    first = model.fit(data, **FIT).n_iter_
    before = model.coef_["telco"]
    again = model.fit(data, **FIT).n_iter_
    if "solver" in settings:
        assert not np.allclose(before, model.coef_["telco"], atol=1e-6)
    else:
        assert again < first / 2
        np.testing.assert_allclose(before, model.coef_["telco"], atol=1e-4)


def test_max_iter_is_said_to_be_the_end(data: Data) -> None:
    with pytest.warns(ConvergenceWarning, match="took max_iter=2 steps without reaching tol=1e-06"):
        model = classifier(max_iter=2).fit(data, **FIT)
    assert model.n_iter_ == 2 and not model.converged_ and len(model.loss_curve_) == 3


def labelled(values: Callable[[pd.DataFrame], Any]) -> Callable[[Data], Data]:
    return lambda data: {**data, "bank": data["bank"].assign(**{TARGET: values})}


def common_rows(table: pd.DataFrame, data: Data) -> Array:
    return np.asarray(table["id"].isin(shared(data)))


BAD: list[tuple[str, dict[str, Any], Callable[[Data], Data], str]] = [
    ("one class", {}, labelled(lambda t: "yes"), "bank/fit: the target has 1 class"),
    ("NaN in the label", {}, labelled(lambda t: t[TARGET].where(t.index > 5)), "bank/fit: .* are missing"),
    (
        "one class in common",
        {},
        lambda d: labelled(lambda t: np.where(common_rows(t, d), "yes", "no"))(d),
        "bank/setup: the .* common rows are all of one class",
    ),
    (
        "a class held out",
        {"early_stopping": True, "random_state": 1},
        lambda d: labelled(lambda t: np.where(t["id"].isin(held_out(d, 1)), "maybe", t[TARGET]))(d),
        "bank/setup: 1 of 3 classes are only among the .* rows held out for validation",
    ),
    (
        "constant columns",
        {},
        lambda d: {**d, "shop": d["shop"].assign(c=3.0)},
        "shop/setup: 1 of 2 columns are constant in the .* rows of training, as is 'c'",
    ),
    (
        "a missing column",
        {},
        lambda d: {**d, "shop": d["shop"].assign(c=np.nan)},
        "shop/fit: column 'c' has .* missing or infinite values",
    ),
    ("text", {}, lambda d: {**d, "shop": d["shop"].assign(c="x")}, "shop/fit: column 'c' is str"),
    (
        "no features",
        {},
        lambda d: {**d, "shop": d["shop"][["id"]]},
        "shop/fit: no column is left beside the id",
    ),
    (
        "no common rows",
        {},
        lambda d: {**d, "shop": d["shop"].assign(id=d["shop"]["id"] + 10_000)},
        "no id is at every party",
    ),
    (
        "few rows",
        {},
        lambda d: {party: t.sort_values("id").iloc[:15] for party, t in d.items()},
        "shop/setup: a batch of .* rows is too small for 2 columns",
    ),
    (
        "small batches",
        {"solver": "sgd", "batch_size": 15},
        lambda d: d,
        "shop/setup: a batch of 15 rows is too small for 2 columns",
    ),
]


def held_out(data: Data, seed: int) -> set[int]:
    """The ids that a run of this seed holds out."""
    ids = sorted(shared(data), key=lambda number: str(number).encode())

    async def bank(me: Coordinator) -> Array:
        return me.rng("validation").permutation(len(ids))[: round(0.1 * len(ids))]

    rows = simulate({"bank": bank}, seed=seed).results["bank"]
    return {ids[row] for row in rows.tolist()}


@pytest.mark.parametrize(("settings", "spoil", "said"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_an_error_at_the_caller(
    settings: dict[str, Any], spoil: Callable[[Data], Data], said: str
) -> None:
    data = dealt(people())
    model = classifier().fit(data, **FIT)
    before, spoilt = dict(model.parts_), spoil(data)
    copies = {party: table.copy() for party, table in spoilt.items()}
    with pytest.raises((DataError, AlignmentError), match=said):
        model.set_params(**settings).fit(spoilt, **FIT)
    for party, table in spoilt.items():
        pd.testing.assert_frame_equal(table, copies[party])
    assert model.parts_ == before and len(model.predict(data)) == len(shared(data))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.ones(3), "bank/fit: sample_weight should have one number for each of the table's 190 rows"),
        (np.full(190, -1.0), "bank/fit: of 190 sample weights 190 are negative"),
        (np.zeros(190), "bank/fit: of 190 sample weights 0 are negative.* 0 are not 0"),
        ("many", "bank/fit: sample_weight should be one number"),
    ],
)
def test_weights_that_do_not_fit_are_refused(data: Data, weights: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        classifier().fit(data, **FIT, sample_weight=weights)


def test_weights_that_leave_nothing_to_learn_are_refused(data: Data) -> None:
    bank = data["bank"]
    with pytest.raises(
        DataError, match="bank/setup: the .* common rows of training all have sample_weight 0"
    ):
        classifier().fit(data, **FIT, sample_weight=~common_rows(bank, data) * 1.0)
    with pytest.raises(DataError, match="bank/setup: rows of at least one class all have sample_weight 0"):
        classifier().fit(data, **FIT, sample_weight=(bank[TARGET] == "yes") * 1.0)
    kept = ~bank["id"].isin(held_out(data, 0))
    with pytest.raises(DataError, match="bank/setup: the .* rows held out .* all have sample_weight 0"):
        classifier(early_stopping=True).fit(data, **FIT, sample_weight=kept * 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"l2": -1.0}, "l2: Input should be greater than or equal to 0"),
        ({"l1": np.nan}, "l1: Input should be a finite number"),
        ({"solver": "adam"}, "solver: Input should be 'lbfgs' or 'sgd'"),
        ({"security": "secret"}, "security: Input should be 'exact', 'hidden' or 'plain'"),
        ({"max_iter": 0}, "max_iter: Input should be greater than or equal to 1"),
        ({"validation_fraction": 1.0}, "validation_fraction: Input should be less than 1"),
        ({"encryption": Plain()}, "encryption=.* should be Paillier"),
        (
            {"encryption": Paillier(1024), "security": "exact"},
            "of 1024 bits can be broken; use at least 2048",
        ),
        ({"security": "hidden", "early_stopping": True}, "shows nobody a score; choose max_iter and tol"),
        ({"unmatched": "keep"}, "unmatched='keep' should be"),
        ({"protocol": "rsa"}, "protocol='rsa' should be one of"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(data: Data, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        classifier(**settings).fit(data, **FIT).predict(data)


def test_what_hidden_scores_do_not_allow_is_refused(data: Data) -> None:
    hidden = classifier(security="hidden", encryption=SMALL)
    with pytest.raises(ConfigError, match="sample_weight would have to be told to all parties"):
        hidden.fit(data, **FIT, sample_weight=np.ones(190))
    three = labelled(lambda t: np.where(t["a"] > 1, "maybe", t[TARGET]))(data)
    with pytest.raises(ConfigError, match='security="hidden" is for 2 classes, got 3'):
        hidden.fit(three, **FIT)
    with pytest.raises(ConfigError, match="needs a residual that is linear in the score; Poisson has none"):
        VerticalPoissonRegressor(security="hidden").fit(data, **FIT)
    few = {party: t.sort_values("id").iloc[:27] for party, t in data.items()}
    wide = {**few, "bank": few["bank"].assign(x=few["bank"]["a"] ** 2, z=few["bank"]["b"] ** 3)}
    with pytest.raises(DataError, match="bank/setup: a batch of .* rows is too small for 5 columns"):
        hidden.fit(wide, **FIT)


@pytest.mark.parametrize("counts", [-1.0, 0.0])
def test_a_poisson_model_needs_counts(data: Data, counts: float) -> None:
    with pytest.raises(DataError, match="bank/setup: of .* targets .* are negative and .* above 0"):
        VerticalPoissonRegressor(security="plain").fit(labelled(lambda t: counts)(data), **FIT)


def test_training_that_diverges_says_so(data: Data) -> None:
    money = labelled(lambda t: 10 * t["a"])(data)
    model = VerticalLinearRegression(
        security="plain", solver="sgd", learning_rate=1e4, max_iter=20, batch_size=64
    )
    with pytest.raises(DataError, match="training diverged"):
        model.fit(money, **FIT)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), owners=st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_who_has_which_column_changes_no_prediction(seed: int, owners: list[int]) -> None:
    whole = people(120, seed)
    held = [[name for name, who in zip("abcde", owners, strict=True) if who == party] for party in range(3)]
    held[1] = [*held[1], "f"]
    tables = {"bank": whole[["id", TARGET, *held[0]]], "shop": whole[["id", *held[1]]]}
    tables |= {"telco": whole[["id", *held[2]]]} if held[2] else {}
    together = {"bank": whole[["id", TARGET]], "shop": whole[["id", *"abcdef"]]}
    apart, one = (classifier(tol=1e-8).fit(d, **FIT).predict_proba(d) for d in (tables, together))
    np.testing.assert_allclose(apart.loc[one.index], one, atol=1e-6)

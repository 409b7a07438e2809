"""The estimators: scikit-learn's contract, the label party's order, clear errors, parts kept apart."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from protocols.arrays import Arrays
from protocols.errors import AlignmentError, ConfigError, DataError
from protocols.learning.networks import mlp
from protocols.parts import load_part
from tests.support.columns_apart import joined, small
from vfl import VerticalNetClassifier, VerticalNetRegressor

Data = dict[str, pd.DataFrame]
FIT: dict[str, Any] = {"target": "bank.default", "id": "customer"}


def classifier(**settings: Any) -> VerticalNetClassifier:
    return VerticalNetClassifier(**{"epochs": 2, "hidden": (8, 4), **settings})


@pytest.fixture(scope="module")
def data() -> Data:
    return small(80, 3)


@pytest.fixture(scope="module")
def fitted(data: Data) -> VerticalNetClassifier:
    return classifier().fit(data, **FIT)


def unlabelled(data: Data) -> Data:
    return {**data, "bank": data["bank"].drop(columns="default")}


def test_predictions_are_indexed_by_id_in_the_label_partys_order(
    data: Data, fitted: VerticalNetClassifier
) -> None:
    common = set(joined(data)["customer"])
    expected = [customer for customer in data["bank"]["customer"] if customer in common]
    predicted, chances = fitted.predict(unlabelled(data)), fitted.predict_proba(unlabelled(data))
    assert predicted.index.tolist() == chances.index.tolist() == expected
    assert predicted.index.name == "customer" and predicted.name == "default"
    assert chances.columns.tolist() == fitted.classes_.tolist() == [0, 1]
    assert np.allclose(chances.sum(axis=1), 1)
    assert (chances.idxmax(axis=1) == predicted).all()


def test_two_parties_choose_by_what_they_compare_their_ids(data: Data) -> None:
    two, chances = {party: data[party] for party in ("bank", "shop")}, []
    for protocol in ("ecdh", "kkrt"):
        model = classifier(protocol=protocol).fit(two, **FIT)
        chances.append(model.predict_proba(two))
        for ledger in (model.ledger_, model.predict_ledger_):
            sent = "protocols.FunctionValues/1" in {entry.kind for entry in ledger}
            assert sent == (protocol == "kkrt")
    pd.testing.assert_frame_equal(chances[0], chances[1])


def test_a_prediction_does_not_depend_on_the_other_rows_or_their_order(
    data: Data, fitted: VerticalNetClassifier
) -> None:
    whole = fitted.predict_proba(data)
    few = fitted.predict_proba({p: t.sample(frac=0.8, random_state=1) for p, t in data.items()})
    assert 20 < len(few) < len(whole)
    pd.testing.assert_frame_equal(few, whole.loc[few.index], rtol=1e-5)


def test_unmatched_rows_can_be_kept_without_a_prediction(data: Data) -> None:
    model = classifier(unmatched="nan").fit(data, **FIT)
    chances, predicted = model.predict_proba(data), model.predict(data)
    assert chances.index.tolist() == predicted.index.tolist() == data["bank"]["customer"].tolist()
    known = data["bank"]["customer"].isin(joined(data)["customer"]).to_numpy()
    assert (chances.notna().all(axis=1).to_numpy() == known).all()
    assert (predicted.notna().to_numpy() == known).all()
    strangers = {**data, "shop": data["shop"].assign(customer=lambda t: "other " + t["customer"])}
    assert model.predict_proba(strangers).isna().all(axis=None)
    with pytest.raises(AlignmentError, match="no id is at every party"):
        classifier().fit(data, **FIT).predict(strangers)


def test_what_happened_is_kept(data: Data) -> None:
    model = classifier().fit(data, **FIT)
    training = model.ledger_
    assert model.alignment_.counts["matched"].tolist() == [64, 64, 64]
    model.predict({p: t.iloc[:40] for p, t in data.items()})
    assert model.alignment_.counts["rows"].tolist() == [len(t) for t in data.values()]
    assert model.predict_alignment_.counts["rows"].tolist() == [40, 40, 40]
    assert model.ledger_ is training and {e.scope for e in model.predict_ledger_} == {"align", "predict"}
    assert "default" not in model.parts_["bank"].columns and "customer" not in model.parts_["shop"].columns


def test_a_party_missing_from_the_new_tables_is_named(data: Data, fitted: VerticalNetClassifier) -> None:
    with pytest.raises(ConfigError, match="no table of shop, telco"):
        fitted.predict({"bank": data["bank"]})
    with pytest.raises(ConfigError, match="shops took no part in the training; did you mean 'shop'"):
        fitted.predict({**data, "shops": data["shop"]})
    misspelt = {"bank": data["bank"], "Shop": data["shop"], "telcom": data["telco"]}
    said = (
        "training, bank, shop, telco: no table of shop, telco; Shop took .* 'shop'.; telcom took .* 'telco'"
    )
    with pytest.raises(ConfigError, match=said):
        fitted.predict(misspelt)
    with pytest.raises(DataError, match=r"telco/predict: 1 of 2 columns of the fitted table are missing"):
        fitted.predict({**data, "telco": data["telco"].drop(columns="x5")})
    with pytest.raises(NotFittedError, match="not fitted; call fit first"):
        VerticalNetClassifier().predict(data)


def test_the_label_party_needs_no_features(data: Data) -> None:
    tables = {**data, "bank": data["bank"][["customer", "default"]]}
    model = classifier().fit(tables, **FIT)
    assert model.parts_["bank"].bottom is None and len(model.predict(tables)) == 64


def test_only_classes_of_common_rows_count(data: Data) -> None:
    bank = data["bank"].copy()
    alone = ~bank["customer"].isin(joined(data)["customer"])
    bank["default"] = bank["default"].map({0: "no", 1: "yes"}).mask(alone, "maybe")
    model = classifier().fit({**data, "bank": bank}, **FIT)
    assert model.classes_.tolist() == ["no", "yes"]
    assert set(model.predict(data)) <= {"no", "yes"}
    bank["default"] = np.where(alone, "yes", "no")
    with pytest.raises(DataError, match=r"bank/setup: the \d+ common rows are all of one class"):
        classifier().fit({**data, "bank": bank}, **FIT)


def test_regression_predicts_in_the_targets_unit() -> None:
    data = {p: t.drop(columns="default", errors="ignore") for p, t in small(300).items()}
    model = VerticalNetRegressor(epochs=15, learning_rate=0.01).fit(data, target="bank.amount", id="customer")
    truth = data["bank"].set_index("customer")["amount"]
    predicted = model.predict({**data, "bank": data["bank"].drop(columns="amount")})
    assert predicted.name == "amount" and predicted.index.isin(truth.index).all()
    assert 1 - (predicted - truth[predicted.index]).var() / truth.var() > 0.9


def test_scikit_learns_contract(data: Data, fitted: VerticalNetClassifier) -> None:
    module = nn.Linear(2, 3)
    model = clone(VerticalNetClassifier(bottoms={"shop": module}, hidden=[8], epochs=3))
    assert model.get_params()["epochs"] == 3 and model.set_params(epochs=1) is model
    assert "VerticalNetClassifier" in repr(model)
    before = module.weight.detach().clone()
    mine = VerticalNetClassifier(bottoms={"shop": module}, hidden=[8], epochs=1)
    assert mine.fit(data, **FIT) is mine
    assert torch.equal(module.weight, before)  # the caller's module is not trained
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own bytes
    pd.testing.assert_frame_equal(again.predict_proba(data), fitted.predict_proba(data))


class Noise(nn.Module):
    """Randomness that no class of torch's own tells of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x) if self.training else x


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), Noise()])
@pytest.mark.parametrize(("party", "width"), [("bank", 3), ("shop", 2)])
def test_the_seed_is_all_the_randomness_there_is(
    data: Data, party: str, width: int, noise: nn.Module
) -> None:
    def chances(seed: int) -> pd.DataFrame:
        noisy = {party: nn.Sequential(mlp(width, 4, ()), noise)}
        return classifier(bottoms=noisy, random_state=seed).fit(data, **FIT).predict_proba(data)

    state = torch.get_rng_state()
    first = chances(1)
    torch.manual_seed(99)
    pd.testing.assert_frame_equal(first, chances(1))
    assert not np.allclose(first, chances(2))
    torch.set_rng_state(state)
    classifier().fit(data, **FIT)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_works_below_a_running_event_loop(data: Data) -> None:
    async def notebook() -> pd.Series:
        return classifier().fit(data, **FIT).predict(data)

    assert len(asyncio.run(notebook())) == 64


def test_modules_can_be_brought_for_some_parties(data: Data) -> None:
    brought = {"shop": nn.Sequential(nn.Linear(2, 7), nn.Tanh())}
    model = classifier(bottoms=brought, top=nn.Linear(7 + 3 + 2, 2)).fit(data, **FIT)
    assert model.parts_["bank"].top is not None
    assert dict(model.parts_["bank"].top.widths) == {"shop": 7, "telco": 2}


def edited(party: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Data], Data]:
    return lambda data: {**data, party: edit(data[party])}


BAD: list[tuple[str, Callable[[Data], Data], type[Exception], str]] = [
    (
        "no id",
        edited("shop", lambda t: t.drop(columns="customer")),
        DataError,
        "shop/fit: no id column 'customer'",
    ),
    ("no target", unlabelled, DataError, "bank/fit: no target column 'default'"),
    ("gap", edited("shop", lambda t: t.assign(x2=np.nan)), DataError, "shop/fit: column 'x2' has .* missing"),
    (
        "text",
        edited("telco", lambda t: t.assign(x4="a")),
        DataError,
        "telco/fit: column 'x4' is .* expected numbers",
    ),
    (
        "0 rows with labels",
        edited("bank", lambda t: t.iloc[:0]),
        DataError,
        "^bank/fit: the table has 0 rows",
    ),
    ("0 rows", edited("shop", lambda t: t.iloc[:0]), DataError, "shop/fit: the table has 0 rows"),
    (
        "duplicates",
        edited("shop", lambda t: pd.concat([t, t[:3]])),
        DataError,
        "shop/fit: 3 of .* duplicated",
    ),
    (
        "one class",
        edited("bank", lambda t: t.assign(default=1)),
        DataError,
        "bank/fit: the target has 1 class",
    ),
    (
        "no label",
        edited("bank", lambda t: t.assign(default=None)),
        DataError,
        "bank/fit: target 'default': .* missing",
    ),
    (
        "no feature",
        edited("shop", lambda t: t[["customer"]]),
        DataError,
        "shop/fit: no column is left beside the id",
    ),
    (
        "same name",
        edited("shop", lambda t: t.set_axis(["customer", "a", "a"], axis=1)),
        DataError,
        "shop: two columns",
    ),
    (
        "types of id",
        edited("shop", lambda t: t.assign(customer=t["customer"].str[1:].astype(int))),
        AlignmentError,
        "ids of (bank are text, those of shop are integers|shop are integers, those of bank are text)",
    ),
    (
        "strangers",
        edited("shop", lambda t: t.assign(customer="c" + t["customer"])),
        AlignmentError,
        r"bank/align: no id is at every party: of 70 ids .* 64 by bank and telco, .* written alike",
    ),
    (
        "one party",
        lambda data: {"bank": data["bank"]},
        ConfigError,
        "bank is the only party, expected one more",
    ),
]


@pytest.mark.parametrize(("edit", "error", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_tables_are_clear_errors(
    data: Data, edit: Callable[[Data], Data], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        classifier().fit(edit(data), **FIT)


@pytest.mark.parametrize(
    ("settings", "how", "said"),
    [
        ({}, {"target": "default"}, "should be 'party.column'"),
        ({}, {"target": "bnak.default"}, "no party 'bnak'; .* did you mean 'bank'"),
        ({}, {"target": "bank.customer"}, "'customer' is both id and target"),
        ({}, {"id": {"bank": "customer"}}, "id lacks shop, telco"),
        ({"hidden": ()}, {}, "should be one or more widths"),
        ({"hidden": (2,)}, {}, r"hidden\[0\] = 2 units cannot be divided among 3 parties"),
        ({"epochs": 0}, {}, "epochs=0 should be"),
        ({"optimizer": "lbfgs"}, {}, "should be 'adam' or 'sgd'"),
        ({"duplicates": "last"}, {}, "duplicates: Input should be 'error' or 'first'"),
        ({"protocol": "kkrt"}, {}, 'protocol="kkrt" is for two parties, got 3'),
        ({"protocol": "unbalanced"}, {}, "protocol"),
        ({"random_state": None}, {}, "random_state=None should be a whole number"),
        ({"learning_rate": "x"}, {}, "learning_rate='x' should be a number above 0"),
        ({"weight_decay": None}, {}, "weight_decay=None should be a number, at least 0"),
        ({"batch_size": None}, {}, "batch_size=None should be a whole number above 0"),
        ({"hidden": 8}, {}, "hidden=8 should be a list of whole numbers"),
        ({"hidden": None}, {}, "hidden=None should be a list of whole numbers"),
        ({"standardise": "no"}, {}, "standardise='no' should be True or False"),
        ({"random_state": -1}, {}, "random_state=-1 should be a whole number"),
        ({"bottoms": {"shpo": nn.Linear(2, 2)}}, {}, "bottoms name shpo; .* did you mean 'shop'"),
        ({"bottoms": {"shop": "mlp"}}, {}, "shop: expected a torch module, got str"),
        (
            {"bottoms": {"shop": nn.Linear(3, 2)}},
            {},
            "shop/fit: the bottom model fails on 2 rows of 2 numbers, all zeros in float32, with",
        ),
        (
            {"top": nn.Linear(8, 3)},
            {},
            r"bank/setup: the top model makes \(2, 3\) of 2 rows, expected \(2, 2\)",
        ),
    ],
)
def test_bad_settings_are_clear_errors(
    data: Data, settings: dict[str, Any], how: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        classifier(**settings).fit(data, **{**FIT, **how})


def test_unmatched_is_one_of_two(data: Data, fitted: VerticalNetClassifier) -> None:
    with pytest.raises(ConfigError, match='unmatched=\'keep\' should be "drop" or "nan"'):
        clone(fitted).set_params(unmatched="keep").fit(data, **FIT).predict(data)


def test_saved_parts_come_back(data: Data, fitted: VerticalNetClassifier, tmp_path: Path) -> None:
    run = fitted.save(tmp_path)
    again = VerticalNetClassifier.load(tmp_path, run)
    assert again.get_params() == fitted.get_params() and again.classes_.tolist() == [0, 1]
    pd.testing.assert_frame_equal(again.predict_proba(data), fitted.predict_proba(data))
    amounts = VerticalNetRegressor(epochs=1).fit(data, target="bank.amount", id="customer")
    amounts.save(tmp_path, "amounts")
    loaded = VerticalNetRegressor.load(tmp_path, "amounts")
    pd.testing.assert_series_equal(loaded.predict(data), amounts.predict(data))
    with pytest.raises(ConfigError, match="is of VerticalNetRegressor, expected VerticalNetClassifier"):
        VerticalNetClassifier.load(tmp_path, "amounts")


def test_each_saved_part_holds_its_owners_weights_only(
    data: Data, fitted: VerticalNetClassifier, tmp_path: Path
) -> None:
    run = fitted.save(tmp_path)
    for party, own in fitted.parts_.items():
        assert own.bottom is not None
        part = load_part(tmp_path / party, run)
        held = {f"bottom.module.0.{name}" for name in ("weight", "bias")}
        held |= {f"bottom.scaler.{name}" for name in ("mean", "scale")}
        top = {f"top.module.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")} if own.top else set()
        assert set(part.weights) == held | top and set(part.others) == set(data) - {party}
        assert set(part.kept) == {"id", "columns", "bottom", "target", "top"}
        assert bool(part.settings) == bool(part.kept["target"]) == bool(part.kept["top"]) == bool(own.top)
        weight = Arrays.from_module(own.bottom.module)["0.weight"].tobytes()
        for peer in data:
            files = b"".join(file.read_bytes() for file in (tmp_path / peer / run).iterdir())
            assert (weight in files) == (peer == party)


def test_brought_modules_must_be_brought_again(data: Data, tmp_path: Path) -> None:
    bottoms, top = {"shop": nn.Linear(2, 3)}, nn.Linear(3 + 3 + 2, 2)
    model = classifier(bottoms=bottoms, top=top).fit(data, **FIT)
    run = model.save(tmp_path)
    with pytest.raises(ConfigError, match=r"bank/load: .*pass bottoms=\{'shop': module\}"):
        VerticalNetClassifier.load(tmp_path, run, top=top)
    with pytest.raises(ConfigError, match="bank/load: .*pass top=module"):
        VerticalNetClassifier.load(tmp_path, run, bottoms=bottoms)
    again = VerticalNetClassifier.load(tmp_path, run, bottoms=bottoms, top=top)
    pd.testing.assert_frame_equal(again.predict_proba(data), model.predict_proba(data))


def test_parts_that_do_not_belong_together_are_refused(
    data: Data, fitted: VerticalNetClassifier, tmp_path: Path
) -> None:
    fitted.save(tmp_path, "one")
    classifier(random_state=7).fit(data, **FIT).save(tmp_path, "two")
    shutil.rmtree(tmp_path / "shop" / "one")
    with pytest.raises(ConfigError, match="the part of shop in run 'one' is missing"):
        VerticalNetClassifier.load(tmp_path, "one")
    shutil.copytree(tmp_path / "shop" / "two", tmp_path / "shop" / "one")
    with pytest.raises(DataError, match="is not of the same training"):
        VerticalNetClassifier.load(tmp_path, "one")
    with pytest.raises(ConfigError, match="run 'three' is at no party"):
        VerticalNetClassifier.load(tmp_path, "three")

"""Parties in processes of their own: parameters as JSON, parts that each keeps, a policy that may refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from protocols.errors import ConfigError, LineError, PolicyError, ProtocolError
from protocols.federation import Federation
from protocols.hazmat.paillier import Paillier
from protocols.programs import program
from protocols.service.caller import Connected
from protocols.wire.faults import Plan as Faults
from protocols.wire.transport import Network
from tests.support.apart import Apart
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG
from tests.vfl.linear.tables import SMALL
from tests.vfl.linear.test_estimator import FIT, classifier, dealt, people
from vfl import VerticalLinearRegression, VerticalLogisticRegression

pytestmark = pytest.mark.filterwarnings("ignore:.*without reaching tol")


@pytest.fixture
def data() -> dict[str, pd.DataFrame]:
    return dealt(people())


def test_each_party_fills_its_own_seat(data: dict[str, pd.DataFrame]) -> None:
    ids = dict.fromkeys(("shop", "telco"), "id")
    apart = Apart("bank", list(data), data, ids)
    here = classifier(security="exact", encryption=SMALL).fit(data, **FIT)
    there = classifier(security="exact", encryption=SMALL).fit(apart, **FIT)
    assert list(there.coef_) == ["bank"] and there.intercept_ == here.intercept_
    pd.testing.assert_frame_equal(there.predict_proba(apart), here.predict_proba(data))
    assert there.score(apart) == here.score(data)


def test_over_the_network(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    lay_out(tmp_path, data, "min_intersection = 5\n")
    here = VerticalLogisticRegression(l2=0.01, max_iter=4).fit(data, **FIT)
    with (
        serving(tmp_path, "shop", "telco"),
        Connected(tmp_path / "parties.toml", "bank", data["bank"], patience=HANG) as all_,
    ):
        model = VerticalLogisticRegression(l2=0.01, max_iter=4, warm_start=True).fit(all_, **FIT)
        assert model.intercept_ == here.intercept_ and list(model.coef_) == ["bank"]
        pd.testing.assert_frame_equal(model.predict_proba(all_), here.predict_proba(data))
        # Each goes on from its own part of the earlier run.
        last = model.loss_curve_[-1]
        model.set_params(max_iter=30).fit(all_, **FIT)
        assert model.loss_curve_[0] == pytest.approx(last, abs=1e-12)
        whole = VerticalLogisticRegression(l2=0.01, security="plain").fit(data, **FIT)
        assert model.converged_ and model.n_iter_ < whole.n_iter_
        np.testing.assert_allclose(model.predict_proba(all_), whole.predict_proba(data), atol=1e-5)


def test_what_is_not_encrypted_needs_a_grant_for_that(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    lay_out(tmp_path, data)
    for party in ("shop", "telco"):
        config = tmp_path / f"{party}.toml"
        config.write_text(config.read_text().replace("allow_plain = true", "allow_plain = false"))
    with (
        serving(tmp_path, "shop", "telco"),
        Connected(tmp_path / "parties.toml", "bank", data["bank"], patience=HANG) as all_,
    ):
        for settings in ({"security": "plain"}, {"security": "exact", "encryption": SMALL}):
            with pytest.raises(PolicyError, match="allow_plain"):
                classifier(**settings, max_iter=2).fit(all_, **FIT)
        classifier(security="exact", encryption=Paillier(), max_iter=2).fit(all_, **FIT)
    named = {name: program(name) for name in ("vertical-linear", "vertical-linear-plain")}
    assert [found.plain for found in named.values()] == [False, True]
    told = {"label_party": "bank", "family": "logistic"}
    for wrong in ({"security": "plain"}, {"small_key": True}):
        with pytest.raises(ConfigError, match="are for the program vertical-linear-plain"):
            named["vertical-linear"].read(told | wrong)


def test_a_party_that_has_another_key_length_in_mind_is_refused() -> None:
    short = SMALL.new_key()
    with pytest.raises(ProtocolError, match="of 2048 to .* bits, got 512"):
        Paillier().key_from_bytes(short.to_bytes())


CHAINS: list[tuple[dict[str, Any], int]] = [
    ({"solver": "sgd", "max_iter": 1, "batch_size": 50}, 4),
    ({"solver": "sgd", "max_iter": 1, "batch_size": 50, "security": "hidden"}, 3),
    ({"max_iter": 3, "tol": 0.0}, 4),
    ({"max_iter": 3, "tol": 0.0, "security": "hidden"}, 4),
    ({"max_iter": 3, "tol": 0.0, "l1": 0.01}, 4),
]


@pytest.mark.parametrize(("settings", "each"), CHAINS, ids=str)
@pytest.mark.parametrize("parties", [2, 3])
def test_a_batch_is_a_short_chain_of_messages(
    data: dict[str, pd.DataFrame], settings: dict[str, Any], each: int, parties: int
) -> None:
    """What each batch, or each step over all rows, adds to the longest chain of messages."""
    data = {party: data[party] for party in list(data)[:parties]}

    def chain(**more: Any) -> int:
        model = classifier(**{"encryption": SMALL, "security": "exact", **settings, **more}).fit(data, **FIT)
        return model.ledger_.chain_length("fit")

    if "solver" in settings:
        assert chain(batch_size=31) - chain(batch_size=50) <= each * (5 - 3)
    else:
        # Of three, each waits for what the label party was told by the other.
        later = parties == 3 and settings.get("security") == "hidden"
        assert chain(max_iter=6) - chain() <= (each + later) * 3


def test_a_line_that_is_slow_and_repeats_itself_changes_nothing(data: dict[str, pd.DataFrame]) -> None:
    model = classifier(security="exact", encryption=SMALL)
    expected = model.fit(data, **FIT).predict_proba(data)
    noisy = Federation(data, faults=Faults(seed=1, delay=1.0, duplicate=0.4))
    model.fit(noisy, **FIT)
    pd.testing.assert_frame_equal(model.predict_proba(data), expected)


def test_a_line_that_is_cut_ends_the_run_with_one_error(data: dict[str, pd.DataFrame]) -> None:
    model = classifier(security="hidden", encryption=SMALL)
    cut = Federation(data, faults=Faults(cut=("shop", "telco"), cut_after=12))
    with pytest.raises(LineError, match="shop|telco"):
        model.fit(cut, **FIT)
    assert not hasattr(model, "parts_")


@pytest.mark.parametrize("security", ["exact", "hidden", "plain"])
def test_every_computation_has_its_price(data: dict[str, pd.DataFrame], security: Any) -> None:
    slow = Federation(data, network=Network(latency=0.1))
    model = VerticalLogisticRegression(max_iter=2, security=security, encryption=SMALL).fit(slow, **FIT)
    assert model.ledger_.replay(Network(latency=0.2)) > 2 * 4 * 0.2
    money = {
        **data,
        "bank": data["bank"].assign(**{FIT["target"].partition(".")[2]: 1.5 * data["bank"]["a"]}),
    }
    VerticalLinearRegression(security="plain", solver="sgd", max_iter=1, batch_size=50).fit(
        Federation(money, network=Network(latency=0.1)), **FIT
    )


def test_prediction_is_as_good_as_the_loss_says(data: dict[str, pd.DataFrame]) -> None:
    model = classifier(l2=0.0).fit(data, **FIT)
    chances = model.predict_proba(data)
    truth = data["bank"].set_index("id")[FIT["target"].partition(".")[2]][chances.index]
    assert log_loss(truth, chances, labels=["no", "yes"]) == pytest.approx(model.loss_curve_[-1], abs=1e-8)

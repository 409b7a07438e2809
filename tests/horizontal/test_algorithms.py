"""Algorithms are values: the paper's recurrences, and one file is enough for one more."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from horizontal import FedClassifier
from horizontal.algorithms import choice
from horizontal.algorithms.choice import ServerChoice, chosen, told
from horizontal.algorithms.fedadam import FedAdam
from horizontal.algorithms.fedavg import Average, FedAvg
from horizontal.parameters import Horizontal
from horizontal.program import program
from horizontal.rules import ServerRule, no_state
from protocols.arrays import Arrays
from protocols.errors import ConfigError
from tests.support.row_clients import rows

TABLES = rows({"a": 40, "b": 25})


def test_fedadam_follows_the_papers_recurrences() -> None:
    """Reddi et al. 2021, Algorithm 2: v begins at tau^2, and nothing is corrected for bias."""
    eta, b1, b2, tau = 0.05, 0.8, 0.95, 0.01
    rule = FedAdam(learning_rate=eta, beta_1=b1, beta_2=b2, tau=tau).rule()
    rng = np.random.default_rng(0)
    x, m, v = rng.normal(size=7), np.zeros(7), np.full(7, tau**2)
    model = Arrays({"w": x})
    state = rule.init(model)
    for _ in range(5):
        delta = rng.normal(size=7)
        m, v = b1 * m + (1 - b1) * delta, b2 * v + (1 - b2) * delta**2
        x = x + eta * m / (np.sqrt(v) + tau)
        model, state = rule.apply(state, model, model + Arrays({"w": delta}))
        np.testing.assert_allclose(model["w"], x, rtol=1e-12)


def test_fedadam_is_reached_from_the_estimator_and_learns() -> None:
    plain = FedClassifier(hidden=(8,), rounds=4, random_state=1).fit(TABLES, target="y")
    adam = FedClassifier(hidden=(8,), rounds=4, server=FedAdam(learning_rate=0.01), random_state=1)
    adam.fit(TABLES, target="y")
    assert Arrays.from_module(adam.model_) != Arrays.from_module(plain.model_)
    assert adam.history_["loss"].iloc[-1] < adam.history_["loss"].iloc[0]
    assert clone(adam).server == FedAdam(learning_rate=0.01)


def test_a_name_is_its_defaults_and_what_is_saved_is_its_settings(tmp_path: Path) -> None:
    by_name = FedClassifier(hidden=(4,), rounds=2, server="fedadam").fit(TABLES, target="y")
    by_value = FedClassifier(hidden=(4,), rounds=2, server=FedAdam()).fit(TABLES, target="y")
    assert Arrays.from_module(by_name.model_) == Arrays.from_module(by_value.model_)
    fast = FedClassifier(hidden=(4,), rounds=2, server=FedAdam(tau=0.5)).fit(TABLES, target="y")
    again = FedClassifier.load(tmp_path, fast.save(tmp_path))
    assert again.server == FedAdam(tau=0.5) and again.algorithm == "fedavg"


def test_over_a_network_a_name_and_settings_are_all_that_crosses() -> None:
    sent = Horizontal(kind="classification", target="y", server=FedAdam(tau=0.5))
    crossed = program.read(sent.model_dump(mode="json"))
    assert sent.model_dump(mode="json")["server"] == {
        "name": "fedadam", "learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.5
    }  # fmt: skip
    assert crossed == sent and crossed.server == FedAdam(tau=0.5) and crossed.algorithm == FedAvg()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("fedadm", "server='fedadm' should be one of average, fedadam; did you mean 'fedadam'"),
        ("fedavg", "server='fedavg' should be one of average, fedadam"),  # what clients do
        ({"name": "fedadam", "tau": 0}, "fedadam: tau: Input should be greater than 0"),
        ({"name": "fedadam", "rate": 1}, "fedadam: rate: Extra inputs are not permitted"),
        ({"tau": 1}, "server=None should be"),
        (None, "server=None should be"),
    ],
)
def test_what_names_no_server_rule_is_refused(said: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        chosen(ServerChoice, said)
    with pytest.raises(ConfigError, match=why.partition(":")[0].partition("=")[0]):
        program.read({"kind": "classification", "target": "y", "server": said})


class Halfway(ServerChoice):
    """One file of somebody else's: go a share of the way to the mean."""

    name = "halfway"
    share: float = 0.5

    def rule(self) -> ServerRule[None]:
        return ServerRule(no_state, lambda state, model, mean: (model + self.share * (mean - model), None))


def test_one_registered_class_is_enough_for_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    place = EntryPoint("halfway", f"{__name__}:Halfway", choice.GROUP)
    known = {**choice.registered(), "halfway": place}
    monkeypatch.setattr(choice, "registered", lambda: known)
    fitted = FedClassifier(hidden=(4,), rounds=1, optimizer="sgd", server="halfway").fit(TABLES, target="y")
    whole = FedClassifier(hidden=(4,), rounds=1, optimizer="sgd").fit(TABLES, target="y")
    start = FedClassifier(
        hidden=(4,), rounds=1, optimizer="sgd", server=Halfway(share=0.0)
    ).fit(TABLES, target="y")  # fmt: skip
    for name, array in Arrays.from_module(fitted.model_).items():
        mean = (Arrays.from_module(start.model_)[name] + Arrays.from_module(whole.model_)[name]) / 2
        np.testing.assert_allclose(array, mean, atol=1e-6)
    assert chosen(ServerChoice, told(Halfway(share=0.25))) == Halfway(share=0.25)
    assert chosen(ServerChoice, Average()) == Average()

"""The same roles everywhere: four processes over mutual TLS give the run of one process, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from horizontal import FedClassifier
from protocols.errors import AlignmentError, DataError
from protocols.federation import simulate
from protocols.hazmat.paillier import Paillier
from protocols.party import Coordinator, Role
from protocols.psi.ecdh import intersect
from protocols.psi.ids import canonical
from protocols.service.role import Abort, error_of, said_of
from split import SplitClassifier
from tests.support.crew import Crew, Played, Scenario, captured, played
from tests.support.network import certified
from tests.support.seeds import seed_for, with_seed
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier

CLIENTS = ("ann", "bob", "cleo")


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    torch.set_num_threads(1)
    crew = Crew(4)
    yield crew
    crew.stop()


def table(seed: int, rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    return pd.DataFrame(x, columns=list("abcd")).assign(label=(x[:, 0] + x[:, 1] > 0).astype(int))


def clients() -> dict[str, pd.DataFrame]:
    return {name: table(seed) for seed, name in enumerate(CLIENTS)}


def fedavg() -> tuple[Mapping[str, Role], int]:
    model = FedClassifier(hidden=(8,), rounds=3, batch_size=16, random_state=3)
    return captured(lambda data: model.fit(data, target="label"), clients())


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def split_learning(variant: str) -> tuple[Mapping[str, Role], int]:
    model = SplitClassifier(net(), cut=(2, 4) if variant == "u_shaped" else 2, epochs=2, random_state=3)
    return captured(lambda data: model.fit(data, target="label"), clients())


def vertical() -> tuple[Mapping[str, Role], int]:
    whole = table(7, 80).assign(id=np.arange(80))
    tables = {
        "ann": whole[["id", "a", "label"]].sample(frac=0.9, random_state=1),
        "bob": whole[["id", "b"]].sample(frac=0.9, random_state=2),
        "cleo": whole[["id", "c", "d"]].sample(frac=0.9, random_state=3),
    }
    model = VerticalNetClassifier(epochs=2, batch_size=16, random_state=3)
    return captured(lambda data: model.fit(data, target="ann.label", id="id"), tables)


def boosting() -> tuple[Mapping[str, Role], int]:
    whole = table(7, 80).assign(id=np.arange(80))
    tables = {
        "ann": whole[["id", "a", "label"]].sample(frac=0.9, random_state=1),
        "bob": whole[["id", "b"]].sample(frac=0.9, random_state=2),
        "cleo": whole[["id", "c", "d"]].sample(frac=0.9, random_state=3),
    }
    key = Paillier(bits=512, small_key=True, backend="gmpy2")
    model = VerticalGradientBoostingClassifier(n_estimators=2, max_depth=3, encryption=key, random_state=3)
    return captured(lambda data: model.fit(data, target="ann.label", id="id"), tables)


def linear(**settings: Any) -> tuple[Mapping[str, Role], int]:
    whole = table(7, 120).assign(id=np.arange(120))
    tables = {
        "ann": whole[["id", "a", "label"]].sample(frac=0.95, random_state=1),
        "bob": whole[["id", "b"]].sample(frac=0.95, random_state=2),
        "cleo": whole[["id", "c"]].sample(frac=0.95, random_state=3),
        "dan": whole[["id", "d"]].sample(frac=0.95, random_state=4),
    }
    key = Paillier(512, small_key=True)
    model = VerticalLogisticRegression(**{"max_iter": 3, "encryption": key, "random_state": 3, **settings})
    return captured(lambda data: model.fit(data, target="ann.label", id="id"), tables)


LINEAR: list[Scenario] = [
    linear,
    partial(linear, security="hidden"),
    partial(linear, l1=0.01, early_stopping=True),
    partial(linear, solver="sgd", batch_size=30),
]


def psi() -> tuple[Mapping[str, Role], int]:
    def role(peer: str, ids: range) -> Role:
        async def meet(me: Coordinator) -> object:
            async with me.within("psi") as at:
                return await intersect(at, peer, canonical(pd.Series(ids)))

        return meet

    return {"ann": role("bob", range(0, 90)), "bob": role("ann", range(30, 200))}, 0


def fails(error: type[Exception], words: str) -> tuple[Mapping[str, Role], int]:
    async def waits(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.recv("bob", Abort)

    async def raises(me: Coordinator) -> None:
        async with me.within("fit"):
            raise error(words)

    return {"ann": waits, "bob": raises, "cleo": waits}, 0


def both(crew: Crew, scenario: Scenario) -> tuple[dict[str, Played], dict[str, Played]]:
    """One process, and many; each party has a seed of its own, as over a network, and the same in both."""
    roles, _ = scenario()
    run = simulate({party: with_seed(role, seed_for(party)) for party, role in roles.items()})
    here = {party: played(run.results[party], run.ledger, party) for party in roles}
    return here, crew.play(scenario, tuple(roles), certified)


@pytest.mark.parametrize(
    "scenario",
    [fedavg, partial(split_learning, "vanilla"), partial(split_learning, "u_shaped")],
    ids=["fedavg", "split", "u-shaped split"],
)
def test_the_network_changes_no_bit(crew: Crew, scenario: Scenario) -> None:
    here, there = both(crew, scenario)
    assert len(here) == 4
    for party, one in here.items():
        assert there[party].error == ""
        assert there[party].result == one.result
        assert there[party].digests == one.digests


@pytest.mark.parametrize("scenario", [psi, vertical, boosting, *LINEAR])
def test_where_secrets_are_drawn_results_and_shapes_are_the_same(crew: Crew, scenario: Scenario) -> None:
    here, there = both(crew, scenario)
    for party, one in here.items():
        assert there[party].error == ""
        assert there[party].shapes == one.shapes
        assert there[party].digests != one.digests
        assert there[party].result == one.result


def test_one_partys_failure_is_everybodys_error(crew: Crew) -> None:
    told = partial(fails, AlignmentError, "312 of 30000 ids are duplicated")
    there = crew.play(told, CLIENTS, certified)
    said = "bob/fit: 312 of 30000 ids are duplicated"
    assert {p.error for p in there.values()} == {said}
    assert {p.kind for p in there.values()} == {"AlignmentError"}


def test_what_is_not_for_the_others_is_told_in_other_words() -> None:
    error = AlignmentError("0 with shop, 64 with telco")
    error.told = "no id is at every party"
    assert said_of(error.at("bank", "align")) == (
        "bank",
        "align",
        "AlignmentError",
        "no id is at every party",
    )


def test_who_passes_an_error_on_tells_what_was_told() -> None:
    error = DataError("canary-column is not there")
    for error.told in ("", "3 columns, expected 4"):
        said = said_of(error.at("bank", "fit"))
        assert said_of(error_of(*said)) == said and "canary" not in said[3]


@pytest.mark.parametrize(("error", "kind"), [(DataError, "DataError"), (KeyError, "PartyError")])
def test_words_that_may_name_a_column_stay_at_home(crew: Crew, error: type[Exception], kind: str) -> None:
    there = crew.play(partial(fails, error, "canary-column"), CLIENTS, certified)
    assert "canary-column" in there["bob"].error
    for party in ("ann", "cleo"):
        assert there[party].kind == kind
        assert there[party].error == f"bob/fit: {kind}; the reason is in its own log"

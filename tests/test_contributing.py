"""Each thing that CONTRIBUTING says one file can add is added here, as a user would, and used."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from horizontal import FedClassifier
from horizontal.algorithms.choice import ServerChoice
from horizontal.rules import ServerRule
from protocols.arrays import Arrays, weighted_mean
from protocols.compare import choose as _chosen  # noqa: F401  the comparison as it is imported
from protocols.compare import compare
from protocols.compare import run as comparing
from protocols.compare.baselines import centralised
from protocols.compare.task import Method, Task
from protocols.errors import ConfigError
from protocols.federation import simulate
from protocols.party import Coordinator, Party
from protocols.policy.rules import Rule
from protocols.psi import choose, way
from protocols.sums.plain import Pooled, Sum
from protocols.wire.message import Message
from tests.support import ROOT
from tests.support.tiny import task
from vfl import align

TEXT = (ROOT / "CONTRIBUTING.md").read_text()

WAY = '''
"""Two parties show each other salted hashes of their ids; for the test alone, since ids can be listed."""
import hashlib
from typing import Annotated
import numpy as np
from protocols.arrays import Array
from protocols.psi.ecdh import Met, in_order
from protocols.psi.way import Way
from protocols.wire.message import Message, Spec

class Hashes(Message, reveals="hashes of all its ids, by a key that both know"):
    values: Annotated[Array, Spec("uint8", ("n", 32))]

def hashed(ids, key):
    digests = [hashlib.sha256(key + name).digest() for name in ids.values.to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

async def compare(me, peer, ids, learns, key, m):
    own = await me.compute(hashed, ids, key)
    await me.send(peer, Hashes(values=own))
    theirs = {bytes(value) for value in (await me.recv(peer, Hashes)).values}
    shared = np.flatnonzero([bytes(value) in theirs for value in own])
    if learns == "peer":
        return Met(None, None)
    return Met(in_order(ids, shared), len(shared))

hashes = Way(compare, (Hashes,))
'''


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with one way to compare ids, as pip would install it."""
    (tmp_path / "acme_psi.py").write_text(WAY)
    about = tmp_path / "acme_psi-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-psi\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vfl.psi]\nhashes = acme_psi:hashes\nbroken = no_such:thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    way.others.cache_clear()
    yield
    way.others.cache_clear()
    sys.modules.pop("acme_psi", None)


def tables() -> dict[str, pd.DataFrame]:
    return {"bank": pd.DataFrame({"id": range(0, 60)}), "shop": pd.DataFrame({"id": range(20, 99)})}


def test_a_psi_protocol(acme: None) -> None:
    found = align(tables(), id="id", label_party="bank", protocol="hashes")
    assert sorted(found.tables["bank"]["id"]) == list(range(20, 60))
    assert found.tables["bank"]["id"].tolist() == found.tables["shop"]["id"].tolist()
    assert {entry.kind for entry in found.ledger} >= {"acme_psi.Hashes/1"}
    assert not {entry.kind for entry in found.ledger} & {"protocols.BlindedIds/1"}
    assert "protocols/psi/way.py" in TEXT


def test_a_psi_protocol_needs_the_owners_word(acme: None) -> None:
    assert not Rule(peers=("bank",)).lets("hashes")
    assert Rule(peers=("bank",), protocols=("hashes",)).lets("hashes")
    assert "hashes" not in choose.chosen("auto", 10**6, 10**6, "both", True)  # "auto" never stands for it
    with pytest.raises(ConfigError, match=r"is for two parties, got 3"):
        choose.check_protocol("hashes", False, 3)


def test_without_the_package_there_is_no_such_protocol() -> None:
    with pytest.raises(ConfigError, match=r"'hashes' should be one of auto, ecdh, kkrt, unbalanced"):
        choose.check_protocol("hashes", False, 2)
    with pytest.raises(ValueError, match="should be one of ecdh, kkrt, unbalanced"):
        Rule(peers=("bank",), protocols=("hashes",))


class Half(ServerChoice):
    """Half of the way to the mean."""

    name = "half"

    def rule(self) -> ServerRule[Any]:
        return ServerRule(lambda model: None, lambda state, model, mean: (0.5 * (model + mean), None))


def test_a_server_optimiser() -> None:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(60, 3)), columns=list("abc"))
    rows = x.assign(y=(x["a"] > 0).astype(int))
    data = {"north": rows[:30], "south": rows[30:]}
    how: dict[str, Any] = {"hidden": (4,), "rounds": 1, "random_state": 3}
    none = FedClassifier(server=Half(), learning_rate=1e-12, **how).fit(data, target="y").model_
    whole, half = (FedClassifier(server=s, **how).fit(data, target="y").model_ for s in ("average", Half()))
    for start, mean, found in zip(none.parameters(), whole.parameters(), half.parameters(), strict=True):
        np.testing.assert_allclose(
            found.detach(), 0.5 * (start.detach() + mean.detach()), rtol=1e-4, atol=1e-6
        )
    assert "ServerChoice" in TEXT


def test_a_method_of_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def acme_methods(task: Task) -> list[Method]:
        return centralised(task)

    monkeypatch.setitem(globals(), "acme_methods", acme_methods)
    entry = EntryPoint("acme", f"{__name__}:acme_methods", "vfl.methods")
    monkeypatch.setattr(comparing, "entry_points", lambda group: [entry])
    result = compare(task(), quick=True, tune=False)
    assert {*result.frame["method"]} == {"centralised"} and "vfl.methods" in TEXT


class Half1(Message, reveals="one half of what it gives, which says nothing of the other"):
    value: Arrays
    weight: float


class InHalves:
    """A part in two messages, for no reason but to be another way."""

    hides = False
    speaks: tuple[type[Message], ...] = (Half1,)

    async def give(self, at: Party, to: str, peers: Sequence[str], value: Arrays, weight: float) -> None:
        for _ in range(2):
            await at.send(to, Half1(value=0.5 * value, weight=0.5 * weight))

    async def take(self, at: Coordinator, of: Sequence[str], like: Arrays) -> Pooled:
        first, second = [(await at.gather(Half1, of=of, like=like)) for _ in range(2)]
        values = [first[party].value + second[party].value for party in of]
        weights = [first[party].weight + second[party].weight for party in of]
        return Pooled(weighted_mean(values, weights), sum(weights))


def test_a_way_to_sum() -> None:
    way: Sum = InHalves()
    given = {name: Arrays({"x": np.full(3, float(number))}) for number, name in enumerate("abc")}

    async def give(me: Coordinator) -> None:
        async with me.within("sum") as at:
            await way.give(at, "server", tuple(given), given[me.name], 2.0)

    async def take(me: Coordinator) -> Pooled:
        async with me.within("sum") as at:
            return await way.take(at, tuple(given), given["a"])

    pooled = simulate({"server": take, **dict.fromkeys(given, give)}).results["server"]
    np.testing.assert_array_equal(pooled.mean["x"], np.ones(3))
    assert pooled.weight == 6.0 and "protocols/sums/" in TEXT

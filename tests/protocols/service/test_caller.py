"""Parties that serve, and one that calls: the run of one process, bit for bit, and clear refusals."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from horizontal import FedClassifier
from protocols.compare.over_network import compare_parties
from protocols.errors import (
    CancelledJobError,
    ConfigError,
    DataError,
    LineError,
    PolicyError,
    ProtocolError,
    VflError,
)
from protocols.federation import Federation
from protocols.files import release
from protocols.learning.training import Settings
from protocols.progress import Report
from protocols.record.reconcile import verify
from protocols.service import caller
from protocols.service.caller import Connected
from protocols.service.conversation import Talk
from protocols.service.jobs import Ended
from protocols.service.store import Store
from split import SplitClassifier
from tests.support.seeds import known_seeds
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG, until
from vfl import VerticalNetClassifier, VerticalNetRegressor, align

FIT = {"target": "bank.y", "id": "id"}


def tables(rows: int = 120) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(rng.normal(size=(rows, 5)), columns=list("abcde")).assign(id=np.arange(rows))
    whole["y"] = (whole["a"] + whole["c"] + whole["e"] > 0).astype(int)
    return {
        "bank": whole[["id", "a", "y"]].sample(frac=0.9, random_state=1),
        "telco": whole[["id", "b", "c"]].sample(frac=0.9, random_state=2),
        "shop": whole[["id", "d", "e"]].sample(frac=0.9, random_state=3),
    }


def model(**settings: Any) -> VerticalNetClassifier:
    return VerticalNetClassifier(**{"epochs": 2, "batch_size": 32, "random_state": 1, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trial")
    lay_out(folder, tables(), "min_intersection = 5\n")
    with serving(folder, "telco", "shop"):
        yield folder


@pytest.fixture(scope="module")
def bank(folder: Path) -> Iterator[Connected]:
    with Federation.connect(folder / "parties.toml", "bank", tables()["bank"], patience=HANG) as bank:
        yield bank


def test_over_the_network_is_the_run_in_one_process(bank: Connected, folder: Path) -> None:
    here = model().fit(tables(), **FIT)
    with known_seeds(1):
        there = model().fit(bank, **FIT)
    pd.testing.assert_frame_equal(there.predict_proba(bank), here.predict_proba(tables()), check_exact=True)
    assert list(there.parts_) == ["bank"]  # nobody holds another's part
    sizes = [(e.scope, e.sequence, e.kind, e.nbytes) for e in there.ledger_]
    assert sorted(sizes) == sorted(
        (e.scope, e.sequence, e.kind, e.nbytes) for e in here.ledger_ if "bank" in (e.sender, e.receiver)
    )
    assert Store(folder / "telco-store").find(there.run_).state == "done"  # type: ignore[union-attr]


def test_regression_too(bank: Connected) -> None:
    def regression() -> VerticalNetRegressor:
        return VerticalNetRegressor(epochs=1, random_state=2)

    here, there = regression().fit(tables(), target="bank.a", id="id"), regression()
    with known_seeds(2):
        there.fit(bank, target="bank.a", id="id")
    pd.testing.assert_series_equal(there.predict(bank), here.predict(tables()), check_exact=True)


def rows(clients: int = 2) -> dict[str, pd.DataFrame]:
    whole = pd.concat(tables()[party].set_index("id") for party in ("telco",)).join(
        tables()["bank"].set_index("id"), how="inner"
    )
    whole = whole.reset_index()
    return {f"north{i}": whole.iloc[i::clients] for i in range(clients)}


@pytest.mark.parametrize("method", ["fedavg", "vanilla", "u-shaped"])
def test_row_partitions_too_and_the_caller_may_be_a_client(
    rows_folder: Path, method: str, as_client: Connected
) -> None:
    def estimator() -> Any:
        if method == "fedavg":
            return FedClassifier(rounds=2, fraction=0.5, random_state=3)
        return SplitClassifier(cut=2 if method == "vanilla" else (2, 4), epochs=2, random_state=3)

    here, there = estimator().fit(rows(), target="y", id="id"), estimator()
    with known_seeds(3):
        there.fit(as_client, target="y", id="id")
    asked = rows()["north0"]
    pd.testing.assert_frame_equal(there.predict_proba(as_client), here.predict_proba(asked), check_exact=True)
    stores = [rows_folder / f"{party}-store" for party in ("server", "north0", "north1")]
    time.sleep(0.2)
    for a, b in itertools.combinations(stores, 2):
        assert verify(a / "ledger.jsonl", b / "ledger.jsonl").agree


def test_the_caller_may_be_the_server(tmp_path: Path) -> None:
    lay_out(tmp_path, {"server": None, **rows()}, "min_intersection = 5\n")
    with (
        serving(tmp_path, "north0", "north1"),
        Federation.connect(tmp_path / "parties.toml", "server") as server,
    ):
        with known_seeds(3):
            there = FedClassifier(rounds=2, random_state=3).fit(server, target="y")
        here = FedClassifier(rounds=2, random_state=3).fit(rows(), target="y", id="id")
        for ours, theirs in zip(here.model_.parameters(), there.model_.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        with pytest.raises(ConfigError, match="model 'mpl' is not among those registered.*'mlp'"):
            FedClassifier(model="mpl").fit(server, target="y")
        with pytest.raises(VflError, match=r"^north./fit: DataError; the reason is in its own log"):
            FedClassifier(rounds=1).fit(server, target="z")


def test_a_proposal_that_a_party_cannot_read_is_no_hang(
    bank: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of another release, whose proposals have other fields."""
    proposal = caller.Asked.proposal

    def changed(self: Any, record: Any, party: str) -> Any:
        honest = proposal(self, record, party)
        return honest.model_copy(update={"table": 64 * "x"}) if party == "shop" else honest

    monkeypatch.setattr(caller.Asked, "proposal", changed)
    monkeypatch.setattr(caller, "TRIES", 1)
    with pytest.raises(LineError, match=r"^shop/jobs: the job is not open here; .* is it of another release"):
        model(epochs=1).fit(bank, **FIT)


def test_a_party_that_says_nothing_at_all_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        async def say(self, to: str, word: Any) -> None: ...

        async def hear(self, sender: str) -> Any:
            await asyncio.Event().wait()

    async def ask() -> None:
        talk = Talk(Silent(), {"job": "a" * 16, "attempt": 1}, ["shop"])  # type: ignore[arg-type]
        talk.listen()
        try:
            await talk.agree()
        finally:
            await talk.stop()

    monkeypatch.setattr("protocols.service.conversation.ANSWER", 0.1)
    with pytest.raises(
        ProtocolError, match="shop has said nothing to the proposal within 0.1 s; do both run"
    ):
        asyncio.run(ask())


def test_a_party_that_is_done_may_say_so_again_and_again_while_another_is_not() -> None:
    """As it does whenever its lease is renewed. Another part than the one that it named is not due."""
    about: dict[str, Any] = {"job": "a" * 16, "attempt": 1}
    kept = [Ended(**about, digest="0" * 64), *(Ended(**about) for _ in range(5))]

    class Waiting:
        def __init__(self, shop: list[Ended]) -> None:
            self.words = {
                "shop": iter(shop),
                "telco": iter([Ended(**about, digest="1" * 64), Ended(**about)]),
            }
            self.read = asyncio.Event()

        async def say(self, to: str, word: Any) -> None: ...

        async def hear(self, sender: str) -> Any:
            if sender == "telco":
                await self.read.wait()
            for word in self.words[sender]:
                return word
            self.read.set()
            await asyncio.Event().wait()

    async def end(*shop: Ended) -> dict[str, str]:
        talk = Talk(Waiting([*shop]), about, ["shop", "telco"])  # type: ignore[arg-type]
        talk.listen()
        try:
            digests = await talk.ends()
            return digests | await talk.ends()
        finally:
            await talk.stop()

    assert asyncio.run(end(*kept)) == {"shop": "0" * 64, "telco": "1" * 64}
    with pytest.raises(ProtocolError, match="Ended/1 from shop in 'jobs' was not due"):
        asyncio.run(end(*kept, Ended(**about, digest="2" * 64)))


def test_a_model_that_is_registered_at_the_caller_alone_is_refused_with_the_reason(
    as_client: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = caller.Asked.proposal

    def changed(self: Any, record: Any, party: str) -> Any:
        honest = proposal(self, record, party)
        return honest.model_copy(update={"parameters": {**honest.parameters, "model": "mpl"}})

    monkeypatch.setattr(caller.Asked, "proposal", changed)
    said = r"^(server|north1)/fit: .*: model: model 'mpl' is not among those registered.*'mlp'"
    for estimator in (FedClassifier(rounds=1), SplitClassifier(epochs=1)):
        with pytest.raises(ProtocolError, match=said):
            estimator.fit(as_client, target="y", id="id")


@pytest.fixture(scope="module")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lay_out(folder, {"server": None, **rows()}, "min_intersection = 5\n")
    return folder


@pytest.fixture(scope="module")
def as_client(rows_folder: Path) -> Iterator[Connected]:
    with (
        serving(rows_folder, "server", "north1"),
        Federation.connect(rows_folder / "parties.toml", "north0", rows()["north0"]) as client,
    ):
        yield client


def test_a_client_with_other_columns_hears_how_many_there_are_and_not_which(as_client: Connected) -> None:
    own = as_client.data
    assert own is not None
    as_client.data = own.assign(canary=1.0)
    said = (
        r"^server/\S*: north1 has 3 feature columns and north0 4, and not the same ones; every client needs"
    )
    with pytest.raises(DataError, match=said) as caught:
        FedClassifier(rounds=1).fit(as_client, target="y", id="id")
    as_client.data = own
    assert "canary" not in str(caught.value)


def test_the_ledgers_of_all_pairs_agree(bank: Connected, folder: Path) -> None:
    model(epochs=1).fit(bank, **FIT)
    time.sleep(0.2)
    for a, b in (("bank", "telco"), ("bank", "shop"), ("telco", "shop")):
        verdict = verify(folder / f"{a}-store" / "ledger.jsonl", folder / f"{b}-store" / "ledger.jsonl")
        assert verdict.agree, verdict.asdict()


def test_each_party_keeps_its_own_part_and_the_digests_of_all(bank: Connected, folder: Path) -> None:
    run = model(epochs=1).fit(bank, **FIT).run_
    parts = {p: json.loads((folder / f"{p}-store/parts/{run}/part.json").read_text()) for p in tables()}
    for party, part in parts.items():
        assert part["party"] == party
        others = {peer: said["digest"] for peer, said in parts.items() if peer != party}
        assert part["others"] == others
    columns = {party: part["kept"]["columns"] for party, part in parts.items()}
    assert columns == {"bank": ["a"], "telco": ["b", "c"], "shop": ["d", "e"]}


REFUSED: list[tuple[dict[str, Any], type[VflError], str]] = [
    (
        {"name": "vertical-nat"},
        ProtocolError,
        "^(telco|shop)/.*no method 'vertical-nat'.*did you mean 'vertical-net'",
    ),
    ({"parameters": {"depth": 3}}, ProtocolError, "^(telco|shop)/.*depth: Extra inputs"),
    (
        {"parameters": {"epochs": "many"}},
        ProtocolError,
        "^(telco|shop)/.*epochs: Input should be a valid integer",
    ),
    (
        {"schemas": "0" * 64, "version": "9.9"},
        ProtocolError,
        rf"^(telco|shop)/.*other schemas at bank, which runs vfl-toolkit 9.9; (telco|shop) runs {release()}",
    ),
]


@pytest.mark.parametrize(("change", "kind", "said"), REFUSED)
def test_what_is_not_registered_or_fits_no_schema_is_refused(
    bank: Connected, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kind: type[VflError], said: str
) -> None:
    proposal = caller.Asked.proposal

    def changed(self: Any, record: Any, party: str) -> Any:
        honest = proposal(self, record, party)
        update = {"program": change["name"]} if "name" in change else change
        if "parameters" in change:
            update = {"parameters": {**honest.parameters, **change["parameters"]}}
        return honest.model_copy(update=update)

    monkeypatch.setattr(caller.Asked, "proposal", changed)
    with pytest.raises(kind, match=said):
        model(epochs=1).fit(bank, **FIT)


@pytest.mark.parametrize(
    ("job", "epochs", "said"),
    [
        ("0123456789abcdef", 1, r"attempt 1 of job 0123456789abcdef came before"),
        ("fedcba9876543210", 2, r"job fedcba9876543210 is known here as another one"),
    ],
)
def test_a_job_that_came_before_is_refused(
    bank: Connected, monkeypatch: pytest.MonkeyPatch, job: str, epochs: int, said: str
) -> None:
    monkeypatch.setattr("protocols.service.caller.secrets.token_hex", lambda n: job)
    model(epochs=1).fit(bank, **FIT)
    with pytest.raises(ProtocolError, match=said):
        model(epochs=epochs).fit(bank, **FIT)


def test_a_module_is_refused_before_any_connection(bank: Connected) -> None:
    with pytest.raises(ConfigError, match=r"a module of one's own cannot cross"):
        VerticalNetClassifier(top=nn.Linear(64, 2)).fit(bank, **FIT)


def test_what_needs_a_table_that_is_elsewhere_says_so(bank: Connected) -> None:
    with pytest.raises(ConfigError, match=r"over a network id names this party's own column, or columns"):
        align(bank, label_party="bank", id={"bank": "id", "telco": "id", "shop": "id"})
    with pytest.raises(ConfigError, match=r"the target is at telco, whose table is not here"):
        model().fit(bank, target="telco.b", id="id")


def test_bad_tables_are_told_at_the_caller(bank: Connected, folder: Path) -> None:
    with pytest.raises(DataError, match=r"^bank/fit: no id column 'ids'.*did you mean 'id'"):
        model().fit(bank, target="bank.y", id="ids")
    path = folder / "shop.csv"
    sound = path.read_text()
    path.write_text(
        sound.replace("id,", "key,", 1) if sound.startswith("id,") else sound.replace(",id", ",key", 1)
    )
    try:
        with pytest.raises(VflError, match=r"^shop/fit: .*the reason is in its own log"):
            model(epochs=1).fit(bank, **FIT)
    finally:
        path.write_text(sound)
    model(epochs=1).fit(bank, **FIT)


def test_a_run_that_this_caller_did_not_train_cannot_be_used(bank: Connected) -> None:
    fitted = model(epochs=1).fit(bank, **FIT)
    fitted.run_ = "0" * 16
    with pytest.raises(ProtocolError, match=r"^(telco|shop)/.*was not trained with bank here"):
        fitted.predict(bank)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """What who watches a terminal sees of the progress of a vertical network."""
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def bar(label: str) -> Iterator[Report]:
        yield lambda *said: seen.append(said)

    with monkeypatch.context() as patched:
        patched.setattr("protocols.estimator.bar", bar)
        yield seen


def test_who_watches_sees_for_whom_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "AT_ONCE", 0.05)
    book = lay_out(tmp_path, tables(), "min_intersection = 5\n")
    with (
        serving(tmp_path, "telco"),
        Federation.connect(book, "bank", tables()["bank"], patience=0.2) as bank,
        watched(monkeypatch) as seen,
        pytest.raises(LineError, match="^bank/fit: shop was not reached within 0.2 s: "),
    ):
        model(epochs=1).fit(bank, **FIT)
    assert ("waiting until shop is reached", 0, 1) in seen and len(seen) <= 3


def test_consent_a_persons_no_and_a_caller_that_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, tables(), "min_intersection = 5\n")
    config = tmp_path / "telco.toml"
    config.write_text(config.read_text().replace('consent = "grant"', 'consent = "ask"'))
    telco = Store(tmp_path / "telco-store")

    def say(what: Any) -> None:
        found = until(lambda: [r for r in telco.all() if r.state == "proposed"])
        telco.say(what, found[-1].job)

    with (
        serving(tmp_path, "telco", "shop"),
        Federation.connect(tmp_path / "parties.toml", "bank", tables()["bank"]) as bank,
    ):
        person = threading.Thread(target=say, args=("approve",))
        person.start()
        with watched(monkeypatch) as seen:
            fitted = model(epochs=1).fit(bank, **FIT)
        person.join()
        step = "waiting until a person at telco approves"
        assert [(done, total) for said, done, total in seen if said == step] == [(0, 1), (1, 1)]
        assert not [said for said, *_ in seen if "shop" in said]  # where nobody has to
        assert telco.find(fitted.run_).granted == "person"  # type: ignore[union-attr]
        granted = [json.loads(row) for row in telco.ledger.read_text().splitlines() if '"grant"' in row]
        assert granted[-1]["by"] == "person" and granted[-1]["reveals"]
        person = threading.Thread(target=say, args=("cancel",))
        person.start()
        with pytest.raises(CancelledJobError, match=r"^(telco|shop)/?.*cancelled by a person"):
            model(epochs=1).fit(bank, **FIT)
        person.join()
        fitted.predict(bank)  # the other consent


def test_a_policy_breach_names_its_clause_and_nothing_runs(tmp_path: Path) -> None:
    lay_out(tmp_path, tables(), "min_intersection = 5\n[policy.parameters.'*'.epochs]\nmax = 3\n")
    with (
        serving(tmp_path, "telco", "shop"),
        Federation.connect(tmp_path / "parties.toml", "bank", tables()["bank"]) as bank,
    ):
        with pytest.raises(PolicyError, match=r"^(telco|shop)/fit: parameters: epochs should be"):
            model(epochs=4).fit(bank, **FIT)
        few = tables()["bank"].iloc[:3].assign(y=[0, 1, 1])
        bank.data = few
        with pytest.raises(PolicyError, match=r"min_intersection"):
            model(epochs=1).fit(bank, **FIT)


def test_who_is_away_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, tables(), "min_intersection = 5\n")
    with (
        serving(tmp_path, "telco"),
        Federation.connect(tmp_path / "parties.toml", "bank", tables()["bank"], patience=0.5) as bank,
        pytest.raises(LineError, match=r"shop was not reached within 0.5 s: .*does `vfl serve` run there"),
    ):
        model(epochs=1).fit(bank, **FIT)


def test_bad_connections_are_clear_errors(tmp_path: Path) -> None:
    book = lay_out(tmp_path, tables())
    with pytest.raises(ConfigError, match=r"'bnak' is not in .*did you mean 'bank'"):
        Federation.connect(book, "bnak")
    with pytest.raises(DataError, match=r"bank/connect: expected a DataFrame, got str"):
        Federation.connect(book, "bank", "bank.csv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tables names tleco.*did you mean 'telco'"):
        Federation.connect(book, "bank", tables()["bank"], tables={"tleco": "main"})


def test_a_comparison_runs_what_the_layout_admits_and_names_the_rest(bank: Connected) -> None:
    found = compare_parties(bank, "y", "id", settings=Settings(epochs=1), hidden=(8, 4), seeds=1)
    assert list(found.frame["method"]) == ["vertical", "alone: bank"]
    assert found.left_out == {
        "centralised": "needs pooled data",
        "edge": "needs pooled data",
        "fedavg": "needs row partitions",
        "split: vanilla": "needs row partitions",
        "split: U-shaped": "needs row partitions",
    }
    assert found.frame["bytes"].tolist()[0] > 10_000 and found.frame["bytes"].tolist()[1] == 0
    assert found.frame["score"].between(0, 1).all() and found.renderable().row_count == 7


def test_it_works_below_a_running_loop(bank: Connected) -> None:
    async def notebook() -> pd.Series:
        return model(epochs=1).fit(bank, **FIT).predict(bank)

    assert len(asyncio.run(notebook())) > 50

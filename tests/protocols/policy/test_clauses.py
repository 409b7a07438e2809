"""Each clause of a policy, broken over mTLS gRPC: the caller hears which, and it is in the party's log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from horizontal import FedClassifier
from protocols.errors import CancelledJobError, PolicyError
from protocols.logs import Structured
from protocols.policy.rules import Rule
from protocols.service.caller import Connected
from protocols.service.store import Store
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG, until
from vfl import VerticalNetClassifier

BASE = {  # grants everything
    "peers": ["*"],
    "methods": ["*"],
    "actions": ["fit", "predict"],
    "columns": ["*"],
    "show_columns": True,
    "protocols": ["ecdh", "kkrt", "unbalanced"],
    "consent": "grant",
    "consent_predict": "grant",
    "allow_plain": True,
    **dict.fromkeys(("min_intersection", "min_group", "min_difference"), 0),
    **dict.fromkeys(("max_predictions", "max_distinct_ids", "max_fits"), 0),
    **dict.fromkeys(("max_asked_job", "max_asked_day", "max_asked"), 0),
}


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(rng.normal(size=(40, 3)), columns=list("abc")).assign(id=np.arange(40))
    whole["y"] = (whole["a"] + whole["c"] > 0).astype(int)
    return {"bank": whole[["id", "a", "y"]], "telco": whole[["id", "b", "c", "y"]]}


Play = Callable[[Connected], Any]


def fit(bank: Connected, epochs: int = 1, **more: Any) -> VerticalNetClassifier:
    """By columns: bank has some, telco others."""
    model = VerticalNetClassifier(epochs=epochs, random_state=1, **more)
    return model.fit(bank, target="bank.y", id="id")


def federate(server: Connected, target: str = "y") -> FedClassifier:
    """By rows, all of them telco's; names the target's column."""
    return FedClassifier(rounds=1, random_state=1).fit(server, target=target)


def predict(times: int) -> Play:
    def play(bank: Connected) -> None:
        model = fit(bank)
        for _ in range(times):
            model.predict(bank)

    return play


def fit_again(bank: Connected) -> None:
    """The same ids count again."""
    fit(bank)
    fit(bank)


def fit_twice(bank: Connected) -> None:
    fit(bank)
    fit(bank.holding(tables()["bank"].iloc[3:]))


@dataclass(frozen=True)
class Breach:
    """A rule that grants everything but for `changes`, and what it refuses. key: by which it is one."""

    key: str
    said: str
    play: Play = fit
    changes: dict[str, Any] = field(default_factory=dict)
    by: str = "bank"
    step: str = "fit"
    clause: str = ""  # if not `key`
    runs: bool = False  # shows only while the job runs, by its rows

    @property
    def table(self) -> str:
        """Of telco's: each rule is about one of its own."""
        return f"{self.key}-{self.said.split()[0].strip(chr(39))}"


NOTHING = "nothing is granted to this peer for this table and method; ask the owner for a rule"
ASKED = (
    "a peer may ask about {} ids {}, counting all that it announces, each time, and these would be more; "
    "bring fewer, or ask the owner"
)
SERVER: dict[str, Any] = {"play": federate, "by": "server"}
BREACHES = [
    Breach("peers", NOTHING, changes={"peers": ["server"]}, clause="policy"),
    Breach("tables", NOTHING, changes={"tables": ["spare"]}, clause="policy"),
    Breach("methods", NOTHING, changes={"methods": ["fedavg"]}, clause="policy"),
    Breach("actions", "fit is not granted; granted are predict", changes={"actions": ["predict"]}),
    Breach("columns", "no column is granted; ask the owner for some", changes={"columns": []}),
    Breach(
        "columns",
        "'bb' is not granted; did you mean 'b'?",
        changes={"columns": ["b", "c"]},
        play=lambda server: federate(server, "bb"),
        by="server",
    ),
    Breach(
        "show_columns",
        "this table's columns are not named to its peers; leave the columns to their owner",
        changes={"show_columns": False},
        **SERVER,
    ),
    Breach(
        "parameters",
        "epochs should be at most 1",
        lambda bank: fit(bank, epochs=2),
        {'parameters."*".epochs': {"max": 1}},
    ),
    Breach(
        "protocols",
        "ids may not be compared by kkrt; granted are ecdh",
        lambda bank: fit(bank, protocol="kkrt"),
        {"protocols": ["ecdh"]},
    ),
    Breach(
        "allow_plain",
        "methods that send embeddings, gradients or updates in the clear are not granted; ask the owner",
        changes={"allow_plain": False},
    ),
    Breach(
        "min_intersection",
        "fewer than 41 rows match; take more rows",
        changes={"min_intersection": 41},
        runs=True,
    ),
    Breach(
        "min_group",
        "a statistic would be of fewer than 41 rows; take more rows",
        changes={"min_group": 41},
        runs=True,
        **SERVER,
    ),
    Breach(
        "max_predictions",
        "all 1 predict jobs that are granted were used; ask the owner for more",
        predict(2),
        {"max_predictions": 1},
        step="predict",
    ),
    Breach(
        "max_distinct_ids",
        "predictions were granted for 39 distinct ids, and these would be more; ask the owner",
        predict(1),
        {"max_distinct_ids": 39},
        runs=True,
        step="predict",
    ),
    *(
        Breach(key, ASKED.format(most, where), fit_again, {key: most}, runs=True)
        for key, most, where in (
            ("max_asked_job", 39, "in one job, all attempts at it together"),
            ("max_asked_day", 79, "within 24 hours"),
            ("max_asked", 79, "in all"),
        )
    ),
    Breach(
        "min_difference",
        "the rows differ from an earlier job's, by fewer than 4; use the same rows, or more",
        fit_twice,
        {"min_difference": 4},
        runs=True,
    ),
    Breach(
        "max_fits",
        "models were fitted on all 1 sets of rows that are granted; use one of them again, or ask the owner "
        "for more",
        fit_twice,
        {"max_fits": 1},
        runs=True,
    ),
    Breach(
        "expires",
        "what was granted ended on 2020-01-01 (UTC); ask the owner to renew it",
        changes={"expires": "2020-01-01"},
    ),
]
CONSENTS = [
    Breach("consent", "cancelled by a person at this party", changes={"consent": "ask"}),
    Breach(
        "consent_predict",
        "cancelled by a person at this party",
        predict(1),
        {"consent_predict": "ask"},
        step="predict",
    ),
]


def written(breach: Breach) -> str:
    """The table and the rule of a breach, as TOML."""
    rule = {**BASE, "tables": [breach.table], **breach.changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in rule.items() if not isinstance(value, dict)]
    for key, bound in rule.items():
        if isinstance(bound, dict):
            lines += [f"[policy.{key}]", *(f"{name} = {value}" for name, value in bound.items())]
    table = f'[tables.{breach.table}]\npath = "telco.csv"\nid = "id"\n'
    return "\n".join([table, "[[policy]]", *lines, ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clauses")
    book = lay_out(folder, {**tables(), "server": None})
    config = folder / "telco.toml"
    head = config.read_text().partition("[tables.main]")[0]
    spare = '[tables.spare]\npath = "telco.csv"\nid = "id"\n'
    config.write_text(head + spare + "".join(map(written, [*BREACHES, *CONSENTS])))
    for caller, other in (("bank", "server"), ("server", "bank")):  # each knows telco alone
        lines = [line for line in book.read_text().splitlines() if not line.startswith(f"{other} = ")]
        (folder / f"{caller}-book.toml").write_text("\n".join(lines))
    with serving(folder, "telco"):
        yield folder


def connect(folder: Path, breach: Breach) -> Connected:
    book, own = folder / f"{breach.by}-book.toml", tables().get(breach.by)
    return Connected(book, breach.by, own, tables={"telco": breach.table}, patience=HANG)


def logged(caplog: pytest.LogCaptureFixture, event: str) -> dict[str, Any]:
    """The one line about a job that went wrong, as the party that serves writes it."""
    # The caller may hear of it before it is written down.
    found = until(lambda: [record for record in caplog.records if record.levelno == logging.WARNING])
    (line,) = [json.loads(Structured().format(record)) for record in found]
    assert line["event"] == event
    return dict(line)


def test_there_is_a_breach_of_each_clause() -> None:
    # How long a person's consent holds is another matter: `test_consent`.
    clauses = set(Rule.model_fields) - {"consent_hours", "consent_attempts"}
    assert {breach.key for breach in [*BREACHES, *CONSENTS]} == clauses


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.table)
def test_a_breach_is_told_to_its_caller_and_in_the_log(
    folder: Path, breach: Breach, caplog: pytest.LogCaptureFixture
) -> None:
    clause = breach.clause or breach.key
    with connect(folder, breach) as caller, pytest.raises(PolicyError) as caught:
        breach.play(caller)
    where, _, words = str(caught.value).partition(": ")
    assert where.startswith("telco/") if breach.runs else where == f"telco/{breach.step}"
    assert (caught.value.clause, words) == (clause, f"{clause}: {breach.said}")
    line = logged(caplog, "job failed" if breach.runs else "job refused")
    told = [line[key] for key in ("peer", "party", "error", "clause", "reason")]
    assert told == [breach.by, "telco", "PolicyError", clause, words]


@pytest.mark.parametrize("breach", CONSENTS, ids=lambda breach: breach.key)
def test_a_job_that_the_policy_does_not_grant_is_a_persons_to_refuse(
    folder: Path, breach: Breach, caplog: pytest.LogCaptureFixture
) -> None:
    telco = Store(folder / "telco-store")

    asked = (breach.step, "proposed", "")

    def refuse() -> None:
        waiting = until(lambda: [r for r in telco.all() if (r.action, r.state, r.granted) == asked])
        telco.say("cancel", waiting[0].job)

    person = threading.Thread(target=refuse)
    with connect(folder, breach) as caller:
        with caplog.at_level(logging.INFO, "vfl"):
            person.start()
            with pytest.raises(CancelledJobError) as caught:
                breach.play(caller)
        person.join()
    assert str(caught.value) == f"telco/{breach.step}: {breach.said}"
    assert "job waits for approval" in [record.message for record in caplog.records]
    assert logged(caplog, "job failed")["reason"] == breach.said

"""What an operator is shown: no peer's words command a terminal, and what is to be approved is whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from protocols import programs
from protocols.cli.serve import app
from protocols.service import agent
from protocols.service.jobs import Given
from protocols.service.store import Record, Store
from tests.support.served import lay_out

NOW = datetime.now(UTC)
JOB = "a" * 16
EVIL = "[/x]\x1b[2J"  # what rich would take for a tag, and a terminal for an order


@pytest.fixture
def store(tmp_path: Path) -> Store:
    lay_out(tmp_path, {"bank": None, "telco": None})
    return Store(tmp_path / "telco-store")


def asked(store: Store, **changes: Any) -> None:
    record = Record(
        job=JOB,
        attempt=1,
        caller="bank",
        program="vertical-net",
        action="fit",
        parameters={"label_party": "bank", "kind": "classification"},
        parties=("bank", "telco"),
        table="",
        run="",
        state="proposed",
        created=NOW,
        updated=NOW,
    )
    store.save(record.model_copy(update=changes))


def shown(store: Store, *words: str, stdin: str = "") -> str:
    config = store.folder.parent / "telco.toml"
    said = CliRunner().invoke(app, [*words, "--config", str(config)], input=stdin, env={"COLUMNS": "200"})
    assert said.exit_code in (0, 1) and not isinstance(said.exception, Exception), said.exception
    assert "\x1b[2J" not in said.output
    return said.output


def test_a_party_has_imported_all_programs_before_it_serves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports take seconds, in which it would answer nobody."""
    done: list[str] = []

    async def serves(*_: Any) -> None:
        done.append("serves")

    monkeypatch.setattr(programs, "import_all", lambda: done.append("imports"))
    monkeypatch.setattr(agent, "serve_party", serves)
    said = CliRunner().invoke(app, ["serve", str(store.folder.parent / "telco.toml")])
    assert said.exit_code == 0 and done == ["imports", "serves"], said.output


def test_a_peers_words_are_obeyed_by_nothing(store: Store) -> None:
    asked(store, table=EVIL, reason=EVIL)
    assert "[/x]" in shown(store, "jobs")
    assert "[/x]" in shown(store, "approve", JOB)
    peer = {"connected": False, "heard_s": None, "latency_ms": 1.0, "cause": EVIL, "version": EVIL}
    said = {"party": "telco", "version": "1", "seen": datetime.now(UTC).isoformat(), "peers": {"bank": peer}}
    (store.folder / "status.json").write_text(json.dumps(said))
    assert "[/x]" in shown(store, "status")


def test_what_is_to_be_approved_is_shown_as_it_would_run(store: Store) -> None:
    config = store.folder.parent / "telco.toml"
    config.write_text(config.read_text().replace("tables.main", "tables.customers").replace('"main"', '"*"'))
    asked(store)
    said = shown(store, "approve", JOB, stdin="n\n")
    assert "bank asks to fit vertical-net on table customers with bank, telco" in said
    assert "epochs = 10" in said and "kind = classification" in said  # one of them by default
    assert not store.said("approve", JOB)
    assert "approved" in shown(store, "approve", JOB, stdin="y\n") and store.said("approve", JOB)


def test_what_was_shown_is_what_is_approved(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a person reads, the caller gives the number to another job; or when the word lies there."""
    asked(store)

    def reads(*_: Any) -> bool:
        asked(store, parameters={"label_party": "bank", "kind": "classification", "epochs": 10_000})
        return True

    with monkeypatch.context() as patch:
        patch.setattr("typer.confirm", reads)
        config = store.folder.parent / "telco.toml"
        said = CliRunner().invoke(app, ["approve", JOB, "--config", str(config)])
    assert said.exit_code == 2 and "asks for something else by now; look at it again" in said.stderr
    other = store.find(JOB)
    assert other is not None and not store.said("approve", JOB, other.request)
    asked(store)
    store.say("approve", JOB)
    assert not store.said("approve", JOB, other.request) and not store.said("approve", JOB)


def test_attempts_and_what_they_run_under_are_shown(store: Store) -> None:
    asked(
        store,
        attempt=4,
        ran=2,
        state="running",
        granted="person",
        given=Given(attempt=2, when=NOW, attempts=3),
    )
    assert "person at attempt 2, 3 attempts so far" in shown(store, "jobs")
    found = json.loads(shown(store, "jobs", "--json"))[0]
    assert (found["attempt"], found["ran"], found["given"]["attempts"]) == (4, 2, 3)
    asked(store, attempt=5, ran=4)
    said = shown(store, "approve", JOB, stdin="n\n")
    assert "attempt 5" in said and "attempt 4 ran: this one may compare other ids" in said


@pytest.mark.parametrize("state", ["done", "failed", "running"])
def test_what_waits_for_nobody_is_not_approved(store: Store, state: str) -> None:
    asked(store, state=state)
    config = store.folder.parent / "telco.toml"
    said = CliRunner().invoke(app, ["approve", JOB, "--yes", "--config", str(config)])
    assert said.exit_code == 2 and f"job {JOB} waits for nobody: it is {state}" in said.stderr
    assert not store.said("approve", JOB)

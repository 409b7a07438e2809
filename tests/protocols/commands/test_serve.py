"""`vfl approve` shows what will leave, and approves only what waits."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocols.cli import app
from protocols.jobs import Record, State, Store
from protocols.trial import new_trial

JOB = "0123456789abcdef"


def waiting(folder: Path, state: State = "proposed") -> Store:
    new_trial(folder, ("bank", "telco"))
    store = Store(folder / "telco-store")
    (folder / "telco-store" / "jobs").mkdir(parents=True)
    now = datetime.now(UTC)
    said = {"job": JOB, "attempt": 1, "caller": "bank", "program": "vertical-net", "action": "fit"}
    said |= {"parameters": {"epochs": 2}, "parties": ("bank", "telco"), "table": "", "run": "", "seed": 0}
    record = Record.model_validate({**said, "state": state, "created": now, "updated": now})
    store.save(record)
    return store


def test_approve_shows_what_identifies_and_what_can_be_inverted(tmp_path: Path) -> None:
    store = waiting(tmp_path)
    got = CliRunner().invoke(app, ["approve", JOB, "--yes", "--config", str(tmp_path / "telco.toml")])
    assert got.exit_code == 0, got.output
    for said in ("epochs = 2", "ids as points under its own secret", "from which rows can be", "tell labels"):
        assert said in got.stdout
    assert store.said("approve", JOB)


@pytest.mark.parametrize("state", ["done", "failed", "running"])
def test_what_waits_for_nobody_is_not_approved(state: State, tmp_path: Path) -> None:
    store = waiting(tmp_path, state)
    got = CliRunner().invoke(app, ["approve", JOB, "--yes", "--config", str(tmp_path / "telco.toml")])
    assert got.exit_code == 2 and f"job {JOB} waits for nobody: it is {state}" in got.stderr
    assert not store.said("approve", JOB)

"""The ledgers of parties that served a job: what went wrong agrees, what one of them erased does not."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from protocols.arrays import Arrays
from protocols.cli.main import app
from protocols.errors import DataError, LineError
from protocols.parts import Part, save_part
from protocols.party import Coordinator
from protocols.programs import Parameters, Program, Seat
from protocols.record.file import Record as Ledger
from protocols.record.rows import CUT
from protocols.service import attempt, consent
from protocols.service.caller import Connected
from protocols.service.conversation import Talk
from protocols.service.jobs import Control, Ended, Sealed, Word
from protocols.service.store import Record, Store
from protocols.wire.message import Message
from tests.support.networked import POLICY
from tests.support.records import rechain, rows
from tests.support.served import lay_out, serving

TABLE = pd.DataFrame({"id": [1, 2], "x": [0.0, 1.0]})
PARTIES = ("bank", "telco", "shop")  # the bank calls
Rows = list[dict[str, Any]]


class Greeting(Message, reveals="test: nothing"):
    n: int


async def greets(me: Coordinator) -> str:
    """Each tells each other something."""
    async with me.within("greet") as at:
        await at.broadcast(Greeting(n=1))
        await at.gather(Greeting)
    return "result"


def prepare(p: Parameters, seat: Seat) -> Any:
    return greets


def keep(p: Parameters, seat: Seat, result: Any) -> Part:
    return Part("Greeting", seat.party, {}, Arrays())


ROLES = {"fit": prepare, "predict": prepare}
PROGRAM = Program(
    name="greet",
    package="vfl",
    parameters=Parameters,
    speaks={action: (Greeting,) for action in ROLES},
    prepare=ROLES,
    keep=keep,
    recall=lambda p, part: None,
)


def run(folder: Path, *actions: str) -> None:
    """One job after the other, at the three of them, who then stop."""
    book, before = lay_out(folder, dict.fromkeys(PARTIES, TABLE), POLICY), ""
    with serving(folder, "telco", "shop"), Connected(book, "bank", TABLE, patience=20.0) as bank:
        for action in actions:

            def seat(me: str) -> Seat:
                return Seat(me, PARTIES, TABLE, "id")

            before = bank.execute(PROGRAM, action, Parameters(), seat, PARTIES, run=before).job  # type: ignore[arg-type]


def ledger(folder: Path, party: str) -> Path:
    return Store(folder / f"{party}-store").ledger


def verified(a: Path, b: Path) -> tuple[int, str]:
    """The exit code of `vfl ledger verify`, and what it says."""
    said = CliRunner().invoke(app, ["ledger", "verify", str(a), str(b)])
    return said.exit_code, " ".join(said.output.split())


def check_all(folder: Path) -> None:
    for a, b in itertools.combinations(PARTIES, 2):
        code, said = verified(ledger(folder, a), ledger(folder, b))
        assert code == 0, said


def last_states(folder: Path) -> dict[str, tuple[str, str]]:
    """The latest state of a job by each ledger, and its reason."""
    jobs = {party: [row for row in rows(ledger(folder, party)) if row["entry"] == "job"] for party in PARTIES}
    return {party: (states[-1]["state"], states[-1]["reason"]) for party, states in jobs.items()}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "program", lambda name: PROGRAM)


# What befalls honest parties.


def test_one_that_cannot_keep_its_part_fails_where_another_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: Path, run: str, part: Part) -> Path:
        if part.party == "telco":
            raise DataError("no space left")
        return save_part(store, run, part)

    monkeypatch.setattr(attempt, "save_part", full)
    with pytest.raises(DataError, match="^telco"):
        run(tmp_path, "fit")
    states = {party: state for party, (state, _) in last_states(tmp_path).items()}
    assert states == {"bank": "failed", "telco": "failed", "shop": "done"}
    check_all(tmp_path)


def test_one_that_is_lost_when_it_has_agreed_and_the_others_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they sent it was on its way. The next attempt gets through."""
    honest, lost = consent.Consent.begins, list[int]()

    def begins(self: consent.Consent, record: Record, *more: Any) -> Record:
        if self.config.name == "telco" and not lost:
            lost.append(record.attempt)
            raise LineError("lost")
        return honest(self, record, *more)

    monkeypatch.setattr(consent.Consent, "begins", begins)
    run(tmp_path, "fit")
    telco = [
        (row["state"], row["attempt"]) for row in rows(ledger(tmp_path, "telco")) if row["entry"] == "job"
    ]
    assert telco[:2] == [("agreed", 1), ("failed", 1)] and telco[-1] == ("done", 2)
    check_all(tmp_path)


def test_a_caller_that_has_its_predictions_says_that_a_line_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, heard = Talk.ends, list[str]()

    async def cut(self: Talk) -> dict[str, str]:
        heard.append("")
        if len(heard) < 3:  # of the job that trains
            return await honest(self)
        raise LineError("cut")

    monkeypatch.setattr(Talk, "ends", cut)
    run(tmp_path, "fit", "predict")
    states = last_states(tmp_path)
    assert states.pop("bank") == ("done", CUT)
    assert {state for state, _ in states.values()} == {"failed"}
    check_all(tmp_path)


def test_what_others_call_done_is_on_the_disk_before_they_hear_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power looked like messages that were erased."""
    unsaved: dict[str, int] = dict.fromkeys(PARTIES, 0)  # messages since the last flush
    told: list[tuple[str, str, int]] = []
    append, flush, say = Ledger.append, Ledger._flush, Control.say

    def appended(self: Ledger, *args: Any, **more: Any) -> None:
        append(self, *args, **more)
        unsaved[self.party] += 1

    def flushed(self: Ledger) -> None:
        flush(self)
        unsaved[self.party] = 0

    async def said(self: Control, to: str, word: Word) -> None:
        if isinstance(word, Ended | Sealed):
            told.append((self._me, type(word).__name__, unsaved[self._me]))
        await say(self, to, word)

    monkeypatch.setattr(Ledger, "append", appended)
    monkeypatch.setattr(Ledger, "_flush", flushed)
    monkeypatch.setattr(Control, "say", said)
    run(tmp_path, "fit")
    assert {(party, kind) for party, kind, _ in told} == {
        ("bank", "Sealed"),
        ("telco", "Ended"),
        ("shop", "Ended"),
    }
    assert all(left == 0 for *_, left in told), told


# What one of them does.


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(consent, "program", lambda name: PROGRAM)
        run(folder, "fit", "predict")
    check_all(folder)
    return folder


def without_messages(kept: Rows, says: str) -> Rows:
    """All jobs ended otherwise than they did, and nothing was said in them."""
    left = [row for row in kept if row["entry"] != "message"]
    return [{**row, "state": says} if row.get("state") == "done" else row for row in left]


def refused(kept: Rows) -> Rows:
    """All jobs were refused when they were proposed."""
    jobs = {row["job"]: {**row, "state": "refused"} for row in kept if row["entry"] == "job"}
    return [kept[0], *jobs.values()]


ERASED: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "failed": (lambda kept: without_messages(kept, "failed"), "missing in the file of {}, though the job is"),
    "cancelled": (lambda kept: without_messages(kept, "cancelled"), "that of {} says 'cancelled'"),
    "refused": (refused, "but that of {0} says 'refused', and not that {0} took part"),
    "absent": (lambda kept: kept[:1], "done by the file of {1}, but that of {0} does not know of it"),
    "unended": (
        lambda kept: [
            row for row in kept if row["entry"] in ("header", "grant") or row.get("state") == "running"
        ],
        "done, but the file of {} does not say how it ended",
    ),
}


@pytest.mark.parametrize("how", ERASED)
@pytest.mark.parametrize(("liar", "other"), [("telco", "bank"), ("telco", "shop"), ("bank", "shop")])
def test_what_one_party_erased_is_a_finding(
    honest: Path, tmp_path: Path, how: str, liar: str, other: str
) -> None:
    """Each file is whole by itself, and says that nothing went on in the jobs that are done at the other."""
    erase, said = ERASED[how]
    mine = rechain(tmp_path / "mine.jsonl", erase(rows(ledger(honest, liar))))
    theirs = Path(shutil.copy(ledger(honest, other), tmp_path / "theirs.jsonl"))
    for pair in ((mine, theirs), (theirs, mine)):
        code, found = verified(*pair)
        assert code == 1 and "do not agree" in found and "broken" not in found
        called = how != "cancelled" or other == "bank"  # a caller is done once all are, others may be before
        assert (said.format(liar, other) in found) == called, found

"""How two files say that jobs went: all that can befall honest parties agrees, and no tampering does.

The bank calls, the shop is asked. A job is played as attempts, each of which ends in one of the ways that
there are; then one of the two rewrites its file, so that its own chain is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from protocols.record.file import Record
from protocols.record.reconcile import Verdict, verify
from protocols.record.rows import CUT
from tests.support.records import Act, entry, rechain, rows, says, scratch, state, write

Row = dict[str, Any]
Played = dict[str, list[Act]]
PARTIES = ("bank", "shop")
# How the bank's attempt ended, and the shop's, where every message was taken; "": killed, and is down since.
WHOLE = [
    ("done", "done"),
    (
        "failed",
        "done",
    ),  # killed when it had told all that the roles had ended; or another could not keep its part
    ("failed", "failed"),
    ("cancelled", "cancelled"),
]
# The same, where some were on their way.
BROKEN = [("failed", "failed"), ("cancelled", "failed"), ("failed", ""), ("", "failed"), (CUT, "failed")]


def grant(job: str) -> Act:
    return lambda record: record.grant(job, "method", "policy", [])


def ended(said: str, job: str, attempt: int) -> list[Act]:
    if said == CUT:
        return [state("done", job, attempt, reason=CUT)]
    return [state(said, job, attempt)] if said else []


@st.composite
def attempts(draw: st.DrawFn, job: str, number: int) -> Played:
    """One attempt, by each party."""
    bank: list[Act] = [state("proposed", job, number)]
    shop: list[Act] = [state("proposed", job, number), grant(job), state("agreed", job, number)]
    whole = draw(st.booleans())
    ends = draw(st.sampled_from(WHOLE if whole else BROKEN))
    if whole or draw(st.booleans()):
        bank.append(state("running", job, number))
    else:  # killed before it wrote that, when the shop had begun
        ends = ("failed", "failed")
    shop.append(state("running", job, number))
    talk, taken = draw(st.lists(st.booleans(), min_size=1, max_size=6)), {True: 6, False: 6}
    if not whole:
        taken = {back: draw(st.integers(0, 6)) for back in (True, False)}
    began = len(bank) > 1
    for i, back in enumerate(talk):
        if back or began:
            said = says(
                entry(*(PARTIES[::-1] if back else PARTIES), i, scope=f"fit/{i}", job=job, body=b"x" * i)
            )
            sender, receiver = (shop, bank) if back else (bank, shop)
            sender.append(said)
            if i < taken[back] and (began or not back):
                receiver.append(said)
    return {"bank": bank + ended(ends[0], job, number), "shop": shop + ended(ends[1], job, number)}


@st.composite
def played(draw: st.DrawFn) -> Played:
    """Some jobs, of some attempts each."""
    both: Played = {party: [] for party in PARTIES}
    for job in ("j1", "j2")[: draw(st.integers(1, 2))]:
        for number in range(1, draw(st.integers(1, 3)) + 1):
            for party, acts in draw(attempts(job, number)).items():
                both[party] += acts
    return both


def files(folder: Path, both: Played) -> list[Path]:
    return [write(folder / party, party, both[party]) for party in PARTIES]


@given(played())
def test_what_can_befall_honest_parties_agrees(both: Played) -> None:
    with scratch() as folder:
        verdict = verify(*files(Path(folder), both))
        assert verdict.agree, [*map(str, (*verdict.clashes, *verdict.differences))]


# What one of them can do to its file.


def of(kept: list[Row], job: str, attempt: int) -> list[int]:
    """Where the rows of an attempt are, but for the grant."""
    found, now = [], 0
    for i, row in enumerate(kept):
        if row.get("job") == job and row["entry"] == "job":
            now = row["attempt"]
        if row.get("job") == job and row["entry"] != "grant" and now == attempt:
            found.append(i)
    return found


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("job", "sender", "receiver", "scope", "sequence"))


class Mine:
    """A file, and what it and the other one say of one attempt."""

    def __init__(self, path: Path, other: Path, job: str, attempt: int) -> None:
        self.path, self.rows, self.job = path, rows(path), job
        self.party = self.rows[0]["party"]
        self.at = of(self.rows, job, attempt)
        others = rows(other)
        theirs = [others[i] for i in of(others, job, attempt)]
        there = {key(row) for row in theirs if row["entry"] == "message"}
        self.ran = any(row.get("state") in ("running", "done") for row in theirs)  # by the other file
        self.done = any(row.get("state") == "done" and row["reason"] != CUT for row in theirs)
        self.spoke = bool(there)
        self.messages = [i for i in self.at if self.rows[i]["entry"] == "message"]
        self.both = [i for i in self.messages if key(self.rows[i]) in there]
        self.sent = [i for i in self.both if self.rows[i]["sender"] == self.party]  # and was taken
        self.taken = [i for i in self.both if i not in self.sent]

    def write(self, kept: list[Row]) -> None:
        rechain(self.path, kept)

    def without(self, *gone: int, says: str | None = None) -> None:
        """Without these rows; `says`: what it says instead of done."""
        kept = []
        for i, row in enumerate(self.rows):
            if i not in gone:
                done = says is not None and i in self.at and row.get("state") == "done"
                kept.append({**row, "state": says, "reason": ""} if done else row)
        self.write(kept)


Draw = Callable[[st.SearchStrategy[Any]], Any]
ENDS = st.sampled_from(["failed", "cancelled", "refused"])


def say_refused(mine: Mine, draw: Draw) -> None:
    """It never took part, by its own account."""
    states = [i for i in mine.at if mine.rows[i]["entry"] == "job"]
    refused = {**mine.rows[states[-1]], "state": "refused", "reason": ""}
    every = [refused if i == states[-1] else row for i, row in enumerate(mine.rows)]
    mine.write([row for i, row in enumerate(every) if i not in (*states[:-1], *mine.messages)])


def make_up_what_it_took(mine: Mine, draw: Draw) -> None:
    (other,) = {*PARTIES} - {mine.party}
    at = draw(st.sampled_from(mine.messages)) + 1
    made = {**mine.rows[at - 1], "sender": other, "receiver": mine.party, "scope": "made up", "sequence": 0}
    mine.write([*mine.rows[:at], made, *mine.rows[at:]])


def change_one(mine: Mine, draw: Draw) -> None:
    at = draw(st.sampled_from(mine.both))
    mine.write([{**row, "digest": "0" * 64} if i == at else row for i, row in enumerate(mine.rows)])


# What it does, and to which attempts: to those where the other file has something to say against it.
TAMPERINGS: dict[str, tuple[Callable[[Mine], Any], Callable[[Mine, Draw], None]]] = {
    "erase the messages": (
        lambda mine: mine.sent or (mine.done and mine.both),
        lambda mine, draw: mine.without(*mine.messages, says=draw(ENDS)),
    ),
    "say that it refused": (lambda mine: mine.ran or mine.spoke, say_refused),
    "erase the attempt": (lambda mine: mine.spoke, lambda mine, draw: mine.without(*mine.at)),
    "erase the job": (
        lambda mine: mine.spoke,
        lambda mine, draw: mine.write([row for row in mine.rows if row.get("job") != mine.job]),
    ),
    "drop what it sent": (
        lambda mine: mine.sent,
        lambda mine, draw: mine.without(draw(st.sampled_from(mine.sent))),
    ),
    "drop what it took": (
        lambda mine: mine.done and mine.taken,
        lambda mine, draw: mine.without(draw(st.sampled_from(mine.taken)), says=draw(ENDS)),
    ),
    "cut the tail": (
        lambda mine: mine.done,
        lambda mine, draw: mine.write(mine.rows[: draw(st.sampled_from(mine.at))]),
    ),
    "make up what it took": (lambda mine: mine.messages, make_up_what_it_took),
    "change one": (lambda mine: mine.both, change_one),
}


@pytest.mark.parametrize("how", TAMPERINGS)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(both=played(), side=st.sampled_from([0, 1]), data=st.data())
def test_no_tampering_agrees(how: str, both: Played, side: int, data: st.DataObject) -> None:
    where, do = TAMPERINGS[how]
    with scratch() as folder:
        pair = files(Path(folder), both)
        known = {(row["job"], row["attempt"]) for row in rows(pair[side]) if row["entry"] == "job"}
        every = [Mine(pair[side], pair[1 - side], *attempt) for attempt in sorted(known)]
        fitting = [mine for mine in every if where(mine)]
        assume(fitting)
        mine = data.draw(st.sampled_from(fitting))
        do(mine, data.draw)
        verdict = verify(*pair)
        assert verdict.faults == (None, None) and not verdict.agree
        assert mine.job in {clash.job for clash in verdict.clashes} | {one.job for one in verdict.differences}


# In words.


def words(verdict: Verdict) -> list[str]:
    return [str(clash) for clash in verdict.clashes]


TALK = [says(entry("bank", "shop")), says(entry("shop", "bank", scope="fit/1"))]
SHOP = [state("proposed", attempt=1), grant("j1"), state("agreed", attempt=1), state("running", attempt=1)]
BANK = [state("proposed", attempt=1), state("running", attempt=1), *TALK, state("done", attempt=1)]
ERASED: list[tuple[list[Act], str]] = [
    (
        [*SHOP, state("failed", attempt=1)],
        "done by the file of bank, which called, and is done once all are; that of shop says 'failed'",
    ),
    (
        [*SHOP, *TALK, state("failed", attempt=1)],
        "done by the file of bank, which called, and is done once all are; that of shop says 'failed'",
    ),
    (
        [SHOP[0], state("refused", attempt=1)],
        "done by the file of bank, but that of shop says 'refused', and not that shop took part",
    ),
    ([], "done by the file of bank, but that of shop does not know of it"),
    (SHOP, "done, but the file of shop does not say how it ended; was it cut, or copied before?"),
]


@pytest.mark.parametrize(("shop", "said"), ERASED)
def test_a_job_that_is_done_and_erased_at_the_other_is_said_in_words(
    tmp_path: Path, shop: list[Act], said: str
) -> None:
    verdict = verify(*files(tmp_path, {"bank": BANK, "shop": shop}))
    assert not verdict.agree and words(verdict) == [f"job j1, attempt 1: {said}"]


def test_messages_of_a_job_that_the_other_says_it_refused(tmp_path: Path) -> None:
    bank = [*BANK[:-1], state("failed", attempt=1)]
    verdict = verify(*files(tmp_path, {"bank": bank, "shop": [SHOP[0], state("refused", attempt=1)]}))
    said = "begun by the file of bank, but that of shop says 'refused', and not that shop took part"
    assert not verdict.agree and words(verdict) == [f"job j1, attempt 1: {said}"]


@pytest.mark.parametrize("by", PARTIES)
def test_a_message_that_its_sender_does_not_have_was_not_in_flight(tmp_path: Path, by: str) -> None:
    """Both say that the job failed; but one took what the other says it never sent."""
    both = {
        "bank": [*BANK[:-1], state("failed", attempt=1)],
        "shop": [*SHOP, *TALK, state("failed", attempt=1)],
    }
    both[by].remove(TALK[PARTIES.index(by)])
    (found,) = verify(*files(tmp_path, both)).differences
    (other,) = {*PARTIES} - {by}
    assert found.missing_at == by
    assert found.reason == (
        f"missing in the file of {by}, who sent it: {other} took it, and what is sent is recorded before"
    )


def test_a_record_says_by_itself_nothing_of_this(tmp_path: Path) -> None:
    """Jobs that neither file knows are compared by their messages alone, as those of a run without jobs."""

    def alone(record: Record) -> None:
        for act in TALK:
            act(record)

    assert verify(*files(tmp_path, {"bank": [alone], "shop": [alone]})).agree

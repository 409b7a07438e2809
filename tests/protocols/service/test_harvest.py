"""A caller that makes attempt after attempt, each with other ids, finds no more than it was granted once.

Its table is no part of what it asks for: these callers speak the whole protocol to a party that serves, and
lie about nothing but that they would go on.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from protocols.errors import LineError, PolicyError
from protocols.party import Coordinator, Role
from protocols.policy.history import load_history
from protocols.policy.past import Rows
from protocols.policy.rules import Action
from protocols.programs import Seat, program
from protocols.service.caller import Asked, Connected
from protocols.service.store import Record, Store
from tests.support.served import lay_out, serving

CUSTOMERS = range(0, 400, 3)
FEW = [range(start, start + 40) for start in range(0, 400, 40)]  # guesses: each with a tenth of all ids
POLICY = "min_intersection = 5\nmin_difference = 0\n"
HOUR = timedelta(hours=1)


def tables() -> dict[str, pd.DataFrame | None]:
    telco = pd.DataFrame({"id": CUSTOMERS, "b": [float(n % 7) for n in CUSTOMERS]})
    return {"bank": None, "telco": telco}


class Cheat:
    """The bank, connected to a telco that serves. found: which ids it has found there."""

    def __init__(self, bank: Connected, telco: Store, method: str) -> None:
        self.bank, self.telco, self.found = bank, telco, set[int]()
        self._method, self._action = method, Action.__args__[0 if method != "align" else 2]  # type: ignore[attr-defined]
        self._record: Record | None = None

    def attempt(self, ids: Sequence[int], *, anew: bool = True, after: int = 0) -> None:
        """One more attempt with these ids, cut off after the alignment, or after so many steps.

        anew: whether the bank says that it has nothing to go on after. Raises what the telco refuses with.
        """
        table = pd.DataFrame({"id": ids, "a": [float(n % 5) for n in ids], "y": [n % 2 for n in ids]})
        asked = self._asked(Seat("bank", ("bank", "telco"), table, id="id", target="y"), after)
        if self._record is None:
            self._record = self.bank._begin(asked)
        else:
            self._record = self._record.model_copy(update={"attempt": self._record.attempt + 1})
        if anew:
            self.bank.store.checkpoints(self._record.job).drop()
        with pytest.raises(LineError) as caught:
            self.bank._there(self.bank._attempt(self._record, asked, None))
        if "cut" not in str(caught.value):
            raise caught.value

    def attempts(self, several: Sequence[Sequence[int]]) -> None:
        """One with each of these."""
        for ids in several:
            self.attempt(ids)

    @property
    def job(self) -> str:
        assert self._record is not None
        return self._record.job

    def _asked(self, seat: Seat, after: int) -> Asked:
        found = program(self._method)
        said: dict[str, Any] = {"label_party": "bank"}
        if self._method != "align":
            said |= {"kind": "classification", "epochs": 5}
        parameters = found.read(said)
        role = self._cut(found.role(self._action, parameters, seat), seat, after)
        return Asked(found, self._action, parameters, seat, role, seat.parties, "", {})

    def _cut(self, role: Role, seat: Seat, after: int) -> Role:
        """The honest role, until it knows what is common."""
        table = seat.table
        assert table is not None

        async def cut(me: Coordinator) -> Any:
            kept = me.desk.checkpoints
            assert kept is not None
            save, step = kept.save_alignment, kept.save

            def aligned(state: Any) -> None:
                self.found |= {int(n) for n in table["id"].iloc[state["rows"]]}
                save(state)
                if not after:
                    raise LineError("cut")

            def stepped(done: int, state: Any) -> None:
                step(done, state)
                if done >= after > 0:
                    raise LineError("cut")

            kept.save_alignment, kept.save = aligned, stepped  # type: ignore[method-assign]
            try:
                await role(me)
            except LineError:
                theirs = self.telco.checkpoints(self.job)
                async with asyncio.timeout(20):  # the telco has heard all that it needs to come as far
                    while not (theirs.aligned and after <= max(theirs.steps, default=0)):
                        await asyncio.sleep(0.01)
                raise
            raise LineError("cut")

        return cut


@contextmanager
def cheating(folder: Path, consent: str, method: str = "align", policy: str = POLICY) -> Iterator[Cheat]:
    """A telco with this rule, and the cheat that is connected to it."""
    book = lay_out(folder, tables(), policy)
    config = folder / "telco.toml"
    config.write_text(config.read_text().replace('consent = "grant"', f'consent = "{consent}"'))
    with serving(folder, "telco"), Connected(book, "bank", patience=20.0) as bank:
        yield Cheat(bank, Store(folder / "telco-store"), method)


@contextmanager
def person(store: Store, says: str = "approve", times: int = 1) -> Iterator[list[Record]]:
    """Says the same to so many of the attempts that wait for one, which are listed; cancels all others."""
    asked: list[Record] = []
    over = threading.Event()

    def answer() -> None:
        while not over.wait(0.02):
            for record in store.all():
                known = [(one.job, one.attempt) for one in asked]
                if (record.state, record.granted) != ("proposed", "") or (
                    record.job,
                    record.attempt,
                ) in known:
                    continue
                asked.append(record)
                store.say("approve" if len(asked) <= times else "cancel", record.job)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def granted(store: Store) -> list[dict[str, Any]]:
    rows = [json.loads(row) for row in store.ledger.read_text().splitlines()]
    return [row for row in rows if row["entry"] == "grant"]


def ended(store: Store, job: str) -> Record:
    """The record of `job`, once its last attempt is over."""
    deadline = time.monotonic() + 20
    while (record := store.find(job)) is None or record.state not in ("failed", "cancelled", "done"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return record


@pytest.mark.parametrize("method", ["align", "vertical-net"])
def test_one_approval_is_good_for_one_alignment(tmp_path: Path, method: str) -> None:
    """All customers of the telco were found with one approval, ten attempts and forty ids in each."""
    store = Store(tmp_path / "telco-store")
    with cheating(tmp_path, "ask", method) as cheat, person(store) as asked:
        cheat.attempt(FEW[0])
        with pytest.raises(LineError, match="a person is asked at the next"):
            cheat.attempts(FEW[1:])
        assert cheat.found == set(CUSTOMERS) & set(FEW[0])
        ended(store, cheat.job)
        with pytest.raises(Exception, match="cancelled by a person"):
            cheat.attempt(FEW[1])
    assert cheat.found == set(CUSTOMERS) & set(FEW[0])
    assert [record.attempt for record in asked] == [1, 3]
    assert [row["by"] for row in granted(store)] == ["person"]


@pytest.mark.parametrize("method", ["align", "vertical-net"])
def test_who_goes_on_after_the_alignment_is_covered_and_finds_nothing_more(
    tmp_path: Path, method: str
) -> None:
    """Also with a table that holds other ids by now; and it is written down as what it is."""
    store = Store(tmp_path / "telco-store")
    with cheating(tmp_path, "ask", method) as cheat, person(store) as asked:
        cheat.attempt(FEW[0])
        ended(store, cheat.job)
        for number in range(2, 6):
            cheat.attempt(FEW[0] if number < 5 else FEW[5], anew=False)
            ended(store, cheat.job)
        given = store.find(cheat.job).given  # type: ignore[union-attr]
        with pytest.raises(Exception, match="cancelled by a person"):
            cheat.attempt(FEW[0], anew=False)  # a sixth time
    assert cheat.found == set(CUSTOMERS) & set(FEW[0])
    assert [record.attempt for record in asked] == [1, 6]
    assert given is not None and (given.attempt, given.attempts) == (1, 5)
    said = [(row["by"], row["under"]) for row in granted(store)]
    when = given.when.isoformat(timespec="seconds")
    assert said == [("person", "")] + 4 * [("resumed", f"the consent of {when} to attempt 1")]


def aligned(folder: Path) -> Rows:
    return load_history(folder / "telco-store", "bank", "main").aligned


def test_each_alignment_under_a_standing_grant_is_counted(tmp_path: Path) -> None:
    """An attempt with other ids is as good as another job, and counts as one; going on is not."""
    with cheating(tmp_path, "grant") as cheat:
        for number, ids in enumerate(FEW[:3], 1):
            cheat.attempt(ids)
            assert aligned(tmp_path)["announced"].tolist() == [40] * number
        ended(Store(tmp_path / "telco-store"), cheat.job)
        cheat.attempt(FEW[2], anew=False)
        assert aligned(tmp_path)["announced"].tolist() == [40] * 3
        known = [len(set(CUSTOMERS) & set(ids)) for ids in FEW[:3]]
        assert aligned(tmp_path)["matched"].tolist() == known


def test_row_sets_of_attempts_are_compared_as_those_of_jobs(tmp_path: Path) -> None:
    policy = POLICY.replace("min_difference = 0", "min_difference = 4\nmax_fits = 2")
    with cheating(tmp_path, "grant", "vertical-net", policy) as cheat:
        cheat.attempt(range(0, 60), after=1)
        with pytest.raises(PolicyError, match="min_difference: the rows differ from an earlier job's"):
            cheat.attempt(range(3, 60), after=1)
        cheat.attempt(range(0, 60), after=1)
        cheat.attempt(range(60, 120), after=1)
        with pytest.raises(PolicyError, match="max_fits: models were fitted on all 2 sets of rows"):
            cheat.attempt(range(120, 180), after=1)
        assert len(load_history(tmp_path / "telco-store", "bank", "main").fits) == 2

"""Mail that comes after its receiver has left the scope: no role sees it, and both ledgers have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from protocols.arrays import Arrays
from protocols.errors import DataError
from protocols.parts import Part
from protocols.party import Party
from protocols.programs import Parameters, Program, Seat
from protocols.record.file import Record
from protocols.record.reconcile import verify
from protocols.service import consent
from protocols.service.caller import Connected
from protocols.service.store import Store
from protocols.wire.message import Message
from tests.support.networked import POLICY
from tests.support.records import rows
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG

TABLE = pd.DataFrame({"id": [1, 2], "x": [0.0, 1.0]})
PARTIES = ("bank", "telco")


SCOPES = ("early", "unread", "heard", "never opened")  # in which the talker sends, in this order


class Remark(Message, reveals="test: nothing"):
    n: int


async def leaves(me: Party, talker: str) -> str:
    """Takes what comes in "heard", and nothing else."""
    async with me.within("early"):
        pass
    async with me.within("unread") as unread, me.within("heard") as heard:
        await unread.send(talker, Remark(n=0))
        await heard.recv(talker, Remark)
    return "result"


async def talks(me: Party, listener: str) -> str:
    """Sends to a scope that was left, to one that is about to be, and after all of them."""
    async with me.within("unread") as unread:
        await unread.recv(listener, Remark)
        for n, scope in enumerate(SCOPES):
            await (unread if scope == "unread" else me.within(scope)).send(listener, Remark(n=n))
    return "result"


def late(talker: str) -> Program[Parameters]:
    def role(p: Parameters, seat: Seat) -> Any:
        (peer,) = (party for party in seat.parties if party != seat.party)
        return lambda me: (talks if seat.party == talker else leaves)(me, peer)

    def keep(p: Parameters, seat: Seat, result: Any) -> Part:
        return Part("Late", seat.party, {}, Arrays())

    return Program("late", "vfl", Parameters, {"fit": (Remark,)}, {"fit": role}, keep, lambda p, part: None)


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, talker: str) -> None:
    """One job between both."""
    program = late(talker)
    monkeypatch.setattr(consent, "program", lambda name: program)
    path = lay_out(folder, dict.fromkeys(PARTIES, TABLE), POLICY)
    with serving(folder, "telco"), Connected(path, "bank", TABLE, patience=HANG) as bank:
        bank.execute(program, "fit", Parameters(), lambda me: Seat(me, PARTIES, TABLE, "id"), PARTIES)


@pytest.mark.parametrize("talker", PARTIES)
def test_both_ledgers_have_what_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talker: str
) -> None:
    fit(tmp_path, monkeypatch, talker)
    files = {party: Store(tmp_path / f"{party}-store").ledger for party in PARTIES}
    verdict = verify(*files.values())
    assert verdict.agree and not verdict.in_flight, verdict
    assert sorted(line.agree for line in verdict.lines) == [1, len(SCOPES)]
    assert all(line.digests[0] == line.digests[1] for line in verdict.lines)
    for party, file in files.items():
        messages = [row for row in rows(file) if row["entry"] == "message"]
        late = {row["scope"] for row in messages if not row["taken"]}
        assert late == (set() if party == talker else {"early", "unread", "never opened"})


@pytest.mark.parametrize("talker", PARTIES)
def test_late_mail_that_cannot_be_taken_down_fails_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talker: str
) -> None:
    honest = Record.append

    def full(self: Record, entry: Any, *, taken: bool = True, **more: Any) -> None:
        if not taken:
            raise DataError("the ledger cannot be written: No space left on device").at(self.party, "ledger")
        honest(self, entry, taken=taken, **more)

    monkeypatch.setattr(Record, "append", full)
    (listener,) = {*PARTIES} - {talker}
    with pytest.raises(DataError, match=rf"^{listener}/ledger: "):
        fit(tmp_path, monkeypatch, talker)

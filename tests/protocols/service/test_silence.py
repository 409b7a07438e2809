"""Who begins a job and then stops holds a party for so long while others wait, and no longer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols.errors import LineError
from protocols.network.frames import CONTROL
from protocols.network.grpc import Grpc
from protocols.party import Party
from protocols.service import attempt
from protocols.service.caller import Connected
from protocols.service.config import Parties
from protocols.service.jobs import Answer, Cancel, Claim, Control, Ended, Prepare, Renew, Start, Word
from protocols.service.silence import unless_silent
from protocols.service.store import Store
from protocols.service.turns import Place, Turns
from protocols.wire.clock import run_virtual
from tests.protocols.service.test_denials import Served, fit, proposal, tables
from tests.support.network import bounded
from tests.support.networked import POLICY
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG, until

SHORT = 0.03  # minutes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    torch.set_num_threads(1)
    served = Served(tmp_path_factory.mktemp("silence"), f"longest_silence_minutes = {SHORT}\n")
    try:
        served.warm_up()
        yield served
        served.bank.close()
        served.telco.stop()
    finally:
        served.telco.kill()


class Quiet:
    """What a job speaks by that waits for the mill since `since`, or has not waited."""

    since: float | None = None

    def silence(self) -> tuple[float, str]:
        return (0.0, "") if self.since is None else (asyncio.get_running_loop().time() - self.since, "mill")


def test_a_job_may_be_silent_as_long_as_nobody_waits() -> None:
    """And one that computes, or hears somebody now and then, may take its time whoever waits."""
    told: list[str] = []

    async def ends_at(waits: bool, others_after: float | None, heard: float | None = None) -> float:
        loop, turns, quiet = asyncio.get_running_loop(), Turns(), Quiet()
        quiet.since = loop.time() if waits else None
        begin = loop.time()
        with turns.place("mill") as mill, turns.place("bank") as bank:
            mill.join()
            if others_after is not None:
                loop.call_later(others_after, bank.join)
            if heard is not None:
                loop.call_later(heard, setattr, quiet, "since", begin + heard)
            try:
                await unless_silent(asyncio.sleep(36_000.0), quiet, mill, 10.0)
            except LineError as error:
                told.append(str(error))
            return loop.time() - begin

    for waits, others_after, heard, expected in (
        (True, None, None, 36_000.0),
        (False, 0.0, None, 36_000.0),
        (True, 0.0, None, 600.0),
        (True, 0.0, 300.0, 900.0),
        (True, 7_000.0, None, 7_000.0),
    ):
        told.clear()
        found, _ = run_virtual(ends_at(waits, others_after, heard))
        assert expected <= found <= expected + 60.0
        said = "nothing has come from mill for 10 min (longest_silence_minutes), and another caller waits"
        assert [line.startswith(said) for line in told] == [True] * (expected < 36_000.0)


async def idle(mill: Grpc, words: Callable[[str], list[Word]]) -> tuple[Control, str]:
    """As far as these words lead; the mill's lease is renewed from then on."""
    control, job = Control(mill.for_job(CONTROL), "mill"), os.urandom(8).hex()
    await control.say("telco", proposal(job, "mill"))
    for state, word in zip(("ready", "claimed", "agreed"), words(job), strict=False):
        while not (isinstance(said := await control.hear("telco"), Answer) and said.state == state):
            assert not isinstance(said, Ended), said
        await control.say("telco", word)
    return control, job


async def renewing(control: Control, job: str, work: Awaitable[Any]) -> None:
    """`work`, while the mill says every second that it is there."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await control.say("telco", Renew(job=job, attempt=1))
        await asyncio.wait({task}, timeout=1.0)
    await task


def test_a_job_that_is_started_and_left_passes_on(served: Served) -> None:
    """Its caller hears who was waited for; the bank is served as soon as that is over."""

    def words(job: str) -> list[Word]:
        of: dict[str, Any] = {"job": job, "attempt": 1}
        return [Claim(**of), Prepare(**of), Start(**of, done=0)]

    async def stop() -> None:
        async with served.as_party("mill") as mill:
            control, job = await idle(mill, words)
            await renewing(control, job, asyncio.to_thread(served.serves))
            while not isinstance(said := await control.hear("telco"), Ended):
                pass
            assert said.error == "LineError" and "nothing has come from mill for 0.03 min" in said.reason

    bounded(stop(), HANG)
    served.check()


def test_what_is_prepared_and_not_started_costs_ever_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time a caller may have parties that read larger tables."""
    monkeypatch.setattr(attempt, "PREPARED", 1.6)
    monkeypatch.setattr(attempt, "CLAIMED", 0.1)
    given: list[float] = []
    keep = Place.keep

    async def noting(self: Place, work: Any, seconds: float) -> Any:
        if self.caller == "mill" and seconds >= 0.1:  # what is claimed is kept for less
            given.append(seconds)
        return await keep(self, work, seconds)

    monkeypatch.setattr(Place, "keep", noting)
    own = {party: table for party, table in tables().items() if party != "post"}
    parties = Parties.read(lay_out(tmp_path, own, POLICY))

    def words(job: str) -> list[Word]:
        return [Claim(job=job, attempt=1), Prepare(job=job, attempt=1)]

    async def prepare(bank: Connected) -> None:
        book = {"mill": None, "telco": parties.book["telco"]}
        async with Grpc("mill", book, parties.credentials("mill")) as mill:
            control, job = await idle(mill, words)

            async def come_again() -> None:
                for _ in range(6):
                    await asyncio.to_thread(fit, bank)

            await renewing(control, job, come_again())
            await control.say("telco", Cancel(job=job, attempt=1))

    book = tmp_path / "bank-book.toml"
    book.write_text("\n".join(x for x in parties_text(tmp_path) if not x.startswith("mill = ")))
    with serving(tmp_path, "telco"), Connected(book, "bank", own["bank"], patience=HANG) as bank:
        bounded(prepare(bank), HANG)
    assert given[:6] == [1.6, 0.8, 0.4, 0.2, 0.1, 0.1]


def parties_text(folder: Path) -> list[str]:
    return (folder / "parties.toml").read_text().splitlines()


def test_an_honest_job_that_takes_long_goes_on_behind_those_who_waited(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller makes another attempt by itself, and is done no step less."""
    compute, waited, begun = Party.compute, threading.Event(), threading.Event()

    async def long(self: Party, *of: Any, **more: Any) -> Any:
        if self.name == "bank" and self.scope.startswith("fit/2"):
            begun.set()
            await asyncio.to_thread(waited.wait, HANG)
        return await compute(self, *of, **more)

    monkeypatch.setattr(Party, "compute", long)
    with ThreadPoolExecutor() as pool, served.connect("mill") as mill:
        going = pool.submit(fit, served.bank, 4)
        until(begun.is_set)
        fit(mill)
        assert not going.done()
        waited.set()
        going.result(HANG)
    record = max(Store(served.folder / "telco-store").all(), key=lambda one: one.updated)
    assert (record.caller, record.state, record.attempt) == ("bank", "done", 2)

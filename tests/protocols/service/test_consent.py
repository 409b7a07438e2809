"""What a person's consent covers, for how long, and what proposals leave behind that nobody consented to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from protocols.arrays import Arrays
from protocols.policy import history
from protocols.programs import Parameters, program
from protocols.service import consent
from protocols.service.caller import Connected
from protocols.service.jobs import Answer, Cancel, Claim, Ended, Prepare, Start, Word
from protocols.service.journal import PROPOSALS
from protocols.service.store import Store
from protocols.wire.codec import encode
from tests.protocols.service.test_agent import PROPOSAL, Wire
from tests.protocols.service.test_agent import ran as ran
from tests.protocols.service.test_agent import serving as serving_here
from tests.protocols.service.test_agent import trial as trial
from tests.protocols.service.test_bypass import ASK, JOB, Caller, Trial, is_answer, play
from tests.protocols.service.test_harvest import person
from tests.support.granted import rule
from tests.support.networked import CASES
from tests.support.served import Process, lay_out, serving
from tests.support.waiting import until
from vfl import VerticalNetClassifier

HOUR = timedelta(hours=1)


async def cut(caller: Caller, attempt: int = 1, done: int = 0, aligned: bool = False) -> Word:
    """An attempt that is ready, up to where its role has ended and was not sealed; how that began."""
    of: dict[str, Any] = {"job": JOB, "attempt": attempt}
    words: list[Word] = [Claim(**of), Prepare(**of), Start(**of, done=done, aligned=aligned)]
    for word in words:
        caller.say((word.kind, encode(word)))
        said = await caller.hear()
    cancel = Cancel(**of)
    caller.say((cancel.kind, encode(cancel)))
    if isinstance(said, Ended) and not said.error:
        await caller.hear()  # that it is cancelled
    return said


def age(caller: Caller, by: timedelta) -> None:
    """Let the consent to the job be so old."""
    record = caller.agent.store.find(JOB)
    assert record is not None and record.given is not None
    given = record.given.model_copy(update={"when": datetime.now(UTC) - by})
    caller.agent.store.save(record.model_copy(update={"given": given}))


@pytest.mark.parametrize(
    ("by", "asked"), [(23 * HOUR, False), (25 * HOUR, True), (365 * 24 * HOUR, True), (-HOUR, True)]
)
def test_an_old_consent_does_not_hold_nor_one_of_days_to_come(
    trial: Trial, tmp_path: Path, ran: list[str], by: timedelta, asked: bool
) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        await cut(caller)
        age(caller, by)
        assert is_answer(await caller.propose(attempt=2), "waiting" if asked else "ready")

    play(trial, tmp_path, talk, ASK)


def test_a_consent_does_not_hold_for_an_attempt_that_was_kept_open_until_it_is_over(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        with pytest.MonkeyPatch.context() as later:
            later.setattr(consent, "timedelta", lambda hours=0: timedelta(hours=min(0, hours - 24)))
            said = await cut(caller)
        assert isinstance(said, Ended) and "a person is asked at the next" in said.reason
        assert is_answer(await caller.propose(attempt=2), "waiting")

    play(trial, tmp_path, talk, ASK)
    assert not ran


def test_going_on_is_covered_a_few_times_and_beginning_anew_never(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        await cut(caller)
        for attempt in (2, 3):
            assert is_answer(await caller.propose(attempt=attempt), "ready")
            said = await cut(caller, attempt, done=1)
            assert isinstance(said, Ended) and not said.error
        assert is_answer(await caller.propose(attempt=4), "waiting")
        await caller.approved()
        await cut(caller, 4)
        assert is_answer(await caller.propose(attempt=5), "ready")
        said = await cut(caller, 5)
        assert isinstance(said, Ended) and "attempt 5 needs another" in said.reason
        assert is_answer(await caller.propose(attempt=6), "waiting")

    play(trial, tmp_path, talk, ASK.model_copy(update={"consent_attempts": 3}))
    assert ran == [f"{JOB}.{attempt}" for attempt in (1, 2, 3, 4)]
    rows = [json.loads(row) for row in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["by"] for row in rows if row["entry"] == "grant"] == ["person", *2 * ["resumed"], "person"]


@pytest.mark.parametrize(("last", "done", "covered"), [(3, 2, True), (3, 0, False), (1, 0, True)])
def test_going_back_further_than_a_crash_explains_is_not_going_on(
    trial: Trial, tmp_path: Path, ran: list[str], last: int, done: int, covered: bool
) -> None:
    """Else a caller could train on the same rows again and again, each time with other labels."""

    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        await cut(caller)
        kept = caller.agent.store.checkpoints(JOB)
        kept.save_alignment(Arrays())
        for step in range(1, last + 1):
            kept.save(step, Arrays())
        assert is_answer(await caller.propose(attempt=2), "ready")
        said = await cut(caller, 2, done, aligned=True)
        assert isinstance(said, Ended) and (said.error == "") == covered

    play(trial, tmp_path, talk, ASK)


def test_where_nothing_is_kept_to_go_on_after_a_person_is_asked_at_once(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        await cut(caller)
        caller.agent.store.checkpoints(JOB).drop()
        assert is_answer(await caller.propose(attempt=2), "waiting")

    play(trial, tmp_path, talk, ASK)


def test_what_was_approved_and_lost_is_not_approved_for_the_next_attempt(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    """The person's word lies in the store when the attempt that it was about has gone."""

    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        await cut(caller)
        caller.agent.store.checkpoints(JOB).drop()
        place = caller.agent.store.folder / "approve" / JOB
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"")
        assert is_answer(await caller.propose(attempt=2), "waiting")
        assert not place.exists()

    play(trial, tmp_path, talk, ASK)


def test_of_several_rules_the_shorter_consent_counts(trial: Trial, tmp_path: Path, ran: list[str]) -> None:
    of = {"parties": ["bank", "mill", "telco"]}

    async def talk(caller: Caller) -> None:
        await caller.propose(**of)
        await caller.approved()
        await cut(caller)
        assert is_answer(await caller.propose(attempt=2, **of), "waiting")

    bank = ASK.model_copy(update={"peers": ("bank",)})
    mill = ASK.model_copy(update={"peers": ("mill",), "consent_attempts": 1})
    play(trial, tmp_path, talk, bank, mill)


def test_a_party_that_is_killed_goes_on_without_a_person(tmp_path: Path) -> None:
    case = CASES["vertical-net"]
    lay_out(tmp_path, case.tables(), "min_intersection = 5\n")
    for party in case.served:
        config = tmp_path / f"{party}.toml"
        config.write_text(config.read_text().replace('consent = "grant"', 'consent = "ask"'))
    stores = {party: Store(tmp_path / f"{party}-store") for party in case.served}
    own = case.tables()["bank"]
    with serving(tmp_path, "shop"), person(stores["telco"]) as asked, person(stores["shop"]) as also:
        telco = Process(tmp_path / "telco.toml")
        with (
            Connected(tmp_path / "parties.toml", "bank", own, patience=60.0) as bank,
            ThreadPoolExecutor() as pool,
        ):
            model = VerticalNetClassifier(epochs=40, batch_size=32, random_state=1)
            going = pool.submit(model.fit, bank, target="bank.y", id="id")
            until(lambda: [r for r in stores["telco"].all() if stores["telco"].checkpoints(r.job).steps])
            telco.kill()
            telco.start()
            job = going.result(90).run_
        telco.stop()
    records = [store.find(job) for store in stores.values()]
    assert [record.state for record in records if record] == ["done", "done"]
    assert all(record.attempt > 1 and record.given.attempt == 1 for record in records if record)  # type: ignore[union-attr]
    assert [record.attempt for record in (*asked, *also)] == [1, 1]


def test_others_are_heard_while_a_large_history_is_read_and_written(
    trial: Trial, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is megabytes, where there were many models of many rows."""
    slow, gaps, used = 0.4, [0.0], list[str]()  # seconds
    on_the_loop: list[bool] = []

    def slowed(name: str) -> Callable[..., Any]:
        whole = getattr(history, name)

        def call(*of: Any) -> Any:
            time.sleep(slow)
            used.append(name)
            on_the_loop.append(threading.current_thread() is threading.main_thread())
            return whole(*of)

        return call

    for name in ("load_history", "save_history"):
        monkeypatch.setattr(history, name, slowed(name))

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - before)

    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.go_on()
        watching = asyncio.create_task(watch())
        for job in ("b" * 16, "c" * 16, "d" * 16):
            assert is_answer(await caller.propose(job=job, action="predict", run=JOB), "ready")
            await caller.go_on(job=job)
        watching.cancel()

    play(trial, tmp_path, talk, rule())
    assert used == ["load_history", *3 * ["save_history"]] and sum(gaps) > slow
    assert sorted(gaps)[-2] < slow / 2 and not any(on_the_loop)  # one gap may be the machine's


# Proposals that never run.


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"text": "x" * consent.LARGEST}, "the parameters have 16396 bytes, at most 16384 are taken"),
        ({"deep": [[[[[[[[1]]]]]]]]}, "the parameters are more than 8 lists and objects deep"),
    ],
)
def test_large_parameters_are_refused_and_not_kept(
    trial: Trial, tmp_path: Path, ran: list[str], parameters: Any, said: str
) -> None:
    async def talk(caller: Caller) -> None:
        word = await caller.propose(parameters=parameters)
        assert isinstance(word, Answer) and (word.state, word.reason) == ("refused", said)

    play(trial, tmp_path, talk, ASK)
    assert not (tmp_path / "jobs").exists()


def test_few_jobs_of_one_caller_wait_for_a_person_at_once(
    trial: Trial, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consent, "WAITING", 2)

    async def talk(caller: Caller) -> None:
        for number in range(2):
            assert is_answer(await caller.propose(job=f"{number:016x}"), "waiting")
        word = await caller.propose(job="f" * 16)
        assert isinstance(word, Ended) and "2 jobs of bank wait for a person here already" in word.reason
        cancel = Cancel(job="0" * 16, attempt=1)
        caller.say((cancel.kind, encode(cancel)))
        await caller.hear()
        assert is_answer(await caller.propose(job="e" * 16), "waiting")

    play(trial, tmp_path, talk, ASK)


def test_nobody_waits_for_a_person_for_ever(
    trial: Trial, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consent, "PATIENCE", timedelta(0))

    async def talk(caller: Caller) -> None:
        assert is_answer(await caller.propose(), "waiting")
        word = await caller.hear()
        assert isinstance(word, Ended) and word.reason == "nobody approved it within 0 days"

    play(trial, tmp_path, talk, ASK)


class Wordy(Parameters):
    epochs: int = 1
    text: str = ""


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("policy", [rule(), ASK], ids=["grant", "ask"])
def test_any_number_of_proposals_leaves_a_bounded_store_and_others_are_served_meanwhile(
    trial: Trial, tmp_path: Path, ran: list[str], policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 1 MB of each was kept, and rows of the ledger. Here the bank proposes and cancels without end."""
    wordy = replace(vars(consent)["program"]("trivial"), parameters=Wordy)
    object.__setattr__(wordy, "schemas", lambda: "")
    monkeypatch.setattr(consent, "program", lambda name: wordy)
    large = {"epochs": 1, "text": "x" * (consent.LARGEST - 100)}
    sizes, waits = [], []

    async def flooded() -> None:
        config, parties = trial
        wire = Wire()
        mine = config.model_copy(update={"store": tmp_path, "policy": (policy,)})
        async with serving_here(mine, parties, wire) as agent:
            for number in range(300):
                of: dict[str, Any] = {"job": f"{number:016x}", "attempt": 1}
                proposal = PROPOSAL.model_copy(update={**of, "parameters": large})
                for word in (proposal, Cancel(**of)):
                    wire.say("bank", word.kind, encode(word))
                if number % 30 == 29:
                    waits.append(await served(wire, f"{number:x}".rjust(16, "f")))
                    async with asyncio.timeout(60):
                        while agent._open:
                            await asyncio.sleep(0.01)
                    sizes.append(size(tmp_path))

    async def served(wire: Wire, job: str) -> float:
        """Seconds until the mill, which is honest, has its answer."""
        parties = {"job": job, "parties": ["mill", "telco"]}
        proposal, begin = PROPOSAL.model_copy(update=parties), time.monotonic()
        wire.say("mill", proposal.kind, encode(proposal))
        async with asyncio.timeout(20):
            word = await wire.said["mill"].get()
        assert isinstance(word, Answer) and word.state in ("ready", "waiting")
        cancel = Cancel(job=job, attempt=1)
        wire.say("mill", cancel.kind, encode(cancel))
        await wire.said["mill"].get()
        return time.monotonic() - begin

    asyncio.run(flooded())
    assert max(sizes) < 2 * (PROPOSALS + 1) * consent.LARGEST
    assert sorted(waits)[len(waits) // 2] < 1.0
    assert len(list((tmp_path / "jobs").iterdir())) <= 2 * PROPOSALS
    assert (tmp_path / "ledger.jsonl").read_text().count("\n") == 1  # its header


def test_a_flood_of_proposals_over_the_network_leaves_others_served(tmp_path: Path) -> None:
    lay_out(tmp_path, {"bank": None, "mill": None, "telco": pd.DataFrame({"id": range(9), "b": range(9)})})
    config = tmp_path / "telco.toml"
    config.write_text(config.read_text().replace('consent = "grant"', 'consent = "ask"'))
    found = program("vertical-net")
    text = "x" * (consent.LARGEST - 500)

    def about(caller: str, number: int) -> dict[str, Any]:
        return {"job": f"{caller.encode().hex()}{number:08x}", "attempt": 1}

    async def propose(caller: Connected, number: int, label_party: str) -> None:
        said = found.read({"label_party": label_party, "kind": "classification"}).model_dump(mode="json")
        proposal = PROPOSAL.model_copy(
            update={
                **about(caller.me, number),
                **{"program": found.name, "parameters": said, "schemas": found.schemas()},
                "parties": [caller.me, "telco"],
            }
        )
        await caller._control.say("telco", proposal)

    async def flood(bank: Connected) -> None:
        for number in range(100):
            await propose(bank, number, text)
            await bank._control.say("telco", Cancel(**about("bank", number)))

    async def ask(mill: Connected, number: int) -> float:
        begin = time.monotonic()
        await propose(mill, number, "mill")
        word = await mill._control.hear("telco")
        assert isinstance(word, Answer) and word.state == "waiting"
        await mill._control.say("telco", Cancel(**about("mill", number)))
        ended = await mill._control.hear("telco")
        assert isinstance(ended, Ended)
        return time.monotonic() - begin

    book = tmp_path / "parties.toml"
    with serving(tmp_path, "telco"), Connected(book, "bank") as bank, Connected(book, "mill") as mill:
        mill._there(ask(mill, 99))  # the line is there
        with ThreadPoolExecutor() as pool:
            flooding = pool.submit(bank._there, flood(bank))
            waits = [mill._there(ask(mill, number)) for number in range(20)]
            flooding.result(60)
        store = Store(tmp_path / "telco-store")
        until(lambda: not [record for record in store.all() if record.state == "proposed"])
        assert size(store.folder) < 2 * (PROPOSALS + 1) * consent.LARGEST
    assert sorted(waits)[len(waits) // 2] < 1.0

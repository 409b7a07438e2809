"""Whatever is said to a party about jobs, it answers or ignores: it never dies, nor runs an attempt twice."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from protocols.arrays import Arrays
from protocols.network.frames import CONTROL
from protocols.network.grpc import Peer
from protocols.parts import Part
from protocols.policy.rules import Rule
from protocols.programs import Parameters, Program
from protocols.programs import program as registered
from protocols.service import agent as agents
from protocols.service import attempt, consent
from protocols.service.agent import Agent
from protocols.service.config import Parties, PartyConfig, read_config
from protocols.service.jobs import (
    SCOPE,
    Answer,
    Cancel,
    Claim,
    Ended,
    Over,
    Prepare,
    Propose,
    Renew,
    Sealed,
    Start,
    Word,
)
from protocols.service.journal import Notes
from protocols.service.store import Store
from protocols.wire.codec import decode, encode
from protocols.wire.transport import Envelope
from tests.support.granted import rule
from tests.support.networked import POLICY
from tests.support.served import lay_out
from tests.support.waiting import HANG

PEERS = ("bank", "mill")


class Wire:
    """What an agent needs of a `Grpc`, with two peers whose words a test puts in."""

    address = None
    peers = PEERS

    def __init__(self) -> None:
        self.boxes: dict[str, asyncio.Queue[Envelope]] = {peer: asyncio.Queue() for peer in PEERS}
        self.said: dict[str, asyncio.Queue[Word]] = {peer: asyncio.Queue() for peer in PEERS}

    def for_job(self, job: str, on_late: Any = None) -> Post:
        return Post(self, job)

    def peer(self, name: str) -> Peer:
        return Peer(True, 0.0, "")

    def connected(self, peer: str) -> bool:
        return True

    async def ping(self, name: str, timeout: float) -> float:
        return 0.0

    def say(self, peer: str, kind: str, body: bytes) -> None:
        digest = hashlib.sha256(body).digest()
        self.boxes[peer].put_nowait(Envelope("", peer, "telco", SCOPE, 0, kind, 1, digest, body))


class Post:
    """One job's mail: roles say nothing, and hear nothing."""

    def __init__(self, wire: Wire, job: str) -> None:
        self._wire, self._job = wire, job

    async def deliver(self, envelope: Envelope) -> None:
        if self._job == CONTROL:
            kind: type[Answer | Ended] = Answer if envelope.kind == Answer.kind else Ended
            word = decode(kind, envelope.body, sender="telco", scope=SCOPE)
            self._wire.said[envelope.receiver].put_nowait(word)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        if self._job == CONTROL:
            return await self._wire.boxes[sender].get()
        await asyncio.Event().wait()
        raise AssertionError

    def close(self, receiver: str, scope: str) -> None: ...

    def finish(self) -> None: ...

    def silence(self) -> tuple[float, str]:
        return 0.0, ""

    async def __aenter__(self) -> Post:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class Given(Parameters):
    epochs: int = 1


def trivial(ran: list[str]) -> Program[Given]:
    """A program whose roles end at once."""

    active: list[str] = []

    async def role(me: Any) -> str:
        ran.append(me.desk.job)
        active.append(me.desk.job)
        assert len(active) == 1  # one job at a time
        await asyncio.sleep(0.002)
        active.remove(me.desk.job)
        me.checkpoint(1, lambda: Arrays())
        return "result"

    return Program(
        "trivial",
        "vfl",
        Given,
        {},
        {action: lambda p, seat: role for action in ("fit", "predict")},
        lambda p, seat, result: Part("Trivial", seat.party, {}, Arrays()),
        lambda p, part: None,
    )


PROPOSAL = Propose(
    job="a" * 16,
    attempt=1,
    program="trivial",
    action="fit",
    parameters={},
    parties=["bank", "telco"],
    table="",
    run="",
    schemas="",
    version="0",
)
JOBS = ["0" * 16, "f" * 16]
deep: Any = 1
for _ in range(200):
    deep = [deep]
proposals = st.builds(
    Propose,
    job=st.sampled_from(JOBS),
    attempt=st.integers(1, 2),
    program=st.sampled_from(["trivial", "trivial", "trivial", "none"]),
    action=st.sampled_from(["fit", "fit", "predict"]),
    parameters=st.sampled_from([{}, {}, {"epochs": 2}, {"epochs": "x"}, {"deep": deep}]),
    parties=st.sampled_from([["bank", "telco"], ["bank", "mill", "telco"], ["bank", "mill"], ["telco"] * 3]),
    table=st.sampled_from(["", "main", "../../telco", "\0"]),
    run=st.sampled_from(["", *JOBS]),
    schemas=st.sampled_from(["", "", "", "a" * 64]),
    version=st.just("0"),
)
about = {"job": st.sampled_from(JOBS), "attempt": st.integers(1, 2)}
words: st.SearchStrategy[Word] = st.one_of(
    proposals,
    proposals,
    st.builds(Claim, **about),
    st.builds(Claim, **about),
    st.builds(Prepare, **about),
    st.builds(Prepare, **about),
    st.builds(Start, **about, done=st.integers(0, 2)),
    st.builds(Start, **about, done=st.just(0)),
    st.builds(Renew, **about),
    st.builds(
        Sealed, **about, digests=st.sampled_from([{}, {"bank": "a" * 64}, {"telco": "", "x": "b" * 64}])
    ),
    st.builds(Sealed, **about, digests=st.just({})),
    st.builds(Cancel, **about),
    st.builds(Over, **about),
    st.builds(Answer, **about, state=st.just("agreed")),
    st.builds(Ended, **about),
)
raw = st.tuples(st.sampled_from([Propose.kind, Start.kind, "protocols.None/1", ""]), st.binary(max_size=80))
told = st.one_of(words.map(lambda word: (word.kind, encode(word))), raw)


def spoken(job: str, attempt: int, caller: str = "bank") -> list[Word]:
    """What an honest caller says about one attempt."""
    of: dict[str, Any] = {"job": job, "attempt": attempt}
    proposal = PROPOSAL.model_copy(update={**of, "parties": [caller, "telco"]})
    return [proposal, Claim(**of), Prepare(**of), Start(**of, done=0), Sealed(**of, digests={}), Over(**of)]


def whole(job: str, attempt: int, caller: str = "bank") -> list[tuple[str, bytes]]:
    """The same, encoded."""
    return [(word.kind, encode(word)) for word in spoken(job, attempt, caller)]


honest_ones = st.builds(whole, **about)
pauses = st.sampled_from([0.0, 0.0, 0.002, 0.02])  # seconds
said = st.lists(
    st.tuples(
        st.sampled_from(("bank", "bank", "mill")), st.one_of(honest_ones, told.map(lambda one: [one])), pauses
    ),
    max_size=15,
)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[PartyConfig, Parties]:
    folder = tmp_path_factory.mktemp("fuzz")
    table = pd.DataFrame({"id": [1, 2], "x": [0.0, 1.0]})
    lay_out(folder, {"bank": None, "mill": None, "telco": table}, POLICY)
    return read_config(folder / "telco.toml")


@asynccontextmanager
async def serving(config: PartyConfig, parties: Parties, wire: Wire) -> AsyncIterator[Agent]:
    notes = Notes(Store(config.store), "telco")
    agent = Agent(config, parties, wire, notes)  # type: ignore[arg-type]
    task = asyncio.create_task(agent.serve())
    try:
        yield agent
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        notes.close()


async def honest(wire: Wire, job: str, attempt: int = 1, caller: str = "bank") -> None:
    """A whole job, as a caller should ask for it."""

    async def hear(kind: type[Word], state: str = "") -> None:
        while True:
            async with asyncio.timeout(HANG):
                word = await wire.said[caller].get()
            mine = (word.job, word.attempt) == (job, attempt) and isinstance(word, kind)
            if mine and (not isinstance(word, Answer) or word.state == state):
                return

    propose, claim, prepare, start, sealed, over = whole(job, attempt, caller)
    for word, answer, state in (
        *((propose, Answer, "ready"), (claim, Answer, "claimed"), (prepare, Answer, "agreed")),
        *((start, Ended, ""), (sealed, Ended, "")),
    ):
        wire.say(caller, *word)
        await hear(answer, state)
    wire.say(caller, *over)


async def converse(trial: tuple[PartyConfig, Parties], store: Path, sequence: Any) -> Store:
    config, parties = trial
    wire = Wire()
    async with serving(config.model_copy(update={"store": store}), parties, wire) as agent:
        for peer, several, pause in sequence:
            for kind, body in several:
                wire.say(peer, kind, body)
                await asyncio.sleep(pause)
        for peer in PEERS:  # so that nobody holds the party
            for job in JOBS:
                for attempt in (1, 2):
                    cancel = Cancel(job=job, attempt=attempt)
                    wire.say(peer, cancel.kind, encode(cancel))
        await honest(wire, "a" * 16)
        while agent._open:
            await asyncio.sleep(0.01)
        return agent.store


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attempts whose role was run, of the program "trivial" that is registered meanwhile."""
    ran: list[str] = []
    found = trivial(ran)
    object.__setattr__(found, "schemas", lambda: "")
    monkeypatch.setattr(consent, "program", lambda name: found if name == "trivial" else registered(name))
    return ran


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=said)
@example(sequence=[("bank", whole(JOBS[0], attempt), 0.05) for attempt in (1, 1, 2, 1, 2)])
@example(sequence=[("bank", whole(job, 1)[:4], 0.02) for job in (*JOBS, JOBS[0])])
def test_any_conversation(
    trial: tuple[PartyConfig, Parties],
    tmp_path_factory: pytest.TempPathFactory,
    ran: list[str],
    sequence: Any,
) -> None:
    ran.clear()
    store = asyncio.run(converse(trial, tmp_path_factory.mktemp("store"), sequence))
    assert all(count == 1 for count in Counter(ran).values()), ran
    for record in store.all():
        assert record.state in ("done", "failed", "cancelled"), record
        assert not store.checkpoints(record.job).steps or record.job != "a" * 16


def test_a_peer_may_not_have_any_number_of_jobs_open(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "ENOUGH", 60.0)
    monkeypatch.setattr(agents, "TOO_MUCH", 60.0)

    async def propose() -> list[Answer]:
        config, parties = trial
        wire = Wire()
        async with serving(config.model_copy(update={"store": tmp_path}), parties, wire):
            for number in range(agents.MOST + 1):
                wire.say("bank", *whole(f"{number:016x}", 1)[0])
            answers = [await wire.said["bank"].get() for _ in range(agents.MOST + 1)]
            await honest(wire, "b" * 16, caller="mill")
        return [word for word in answers if isinstance(word, Answer)]

    answers = asyncio.run(propose())
    refused = [word for word in answers if word.state == "refused"]
    assert len(refused) == 1 and "100 jobs of bank are open here already" in refused[0].reason


def test_a_peer_that_proposes_without_end_is_refused_and_then_heard_again(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused costs little, so that it is heard as soon as it proposes less."""
    monkeypatch.setattr(agents, "ENOUGH", 0.1)
    numbers = itertools.count()

    async def propose(wire: Wire, jobs: int) -> list[str]:
        proposed = [f"{next(numbers):016x}" for _ in range(jobs)]
        for job in proposed:
            cancel = Cancel(job=job, attempt=1)
            wire.say("bank", *whole(job, 1)[0])
            wire.say("bank", cancel.kind, encode(cancel))
        states: list[str] = []
        open_still = set(proposed)
        while open_still:
            word = await wire.said["bank"].get()
            state = word.state if isinstance(word, Answer) else "ended"
            states.append(state)
            if state in ("ended", "refused"):
                open_still.discard(word.job)
        return states

    async def flood() -> None:
        config, parties = trial
        wire = Wire()
        async with serving(config.model_copy(update={"store": tmp_path}), parties, wire):
            states = await propose(wire, 1_000)
            assert "ready" in states and states.count("refused") > 500
            await honest(wire, "b" * 16, caller="mill")
            async with asyncio.timeout(10.0):
                while "ready" not in await propose(wire, 1):
                    await asyncio.sleep(0.01)

    asyncio.run(flood())


def test_what_was_prepared_does_not_wait_for_ever(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "LONGEST", 0.05)

    async def claim() -> Word:
        config, parties = trial
        wire = Wire()
        async with serving(config.model_copy(update={"store": tmp_path}), parties, wire):
            for word in whole(JOBS[0], 1)[:3]:
                wire.say("bank", *word)
            return await answer(wire, JOBS[0])

    word = asyncio.run(claim())
    assert isinstance(word, Ended) and word.error == "CancelledJobError"
    assert word.reason == "bank did not say protocols.Start/1 within 0.05 s" and not ran


@pytest.mark.parametrize("last", ["claimed", "agreed"])
def test_a_turn_that_is_kept_for_nothing_passes_on_and_comes_back(
    trial: tuple[PartyConfig, Parties],
    tmp_path: Path,
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
    last: str,
) -> None:
    """The bank claims, or lets us prepare too, and is idle; the mill comes; then the bank goes on."""
    monkeypatch.setattr(attempt, "CLAIMED", 0.01)
    monkeypatch.setattr(attempt, "PREPARED", 0.01)

    async def idle() -> list[str]:
        config, parties = trial
        wire = Wire()
        propose, claim, prepare, start, sealed, _ = whole(JOBS[0], 1)
        async with serving(config.model_copy(update={"store": tmp_path}), parties, wire):
            for word in (propose, claim, *([prepare] if last == "agreed" else [])):
                wire.say("bank", *word)
            await answer(wire, JOBS[0], last)
            await honest(wire, JOBS[1], caller="mill")
            words = [await answer(wire, JOBS[0], "queued", "claimed", "agreed") for _ in range(2)]
            states: list[str] = [word.state for word in words if isinstance(word, Answer)]
            if last == "claimed":
                wire.say("bank", *prepare)
                await answer(wire, JOBS[0], "agreed")
            for word in (start, sealed):
                wire.say("bank", *word)
                ended = await answer(wire, JOBS[0])
                assert isinstance(ended, Ended) and not ended.error
            return states

    assert asyncio.run(idle()) == ["queued", last]
    assert ran == [f"{JOBS[1]}.1", f"{JOBS[0]}.1"]


def test_a_start_after_the_turn_has_passed_on_is_a_line_that_was_cut(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for this party's role, which may come late: its caller makes another attempt."""
    monkeypatch.setattr(attempt, "PREPARED", 0.01)

    async def start_late() -> Word:
        config, parties = trial
        wire = Wire()
        propose, claim, prepare, start, *_ = whole(JOBS[0], 1)
        async with serving(config.model_copy(update={"store": tmp_path}), parties, wire):
            for word in (propose, claim, prepare):
                wire.say("bank", *word)
            await answer(wire, JOBS[0], "agreed")
            for word in whole(JOBS[1], 1, "mill")[:3]:
                wire.say("mill", *word)
            await answer(wire, JOBS[0], "queued")
            monkeypatch.setattr(attempt, "PREPARED", 60.0)
            wire.say("bank", *start)
            return await answer(wire, JOBS[0])

    word = asyncio.run(start_late())
    assert isinstance(word, Ended) and word.error == "LineError" and not ran


def asking(**changes: Any) -> tuple[Rule, ...]:
    """A policy under which a person approves each job."""
    return (rule(consent="ask", consent_predict="ask", **changes),)


async def answer(wire: Wire, job: str, *states: str) -> Word:
    """The next word to the bank about `job` that ends it, or answers one of `states`."""
    while True:
        async with asyncio.timeout(HANG):
            word = await wire.said["bank"].get()
        if word.job == job and (isinstance(word, Ended) or word.state in ("refused", *states)):  # type: ignore[union-attr]
            return word


def test_a_person_cannot_approve_what_the_policy_has_come_to_refuse(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, ran: list[str]
) -> None:
    """The policy is judged when the job is proposed, and again when it is approved."""

    async def approve_too_late() -> tuple[Word, Store, str]:
        config, parties = trial
        wire = Wire()
        mine = config.model_copy(update={"store": tmp_path, "policy": asking()})
        async with serving(mine, parties, wire) as agent:
            wire.say("bank", *whole(JOBS[0], 1)[0])
            await answer(wire, JOBS[0], "waiting")
            ended = asking(expires=date(2000, 1, 1))
            agent.attempts.consent.config = mine.model_copy(update={"policy": ended})
            agent.store.say("approve", JOBS[0])
            return await answer(wire, JOBS[0], "ready"), agent.store, agent.store.ledger.read_text()

    word, store, ledger = asyncio.run(approve_too_late())
    assert isinstance(word, Ended) and word.error == "PolicyError"
    assert word.reason.startswith("expires: what was granted ended on 2000-01-01")
    record = store.find(JOBS[0])
    assert record is not None and (record.state, record.granted) == ("failed", "")
    assert not ran and '"by":"person"' not in ledger.replace(" ", "")


@pytest.mark.parametrize("policy", [(rule(max_predictions=1),), asking(max_predictions=1)])
def test_jobs_that_wait_together_have_one_budget_together(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, ran: list[str], policy: tuple[Rule, ...]
) -> None:
    """Both predictions are proposed, and approved, before either runs."""
    trained = "a" * 16

    async def predict_twice() -> list[Word]:
        config, parties = trial
        wire = Wire()
        mine = config.model_copy(update={"store": tmp_path})
        async with serving(mine, parties, wire) as agent:
            await honest(wire, trained)
            agent.attempts.consent.config = mine.model_copy(update={"policy": policy})
            for job in JOBS:
                proposal = PROPOSAL.model_copy(update={"job": job, "action": "predict", "run": trained})
                wire.say("bank", proposal.kind, encode(proposal))
                word = await answer(wire, job, "waiting", "ready")
                if isinstance(word, Answer) and word.state == "waiting":
                    agent.store.say("approve", job)
                    await answer(wire, job, "ready")
            ended = []
            for job in JOBS:
                said = iter(whole(job, 1)[1:5])  # Claim, Prepare, Start, Sealed
                wire.say("bank", *next(said))
                wire.say("bank", *next(said))
                word = await answer(wire, job, "agreed")
                if isinstance(word, Answer):
                    wire.say("bank", *next(said))
                    word = await answer(wire, job)
                    wire.say("bank", *next(said))
                ended.append(word)
            return ended

    first, second = asyncio.run(predict_twice())
    assert isinstance(first, Ended) and not first.error
    assert isinstance(second, Ended) and second.error == "PolicyError"
    assert second.reason.startswith("max_predictions: all 1 predict jobs that are granted were used")
    assert ran == [f"{trained}.1", f"{JOBS[0]}.1"]

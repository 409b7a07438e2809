"""What a caller says gets around neither a party's policy nor the person who approves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ConfigError
from protocols.policy.rules import Rule
from protocols.programs import program
from protocols.service import attempt
from protocols.service.agent import Agent
from protocols.service.config import Parties, PartyConfig
from protocols.service.jobs import Answer, Ended, Renew, Word
from protocols.wire.codec import encode
from tests.protocols.service.test_agent import PROPOSAL, Wire, serving, whole
from tests.protocols.service.test_agent import ran as ran
from tests.protocols.service.test_agent import trial as trial
from tests.support.granted import rule
from tests.support.waiting import HANG

JOB = "a" * 16
Trial = tuple[PartyConfig, Parties]
Talk = Callable[["Caller"], Awaitable[None]]


class Caller:
    """The bank, which may say anything."""

    def __init__(self, wire: Wire, agent: Agent) -> None:
        self._wire, self.agent = wire, agent

    async def propose(self, **changes: Any) -> Word:
        """The answer to the usual proposal with these changes."""
        proposal = PROPOSAL.model_copy(update=changes)
        self._wire.say("bank", proposal.kind, encode(proposal))
        return await self.hear()

    async def go_on(self, attempt: int = 1, job: str = JOB) -> None:
        """Through with a job that is ready, to its end."""
        _, *words, over = whole(job, attempt)
        for word in words:
            self._wire.say("bank", *word)
            said = await self.hear()
            assert not isinstance(said, Ended) or not said.error, said
        self._wire.say("bank", *over)

    def say(self, word: tuple[str, bytes]) -> None:
        """Anything: a kind and a body."""
        self._wire.say("bank", *word)

    async def hear(self) -> Word:
        async with asyncio.timeout(HANG):
            return await self._wire.said["bank"].get()

    async def approved(self) -> None:
        self.agent.store.say("approve", JOB)
        assert is_answer(await self.hear(), "ready")


def is_answer(word: Word, state: str) -> bool:
    return isinstance(word, Answer) and word.state == state


def play(trial: Trial, store: Path, talk: Talk, *policy: Rule, **changes: Any) -> None:
    """A party with these rules, and whoever talks to it."""

    async def all_of_it() -> None:
        config, parties = trial
        wire = Wire()
        mine = config.model_copy(update={"store": store, "policy": policy, **changes})
        async with serving(mine, parties, wire) as agent:
            await talk(Caller(wire, agent))

    asyncio.run(all_of_it())


ASK = rule(consent="ask", consent_predict="ask")
NOTHING = "nothing is granted to this peer for this table and method; ask the owner for a rule"


@pytest.mark.parametrize("table", ["/../../../../outside", "../outside", "mian"])
@pytest.mark.parametrize("tables", [True, False])
def test_a_table_that_is_not_here_is_nobodys_to_ask_for(
    trial: Trial, tmp_path: Path, ran: list[str], table: str, tables: bool
) -> None:
    """Its name is part of a path where histories are kept; and each name would have a budget of its own."""

    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.go_on()
        for action in ("fit", "predict"):
            word = await caller.propose(job="b" * 16, action=action, run=JOB, table=table)
            assert isinstance(word, Answer) and word.state == "refused"
            assert word.reason == f"policy: {NOTHING}"

    play(trial, tmp_path / "a" / "store", talk, rule(), **({} if tables else {"tables": {}}))
    written = {place.parent.name for place in tmp_path.rglob("*.npz")}
    assert written <= {"_history"} and ran == [f"{JOB}.1"]
    assert not list(tmp_path.rglob("outside*"))


def test_a_job_that_names_none_of_several_tables_is_refused(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def talk(caller: Caller) -> None:
        word = await caller.propose(table="")
        assert isinstance(word, Answer) and word.state == "refused" and "nothing is granted" in word.reason

    (source,) = trial[0].tables.values()
    play(trial, tmp_path, talk, rule(), tables={"one": source, "two": source})
    assert not ran


def test_a_grant_of_a_policy_that_asks_by_now_does_not_last(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def first(caller: Caller) -> None:
        assert is_answer(await caller.propose(), "ready")

    async def again(caller: Caller) -> None:
        assert is_answer(await caller.propose(attempt=2), "waiting")
        await caller.approved()

    async def granted_again(caller: Caller) -> None:
        assert is_answer(await caller.propose(attempt=3), "ready")

    play(trial, tmp_path, first, rule())
    play(trial, tmp_path, again, ASK)
    play(trial, tmp_path, granted_again, rule())


def test_a_persons_consent_lasts_while_a_job_is_gone_on_with(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def cut(caller: Caller) -> None:
        assert is_answer(await caller.propose(), "waiting")
        await caller.approved()

    async def again(caller: Caller) -> None:
        assert is_answer(await caller.propose(attempt=2), "ready")
        await caller.go_on(attempt=2)

    play(trial, tmp_path, cut, ASK)
    play(trial, tmp_path, again, ASK)
    assert ran == [f"{JOB}.2"]


def test_a_persons_no_is_asked_about_again(trial: Trial, tmp_path: Path, ran: list[str]) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        caller.agent.store.say("cancel", JOB)
        said = await caller.hear()
        assert isinstance(said, Ended) and said.reason == "cancelled by a person at this party"
        assert is_answer(await caller.propose(attempt=2), "waiting")

    play(trial, tmp_path, talk, ASK)


def test_a_job_that_is_over_is_asked_about_again(trial: Trial, tmp_path: Path, ran: list[str]) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose()
        await caller.approved()
        with pytest.raises(ConfigError, match="was granted already, by person"):
            caller.agent.store.say("approve", JOB)
        await caller.go_on()
        assert is_answer(await caller.propose(attempt=2), "waiting")

    play(trial, tmp_path, talk, ASK)
    assert ran == [f"{JOB}.1"]


BANK, MILL = ({"peers": (peer,)} for peer in ("bank", "mill"))
AMONG = {"parties": ["bank", "mill", "telco"]}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ((), f"policy: {NOTHING} (asked for mill)"),
        (
            (rule(**MILL, actions=("align",)),),
            "actions: fit is not granted; granted are align (asked for mill)",
        ),
        ((rule(**MILL, columns=("y",)),), "columns: no column is granted to all who would learn of it"),
    ],
)
def test_a_caller_may_not_ask_for_another_who_learns_something(
    trial: Trial, tmp_path: Path, ran: list[str], other: tuple[Rule, ...], said: str
) -> None:
    async def talk(caller: Caller) -> None:
        word = await caller.propose(**AMONG)
        assert isinstance(word, Answer) and (word.state, word.reason) == ("refused", said)
        assert is_answer(await caller.propose(job="b" * 16), "ready")

    play(trial, tmp_path, talk, rule(**BANK, columns=("x",)), *other)


def test_a_person_is_asked_if_any_who_learns_something_has_to_wait_for_one(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def talk(caller: Caller) -> None:
        assert is_answer(await caller.propose(**AMONG), "waiting")

    play(trial, tmp_path, talk, rule(**BANK), rule(**MILL, consent="ask"))


def test_a_prediction_counts_for_all_who_learn_something(
    trial: Trial, tmp_path: Path, ran: list[str]
) -> None:
    async def talk(caller: Caller) -> None:
        await caller.propose(**AMONG)
        await caller.go_on()
        await caller.propose(**AMONG, job="b" * 16, action="predict", run=JOB)
        await caller.go_on(job="b" * 16)
        word = await caller.propose(**AMONG, job="c" * 16, action="predict", run=JOB)
        assert isinstance(word, Answer) and word.reason.endswith(
            "were used; ask the owner for more (asked for mill)"
        )

    play(trial, tmp_path, talk, rule(**BANK), rule(**MILL, max_predictions=1))


def test_a_caller_that_does_not_end_a_job_does_not_hold_the_party(
    trial: Trial, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role has ended, and Sealed does not come, but Renew always does."""
    monkeypatch.setattr(attempt, "AFTER", 0.0)

    async def talk(caller: Caller) -> None:
        await caller.propose()
        _, claim, prepare, start, *_ = whole(JOB, 1)
        for word in (claim, prepare, start):
            caller.say(word)
            await caller.hear()
        hearing = asyncio.create_task(caller.hear())
        while not hearing.done():
            renew = Renew(job=JOB, attempt=1)
            caller.say((renew.kind, encode(renew)))
            await asyncio.wait({hearing}, timeout=0.05)
        said = hearing.result()
        assert isinstance(said, Ended) and said.error == "CancelledJobError"
        assert said.reason.startswith("the job has held telco for 0.0001 h, the longest that it lets one")
        await caller.propose(job="b" * 16)
        await caller.go_on(job="b" * 16)

    play(trial, tmp_path, talk, rule(), longest_job_hours=0.0001)
    assert ran == [f"{JOB}.1", f"{'b' * 16}.1"]


def test_who_learns_nothing_needs_no_rule() -> None:
    aligned = program("align")
    told = aligned.read({"label_party": "bank", "reveal": "label-party"})
    assert aligned.learners(told, ("bank",)) == ("bank",)
    assert aligned.learners(told, ("mill",)) == ()  # seen from the bank
    for others in (("bank", "mill"), ("mill", "telco")):  # in a ring all learn how many
        assert aligned.learners(told, others) == others
    for reveal in ("all", "size"):
        told = aligned.read({"label_party": "bank", "reveal": reveal})
        assert aligned.learners(told, ("bank", "mill")) == ("bank", "mill")
    vertical = program("vertical-net")
    told = vertical.read({"label_party": "bank", "kind": "classification"})
    assert vertical.learners(told, ("bank", "mill")) == ("bank", "mill")
    averaged = program("fedavg")
    told = averaged.read({"kind": "classification", "target": "y"})
    assert averaged.learners(told, ("bank", "server")) == ("bank", "server")

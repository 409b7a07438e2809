"""What one party says to a proposal: by its policy, and where that says so by a person.

Takes part: one party, about its own tables; `protocols.policy` says what its caller learns. A job is judged
when it is proposed, when a person approves it, and when its turn comes.

What a person consents to is one beginning of a job, and going on with it. The caller's table is no part of
the request, so an attempt that begins anew may be about other people, and is asked about again. One that goes
on after a checkpoint is of the rows that this party kept there itself, whatever the caller says. It lets the
caller make a step or two once more, with other labels if it likes: so it is covered a few times only
(`consent_attempts`), for `consent_hours`, and where it does not go back further than a crash explains.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue

from protocols.errors import CancelledJobError, ConfigError, LineError, ProtocolError
from protocols.files import release
from protocols.logs import log
from protocols.policy.history import Histories, History
from protocols.policy.judge import Decision, Guard, Guards, Request, judge, strictest
from protocols.policy.rules import Rule
from protocols.programs import Parameters, Program, program
from protocols.record.rows import By
from protocols.service.config import Parties, PartyConfig
from protocols.service.conversation import GIVEN_UP, POLL, Inbox
from protocols.service.jobs import Answer, Given, Propose, Start, Word
from protocols.service.journal import Notes
from protocols.service.role import Abort
from protocols.service.store import Record
from protocols.wire.message import Message

Say = Callable[[Word], Awaitable[None]]
LARGEST = 1 << 14  # bytes of a proposal's parameters, as JSON
DEEPEST = 8  # lists and objects in each other there
PATIENCE = timedelta(days=7)  # for which a job waits for a person
WAITING = 20  # jobs of one caller that wait for a person at once


@dataclass(frozen=True)
class Case:
    """A proposal that passed the policy, and what it is to run on."""

    proposal: Propose
    caller: str
    program: Program[Any]
    parameters: Parameters
    decision: Decision
    request: Request  # of the caller
    table: str


class Consent:
    """One party's consent to the jobs that others propose."""

    def __init__(self, config: PartyConfig, parties: Parties, notes: Notes) -> None:
        self.config, self.parties, self.notes, self.store = config, parties, notes, notes.store
        self._histories = Histories(notes.store.folder)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by caller
        self._waiting: Counter[str] = Counter()  # jobs of a caller, for a person

    async def admit(self, caller: str, proposal: Propose) -> tuple[Record, Case]:
        """Record the job if this party may take part in it at all. One caller's jobs are looked at one after
        another, so that many of them do not delay other callers' jobs."""
        async with self._locks[caller]:
            return await self._admitted(caller, proposal)

    async def _admitted(self, caller: str, proposal: Propose) -> tuple[Record, Case]:
        me = self.config.name
        self.notes.begin()
        if caller not in proposal.parties or me not in proposal.parties:
            raise ProtocolError(f"the job of {caller} should name {caller} and {me} among its parties")
        strangers = [party for party in proposal.parties if party not in self.parties.parties]
        if strangers or len(set(proposal.parties)) != len(proposal.parties):
            raise ProtocolError(
                f"{len(strangers)} parties of the job are not in this party's book, or named twice"
            )
        check_size(proposal.parameters)
        try:
            found = program(proposal.program)
            parameters = found.read(proposal.parameters)
        except ConfigError as error:  # in words of the caller's own
            raise ProtocolError(str(error)) from None
        if proposal.schemas != found.schemas():
            raise ProtocolError(
                f"the messages of {found.name} have other schemas at {caller}, which runs vfl-toolkit "
                f"{proposal.version}; {me} runs {release()}: both need the same version of {found.package}"
            )
        # The disk is read in a thread: meanwhile others are heard.
        await asyncio.to_thread(self._tidy, caller, proposal)
        of = caller, proposal, found, parameters
        table, request, decision = await asyncio.to_thread(self._judged, *of)
        record = self._recorded(caller, proposal, decision.check())
        return record, Case(proposal, caller, found, parameters, decision, request, table)

    async def judged_now(self, case: Case) -> Case:
        """Judge the case by the policy as of now: a date or a budget may have run out since the proposal."""
        of = case.caller, case.proposal, case.program, case.parameters
        table, request, decision = await asyncio.to_thread(self._judged, *of)
        return replace(case, table=table, request=request, decision=decision)

    async def ask(self, record: Record, case: Case, inbox: Inbox, say: Say) -> Record:
        """Wait for a person where the policy says so."""
        if case.decision.verdict != "ask":
            record = record.model_copy(update={"granted": "policy", "given": None})
            return self.notes.state(record, "proposed")
        if record.granted:  # by a person, and this attempt goes on under it
            return record
        with self._one_more_waiting(case.caller):
            reason = case.decision.reason
            await say(Answer(job=record.job, attempt=record.attempt, state="waiting", reason=reason))
            log.info("job waits for approval", extra={"peer": case.caller, "job": record.job})
            await inbox.meanwhile(self._approved(record))
        await self.judged_now(case)  # a person cannot grant what the policy has come to refuse
        given = Given(attempt=record.attempt, when=datetime.now(UTC))
        record = record.model_copy(update={"granted": "person", "given": given})
        self.notes.ledger.grant(record.job, case.program.name, "person", reveals(case.program, record.action))
        return self.notes.state(record, "proposed")

    def begins(self, record: Record, case: Case, start: Start) -> Record:
        """Record the start of an attempt that the grant covers. The consent is in the ledger before
        anything leaves.

        LineError for one that begins anew, goes back, or begins too late, under a consent that is not for it:
        its caller makes another attempt, and a person is asked again.
        """
        by: By = "policy"
        given, under = record.given, ""
        if given is not None:
            covered = not given.attempts or self._goes_on(record, start)
            if not (covered and self._in_time(given, case.decision.check())):
                self.store.save(record.model_copy(update={"granted": "", "given": None}))
                raise LineError(
                    "a person's consent is for one beginning of a job, and for going on with it, while it "
                    f"lasts; attempt {record.attempt} needs another, and a person is asked at the next"
                )
            by = "person" if given.attempt == record.attempt else "resumed"
            under = f"the consent of {given.when.isoformat(timespec='seconds')} to attempt {given.attempt}"
            used = given.model_copy(update={"attempts": given.attempts + 1})
            record = record.model_copy(update={"given": used})
        if by != "person":  # that is there since it was given
            told, under = reveals(case.program, record.action), under if by == "resumed" else ""
            self.notes.ledger.grant(record.job, case.program.name, by, told, under=under)
        return record.model_copy(update={"ran": record.attempt})

    async def guard(self, case: Case) -> Guards:
        """Return the guard that the role asks while it runs: each peer who is to learn something has its own
        rule and history. A predict job counts from here on."""
        return await asyncio.to_thread(self._guards, case)

    def _guards(self, case: Case) -> Guards:
        peers = dict.fromkeys((case.caller, *self._learners(case.proposal, case.program, case.parameters)))
        guards = Guards(self._guard_of(peer, case) for peer in peers)
        guards.start()
        return guards

    def _guard_of(self, peer: str, case: Case) -> Guard:
        table, history = case.table, self._history(peer, case.table)
        request = replace(case.request, peer=peer)
        rule = judge(self.config.policy, request, history).check()
        return Guard(rule, request, history, lambda new: self._histories.save(peer, table or "none", new))

    def _judged(
        self, caller: str, proposal: Propose, found: Program[Any], parameters: Parameters
    ) -> tuple[str, Request, Decision]:
        table = proposal.table
        if not table and len(self.config.tables) == 1:
            table = next(iter(self.config.tables))
        named = (found.target(parameters),) if found.target is not None and self.config.tables else None
        request = Request(
            peer=caller,
            job=proposal.job,
            action=proposal.action,
            method=found.name,
            parameters=parameters.model_dump(mode="json"),
            table=table,
            columns=named,
            plain=found.plain,
            when=datetime.now(UTC),
            careful=found.careful,
        )
        # A table that is not here is refused as one that no rule is about: neither tells which there are.
        known = table in self.config.tables or not (table or self.config.tables)
        rules = self.config.policy if known else ()
        history = self._history(caller, table if known else "")  # its name is a file's
        decision = judge(rules, request, history)
        others = [peer for peer in self._learners(proposal, found, parameters) if peer != caller]
        if others and decision.verdict != "refused":
            asked = {peer: replace(request, peer=peer) for peer in others}
            judged = {peer: judge(rules, one, self._history(peer, table)) for peer, one in asked.items()}
            decision = strictest({caller: decision, **judged})
        decision.check()
        return table, request, decision

    def _learners(self, proposal: Propose, found: Program[Any], parameters: Parameters) -> tuple[str, ...]:
        """Return the parties that would learn something from our rows, whether or not they call."""
        others = tuple(party for party in proposal.parties if party != self.config.name)
        return found.learners(parameters, others)

    def _tidy(self, caller: str, proposal: Propose) -> None:
        """Delete checkpoints that nobody will go on after."""
        self.notes.tidy()
        if self.store.find(proposal.job) is not None:
            return
        for done in self.store.resumable():  # its caller was killed before it could say Over
            if (done.caller, done.state) == (caller, "done"):
                self.store.checkpoints(done.job).drop()

    def _recorded(self, caller: str, proposal: Propose, rule: Rule) -> Record:
        new, old = Record.of(proposal, caller), self.store.find(proposal.job)
        if old is None:
            return self.notes.state(new, "proposed")
        if old.request != new.request:
            raise ProtocolError(
                f"job {new.job} is known here as another one; propose this under a new number"
            )
        # A training that is done here may have been cut off elsewhere. Predictions are counted by jobs.
        if new.action == "predict" or new.attempt <= old.attempt:
            raise ProtocolError(
                f"attempt {new.attempt} of job {new.job} came before ({old.state}); a job is not run twice"
            )
        self.store.said("approve", new.job)  # of an earlier attempt, which was lost before it was heard
        given = old.given
        again: dict[str, Any] = {"attempt": new.attempt, "reason": ""}
        if given is None or not self._lasts(old, given, rule):
            again |= {"granted": "", "given": None}  # what a policy granted, it is asked about again
        return self.notes.state(old.model_copy(update=again), "proposed")

    def _lasts(self, record: Record, given: Given, rule: Rule) -> bool:
        """Return whether a person's consent may cover one more attempt: not if the job is over, nor against a
        person's no. Whether its first step is covered is checked later."""
        kept = self.store.checkpoints(record.job).some
        open_still = kept if given.attempts else record.state != "done"
        fewer = given.attempts < rule.consent_attempts
        return open_still and fewer and record.reason != GIVEN_UP and self._in_time(given, rule)

    def _goes_on(self, record: Record, start: Start) -> bool:
        """Return whether `start` resumes at most one step behind ours, as far as a crash can explain."""
        _, last = self.store.checkpoints(record.job).reached
        return not start.anew and start.done >= last - 1

    def _in_time(self, given: Given, rule: Rule) -> bool:
        age = datetime.now(UTC) - given.when
        return timedelta(0) <= age <= timedelta(hours=rule.consent_hours)

    @contextmanager
    def _one_more_waiting(self, caller: str) -> Iterator[None]:
        if self._waiting[caller] >= WAITING:
            raise ProtocolError(f"{WAITING} jobs of {caller} wait for a person here already; end one of them")
        self._waiting[caller] += 1
        try:
            yield
        finally:
            self._waiting[caller] -= 1

    async def _approved(self, record: Record) -> None:
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                while not self.store.said("approve", record.job, record.request):
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise CancelledJobError(f"nobody approved it within {PATIENCE.days} days") from None

    def _history(self, peer: str, table: str) -> History:
        return self._histories.load(peer, table or "none")


def check_size(parameters: dict[str, JsonValue]) -> None:
    """Raise ProtocolError for parameters larger than any method's, since they are kept while a job waits."""
    deep: list[tuple[JsonValue, int]] = [(parameters, 1)]
    while deep:
        value, depth = deep.pop()
        if not isinstance(value, dict | list):
            continue
        if depth > DEEPEST:
            raise ProtocolError(f"the parameters are more than {DEEPEST} lists and objects deep")
        deep += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
    size = len(json.dumps(parameters))
    if size > LARGEST:
        raise ProtocolError(f"the parameters have {size} bytes, at most {LARGEST} are taken")


def reveals(found: Program[Any], action: str) -> list[str]:
    """Describe what a job of this program may let leave: each message that its roles send, in words."""
    kinds: tuple[type[Message], ...] = (*found.speaks.get(action, ()), Abort)
    return [kind.reveals for kind in kinds]

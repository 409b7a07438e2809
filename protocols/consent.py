"""What one party says to a proposal: by its policy, and where that says so by a person.

Takes part: one party, about its own tables; `protocols.policy` says what its caller learns. A job is judged
when it is proposed, when a person approves it, and when its turn comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from protocols.config import Parties, PartyConfig
from protocols.errors import ConfigError, ProtocolError
from protocols.history import History, load_history, save_history
from protocols.inbox import GIVEN_UP, POLL, Inbox
from protocols.jobs import Answer, Propose, Record, Word, release
from protocols.logs import log
from protocols.notes import Notes
from protocols.policy import Decision, Guard, Guards, Request, judge, strictest
from protocols.programs import Parameters, Program, program
from protocols.serving import Abort
from protocols.wire.message import Message
from protocols.wire.record_rows import By

Say = Callable[[Word], Awaitable[None]]


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
    """One party's, to the jobs that others propose."""

    def __init__(self, config: PartyConfig, parties: Parties, notes: Notes) -> None:
        self.config, self.parties, self.notes, self.store = config, parties, notes, notes.store

    def admit(self, caller: str, proposal: Propose) -> tuple[Record, Case]:
        """The job as this party records it, if it is one that it may take part in at all."""
        me = self.config.name
        self.notes.begin()
        if caller not in proposal.parties or me not in proposal.parties:
            raise ProtocolError(f"the job of {caller} should name {caller} and {me} among its parties")
        strangers = [party for party in proposal.parties if party not in self.parties.parties]
        if strangers or len(set(proposal.parties)) != len(proposal.parties):
            raise ProtocolError(
                f"{len(strangers)} parties of the job are not in this party's book, or named twice"
            )
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
        table, request, decision = self._judged(caller, proposal, found, parameters)
        record = self._recorded(caller, proposal)
        return record, Case(proposal, caller, found, parameters, decision, request, table)

    def judged_now(self, case: Case) -> Case:
        """The case by what the policy says now: a day or a budget may have ended since it was proposed."""
        table, request, decision = self._judged(case.caller, case.proposal, case.program, case.parameters)
        return replace(case, table=table, request=request, decision=decision)

    async def ask(self, record: Record, case: Case, inbox: Inbox, say: Say) -> Record:
        """Wait for a person where the policy says so; that is in the ledger before anything leaves."""
        by: By = "person" if case.decision.verdict == "ask" else "policy"
        if by == "person" and not record.granted:
            await say(
                Answer(job=record.job, attempt=record.attempt, state="waiting", reason=case.decision.reason)
            )
            log.info("job waits for approval", extra={"peer": case.caller, "job": record.job})
            await inbox.meanwhile(self._approved(record.job))
            self.judged_now(case)  # a person cannot grant what the policy has come to refuse
        record = record.model_copy(update={"granted": by})
        told = reveals(case.program, record.action)
        self.notes.ledger.grant(record.job, case.program.name, by, told)
        return self.notes.state(record, "proposed")

    def guard(self, case: Case) -> Guards:
        """What its role has to ask while it runs: each peer who is to learn something has its own rule and
        history. A predict job counts from here on."""
        peers = dict.fromkeys((case.caller, *self._learners(case.proposal, case.program, case.parameters)))
        guards = Guards(self._guard_of(peer, case) for peer in peers)
        guards.start()
        return guards

    def _guard_of(self, peer: str, case: Case) -> Guard:
        table, history = case.table, self._history(peer, case.table)
        request = replace(case.request, peer=peer)
        rule = judge(self.config.policy, request, history).check()
        return Guard(rule, request, history, partial(save_history, self.store.folder, peer, table or "none"))

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
        """Who would learn something from our rows, the caller or not."""
        others = tuple(party for party in proposal.parties if party != self.config.name)
        return found.learners(parameters, others)

    def _recorded(self, caller: str, proposal: Propose) -> Record:
        new, old = Record.of(proposal, caller), self.store.find(proposal.job)
        if old is None:
            for done in self.store.resumable():  # its caller was killed before it could say Over
                if (done.caller, done.state) == (caller, "done"):
                    self.store.checkpoints(done.job).drop()
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
        # A consent holds for going on after a cut, not for a job that is over, nor against a person's no.
        over = old.state == "done" and not self.store.checkpoints(old.job).steps
        lasts = old.granted == "person" and not over and old.reason != GIVEN_UP
        granted = old.granted if lasts else ""  # what a policy granted, it is asked about again
        kept = old.model_copy(update={"attempt": new.attempt, "reason": "", "granted": granted})
        return self.notes.state(kept, "proposed")

    async def _approved(self, job: str) -> None:
        while not self.store.said("approve", job):
            await asyncio.sleep(POLL)

    def _history(self, peer: str, table: str) -> History:
        return load_history(self.store.folder, peer, table or "none")


def reveals(found: Program[Any], action: str) -> list[str]:
    """What a job of this program may let leave: each message that its roles send, in words."""
    kinds: tuple[type[Message], ...] = (*found.speaks.get(action, ()), Abort)
    return [kind.reveals for kind in kinds]

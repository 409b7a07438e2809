"""One party's part in one attempt at a job, from the proposal to its end.

Takes part: one party, with the caller and all others of the job. It reads its table, runs its own role, and
keeps its own part and its ledger. A caller learns what `protocols.service.jobs` and the job's own messages
say. One job runs at a time, and callers take turns (`protocols.service.turns`); one that has not started
keeps its own only for seconds while others wait.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from protocols.data.sources import check_unchanged, fingerprint, read_table
from protocols.errors import CancelledJobError, LineError, ProtocolError, VflError, marked
from protocols.logs import log
from protocols.network.grpc import Grpc
from protocols.network.post import Post
from protocols.parts import Part, digest, load_part, save_part
from protocols.party import Coordinator, Role, mark
from protocols.policy.rules import ANY
from protocols.programs import Seat
from protocols.psi.id_columns import id_column
from protocols.service.budget import metered
from protocols.service.consent import Case, Consent, Say
from protocols.service.conversation import Inbox
from protocols.service.jobs import Answer, Claim, Ended, Prepare, Propose, Sealed, Start, State, Word
from protocols.service.role import said_of, serve_role
from protocols.service.silence import unless_silent
from protocols.service.store import Record
from protocols.service.turns import Place, Turns

# Seconds that a turn is kept for a caller while another one waits: that has claimed us; the same again and
# again, on slow lines to many parties; that has let us prepare, while others read larger tables.
CLAIMED, LONGER, PREPARED = 0.5, 4.0, 15.0  # the last is halved for a caller that lets one pass on
LONGEST = 600.0  # seconds for which what was prepared waits for a Start, whether others wait or not
AFTER = 2.0  # seconds for a role whose time is up to tell its peers so

Bounded = Callable[[Role, Post], Role]


class Attempts:
    """All attempts that a party takes part in, over a `Grpc` that carries many jobs."""

    def __init__(self, consent: Consent, grpc: Grpc) -> None:
        self.consent, self.grpc = consent, grpc
        self.config, self.notes, self.store = consent.config, consent.notes, consent.store
        self._turns = Turns()
        self._kept: dict[str, float] = {}  # caller -> seconds that what it let us prepare is kept for it
        self._preparing: asyncio.Task[tuple[Seat, Role, str]] | None = None  # at work

    async def take_part(
        self,
        caller: str,
        proposal: Propose,
        inbox: Inbox,
        older: Sequence[asyncio.Task[None]],
        say: Say,
        take: Callable[[float], None],
    ) -> None:
        """Take part in one attempt, from proposal to end. take: told what it costs until the claim."""
        about: dict[str, Any] = {"job": proposal.job, "attempt": proposal.attempt}
        record: Record | None = None
        # The ledger tells attempts apart by the order of its rows: the one before has to end first.
        await asyncio.gather(*older, return_exceptions=True)
        try:
            with marked(self.config.name, proposal.action):
                new, case = await metered(self.consent.admit(caller, proposal), take)
                record = new
                record = granted = await metered(self._ready(new, case, inbox, say), take)
                with self._turns.place(caller) as place:
                    await self._take_turns(granted, case, place, inbox, say)
        except Exception as caught:
            error = _ours(caught, self.config.name, proposal.action)
            extra = {"peer": caller, "job": proposal.job}
            if record is None:
                log.warning("job refused", extra=extra, exc_info=error)
                return await say(refusal(about, error))
            log.warning("job failed", extra=extra, exc_info=error)
            ended: State = "cancelled" if isinstance(error, CancelledJobError) else "failed"
            self.notes.end(record, ended, said_of(error)[3])
            await say(ended_by(about, error))

    async def _ready(self, record: Record, case: Case, inbox: Inbox, say: Say) -> Record:
        """Ask for consent to a proposal, then wait until the caller claims this party for the job."""
        record = await self.consent.ask(record, case, inbox, say)
        await say(Answer(job=record.job, attempt=record.attempt, state="ready"))
        await inbox.next(Claim)
        return record

    async def _take_turns(self, record: Record, case: Case, place: Place, inbox: Inbox, say: Say) -> None:
        """Wait for turns until the claimed job has run in one. A turn that passes on comes again."""
        caller, about = record.caller, dict[str, Any](job=record.job, attempt=record.attempt)
        asked, within = False, CLAIMED  # to prepare

        def heard(word: Word) -> None:
            nonlocal asked
            if isinstance(word, Start):  # our "queued" was on its way; the others wait for our role
                raise LineError(f"{caller} said {Start.kind} when its turn had passed on to another job")
            asked = asked or isinstance(word, Prepare)

        while True:
            if not place.join():
                log.info("job queued", extra={"job": record.job, "peer": caller})
                await say(Answer(**about, state="queued"))
                await inbox.meanwhile(place.come.wait(), heard)
            if not asked:
                await say(Answer(**about, state="claimed"))
                # Not always as long: two callers that hold what the other wants must not pass on in step.
                if await place.keep(inbox.next(Prepare), within * random.uniform(0.5, 1.0)) is None:
                    within = min(2 * within, LONGER)
                    continue
                asked = True
            try:
                async with self._bounded(inbox, place, case.proposal.action) as bound:
                    # The jobs before ours may have used up what it was to be granted from.
                    now = await self.consent.judged_now(case)
                    if await self._run(record, now, bound, place, inbox, say):
                        return
            finally:
                if place.come.is_set():  # else what is there is another job's
                    self.store.clear_scratch()

    async def _run(
        self, record: Record, case: Case, bound: Bounded, place: Place, inbox: Inbox, say: Say
    ) -> bool:
        """Use our turn to prepare, agree, run and keep. Return False if the turn passed on before that."""
        proposal = case.proposal
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        name = f"{record.job}.{record.attempt}"
        checkpoints = self.store.checkpoints(record.job)
        async with self.grpc.for_job(name, self.notes.late(record, inbox.lose)) as post:
            seat, role, told = await self._prepared(case, record, inbox)
            record = self.notes.state(record.model_copy(update={"table_digest": told}), "agreed")
            steps, aligned = tuple(checkpoints.steps), checkpoints.aligned
            await say(Answer(**about, state="agreed", steps=steps, aligned=aligned))
            kept = self._kept.get(record.caller, PREPARED)
            start = await place.keep(inbox.next(Start, within=LONGEST), kept)
            if start is None:
                self._kept[record.caller] = max(kept / 2, CLAIMED)
                return False
            record = self.consent.begins(record, case, start)
            checkpoints.agree(start.done, start.aligned)
            record, guard = self.notes.state(record, "running"), await self.consent.guard(case)
            run = await inbox.meanwhile(
                serve_role(
                    post,
                    bound(role, post),
                    name=self.config.name,
                    parties=proposal.parties,
                    seed=checkpoints.seed,
                    job=name,
                    checkpoints=checkpoints if proposal.action != "predict" else None,
                    guard=guard,
                    speaks=case.program.speaks.get(proposal.action, ()),
                    on_entry=self.notes.entered(record),
                )
            )
            post.finish()
            # Late mail is on its way until all have ended: it is still ours to take down.
            await self._finish(record, case, seat, run.results[self.config.name], place, inbox, say)
        return True

    async def _prepared(self, case: Case, record: Record, inbox: Inbox) -> tuple[Seat, Role, str]:
        """Run `_prepare` in a thread. Such a thread cannot be stopped, so this first waits for the one that a
        given-up attempt left behind; otherwise a caller could start any number of them."""
        if self._preparing is not None:
            await inbox.meanwhile(asyncio.wait({self._preparing}))
        self._preparing = work = asyncio.create_task(asyncio.to_thread(self._prepare, case, record))
        try:
            return await inbox.meanwhile(asyncio.shield(work))
        finally:
            if work.done():
                self._preparing = None
            else:
                work.add_done_callback(self._left)

    def _left(self, work: asyncio.Task[tuple[Seat, Role, str]]) -> None:
        """Clean up after preparing for an attempt that was given up; its result or error is dropped."""
        self._preparing = None
        self.store.clear_scratch()
        if not work.cancelled():
            work.exception()

    async def _finish(
        self, record: Record, case: Case, seat: Seat, result: Any, place: Place, inbox: Inbox, say: Say
    ) -> None:
        """Keep our part once all roles have ended; the others' may take longer, and need no turn of ours."""
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        part: Part | None = None
        if case.proposal.action != "predict":
            part = case.program.keep(case.parameters, replace(seat, job=record.job), result)
        await asyncio.to_thread(self.notes.ledger.flush)  # what others call done is on our disk
        await say(Ended(**about, digest=digest(part) if part else ""))
        sealed = await place.keep(inbox.next(Sealed), PREPARED)
        if sealed is None:
            self.store.clear_scratch()
            self._turns.leave(place)
            sealed = await inbox.next(Sealed)
        if part is not None:
            others = {peer: said for peer, said in sealed.digests.items() if peer != self.config.name}
            await asyncio.to_thread(save_part, self.store.parts, record.job, replace(part, others=others))
        self.notes.state(record, "done")
        self._kept[record.caller] = min(2 * self._kept.get(record.caller, PREPARED), PREPARED)
        await say(Ended(**about))  # kept

    @asynccontextmanager
    async def _bounded(self, inbox: Inbox, place: Place, action: str) -> AsyncIterator[Bounded]:
        """A bound for the job's role, which ends first, so that all hear why; then for what else waits."""
        me, hours, loop = self.config.name, self.config.longest_job_hours, asyncio.get_running_loop()
        minutes = self.config.longest_silence_minutes
        error = CancelledJobError(
            f"the job has held {me} for {hours:g} h, the longest that it lets one (longest_job_hours); make "
            f"it shorter, or ask {me} for more time"
        ).at(me, action)
        until = loop.time() + 3600 * hours
        end = loop.call_at(until + AFTER, inbox.lose, error)

        def bound(role: Role, post: Post) -> Role:
            async def bounded(party: Coordinator) -> Any:
                try:
                    async with asyncio.timeout_at(until) as limit:
                        return await unless_silent(role(party), post, place, minutes)
                except TimeoutError:
                    raise (error if limit.expired() else TimeoutError()) from None

            return bounded

        try:
            yield bound
        finally:
            end.cancel()

    def _prepare(self, case: Case, record: Record) -> tuple[Seat, Role, str]:
        """Return the seat, the checked role, and a fingerprint of the table. Runs in a thread."""
        proposal, table, ids, told, id = case.proposal, None, None, "", None
        monotone: dict[str, int] = {}
        if case.table in self.config.tables:
            source = self.config.tables[case.table]
            assert case.decision.rule is not None  # or it would have been refused
            id, granted = source.id, case.decision.rule.columns
            if case.program.ids_only:
                ids = id_column(source, self.config.base)
            else:
                table = read_table(
                    source,
                    self.config.base,
                    None if granted == (ANY,) else [name for name in granted if name not in source.ids],
                    unchanged=record.table_digest or None,
                )
                told = fingerprint(table)
                every = granted == (ANY,)
                monotone = {name: way for name, way in source.monotone.items() if every or name in granted}
        target = case.program.target(case.parameters) if case.program.target and table is not None else None
        kept = self._recall(case) if proposal.action == "predict" or proposal.run else None
        seat = Seat(
            self.config.name,
            tuple(proposal.parties),
            table,
            id,
            target,
            kept=kept,
            monotone=monotone,
            ids=ids,
            store=self.store.folder,
            scratch=self.store.scratch,
        )
        role = case.program.role(proposal.action, case.parameters, seat)
        if ids is not None:  # they have been read now
            told = ids.fingerprint
            check_unchanged(record.table_digest or told, told, ids.rows)
        return seat, role, told

    def _recall(self, case: Case) -> Any:
        trained = self.store.find(case.proposal.run)
        known = None if trained is None else (trained.caller, trained.program, trained.state)
        if known != (case.caller, case.program.name, "done"):
            raise ProtocolError(
                f"run {case.proposal.run!r} was not trained with {case.caller} here, or its part was deleted"
            )
        return case.program.recall(case.parameters, load_part(self.store.parts, case.proposal.run))


def _ours(error: Exception, party: str, scope: str) -> VflError:
    """Return `error` if it is ours, else a PartyError that it caused; marked with where it arose."""
    try:
        mark(error, party, scope)
    except VflError as ours:
        return ours
    assert isinstance(error, VflError)
    return error


def refusal(about: dict[str, Any], error: VflError) -> Answer:
    """Return the answer that refuses a proposal."""
    _, scope, kind, reason = said_of(error)
    return Answer(**about, state="refused", error=kind, scope=scope, reason=reason)


def ended_by(about: dict[str, Any], error: VflError) -> Ended:
    """Return the word that ends an attempt which failed with `error`."""
    party, scope, kind, reason = said_of(error)
    return Ended(**about, party=party, scope=scope, error=kind, reason=reason)

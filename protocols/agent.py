"""The agent behind `vfl serve`: one organisation's tables, its policy, and its part in others' jobs.

Takes part: one party, about its own tables. For each proposal it asks its policy, and where that says so a
person; it reads its table, runs its own role, keeps its own part and its ledger. A caller learns what
`protocols.jobs` and the job's own messages say, and of a refusal the clause. It runs one job at a time, and
the others wait in turn.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from protocols.config import Parties, PartyConfig
from protocols.errors import (
    CancelledJobError,
    ConfigError,
    DataError,
    LineError,
    ProtocolError,
    VflError,
    marked,
)
from protocols.federation import Role
from protocols.history import History, load_history, save_history
from protocols.inbox import POLL, Inbox
from protocols.jobs import (
    Answer,
    Claim,
    Control,
    Ended,
    Over,
    Propose,
    Record,
    Renew,
    Sealed,
    Start,
    State,
    Store,
    Word,
    release,
    write_whole,
)
from protocols.logs import log
from protocols.notes import Notes
from protocols.parts import Part, digest, load_part, save_part
from protocols.party import mark
from protocols.policy import Decision, Guard, Request, judge
from protocols.programs import Parameters, Program, Seat, program
from protocols.rules import ANY
from protocols.serving import said_of, serve_role
from protocols.sources import fingerprint, read_table
from protocols.wire.frames import CONTROL, Limits
from protocols.wire.record_rows import By
from protocols.wire.remote import Change, Grpc, Peer

Say = Callable[[Word], Awaitable[None]]
Key = tuple[str, str, int]  # caller, job, attempt
STATUS = "status.json"
PULSE = 2.0  # seconds between two writings of it
CLAIM = 600.0  # seconds that a caller may hold a party that it claimed, before it says Start
MOST = 100  # attempts of one caller that are open here at once


@dataclass(frozen=True)
class Case:
    """A proposal that passed the policy, and what it is to run on."""

    proposal: Propose
    caller: str
    program: Program[Any]
    parameters: Parameters
    decision: Decision
    request: Request | None  # none for a party without tables
    table: str


class Agent:
    """One party that waits for proposals, over a `Grpc` that is entered and carries many jobs."""

    def __init__(self, config: PartyConfig, parties: Parties, grpc: Grpc, notes: Notes) -> None:
        self.config, self.parties, self.grpc, self.notes = config, parties, grpc, notes
        self.store = notes.store
        self._control = Control(grpc.for_job(CONTROL), config.name)
        self._turn = asyncio.Lock()  # fair: first come, first served
        self._open: dict[Key, tuple[Inbox, asyncio.Task[None]]] = {}
        self._versions: dict[str, str] = {}  # of the peers that proposed something

    async def serve(self) -> None:
        """Until it is cancelled."""
        self.notes.restarted()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pulse())
                for peer in self.grpc.peers:
                    group.create_task(self._listen(peer))
        finally:
            tasks = [task for _, task in self._open.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def changed(self, change: Change) -> None:
        """A process that is no more will not go on with what it proposed. Called by `grpc`."""
        if change.state in ("left", "restarted"):
            for (caller, *_), (inbox, _) in self._open.items():
                if caller == change.peer:
                    inbox.lose(LineError(change.reason))

    async def _pulse(self) -> None:
        """Write down now and then how it is with this party and its peers, for `vfl status`."""
        written = True
        while True:
            peers = dict(
                zip(self.grpc.peers, await asyncio.gather(*map(self._peer, self.grpc.peers)), strict=True)
            )
            found = {
                "party": self.config.name,
                "version": release(),
                "address": self.grpc.address,
                "seen": datetime.now(UTC).isoformat(),
                "peers": peers,
            }
            try:
                write_whole(self.store.folder / STATUS, json.dumps(found).encode(), durable=False)
                written = True
            except DataError as error:  # jobs may still be refused in words
                if written:
                    log.warning("request failed", exc_info=error)
                written = False
            await asyncio.sleep(PULSE)

    async def _peer(self, name: str) -> dict[str, Any]:
        latency = None
        try:
            known = self.grpc.peer(name)
        except ConfigError as error:  # neither can be dialled
            known = Peer(False, None, str(error))
        if known.connected:
            with suppress(VflError):
                latency = 1000 * await self.grpc.ping(name, timeout=PULSE)
        said = {"connected": known.connected, "heard_s": known.heard, "latency_ms": latency}
        return {**said, "cause": known.cause, "version": self._versions.get(name, "")}

    # Who says what about which job.

    async def _listen(self, peer: str) -> None:
        """Give each word of `peer` to the job that it is about."""
        while True:
            try:
                word = await self._control.hear(peer)
            except LineError:
                await self.grpc.reachable(peer, 3600.0)
                await asyncio.sleep(0.05)
            except ProtocolError as error:
                log.warning("request failed", extra={"peer": peer}, exc_info=error)
            except ConfigError:  # neither can be dialled, so no job has both
                return
            else:
                await self._take(peer, word)

    async def _take(self, peer: str, word: Word) -> None:
        key = peer, word.job, word.attempt
        if isinstance(word, Propose):
            self._versions[peer] = word.version
        if key in self._open:
            self._open[key][0].put(word)
        elif isinstance(word, Propose):
            await self._begin(key, word)
        elif isinstance(word, Over):
            self._forget_checkpoints(peer, word.job)
        elif isinstance(word, Claim | Start | Renew | Sealed):
            await self._say(peer, self._how_it_ended(peer, word))

    async def _begin(self, key: Key, proposal: Propose) -> None:
        peer, job, attempt = key
        if sum(caller == peer for caller, *_ in self._open) >= MOST:
            error = ProtocolError(f"{MOST} jobs of {peer} are open here already; end one of them")
            about: dict[str, Any] = {"job": job, "attempt": attempt}
            return await self._say(peer, _refusal(about, error.at(self.config.name, proposal.action)))
        older = [
            entry for (*of, number), entry in self._open.items() if of == [peer, job] and number < attempt
        ]
        for inbox, _ in older:
            inbox.lose(LineError(f"{peer} made another attempt at this job"))
        inbox = Inbox(peer, partial(self.store.said, "cancel", job))
        tasks = [task for _, task in older]
        task = asyncio.create_task(self._handle(peer, proposal, inbox, tasks))
        self._open[key] = inbox, task
        task.add_done_callback(partial(self._close, key))

    def _close(self, key: Key, task: asyncio.Task[None]) -> None:
        inbox, _ = self._open.pop(key)
        if inbox.over:
            self._forget_checkpoints(key[0], key[1])
        if not task.cancelled() and task.exception() is not None:
            log.error("unexpected error", exc_info=task.exception())

    def _forget_checkpoints(self, caller: str, job: str) -> None:
        """`caller` will not go on with `job`, if that is its own and has ended here."""
        with suppress(DataError):
            record = self.store.find(job)
            open_still = any(known == job for _, known, _ in self._open)
            if record is not None and record.caller == caller and not open_still:
                self.store.checkpoints(job).drop()

    def _how_it_ended(self, peer: str, word: Claim | Start | Renew | Sealed) -> Ended:
        """For a caller that speaks of an attempt that is not open here, and may have missed its end."""
        about: dict[str, Any] = {"job": word.job, "attempt": word.attempt}
        record: Record | None = None
        error: VflError = LineError("the job is not open here; was this party restarted?")
        with suppress(DataError):
            record = self.store.find(word.job)
        if record is not None and (record.caller, record.attempt) == (peer, word.attempt):
            if record.state == "done":
                return Ended(**about)
            kind = CancelledJobError if record.state == "cancelled" else LineError
            error = kind(record.reason or str(error))
        return _ended(about, error.at(self.config.name, "jobs"))

    async def _handle(
        self, caller: str, proposal: Propose, inbox: Inbox, older: Sequence[asyncio.Task[None]]
    ) -> None:
        """One attempt at one job, from the proposal to its end."""
        say = partial(self._say, caller)
        about: dict[str, Any] = {"job": proposal.job, "attempt": proposal.attempt}
        record: Record | None = None
        # The ledger tells attempts apart by the order of its rows: the one before has to end first.
        await asyncio.gather(*older, return_exceptions=True)
        try:
            with marked(self.config.name, proposal.action):
                record, case = self._admit(caller, proposal)
                record = await self._consent(record, case, inbox, say)
                await say(Answer(**about, state="ready"))
                await inbox.next(Claim)
                async with self._turns(inbox):
                    await self._run(record, case, inbox, say)
        except Exception as caught:
            error = _ours(caught, self.config.name, proposal.action)
            extra = {"peer": caller, "job": proposal.job}
            if record is None:
                log.warning("job refused", extra=extra, exc_info=error)
                return await say(_refusal(about, error))
            log.warning("job failed", extra=extra, exc_info=error)
            ended: State = "cancelled" if isinstance(error, CancelledJobError) else "failed"
            self.notes.end(record, ended, said_of(error)[3])
            await say(_ended(about, error))

    async def _run(self, record: Record, case: Case, inbox: Inbox, say: Say) -> None:
        """Our turn: prepare, agree, run, keep."""
        proposal = case.proposal
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        name = f"{record.job}.{record.attempt}"
        checkpoints = self.store.checkpoints(record.job)
        async with self.grpc.for_job(name) as post:
            seat, role, told = await inbox.meanwhile(asyncio.to_thread(self._prepare, case, record))
            record = self.notes.state(record.model_copy(update={"table_digest": told}), "agreed")
            await say(Answer(**about, state="agreed", steps=tuple(checkpoints.steps)))
            start = await inbox.next(Start, within=CLAIM)
            checkpoints.agree(start.done)
            record = self.notes.state(record, "running")
            run = await inbox.meanwhile(
                serve_role(
                    post,
                    role,
                    name=self.config.name,
                    parties=proposal.parties,
                    seed=proposal.seed,
                    job=name,
                    checkpoints=checkpoints if proposal.action == "fit" else None,
                    guard=self._guard(case),
                    on_entry=self.notes.entered(record),
                )
            )
        await self._finish(record, case, seat, run.results[self.config.name], inbox, say)

    async def _finish(
        self, record: Record, case: Case, seat: Seat, result: Any, inbox: Inbox, say: Say
    ) -> None:
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        part: Part | None = None
        if case.proposal.action == "fit":
            part = case.program.keep(case.parameters, seat, result)
        await say(Ended(**about, digest=digest(part) if part else ""))
        sealed = await inbox.next(Sealed)
        if part is not None:
            others = {peer: said for peer, said in sealed.digests.items() if peer != self.config.name}
            await asyncio.to_thread(save_part, self.store.parts, record.job, replace(part, others=others))
        self.notes.state(record, "done")
        await say(Ended(**about))  # kept

    # Whether.

    def _admit(self, caller: str, proposal: Propose) -> tuple[Record, Case]:
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
                f"the messages of {found.name} have other schemas at {caller}: both need the same version of "
                f"{found.package}"
            )
        table, request, decision = self._judged(caller, proposal, found, parameters)
        record = self._recorded(caller, proposal)
        return record, Case(proposal, caller, found, parameters, decision, request, table)

    def _judged(
        self, caller: str, proposal: Propose, found: Program[Any], parameters: Parameters
    ) -> tuple[str, Request | None, Decision]:
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
        )
        decision = judge(self.config.policy, request, self._history(caller, table))
        decision.check()
        return table, request, decision

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
        kept = old.model_copy(update={"attempt": new.attempt, "reason": ""})
        return self.notes.state(kept, "proposed")

    async def _consent(self, record: Record, case: Case, inbox: Inbox, say: Say) -> Record:
        """Wait for a person where the policy says so; that is in the ledger before anything leaves."""
        by: By = record.granted or "policy"
        if not record.granted and case.decision.verdict == "ask":
            await say(
                Answer(job=record.job, attempt=record.attempt, state="waiting", reason=case.decision.reason)
            )
            log.info("job waits for approval", extra={"peer": case.caller, "job": record.job})
            await inbox.meanwhile(self._approved(record.job))
            by = "person"
        return self.notes.consent(record, by, case.program.reveals())

    async def _approved(self, job: str) -> None:
        while not self.store.said("approve", job):
            await asyncio.sleep(POLL)

    @asynccontextmanager
    async def _turns(self, inbox: Inbox) -> AsyncIterator[None]:
        """Our turn, once the jobs before it have ended."""
        turn = asyncio.create_task(self._turn.acquire())
        try:
            await inbox.meanwhile(turn)
            yield
        finally:
            if not turn.cancelled():
                self._turn.release()

    def _guard(self, case: Case) -> Guard | None:
        if case.request is None or case.decision.rule is None:
            return None
        caller, table = case.caller, case.table
        guard = Guard(
            case.decision.rule,
            case.request,
            self._history(caller, table),
            partial(save_history, self.store.folder, caller, table or "none"),
        )
        guard.start()
        return guard

    def _history(self, peer: str, table: str) -> History:
        return load_history(self.store.folder, peer, table or "none")

    # What it runs on.

    def _prepare(self, case: Case, record: Record) -> tuple[Seat, Role, str]:
        """The seat, the checked role, and a fingerprint of the table; in a thread."""
        proposal, table, told, id = case.proposal, None, "", None
        if case.table in self.config.tables:
            source = self.config.tables[case.table]
            assert case.decision.rule is not None  # or it would have been refused
            granted = case.decision.rule.columns
            table = read_table(
                source,
                self.config.base,
                None if granted == (ANY,) else [name for name in granted if name != source.id],
                unchanged=record.table_digest or None,
            )
            told, id = fingerprint(table), source.id
        target = case.program.target(case.parameters) if case.program.target and table is not None else None
        kept = self._recall(case) if proposal.action == "predict" else None
        seat = Seat(self.config.name, tuple(proposal.parties), table, id, target, kept)
        return seat, case.program.role(proposal.action, case.parameters, seat), told

    def _recall(self, case: Case) -> Any:
        trained = self.store.find(case.proposal.run)
        known = None if trained is None else (trained.caller, trained.program, trained.state)
        if known != (case.caller, case.program.name, "done"):
            raise ProtocolError(
                f"run {case.proposal.run!r} was not trained with {case.caller} here, or its part was deleted"
            )
        return case.program.recall(case.parameters, load_part(self.store.parts, case.proposal.run))

    # Telling.

    async def _say(self, to: str, word: Word) -> None:
        with suppress(LineError):  # a caller that is gone comes back with another attempt
            await self._control.say(to, word)


def _ours(error: Exception, party: str, scope: str) -> VflError:
    """`error`, or a PartyError that it caused; marked."""
    try:
        mark(error, party, scope)
    except VflError as ours:
        return ours
    assert isinstance(error, VflError)
    return error


def _refusal(about: dict[str, Any], error: VflError) -> Answer:
    _, scope, kind, reason = said_of(error)
    return Answer(**about, state="refused", error=kind, scope=scope, reason=reason)


def _ended(about: dict[str, Any], error: VflError) -> Ended:
    party, scope, kind, reason = said_of(error)
    return Ended(**about, party=party, scope=scope, error=kind, reason=reason)


async def serve_party(config: PartyConfig, parties: Parties, *, limits: Limits | None = None) -> None:
    """Serve one party until it is told to stop (SIGTERM, SIGINT). Errors as of `Grpc` and `Ledger.open`."""
    notes = Notes(Store(config.store), config.name)
    try:
        grpc = Grpc(
            config.name,
            parties.book,
            None if config.insecure else parties.credentials(config.name),
            listen=config.listen,
            insecure=config.insecure,
            limits=limits,
            revoked=parties.revoked,
            on_change=lambda change: agent.changed(change),
        )
        agent = Agent(config, parties, grpc, notes)  # before it can be reached: what comes is heard
        with suppress(LineError):  # on leaving: a peer that is in trouble is no reason to fail
            async with grpc:
                log.info("serving", extra={"party": config.name, "address": grpc.address or "-"})
                serving = asyncio.create_task(agent.serve())
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; a thread
                        loop.add_signal_handler(number, serving.cancel)
                with suppress(asyncio.CancelledError):
                    await serving
                log.info("stopping", extra={"party": config.name})
    finally:
        notes.close()


def read_status(store: Store) -> dict[str, Any]:
    """What the party that serves `store` last wrote of itself; `running` is False where that is long ago."""
    path = store.folder / STATUS
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"nothing has served {store.folder} yet; start `vfl serve`") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}") from None
    silent = datetime.now(UTC) - datetime.fromisoformat(found["seen"])
    return {**found, "running": silent.total_seconds() < 3 * PULSE + 2}

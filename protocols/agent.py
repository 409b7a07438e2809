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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from protocols.config import Parties, PartyConfig
from protocols.errors import (
    CancelledJobError,
    ConfigError,
    LineError,
    ProtocolError,
    VflError,
    marked,
)
from protocols.federation import Role
from protocols.history import History, load_history, save_history
from protocols.jobs import (
    LEASE,
    Answer,
    Cancel,
    Claim,
    Control,
    Ended,
    Propose,
    Record,
    Renew,
    Sealed,
    Start,
    Store,
    Word,
    release,
    write_whole,
)
from protocols.logs import log
from protocols.parts import Part, digest, load_part, save_part
from protocols.policy import Decision, Guard, Request, judge
from protocols.programs import Parameters, Program, Seat, program
from protocols.rules import ANY
from protocols.serving import said_of, serve_role
from protocols.sources import fingerprint, read_table
from protocols.wire.frames import CONTROL
from protocols.wire.ledger import Entry
from protocols.wire.record import Record as Ledger
from protocols.wire.record_rows import By
from protocols.wire.remote import Grpc
from protocols.wire.reveals import load_messages

W = TypeVar("W", Claim, Start, Sealed)
Say = Callable[[Word], Awaitable[None]]
STATUS = "status.json"
PULSE = 2.0  # seconds between two writings of it
POLL = 0.3  # seconds between two looks for what a person said
CLAIM = 600.0  # seconds that a caller may hold a party that it claimed, before it says Start


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

    def __init__(self, config: PartyConfig, parties: Parties, grpc: Grpc, ledger: Ledger) -> None:
        self.config, self.parties, self.grpc, self.ledger = config, parties, grpc, ledger
        self.store = Store(config.store)
        self._control = Control(grpc.for_job(CONTROL), config.name)
        self._turn = asyncio.Lock()  # fair: first come, first served
        self._inboxes: dict[tuple[str, str, int], asyncio.Queue[Word]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._versions: dict[str, str] = {}  # of the peers that proposed something

    async def serve(self) -> None:
        """Until it is cancelled."""
        for record in self.store.all():
            if record.state in ("proposed", "agreed", "running"):
                self._note(
                    record, "failed", "this party was restarted meanwhile; its caller can go on with it"
                )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pulse())
                for peer in self.grpc.peers:
                    group.create_task(self._listen(peer))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pulse(self) -> None:
        """Write down now and then how it is with this party and its peers, for `vfl status`."""
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
            write_whole(self.store.folder / STATUS, json.dumps(found).encode(), durable=False)
            await asyncio.sleep(PULSE)

    async def _peer(self, name: str) -> dict[str, Any]:
        known, latency = self.grpc.peer(name), None
        if known.connected:
            with suppress(VflError):
                latency = 1000 * await self.grpc.ping(name, timeout=PULSE)
        said = {"connected": known.connected, "heard_s": known.heard, "latency_ms": latency}
        return {**said, "cause": known.cause, "version": self._versions.get(name, "")}

    async def _listen(self, peer: str) -> None:
        """Give each word of `peer` to the job that it is about."""
        while True:
            try:
                word = await self._control.hear(peer)
            except LineError:
                await self.grpc.reachable(peer, 3600.0)
                await asyncio.sleep(0.05)
                continue
            except ProtocolError as error:
                log.warning("request failed", extra={"peer": peer}, exc_info=error)
                continue
            if isinstance(word, Propose):
                self._versions[peer] = word.version
            key = (peer, word.job, word.attempt)
            if isinstance(word, Propose) and key not in self._inboxes:
                self._inboxes[key] = asyncio.Queue()
                task = asyncio.create_task(self._handle(peer, word, self._inboxes[key]))
                self._tasks.add(task)
                task.add_done_callback(partial(self._forget, key))
            elif key in self._inboxes:
                self._inboxes[key].put_nowait(word)

    def _forget(self, key: tuple[str, str, int], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        del self._inboxes[key]
        if not task.cancelled() and task.exception() is not None:
            log.error("unexpected error", exc_info=task.exception())

    async def _handle(self, caller: str, proposal: Propose, inbox: asyncio.Queue[Word]) -> None:
        """One attempt at one job, from the proposal to its end."""
        say = partial(self._say, caller)
        about: dict[str, Any] = {"job": proposal.job, "attempt": proposal.attempt}
        try:
            with marked(self.config.name, proposal.action):
                record, case = self._admit(caller, proposal)
        except VflError as error:
            log.warning("job refused", extra={"peer": caller, "job": proposal.job}, exc_info=error)
            await say(_refusal(about, error))
            return
        try:
            with marked(self.config.name, proposal.action):
                record = await self._consent(record, case, inbox, say)
                await say(Answer(**about, state="ready"))
                await self._next(inbox, Claim, record)
                async with self._turns(inbox, record):
                    await self._run(record, case, inbox, say)
        except VflError as error:
            ended = "cancelled" if isinstance(error, CancelledJobError) else "failed"
            self._note(self.store.find(record.job) or record, ended, said_of(error)[3])
            log.warning("job failed", extra={"peer": caller, "job": record.job}, exc_info=error)
            await say(_refusal(about, error))
            await say(_ended(about, error))

    async def _run(self, record: Record, case: Case, inbox: asyncio.Queue[Word], say: Say) -> None:
        """Our turn: prepare, agree, run, keep."""
        proposal = case.proposal
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        name = f"{record.job}.{record.attempt}"
        checkpoints = self.store.checkpoints(record.job)
        async with self.grpc.for_job(name) as post:
            seat, role, told = await asyncio.to_thread(self._prepare, case, record)
            record = self._note(record.model_copy(update={"table_digest": told}), "agreed")
            await say(Answer(**about, state="agreed", steps=tuple(checkpoints.steps)))
            start = await self._next(inbox, Start, record, within=CLAIM)
            checkpoints.agree(start.done)
            record = self._note(record, "running")
            guard = self._guard(case)
            work = asyncio.create_task(
                serve_role(
                    post,
                    role,
                    name=self.config.name,
                    parties=proposal.parties,
                    seed=proposal.seed,
                    job=name,
                    checkpoints=checkpoints if proposal.action == "fit" else None,
                    guard=guard,
                    on_entry=self._entered(record),
                )
            )
            watch = asyncio.create_task(self._watch(inbox, record))
            try:
                await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    watch.result()  # why it was given up
                result = work.result().results[self.config.name]
            finally:
                for task in (work, watch):
                    task.cancel()
                await asyncio.gather(work, watch, return_exceptions=True)
        await self._finish(record, case, seat, result, inbox, say)

    async def _finish(
        self, record: Record, case: Case, seat: Seat, result: Any, inbox: asyncio.Queue[Word], say: Say
    ) -> None:
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        part: Part | None = None
        if case.proposal.action == "fit":
            part = case.program.keep(case.parameters, seat, result)
        await say(Ended(**about, digest=digest(part) if part else ""))
        sealed = await self._next(inbox, Sealed, record)
        if part is not None:
            others = {peer: said for peer, said in sealed.digests.items() if peer != self.config.name}
            await asyncio.to_thread(save_part, self.store.parts, record.job, replace(part, others=others))
        self.store.checkpoints(record.job).drop()
        self._note(record, "done")
        await say(Ended(**about))  # kept

    # Whether.

    def _admit(self, caller: str, proposal: Propose) -> tuple[Record, Case]:
        """The job as this party records it, if it is one that it may take part in at all."""
        me = self.config.name
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
            return self._note(new, "proposed")
        if old.request != new.request:
            raise ProtocolError(
                f"job {new.job} is known here as another one; propose this under a new number"
            )
        if old.state == "done" or new.attempt <= old.attempt:
            raise ProtocolError(
                f"attempt {new.attempt} of job {new.job} came before ({old.state}); a job is not run twice"
            )
        kept = old.model_copy(update={"attempt": new.attempt, "reason": ""})
        return self._note(kept, "proposed")

    async def _consent(self, record: Record, case: Case, inbox: asyncio.Queue[Word], say: Say) -> Record:
        """Wait for a person where the policy says so; that is in the ledger before anything leaves."""
        by: By = record.granted or "policy"
        if not record.granted and case.decision.verdict == "ask":
            await say(
                Answer(job=record.job, attempt=record.attempt, state="waiting", reason=case.decision.reason)
            )
            log.info("job waits for approval", extra={"peer": case.caller, "job": record.job})
            await self._until(inbox, record, partial(self.store.said, "approve", record.job))
            by = "person"
        record = record.model_copy(update={"granted": by})
        self.ledger.grant(record.job, case.program.name, by, reveals(case.program))
        return self._note(record, "proposed")

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
        if trained is None or trained.caller != case.caller or trained.state != "done":
            raise ProtocolError(
                f"run {case.proposal.run!r} was not trained with {case.caller} here, or its part was deleted"
            )
        return case.program.recall(case.parameters, load_part(self.store.parts, case.proposal.run))

    # Listening while something goes on.

    async def _next(
        self, inbox: asyncio.Queue[Word], kind: type[W], record: Record, within: float | None = None
    ) -> W:
        """The caller's next word, which must be a `kind`; its lease is renewed by whatever it says."""
        async with asyncio.timeout(within):
            while True:
                word = await self._word(inbox, record)
                if isinstance(word, kind):
                    return word
                if not isinstance(word, Renew):
                    raise ProtocolError(f"expected {kind.kind} from {record.caller}, got {word.kind}")

    async def _word(self, inbox: asyncio.Queue[Word], record: Record) -> Word:
        loop = asyncio.get_running_loop()
        until = loop.time() + LEASE
        while True:
            if self.store.said("cancel", record.job):
                raise CancelledJobError("cancelled by a person at this party").at(self.config.name, "")
            try:
                async with asyncio.timeout(POLL):
                    word = await inbox.get()
            except TimeoutError:
                if loop.time() > until:
                    raise CancelledJobError(f"{record.caller} has not been heard for {LEASE:g} s") from None
                continue
            if isinstance(word, Cancel):
                raise CancelledJobError(f"cancelled by {record.caller}")
            return word

    async def _watch(self, inbox: asyncio.Queue[Word], record: Record) -> None:
        """Raise when the job is given up."""
        while True:
            await self._word(inbox, record)

    async def _until(self, inbox: asyncio.Queue[Word], record: Record, done: Callable[[], bool]) -> None:
        watch = asyncio.create_task(self._watch(inbox, record))
        try:
            while not done():
                await asyncio.wait({watch}, timeout=POLL)
                if watch.done():
                    watch.result()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    @asynccontextmanager
    async def _turns(self, inbox: asyncio.Queue[Word], record: Record) -> AsyncIterator[None]:
        """Our turn, once the jobs before it have ended."""
        turn = asyncio.create_task(self._turn.acquire())
        try:
            await self._until(inbox, record, turn.done)
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._turn.release()
            turn.cancel()

    def _entered(self, record: Record) -> Callable[[Entry], None]:
        # The wire names the attempt with the job; the ledger has a row for the beginning of each attempt.
        return lambda entry: self.ledger.append(entry._replace(job=record.job))

    # Telling.

    async def _say(self, to: str, word: Word) -> None:
        with suppress(LineError):  # a caller that is gone comes back with another attempt
            await self._control.say(to, word)

    def _note(self, record: Record, state: Any, reason: str = "") -> Record:
        """Record a state, on disk and in the ledger."""
        self.ledger.job(record.job, state, attempt=record.attempt, reason=reason)
        log.info(f"job {state}", extra={"job": record.job, "peer": record.caller})
        return self.store.save(record.model_copy(update={"state": state, "reason": reason}))


def reveals(found: Program[Any]) -> list[str]:
    """What a job of this program may let leave: each of its package's messages, in words."""
    return [kind.reveals for kind in load_messages((found.package,)).get(found.package, [])]


def _refusal(about: dict[str, Any], error: VflError) -> Answer:
    _, scope, kind, reason = said_of(error)
    return Answer(**about, state="refused", error=kind, scope=scope, reason=reason)


def _ended(about: dict[str, Any], error: VflError) -> Ended:
    party, scope, kind, reason = said_of(error)
    return Ended(**about, party=party, scope=scope, error=kind, reason=reason)


async def serve_party(config: PartyConfig, parties: Parties) -> None:
    """Serve one party until it is told to stop (SIGTERM, SIGINT). Errors as of `Grpc` and `Ledger.open`."""
    with Ledger.open(Store(config.store).ledger, config.name) as ledger:
        grpc = Grpc(
            config.name,
            parties.book,
            None if config.insecure else parties.credentials(config.name),
            listen=config.listen,
            insecure=config.insecure,
            revoked=parties.revoked,
        )
        async with grpc:
            log.info("serving", extra={"party": config.name, "address": grpc.address or "-"})
            agent = asyncio.create_task(Agent(config, parties, grpc, ledger).serve())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; a thread
                    loop.add_signal_handler(number, agent.cancel)
            with suppress(asyncio.CancelledError):
                await agent
            log.info("stopping", extra={"party": config.name})


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

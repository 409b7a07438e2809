"""A federation of processes: this party calls, the others serve (`vfl serve`).

Takes part: this party, as the caller of jobs and with its own role in them; `protocols.jobs` says who learns
what of a job before it runs. An estimator takes it like a mapping of DataFrames, but each other party fills
its own seat, from its own table, and keeps its own part.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd

from protocols.config import Parties
from protocols.errors import (
    ConfigError,
    DataError,
    LineError,
    ProtocolError,
    VflError,
    marked,
    nearest,
)
from protocols.federation import Role, Run
from protocols.jobs import (
    OPEN,
    Action,
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
    common_step,
    release,
    renewing,
)
from protocols.parts import digest, save_part
from protocols.programs import P, Parameters, Program, Seat
from protocols.progress import Report
from protocols.serving import error_of, serve_role
from protocols.sources import fingerprint
from protocols.wire.frames import CONTROL, Limits
from protocols.wire.ledger import Entry
from protocols.wire.record import Record as Ledger
from protocols.wire.remote import Grpc

T = TypeVar("T")
PATIENCE = 60.0  # seconds to wait for a party that is away, before a job starts and after it was cut off
GRACE = 2.0  # seconds for our role to fail by itself, once another party said that it did


class Connected(Mapping[str, pd.DataFrame]):
    """Parties over the network, as `Federation.connect` returns them; used as a context, or closed.

    As a mapping it holds this party's own table alone. Estimators take it like a mapping of tables.
    """

    def __init__(
        self,
        file: str | Path,
        me: str,
        data: pd.DataFrame | None = None,
        *,
        store: str | Path | None = None,
        tables: Mapping[str, str] | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        patience: float = PATIENCE,
    ) -> None:
        parties = Parties.read(Path(file))
        book = parties.book
        if me not in book:
            raise ConfigError(f"{me!r} is not in {file}; parties are {', '.join(book)}{nearest(me, book)}")
        if data is not None and not isinstance(data, pd.DataFrame):
            raise DataError(f"expected a DataFrame or None, got {type(data).__name__}").at(me, "connect")
        if data is not None and data.columns.has_duplicates:
            raise DataError("two columns have the same name; rename one").at(me, "connect")
        strangers = [party for party in tables or {} if party not in book or party == me]
        if strangers:
            raise ConfigError(
                f"tables names {strangers[0]}, which is no other party{nearest(strangers[0], book)}"
            )
        self.me, self.data, self.patience = me, data, patience
        self._names, self._tables = tuple(book), dict(tables or {})
        self.store = Store(Path(store) if store is not None else Path(file).parent / f"{me}-store")
        self._ledger = Ledger.open(self.store.ledger, me)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"vfl-{me}", daemon=True)
        self._thread.start()
        self._busy = threading.Lock()
        self._grpc = Grpc(
            me,
            book,
            None if insecure else parties.credentials(me),
            insecure=insecure,
            limits=limits,
            revoked=parties.revoked,
        )
        try:
            self._there(self._open())
        except BaseException:
            self._stop()
            raise
        atexit.register(self.close)

    def holding(self, data: pd.DataFrame) -> Connected:
        """The same connection with another table of this party's, as one with the rows for the test."""
        other = copy.copy(self)
        other.data = data
        return other

    @property
    def parties(self) -> tuple[str, ...]:
        """Party names, in the book's order."""
        return self._names

    @property
    def here(self) -> tuple[str, ...]:
        """This party, if it has a table."""
        return tuple(self)

    def execute(
        self,
        program: Program[P],
        action: Action,
        parameters: P,
        seat: Callable[[str], Seat],
        parties: Sequence[str],
        *,
        seed: int = 0,
        on_progress: Report | None = None,
        run: str = "",
    ) -> Run:
        """As `Federation.execute`; run: the job that trained, for predicting. `Run.job` is this job's own.

        An attempt that is cut off, here or at any party, is made again from the last step that all have a
        checkpoint of. So is a job that an earlier process of this party began and did not end, when it is
        asked for again with the same tables, parameters and seed.
        """
        if self.me not in parties:
            raise ConfigError(f"{self.me} takes no part: {', '.join(parties)} do; connect as one of them")
        own = seat(self.me)
        if own.modules:
            raise ConfigError(
                f"{', '.join(own.modules)}: a module of one's own cannot cross the network; name a model "
                "that is registered at every party (`vfl.models`), or leave it out"
            )
        with marked(self.me, action):
            role = program.role(action, parameters, own)
        asked = Asked(program, action, parameters, own, role, tuple(parties), int(seed), run, self._tables)
        with self._busy:
            return self._there(self._job(asked, on_progress))

    def close(self) -> None:
        """Say goodbye to the parties. Closing twice does nothing."""
        if self._thread.is_alive():
            with suppress(VflError):
                self._there(self._grpc.__aexit__(None, None, None))
            self._stop()
        atexit.unregister(self.close)

    # A job.

    async def _job(self, asked: Asked, on_progress: Report | None) -> Run:
        record = self._begin(asked)
        try:
            while True:
                try:
                    return await self._attempt(record, asked, on_progress)
                except LineError as error:
                    self._note(record, "failed", "a line was cut")
                    if asked.action == "fit" and self.store.checkpoints(record.job).steps:
                        await self._wait_for_all(asked, error)
                        record = record.model_copy(update={"attempt": record.attempt + 1})
                        continue
                    raise
        except asyncio.CancelledError:
            self._note(record, "cancelled", "interrupted")
            raise
        except LineError:
            raise
        except VflError as error:
            self._note(record, "failed", type(error).__name__)
            self.store.checkpoints(record.job).drop()
            raise

    def _begin(self, asked: Asked) -> Record:
        """A new job, or the next attempt at one that an earlier process of ours did not end."""
        now = datetime.now(UTC)
        new = Record(
            job=secrets.token_hex(8),
            attempt=1,
            caller=self.me,
            program=asked.program.name,
            action=asked.action,
            parameters=asked.parameters.model_dump(mode="json"),
            parties=asked.parties,
            table=",".join(f"{party}={table}" for party, table in sorted(asked.tables.items())),
            run=asked.run,
            seed=asked.seed,
            state="proposed",
            granted="person",
            table_digest="" if asked.seat.table is None else fingerprint(asked.seat.table),
            created=now,
            updated=now,
        )
        for old in self.store.all():
            same = old.request == new.request and old.table_digest == new.table_digest
            if same and old.state in (*OPEN, "failed") and self.store.checkpoints(old.job).steps:
                return old.model_copy(update={"attempt": old.attempt + 1})
        return new

    async def _attempt(self, record: Record, asked: Asked, on_progress: Report | None) -> Run:
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        others = [party for party in asked.parties if party != self.me]
        checkpoints = self.store.checkpoints(record.job)
        record = self._note(record, "proposed")
        talk = _Talk(self._control, about, others)
        name = f"{record.job}.{record.attempt}"
        try:
            async with self._grpc.for_job(name) as post:
                await self._agree(record, asked, talk)
                steps = [checkpoints.steps, *[talk.steps[party] for party in others]]
                done = common_step(steps)
                checkpoints.agree(done)
                await talk.say(partial(Start, **about, done=done))
                self._note(record, "running")
                run = await talk.unless_ended(
                    serve_role(
                        post,
                        asked.role,
                        name=self.me,
                        parties=asked.parties,
                        seed=asked.seed,
                        job=name,
                        on_progress=on_progress,
                        checkpoints=checkpoints if asked.action == "fit" else None,
                        on_entry=self._entered(record),
                    )
                )
                return await self._seal(record, asked, talk, run)
        except BaseException as error:
            if not isinstance(error, LineError):
                with suppress(VflError, TimeoutError):
                    async with asyncio.timeout(2.0):
                        await talk.say(partial(Cancel, **about))
            raise
        finally:
            await talk.stop()

    async def _agree(self, record: Record, asked: Asked, talk: _Talk) -> None:
        for party in talk.others:
            await self._meet(party)
            await self._control.say(party, asked.proposal(record, party))
        talk.listen()
        await talk.answers("ready")
        for party in sorted(talk.others):  # in one order for all callers, so that no two wait for each other
            await self._control.say(party, Claim(**talk.about))
            await talk.answer(party, "agreed")

    async def _seal(self, record: Record, asked: Asked, talk: _Talk, run: Run) -> Run:
        """Let all keep their parts, then keep ours."""
        digests = await talk.ends()
        result = run.results[self.me]
        part = asked.program.keep(asked.parameters, asked.seat, result) if asked.action == "fit" else None
        if part is not None:
            digests |= {self.me: digest(part)}
        await talk.say(partial(Sealed, **talk.about, digests=digests))
        await talk.ends()
        if part is not None:
            others = {party: said for party, said in digests.items() if party != self.me}
            await asyncio.to_thread(save_part, self.store.parts, record.job, replace(part, others=others))
        self.store.checkpoints(record.job).drop()
        self._note(record, "done")
        return replace(run, job=record.job)

    async def _wait_for_all(self, asked: Asked, error: LineError) -> None:
        for party in asked.parties:
            if party != self.me and not await self._grpc.reachable(party, self.patience):
                raise error

    async def _meet(self, party: str) -> None:
        if not await self._grpc.reachable(party, self.patience):
            said = self._grpc.peer(party).cause
            raise LineError(
                f"{party} was not reached within {self.patience:g} s: {said}; does `vfl serve` run there?"
            )

    def _note(self, record: Record, state: Any, reason: str = "") -> Record:
        self._ledger.job(record.job, state, attempt=record.attempt, reason=reason)
        return self.store.save(record.model_copy(update={"state": state, "reason": reason}))

    def _entered(self, record: Record) -> Callable[[Entry], None]:
        # The wire names the attempt with the job; the ledger has a row for the beginning of each attempt.
        return lambda entry: self._ledger.append(entry._replace(job=record.job))

    # The loop of its own.

    async def _open(self) -> None:
        await self._grpc.__aenter__()
        self._control = Control(self._grpc.for_job(CONTROL), self.me)

    def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on our loop, also below a notebook's running one. Ctrl-C gives it up."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                with suppress(TimeoutError):
                    return future.result(0.5)
        except (KeyboardInterrupt, SystemExit):
            future.cancel()
            with suppress(FutureCancelledError, TimeoutError, VflError):
                future.result(5.0)
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __getitem__(self, party: str) -> pd.DataFrame:
        if party != self.me or self.data is None:
            raise KeyError(f"{party}: only {self.me}'s own table is here")
        return self.data

    def __iter__(self) -> Iterator[str]:
        return iter(() if self.data is None else (self.me,))

    def __len__(self) -> int:
        return int(self.data is not None)

    def __repr__(self) -> str:
        others = ", ".join(name for name in self._names if name != self.me)
        return f"Federation.connect(me={self.me!r}, with {others})"


@dataclass(frozen=True)
class Asked:
    """What is to be run, and this party's own seat in it."""

    program: Program[Any]
    action: Action
    parameters: Parameters
    seat: Seat
    role: Role
    parties: tuple[str, ...]
    seed: int
    run: str
    tables: Mapping[str, str]

    def proposal(self, record: Record, party: str) -> Propose:
        """What `party` is asked."""
        return Propose(
            job=record.job,
            attempt=record.attempt,
            program=self.program.name,
            action=self.action,
            parameters=self.parameters.model_dump(mode="json"),
            parties=list(self.parties),
            table=self.tables.get(party, ""),
            run=self.run,
            seed=self.seed,
            schemas=self.program.schemas(),
            version=release(),
        )


class _Talk:
    """The conversation about one attempt with all others; each is heard by a task of its own."""

    def __init__(self, control: Control, about: dict[str, Any], others: Sequence[str]) -> None:
        self.about, self.others = about, tuple(others)
        self.steps: dict[str, Sequence[int]] = {}
        self._control = control
        self._inboxes: dict[str, asyncio.Queue[Word | VflError]] = {
            party: asyncio.Queue() for party in others
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[VflError] = asyncio.get_running_loop().create_future()

    def listen(self) -> None:
        """From here on the others are heard, and know that we are here."""
        self._tasks = [asyncio.create_task(self._hear(party)) for party in self.others]
        self._tasks.append(renewing(self._control, self.others, Renew(**self.about)))

    async def stop(self) -> None:
        """Hear no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def say(self, word: Callable[[], Word]) -> None:
        """The same to all."""
        for party in self.others:
            await self._control.say(party, word())

    async def answers(self, state: str) -> None:
        """Until all have answered `state`; whoever refuses first is raised."""
        tasks = [asyncio.create_task(self.answer(party, state)) for party in self.others]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, party: str, state: str) -> None:
        """Until `party` has answered `state`."""
        while True:
            word = await self._next(party, Answer)
            if word.state == "refused":
                raise error_of(party, word.scope, word.error, word.reason)
            if word.state == state:
                self.steps[party] = word.steps
                return

    async def ends(self) -> dict[str, str]:
        """Until each role has ended; the digests of their parts. Raises what one failed with."""
        digests = {}
        for party in self.others:
            word = await self._next(party, Ended)
            if word.digest:
                digests[party] = word.digest
        return digests

    async def unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`'s result, or what one of the others failed with before it could tell our role."""
        task, failed = asyncio.ensure_future(work), self._failed
        both: set[asyncio.Future[Any]] = {task, failed}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():  # our role has most likely heard it too, and in more words
                await asyncio.wait({task}, timeout=GRACE)
            if not task.done():
                raise failed.result()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _next(self, party: str, kind: type[W]) -> W:
        word = await self._inboxes[party].get()
        if isinstance(word, VflError):
            raise word
        if not isinstance(word, kind):
            raise ProtocolError(f"expected {kind.kind} from {party} in 'jobs', got {word.kind}")
        return word

    async def _hear(self, party: str) -> None:
        while True:
            word: Word | VflError
            try:
                word = await self._control.hear(party)
                if (word.job, word.attempt) != (self.about["job"], self.about["attempt"]):
                    continue
            except VflError as error:
                word = error.at(party, "jobs")
            if isinstance(word, Ended) and word.error:
                word = error_of(word.party or party, word.scope, word.error, word.reason)
            self._inboxes[party].put_nowait(word)
            if isinstance(word, VflError):
                if not self._failed.done():
                    self._failed.set_result(word)
                return


W = TypeVar("W", Answer, Ended)

"""A federation of processes: this party calls, the others serve (`vfl serve`).

Takes part: this party, as the caller of jobs and with its own role in them; `protocols.service.jobs` says who
learns what of a job before it runs. An estimator takes it like a mapping of DataFrames, but each other party
fills its own seat, from its own table, and keeps its own part.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd

from protocols.data.tables import own_table
from protocols.errors import (
    ConfigError,
    LineError,
    VflError,
    marked,
    nearest,
)
from protocols.files import release
from protocols.network.frames import CONTROL, Limits
from protocols.network.grpc import Change, Grpc
from protocols.parts import digest, save_part
from protocols.party import Role, Run
from protocols.policy.rules import Action
from protocols.programs import P, Parameters, Program, Seat
from protocols.progress import Report
from protocols.randomness import standard_torch
from protocols.record.rows import CUT
from protocols.service.config import Parties
from protocols.service.conversation import FAREWELL, Talk
from protocols.service.jobs import Cancel, Control, Over, Propose, Sealed, Start
from protocols.service.journal import Notes
from protocols.service.role import said_of, serve_role
from protocols.service.store import Record, Store, common_step

T = TypeVar("T")
PATIENCE = 60.0  # seconds to wait for a party that is away, before a job starts and after it was cut off
AT_ONCE = 2.0  # seconds for a party that is there to be reached, before it is said that it is waited for
TRIES = 5  # attempts in a row that come no step further


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
        if data is not None:
            with marked(me, "connect"):
                data = own_table(data)
        strangers = [party for party in tables or {} if party not in book or party == me]
        if strangers:
            raise ConfigError(
                f"tables names {strangers[0]}, which is no other party{nearest(strangers[0], book)}"
            )
        self.me, self.data, self.patience = me, data, patience
        self._names, self._tables = tuple(book), dict(tables or {})
        self._grpc = Grpc(
            me,
            book,
            None if insecure else parties.credentials(me),
            insecure=insecure,
            limits=limits,
            revoked=parties.revoked,
            on_change=self._changed,
        )
        self.store = Store(Path(store) if store is not None else Path(file).parent / f"{me}-store")
        self._notes = Notes(self.store, me)
        self._talk: Talk | None = None
        self._busy = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"vfl-{me}", daemon=True)
        self._thread.start()
        try:
            self._there(self._open())
        except BaseException:
            self._stop()
            raise
        atexit.register(self.close)

    def holding(self, data: pd.DataFrame) -> Connected:
        """The same connection with another table of this party's, as one with the rows for the test."""
        other = copy.copy(self)
        with marked(self.me, "connect"):
            other.data = own_table(data)
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
        """Do what `Federation.execute` does. run: the job that trained. `Run.job` names this job.

        seed: not used. Each party, this one too, draws a seed of its own from the operating system.

        An attempt that is cut off, here or at any party, is made again from the last step that all have a
        checkpoint of, at most `TRIES` times in a row without getting further. So is a job that an earlier
        process of this party began and did not end, when it is asked for again with the same tables and
        parameters.
        """
        if self.me not in parties:
            raise ConfigError(f"{self.me} takes no part: {', '.join(parties)} do; connect as one of them")
        with self._busy:
            try:
                return self._execute(program, action, parameters, seat(self.me), parties, on_progress, run)
            finally:
                self.store.clear_scratch()

    def _execute(
        self,
        program: Program[P],
        action: Action,
        parameters: P,
        own: Seat,
        parties: Sequence[str],
        on_progress: Report | None,
        run: str,
    ) -> Run:
        if own.modules:
            raise ConfigError(
                f"{', '.join(own.modules)}: a module of one's own cannot cross the network; name a model "
                "that is registered at every party (`vfl.models`), or leave it out"
            )
        with standard_torch():
            with marked(self.me, action):
                role = program.role(action, parameters, own)
            asked = Asked(program, action, parameters, own, role, tuple(parties), run, self._tables)
            return self._there(self._job(asked, on_progress))

    def close(self) -> None:
        """Say goodbye to the parties. Closing twice does nothing."""
        if self._thread.is_alive():
            with suppress(VflError):
                self._there(self._leave())
            self._stop()
        atexit.unregister(self.close)

    # A job.

    async def _job(self, asked: Asked, on_progress: Report | None) -> Run:
        record, tries, before = self._begin(asked), 0, (False, 0)
        try:
            with marked(self.me, asked.action):
                self._notes.begin()
                self._notes.tidy()
                await self._clear()
                while True:
                    await self._meet(asked, on_progress)
                    try:
                        return await self._attempt(record, asked, on_progress)
                    except LineError:
                        self._notes.end(record, "failed", "a line was cut")
                        done = self.store.checkpoints(record.job).reached
                        tries, before = (tries + 1 if done <= before else 1), max(done, before)
                        if tries == TRIES:
                            raise
                        await asyncio.sleep(0.1 * 2**tries)
                        record = self._next(record)
        except asyncio.CancelledError:
            self._notes.end(record, "cancelled", "interrupted")
            self.store.checkpoints(record.job).drop()
            raise
        except LineError:  # it can be asked for again
            raise
        except VflError as error:
            self._notes.end(record, "failed", type(error).__name__)
            self.store.checkpoints(record.job).drop()
            raise

    def _next(self, record: Record) -> Record:
        """Return the record to try after a cut-off attempt. For predictions it is a new job."""
        if record.action == "predict":
            return record.model_copy(update={"job": secrets.token_hex(8)})
        return record.model_copy(update={"attempt": record.attempt + 1})

    async def _clear(self) -> None:
        """Tell the others which jobs are over, where an earlier process of ours could not tell them."""
        for old in self.store.resumable():
            if old.state in ("done", "cancelled"):
                over = Over(job=old.job, attempt=old.attempt)
                others = [party for party in old.parties if party in self._grpc.peers]
                await Talk(self._control, {}, others).tell(over)
                self.store.checkpoints(old.job).drop()

    def _begin(self, asked: Asked) -> Record:
        """Begin a new job, or the next attempt at one that an earlier process of ours did not end."""
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
            state="proposed",
            granted="person",
            table_digest=asked.seat.fingerprint,
            created=now,
            updated=now,
        )
        for old in self.store.resumable():
            same = old.request == new.request and old.table_digest == new.table_digest
            if same and old.state == "failed":
                return old.model_copy(update={"attempt": old.attempt + 1})
        return new

    async def _attempt(self, record: Record, asked: Asked, on_progress: Report | None) -> Run:
        about: dict[str, Any] = {"job": record.job, "attempt": record.attempt}
        checkpoints = self.store.checkpoints(record.job)
        record = self._notes.state(record, "proposed")
        talk = self._talk = Talk(self._control, about, [p for p in asked.parties if p != self.me])
        name = f"{record.job}.{record.attempt}"
        try:
            async with self._grpc.for_job(name, self._notes.late(record, talk.fail)) as post:
                await self._agree(record, asked, talk, on_progress)
                agreed = talk.agreed.values()
                aligned = checkpoints.aligned and all(said.aligned for said in agreed)
                done = common_step([checkpoints.steps, *(said.steps for said in agreed)])
                checkpoints.agree(done, aligned)
                await talk.say(Start(**about, done=done, aligned=aligned))
                self._notes.state(record, "running")
                run = await talk.unless_failed(
                    serve_role(
                        post,
                        asked.role,
                        name=self.me,
                        parties=asked.parties,
                        seed=checkpoints.seed,
                        job=name,
                        on_progress=on_progress,
                        checkpoints=checkpoints if asked.action != "predict" else None,
                        speaks=asked.program.speaks.get(asked.action, ()),
                        on_entry=self._notes.entered(record),
                    )
                )
                post.finish()
                cut = ""
                try:  # late mail is on its way until all have ended: it is still ours to take down
                    await self._seal(record, asked, talk, run)
                except LineError:
                    if asked.action != "predict":  # else we have what we asked for
                        raise
                    cut = CUT
            self._notes.state(record, "done", cut)
            await talk.tell(Over(**about))
            checkpoints.drop()
            return replace(run, job=record.job)
        except BaseException as error:
            over = [] if isinstance(error, LineError) else [Over(**about)]
            # A party that hears this before the Abort of the one that failed has the reason all the same.
            await talk.tell(Cancel(**about, why=_why(error)), *over)
            raise
        finally:
            self._talk = None
            await talk.stop()

    async def _agree(self, record: Record, asked: Asked, talk: Talk, on_progress: Report | None) -> None:
        for party in talk.others:
            await self._control.say(party, asked.proposal(record, party))
        talk.listen()
        await talk.agree(on_progress)

    async def _seal(self, record: Record, asked: Asked, talk: Talk, run: Run) -> None:
        """Keep our part, and let all others keep theirs."""
        digests = await talk.ends()
        if asked.action != "predict":
            seat = replace(asked.seat, job=record.job, store=self.store.folder)
            part = asked.program.keep(asked.parameters, seat, run.results[self.me])
            others = {party: digests.get(party, "") for party in talk.others}
            await asyncio.to_thread(save_part, self.store.parts, record.job, replace(part, others=others))
            digests |= {self.me: digest(part)}
        await asyncio.to_thread(self._notes.ledger.flush)  # what others call done is on our disk
        await talk.say(Sealed(**talk.about, digests=digests))
        await talk.ends()

    async def _meet(self, asked: Asked, on_progress: Report | None) -> None:
        for party in asked.parties:
            if party == self.me or await self._grpc.reachable(party, min(AT_ONCE, self.patience)):
                continue
            step = f"waiting until {party} is reached"
            if on_progress is not None:
                on_progress(step, 0, 1)
            if not await self._grpc.reachable(party, self.patience):
                said = self._grpc.peer(party).cause
                raise LineError(
                    f"{party} was not reached within {self.patience:g} s: {said}; does `vfl serve` run there?"
                )
            if on_progress is not None:
                on_progress(step, 1, 1)

    def _changed(self, change: Change) -> None:
        """Handle a peer's restart: its new process does not know what the old one agreed to."""
        if (
            self._talk is not None
            and change.state in ("left", "restarted")
            and change.peer in self._talk.others
        ):
            self._talk.fail(LineError(change.reason).at(change.peer, "jobs"))

    # The loop of its own.

    async def _open(self) -> None:
        self._control = Control(self._grpc.for_job(CONTROL), self.me)
        await self._grpc.__aenter__()
        self._notes.restarted()

    async def _leave(self) -> None:
        mine = asyncio.current_task()
        jobs = [task for task in asyncio.all_tasks() if task is not mine]
        for task in jobs:
            task.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await self._grpc.__aexit__(None, None, None)

    def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on our loop, even below a notebook's running one. Ctrl-C cancels it, and waits a while
        until the others are told."""
        result: Future[T] = Future()
        tasks: list[asyncio.Task[None]] = []

        async def run() -> None:
            try:
                result.set_result(await work)
            except BaseException as error:
                result.set_exception(error)

        self._loop.call_soon_threadsafe(lambda: tasks.append(self._loop.create_task(run())))
        try:
            while not result.done():
                wait([result], 0.5)
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            wait([result], 2 * FAREWELL)
            raise
        return result.result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._notes.close()

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


def _why(error: BaseException) -> str:
    if not isinstance(error, VflError):
        return ""
    party, scope, _, reason = said_of(error)
    return f"{'/'.join(filter(None, (party, scope)))}: {reason}"


@dataclass(frozen=True)
class Asked:
    """The action to run, and this party's own seat in it."""

    program: Program[Any]
    action: Action
    parameters: Parameters
    seat: Seat
    role: Role
    parties: tuple[str, ...]
    run: str
    tables: Mapping[str, str]

    def proposal(self, record: Record, party: str) -> Propose:
        """Return the proposal for `party`."""
        return Propose(
            job=record.job,
            attempt=record.attempt,
            program=self.program.name,
            action=self.action,
            parameters=self.parameters.model_dump(mode="json"),
            parties=list(self.parties),
            table=self.tables.get(party, ""),
            run=self.run,
            schemas=self.program.schemas(),
            version=release(),
        )

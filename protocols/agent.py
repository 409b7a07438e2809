"""The agent behind `vfl serve`: one organisation's tables, its policy, and its part in others' jobs.

Takes part: one party, about its own tables. It listens to its peers, and hands each word to the attempt that
it is about. `protocols.consent` decides whether it takes part, `protocols.attempt` takes part.
"""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from protocols.attempt import Attempts, ended_by, refusal
from protocols.config import Parties, PartyConfig
from protocols.consent import Consent
from protocols.errors import (
    CancelledJobError,
    ConfigError,
    DataError,
    LineError,
    ProtocolError,
    VflError,
)
from protocols.inbox import Inbox
from protocols.jobs import (
    Claim,
    Control,
    Ended,
    Over,
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
from protocols.known import check_names
from protocols.logs import log
from protocols.notes import Notes
from protocols.wire.frames import CONTROL, Limits
from protocols.wire.remote import Change, Grpc, Peer

Key = tuple[str, str, int]  # caller, job, attempt
STATUS = "status.json"
PULSE = 2.0  # seconds between two writings of it
MOST = 100  # attempts of one caller that are open here at once


class Agent:
    """One party that waits for proposals, over a `Grpc` that is entered and carries many jobs."""

    def __init__(self, config: PartyConfig, parties: Parties, grpc: Grpc, notes: Notes) -> None:
        self.config, self.parties, self.grpc, self.notes = config, parties, grpc, notes
        self.store = notes.store
        self.attempts = Attempts(Consent(config, parties, notes), grpc)
        self._control = Control(grpc.for_job(CONTROL), config.name)
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
            await self._say(peer, self._how_itended_by(peer, word))

    async def _begin(self, key: Key, proposal: Propose) -> None:
        peer, job, attempt = key
        if sum(caller == peer for caller, *_ in self._open) >= MOST:
            error = ProtocolError(f"{MOST} jobs of {peer} are open here already; end one of them")
            about: dict[str, Any] = {"job": job, "attempt": attempt}
            return await self._say(peer, refusal(about, error.at(self.config.name, proposal.action)))
        older = [
            entry for (*of, number), entry in self._open.items() if of == [peer, job] and number < attempt
        ]
        for inbox, _ in older:
            inbox.lose(LineError(f"{peer} made another attempt at this job"))
        inbox = Inbox(peer, partial(self.store.said, "cancel", job))
        tasks = [task for _, task in older]
        say = partial(self._say, peer)
        task = asyncio.create_task(self.attempts.take_part(peer, proposal, inbox, tasks, say))
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

    def _how_itended_by(self, peer: str, word: Claim | Start | Renew | Sealed) -> Ended:
        """For a caller that speaks of an attempt that is not open here, and may have missed its end."""
        about: dict[str, Any] = {"job": word.job, "attempt": word.attempt}
        record: Record | None = None
        error: VflError = LineError(
            "the job is not open here; was this party restarted, or is it of another release?"
        )
        with suppress(DataError):
            record = self.store.find(word.job)
        if record is not None and (record.caller, record.attempt) == (peer, word.attempt):
            if record.state == "done":
                return Ended(**about)
            kind = CancelledJobError if record.state == "cancelled" else LineError
            error = kind(record.reason or str(error))
        return ended_by(about, error.at(self.config.name, "jobs"))

    # Telling.

    async def _say(self, to: str, word: Word) -> None:
        with suppress(LineError):  # a caller that is gone comes back with another attempt
            await self._control.say(to, word)


async def serve_party(config: PartyConfig, parties: Parties, *, limits: Limits | None = None) -> None:
    """Serve one party until it is told to stop (SIGTERM, SIGINT).

    Errors as of `check_names`, `Grpc` and `Ledger.open`.
    """
    check_names(config)
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

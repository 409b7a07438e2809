"""The agent behind `vfl serve`: one organisation's tables, its policy, and its part in others' jobs.

Takes part: one party, about its own tables. It listens to its peers, and hands each word to the attempt that
it is about. `protocols.service.consent` decides whether it takes part, `protocols.service.attempt` takes
part. No word, line, disk or table ends it: each of its tasks goes on by `protocols.service.steady`, and
`protocols.service.health` says how it is.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from protocols.errors import (
    CancelledJobError,
    ConfigError,
    DataError,
    LineError,
    ProtocolError,
    VflError,
)
from protocols.files import release
from protocols.logs import log
from protocols.network.frames import CONTROL, Limits
from protocols.network.grpc import Change, Grpc, Peer
from protocols.programs import load_all
from protocols.service.attempt import Attempts, ended_by, refusal
from protocols.service.budget import ENOUGH, TOO_MUCH, Budget, metered
from protocols.service.check import check_names
from protocols.service.config import Parties, PartyConfig
from protocols.service.consent import Consent
from protocols.service.conversation import Inbox
from protocols.service.health import BEAT, PULSE, Health
from protocols.service.jobs import (
    Claim,
    Control,
    Ended,
    NoWordError,
    Over,
    Prepare,
    Propose,
    Renew,
    Sealed,
    Start,
    Word,
)
from protocols.service.journal import Notes
from protocols.service.steady import steadily, tell
from protocols.service.store import Record, Store

Key = tuple[str, str, int]  # caller, job, attempt
MOST = 100  # attempts of one caller that are open here at once
PAUSE = 0.05  # seconds
TELL = 0.25  # seconds to tell a caller something; one that has taken nothing for long is not waited for


class Agent:
    """One party that waits for proposals, over a `Grpc` that is entered and carries many jobs."""

    def __init__(
        self, config: PartyConfig, parties: Parties, grpc: Grpc, notes: Notes, health: Health | None = None
    ) -> None:
        self.config, self.parties, self.grpc, self.notes = config, parties, grpc, notes
        self.store = notes.store
        self.health = health or Health(self.store)
        self.attempts = Attempts(Consent(config, parties, notes), grpc)
        self._control = Control(grpc.for_job(CONTROL), config.name)
        self._open: dict[Key, tuple[Inbox, asyncio.Task[None]]] = {}
        self._budgets = {peer: Budget() for peer in grpc.peers}
        self._ill: set[str] = set()  # peers whose last word was none
        self._seen: dict[str, dict[str, Any]] = {}  # of each peer, for `vfl status`
        self._versions: dict[str, str] = {}  # of the peers that proposed something
        self._version = release()

    async def serve(self) -> None:
        """Serve until this task is cancelled."""
        self.notes.restarted()
        try:
            with self.health.watched(self._told):
                async with asyncio.TaskGroup() as group:
                    group.create_task(steadily(self._beat, BEAT))
                    group.create_task(steadily(self._look, PULSE))
                    for peer in self._reachable():
                        step, wait = partial(self._attend, peer), partial(self._wait, peer)
                        group.create_task(steadily(step, wait=wait, tell=partial(self._tell, peer)))
        finally:
            tasks = [task for _, task in self._open.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def changed(self, change: Change) -> None:
        """Give up what a peer's process proposed once that process is gone. Called by `grpc`."""
        if change.state in ("left", "restarted"):
            for (caller, *_), (inbox, _) in self._open.items():
                if caller == change.peer:
                    inbox.lose(LineError(change.reason))

    # How it is.

    async def _beat(self) -> None:
        self.health.beat()

    async def _look(self) -> None:
        """Look at the state of the peers."""
        found = await asyncio.gather(*map(self._peer, self.grpc.peers))
        self._seen = dict(zip(self.grpc.peers, found, strict=True))

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

    def _told(self) -> dict[str, Any]:
        """Return what `vfl status` shows. Called in another thread."""
        about = {"party": self.config.name, "version": self._version, "address": self.grpc.address}
        return {**about, "peers": self._seen}

    # Who says what about which job.

    def _reachable(self) -> list[str]:
        """The peers that there can be a line to: of two of whom neither can be dialled, no job has both."""
        found = []
        for peer in self.grpc.peers:
            with suppress(ConfigError):
                self.grpc.peer(peer)
                found.append(peer)
        return found

    async def _attend(self, peer: str) -> None:
        """Listen to `peer`, as far as there is time for it beside the others."""
        budget = self._budgets[peer]
        await metered(self._listen(peer), budget.take)
        while budget.taken > TOO_MUCH:
            await asyncio.sleep(PAUSE)

    async def _listen(self, peer: str) -> None:
        """Give the next word of `peer` to the job that it is about."""
        try:
            word = await self._control.hear(peer)
        except NoWordError as error:  # what else there is against hearing it is waited out
            if peer not in self._ill:  # once, until it says a word that is one
                self._ill.add(peer)
                tell(error, peer=peer)
            return
        self._ill.discard(peer)
        await self._take(peer, word)

    async def _wait(self, peer: str, seconds: float) -> None:
        """Wait `seconds`, or until `peer` is back, so that it is heard at once."""
        if self.grpc.connected(peer):
            await asyncio.sleep(seconds)
        else:
            await self.grpc.reachable(peer, seconds)

    def _tell(self, peer: str, error: BaseException) -> None:
        if not isinstance(error, LineError | ProtocolError):  # that it is lost or refused, a line says itself
            tell(error, peer=peer)

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
        elif isinstance(word, Claim | Prepare | Start | Renew | Sealed):
            await self._say(peer, self._how_it_ended(peer, word))

    async def _begin(self, key: Key, proposal: Propose) -> None:
        peer, job, attempt = key
        if error := self._too_many(peer):
            about: dict[str, Any] = {"job": job, "attempt": attempt}
            return await self._say(peer, refusal(about, error.at(self.config.name, proposal.action)))
        older = [
            entry for (*of, number), entry in self._open.items() if of == [peer, job] and number < attempt
        ]
        for inbox, _ in older:
            inbox.lose(LineError(f"{peer} made another attempt at this job"))
        inbox = Inbox(peer, partial(self.store.said, "cancel", job))
        tasks = [task for _, task in older]
        say, take = partial(self._say, peer), self._budgets[peer].take
        task = asyncio.create_task(self.attempts.take_part(peer, proposal, inbox, tasks, say, take))
        self._open[key] = inbox, task
        task.add_done_callback(partial(self._close, key))

    def _too_many(self, peer: str) -> VflError | None:
        """Say why another proposal of `peer` is not taken up, since each costs this party some writing."""
        if sum(caller == peer for caller, *_ in self._open) >= MOST:
            return ProtocolError(f"{MOST} jobs of {peer} are open here already; end one of them")
        if self._budgets[peer].taken > ENOUGH:
            return LineError(f"{peer} proposes too much at once; propose it again in a while")
        return None

    def _close(self, key: Key, task: asyncio.Task[None]) -> None:
        inbox, _ = self._open.pop(key)
        if inbox.over:
            self._forget_checkpoints(key[0], key[1])
        if not task.cancelled() and task.exception() is not None:
            log.error("unexpected error", exc_info=task.exception())

    def _forget_checkpoints(self, caller: str, job: str) -> None:
        """Delete the checkpoints of `job`, if it is `caller`'s and has ended here."""
        with suppress(DataError):
            record = self.store.find(job)
            open_still = any(known == job for _, known, _ in self._open)
            if record is not None and record.caller == caller and not open_still:
                self.store.checkpoints(job).drop()

    def _how_it_ended(self, peer: str, word: Claim | Prepare | Start | Renew | Sealed) -> Ended:
        """Tell a caller how an attempt ended that is not open here, since it may have missed the end."""
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
        """Say a word if `to` can be told at once. A caller that is gone comes back with another attempt."""
        with suppress(LineError, ProtocolError, TimeoutError):
            async with asyncio.timeout(TELL):
                await self._control.say(to, word)


async def serve_party(config: PartyConfig, parties: Parties, *, limits: Limits | None = None) -> None:
    """Serve one party until it is cancelled.

    Raises what `check_names`, `Grpc` and `Record.open` raise.
    """
    check_names(config)
    load_all()
    store = Store(config.store)
    notes, health = Notes(store, config.name), Health(store)
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
            healthy=lambda: not health.why(),
        )
        # Before it can be reached: what comes is heard.
        agent = Agent(config, parties, grpc, notes, health)
        with suppress(LineError):  # on leaving: a peer that is in trouble is no reason to fail
            async with grpc:
                log.info("serving", extra={"party": config.name, "address": grpc.address or "-"})
                with suppress(asyncio.CancelledError):
                    await agent.serve()
                log.info("stopping", extra={"party": config.name})
    finally:
        notes.close()

"""One job's mail over the lines of a party, which carry the mail of many jobs.

Who takes part and who learns what is the job's affair. What this keeps apart is that no job sees another's
mail, waits behind it, or outlives a process that it was talking to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from protocols.errors import ConfigError, LineError
from protocols.network.frames import CONTROL
from protocols.network.link import Link
from protocols.wire.transport import Envelope, Mailbox

OnLate = Callable[[Envelope], None]
_IN_A_ROW = 32  # envelopes that may be taken at once until others come to run
ABORT = "abort"  # the scope in which a party says that it has failed; waiting there is not waiting for mail


class Lines(Protocol):
    """What one job's mail needs of the party's network, which is a `Grpc`."""

    name: str
    waits: int  # how many roles wait for mail now

    async def send(self, post: Post, envelope: Envelope) -> None: ...

    def link(self, peer: str) -> Link: ...

    def begin_wait(self) -> None: ...

    def release(self, link: Link, envelope: Envelope) -> None: ...

    def forget(self, post: Post) -> None: ...

    def raise_failure(self, peer: str) -> None: ...


class Post:
    """A `Transport` for one job, made by `Grpc.for_job` and used as `async with grpc.for_job(job) as post`.

    A peer that leaves or comes back as another process is lost to this job for good, and to later jobs not:
    what waits for it raises LineError, also where the peer is there again. The job "" is the conversation
    about jobs and outlives its peers: its waits raise LineError once, and it may ask again; its mail comes in
    the order of arrival, whatever its numbers, and a body is at most 1 MiB.

    A job's name belongs to one attempt: mail of an earlier one of the same name would be taken for its own.

    on_late: called on the party's loop with what is discarded as its scope was left before anybody took it,
    and perhaps with a repeat of what was taken. It must not raise.
    """

    def __init__(self, grpc: Lines, job: str | None, on_late: OnLate | None = None) -> None:
        self.job, self._grpc, self._on_late = job, grpc, on_late
        self.mailbox = Mailbox(grpc.name, numbered=job != CONTROL)
        self._lost: dict[str, str] = {}  # peer -> why there will be no more from it
        self._ended = False
        self._asked = 0  # for mail
        self._awaited: list[str] = []  # whom the job waits for now
        self._since = 0.0  # seconds of the loop's clock, when it last began or ended to wait

    async def deliver(self, envelope: Envelope) -> None:
        """Hand `envelope` over; waits while the peer has too much to acknowledge."""
        if self.job is not None and envelope.job != self.job:
            raise ConfigError(f"{envelope!r} is of job {envelope.job!r}; this is the post of {self.job!r}")
        with self._waits_for(envelope.receiver, envelope.scope):
            await self._grpc.send(self, envelope)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        """The next envelope from `sender` in `scope`."""
        grpc = self._grpc
        if receiver != grpc.name:
            raise ConfigError(f"this is {grpc.name}'s transport, not {receiver}'s")
        link = grpc.link(sender)
        self._asked += 1
        if self._asked % _IN_A_ROW == 0:  # what a peer has sent much of must not hold up the loop
            await asyncio.sleep(0)
        if self.mailbox.holds(sender, scope):
            envelope = await self.mailbox.take(sender, scope)
        else:
            self.check(sender)
            counts = scope != ABORT and self.job != CONTROL
            if counts:
                grpc.begin_wait()
            try:
                with self._waits_for(sender, scope):
                    envelope = await self.mailbox.take(sender, scope)
            finally:
                grpc.waits -= counts
        grpc.release(link, envelope)
        return envelope

    def silence(self) -> tuple[float, str]:
        """Return for how many seconds the job has only waited, and for whom; 0 where it does not wait."""
        if not self._awaited:
            return 0.0, ""
        seconds = asyncio.get_running_loop().time() - self._since
        return seconds, ", ".join(dict.fromkeys(self._awaited))

    @contextmanager
    def _waits_for(self, peer: str, scope: str) -> Iterator[None]:
        if scope == ABORT:
            yield
            return
        time = asyncio.get_running_loop().time
        self._awaited.append(peer)
        self._since = time()
        try:
            yield
        finally:
            self._awaited.remove(peer)
            self._since = time()

    def close(self, receiver: str, scope: str) -> None:
        """Free `scope`."""
        self._discard(self.mailbox.close(scope))

    def finish(self) -> None:
        """Note that the role has ended: whatever comes from now on is late."""
        self._discard(self.mailbox.clear())

    def late(self, envelope: Envelope) -> None:
        """Report mail that the mailbox did not keep as late, unless it is a repeat in an open scope."""
        if self._on_late is not None and self.mailbox.has_left(envelope.scope):
            self._on_late(envelope)

    def _discard(self, dropped: list[Envelope]) -> None:
        for envelope in dropped:
            self.late(envelope)
            self._grpc.release(self._grpc.link(envelope.sender), envelope)

    def end(self) -> None:
        """Free everything. What comes for this job from now on is discarded; what waits is a ConfigError."""
        if self._ended:
            return
        self._ended = True
        self._grpc.forget(self)
        for _, sender, scope, future in self.mailbox.waiting():
            future.set_exception(ConfigError(f"{self._said} has ended; {scope!r} still waited for {sender}"))
        self.finish()

    def check(self, peer: str) -> None:
        """Raise an error if this job cannot speak with `peer` now."""
        if self._ended:
            raise ConfigError(f"{self._said} has ended")
        if peer in self._lost:
            raise LineError(self._lost[peer])
        self._grpc.raise_failure(peer)

    def lose(self, peer: str, reason: str) -> None:
        """Note that `peer` is lost: nothing that it says from now on is part of this job."""
        if self.job != CONTROL:
            self._lost.setdefault(peer, reason)

    @property
    def _said(self) -> str:
        return "this transport" if self.job is None else f"job {self.job!r}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

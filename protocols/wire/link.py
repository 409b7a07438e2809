"""One peer, on the network's thread: the streams that carry its line, dialled or answered, one at a time.

Everything here runs on the network's event loop. What a stream brings goes to the party's own loop through
the `Sink`, whose methods hand over to that loop."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import grpc
import grpc.aio

from protocols.errors import ConfigError, LineError, ProtocolError, VflError
from protocols.wire.line import Limits, Line, RefusedError, weight
from protocols.wire.transport import Envelope

METHOD = "/vfl.parties.v1.Parties/Line"
FINAL = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    | {"UNIMPLEMENTED"}
)
_SOONEST, _LATEST = 0.05, 5.0  # seconds between two dials
_ACK_AFTER = 0.02  # seconds
_HINTS = {
    "Hostname Verification": "what answers there has no certificate for {peer}",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not from our authority, or not valid now",
    "Socket closed": "does it accept our certificate's authority, and speak TLS?",
}
_log = logging.getLogger(__name__)

Read = Callable[[], Awaitable[bytes | None]]  # None: the stream has ended
Write = Callable[[bytes], Awaitable[None]]


class Sink(Protocol):
    """Where a link reports. Each may be called from the network's thread."""

    def arrived(self, link: Link, envelope: Envelope) -> None:
        """An envelope is complete."""

    def freed(self, link: Link) -> None:
        """The peer acknowledged something while a deliver waits for room."""

    def failed(self, link: Link, kind: type[VflError], reason: str) -> None:
        """What waits for the peer waits in vain."""

    def recovered(self, link: Link) -> None:
        """The peer is there."""

    def waiting(self) -> bool:
        """Whether the role waits for anything."""


class Link:
    """One peer's line and the stream that carries it now."""

    def __init__(self, line: Line, address: str | None, sink: Sink) -> None:
        self.line, self.address, self._sink = line, address, sink
        self.limits: Limits = line.limits
        self.blocked = False  # a deliver waits for room
        self.paused = False  # the stream is not read, because the role is behind
        self.final: RefusedError | None = None  # why no stream will be tried or accepted any more
        self._cause = "it never answered" if address else "it never dialled"
        self._wake, self._room, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._free = asyncio.Event()  # no stream is open
        self._free.set()
        self._reader: asyncio.Task[None] | None = None
        self._opened: deque[float] = deque(maxlen=self.limits.streams)
        self._met = False
        self._over = False  # we have left
        self._patience: asyncio.TimerHandle | None = None
        self._ack: asyncio.TimerHandle | None = None
        self._wait_for_it()

    # Called by the transport.

    def queue(self, envelope: Envelope) -> None:
        """Send `envelope`."""
        if self.line.left or self.final:
            self.line.freed += weight(envelope)
            return
        self.line.queue(envelope)
        self._wake.set()

    def resume(self) -> None:
        """Read on, if there is room now."""
        self._room.set()

    def refuse(self, error: RefusedError) -> None:
        """Break the line for good."""
        if self.final is not None:
            return
        self.final = error
        _log.warning("%s: the line to %s is refused: %s", self.line.me, self.line.peer, error)
        kind = LineError if error.status == "FAILED_PRECONDITION" else ProtocolError
        self._sink.failed(self, kind, str(error))
        self._changed.set()
        if self._reader is not None:
            self._reader.cancel()

    async def leave(self) -> None:
        """Wait until the peer has everything, say Bye, and wait for the stream to end."""
        line = self.line
        while (line.pending or self._met) and not (line.left or self.final or line.said_bye):
            self._changed.clear()
            if not line.pending:
                line.leaving = True
                self._wake.set()
            await self._changed.wait()
        self._over = True
        await self._free.wait()

    def stop(self) -> None:
        """No timer outlives the transport."""
        for timer in (self._patience, self._ack):
            if timer is not None:
                timer.cancel()

    # Dialling and answering.

    async def dial(self, connect: Callable[[], grpc.aio.Channel]) -> None:
        """Keep a stream open until the line is broken for good."""
        pause = _SOONEST
        while self.final is None and not self._over:
            before = self.line.received, self.line.freed
            try:
                async with connect() as channel:
                    await self._dial_once(channel)
                self._cause = "the stream ended"
            except RefusedError as error:
                self.refuse(error)
            except grpc.aio.AioRpcError as error:
                self._cause = f"{error.code().name}: {_plain(error.details())}{self._hint(error)}"
                if error.code().name in FINAL:
                    self.refuse(RefusedError(error.code().name, f"{self.line.peer} refuses: {self._cause}"))
            except TimeoutError:
                self._cause = f"no answer within {self.limits.handshake:g} s"
            except ConfigError as error:
                self._cause = str(error)
            if self.final is not None:
                return
            _log.info("%s: no stream to %s: %s", self.line.me, self.line.peer, self._cause)
            # A peer that is there and then cut is dialled at once; one that is not, ever more seldom.
            pause = _SOONEST if before != (self.line.received, self.line.freed) else min(2 * pause, _LATEST)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def _hint(self, error: grpc.aio.AioRpcError) -> str:
        said = str(error.details())
        hints = (hint for sign, hint in _HINTS.items() if sign in said)
        return "".join(f" ({hint.format(peer=self.line.peer)})" for hint in hints)

    async def _dial_once(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(METHOD)()

        async def read() -> bytes | None:
            raw = await call.read()  # raises where the stream ended with an error
            return None if raw is grpc.aio.EOF else bytes(raw)

        async def write(raw: bytes) -> None:
            try:
                await call.write(raw)
            except asyncio.InvalidStateError:
                await read()  # the stream has ended, and says why

        try:
            async with asyncio.timeout(self.limits.handshake):
                await write(self.line.hello())
                hello = await read()
            if hello is not None:
                self._free.clear()
                self.line.greet(hello)
                await self._converse(read, write, call.done_writing)
        finally:
            call.cancel()
            self._free.set()
            self._changed.set()

    async def answer(self, hello: bytes, read: Read, write: Write) -> None:
        """Carry the line over a stream that the peer opened, in place of any earlier one."""
        if self.final is not None:
            raise RefusedError(self.final.status, str(self.final))
        if self._over:
            raise RefusedError("UNAVAILABLE", f"{self.line.me} is leaving")
        now = asyncio.get_running_loop().time()
        if len(self._opened) == self._opened.maxlen and now - self._opened[0] < 60.0:
            raise RefusedError(
                "UNAVAILABLE", f"{self.line.peer} opened {len(self._opened)} streams in a minute"
            )
        self._opened.append(now)
        while not self._free.is_set():
            if self._reader is not None:
                self._reader.cancel()
            await self._free.wait()
        self._free.clear()
        try:
            self.line.greet(hello)
            await write(self.line.hello())
            await self._converse(read, write, None)
            self._cause = "the stream ended"
        except RefusedError as error:
            if error.status not in ("ABORTED", "UNAVAILABLE"):
                self.refuse(error)
            raise
        finally:
            self._free.set()
            self._changed.set()

    # One stream.

    async def _converse(
        self, read: Read, write: Write, done_writing: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Both directions, until the stream ends or either side has said Bye."""
        self._found()
        self._reader = reader = asyncio.create_task(self._read(read))
        writer = asyncio.create_task(self._write(write))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if (
                writer.done()
                and writer.exception() is None
                and not reader.done()
                and done_writing is not None
            ):
                # The Bye is out. The peer ends the stream when it has read it.
                await done_writing()
                await asyncio.wait({reader}, timeout=2.0)
            for task in (reader, writer):
                if task.cancelled():
                    raise self.final or RefusedError("ABORTED", "a newer stream has taken this one's place")
                if task.done():
                    task.result()
        finally:
            self._reader = None
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            self._lost()

    async def _read(self, read: Read) -> None:
        line, loop = self.line, asyncio.get_running_loop()
        while (raw := await read()) is not None:
            freed = line.freed
            envelope = line.take(raw)
            if envelope is not None:
                self._sink.arrived(self, envelope)
            if line.freed != freed:
                self._changed.set()
                if self.blocked:
                    self._sink.freed(self)
            if line.left:
                self._sink.failed(self, LineError, f"{line.peer} has finished and left")
                return
            if line.prompt:
                self._wake.set()
            elif line.owed and self._ack is None:
                self._ack = loop.call_later(_ACK_AFTER, self._acknowledge)
            await self._make_room()

    async def _make_room(self) -> None:
        """Back-pressure: not reading fills the stream's window, and then the peer's deliver waits. While the
        role waits for anything, we read on: two parties, or three in a ring, may each wait for the next."""
        while self.line.arrived - self.line.released > self.limits.uncollected:
            self._room.clear()
            self.paused = True  # before looking, so that whoever changes what we look at sees it
            if self._sink.waiting() or self.line.arrived - self.line.released <= self.limits.uncollected:
                break
            await self._room.wait()
        self.paused = False

    def _acknowledge(self) -> None:
        self._ack = None
        self.line.ack_due = True
        self._wake.set()

    async def _write(self, write: Write) -> None:
        while not self.line.said_bye:
            self._wake.clear()
            while (raw := self.line.next_frame()) is not None:
                await write(raw)
            if not self.line.said_bye:
                await self._wake.wait()
        self._changed.set()

    # Patience.

    def _found(self) -> None:
        self._met = True
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        _log.info("%s: a stream to %s is open", self.line.me, self.line.peer)
        self._sink.recovered(self)

    def _lost(self) -> None:
        self.line.ack_due = False
        if not self.line.left:
            self._wait_for_it()

    def _wait_for_it(self) -> None:
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(self.limits.patience, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        where = f"at {self.address}" if self.address else "which dials us"
        reason = f"no connection to {self.line.peer}, {where}, for {self.limits.patience:g} s: {self._cause}"
        self._sink.failed(self, LineError, reason)


def _plain(details: Any) -> str:
    """A peer's words, bounded and in one line."""
    return "".join(c if c.isprintable() else " " for c in str(details or "no reason given")[:500])


async def quietly(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task

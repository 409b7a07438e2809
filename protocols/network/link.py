"""One peer, on the network's thread: the streams that carry its line, dialled or answered, one at a time.

Everything here runs on the network's event loop. What a stream brings goes to the party's own loop through
the `Sink`, whose methods hand over to that loop. Why there is no stream is said in words that tell what to
look at."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from protocols.errors import ConfigError, LineError, ProtocolError, VflError
from protocols.network.frames import (
    CONTROL,
    FINAL,
    Bucket,
    Limits,
    RefusedError,
    ToldError,
    parse_hello,
    plain,
    refusal,
    weight,
)
from protocols.network.line import Line
from protocols.network.parties_pb2 import Hello
from protocols.wire.transport import Envelope

_NO_HOST = "there is no such host; is its address in the book spelt right, and is DNS there?"
# What gRPC says, and what it means to the one who dials.
_HINTS = {
    "Hostname Verification": "what answers there has no certificate for {peer}",
    "is not in peer certificate": "what answers there has no certificate for {peer}",  # gRPC 1.72
    "expired": "its certificate has expired, or one of the two clocks is wrong",
    "not yet valid": "its certificate is not valid yet, or one of the two clocks is wrong",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not from our authority, or not valid now",
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS; is the port right?",
    "ALPN": "what answers there speaks TLS but not gRPC; is the port right?",
    "errors resolving": _NO_HOST,
    "DNS resolution failed": _NO_HOST,  # gRPC 1.72
    "Connection refused": "nothing listens there; is {peer} running, and the port right?",
    "Socket closed": "does it accept our certificate, and is our clock right?",
    "unexpected eof": "does it accept our certificate, and is our clock right?",
    "Handshake read failed": "what listens there hung up at once; is the port right?",
    "Method not found": "what answers there speaks gRPC but is no party; is the port right?",
}

_log = logging.getLogger("vfl")  # events and fields as `protocols.logs` lists them
METHOD = "/vfl.parties.v1.Parties/Line"
_SOONEST, _LATEST = 0.05, 5.0  # seconds between two dials
_ACK_AFTER = 0.02  # seconds
_FAREWELL = 2.0  # seconds: for a peer to end the stream after our last word

Read = Callable[[], Awaitable[bytes | None]]  # None: the stream has ended
Write = Callable[[bytes], Awaitable[None]]


class Sink(Protocol):
    """Where a link reports. Each may be called from the network's thread."""

    def arrived(self, link: Link, envelope: Envelope) -> None:
        """An envelope is complete."""

    def freed(self, link: Link) -> None:
        """The peer acknowledged something while a deliver waits for room."""

    def failed(self, link: Link, state: str, kind: type[VflError], reason: str) -> None:
        """Whatever waits for the peer fails: it is "lost", "restarted", "left" or "refused"."""

    def recovered(self, link: Link) -> None:
        """The peer is there."""

    def waiting(self) -> bool:
        """Whether a role waits for anything."""


@dataclass
class Dialled:
    """A new connection, with what our Hello asks for and the check of what its answer has to show."""

    channel: grpc.aio.Channel
    asks: dict[str, Any] = field(default_factory=dict)
    check: Callable[[Hello], None] = lambda hello: None


class Link:
    """One peer's line and the stream that carries it now."""

    def __init__(self, line: Line, address: str | None, sink: Sink) -> None:
        self.line, self.address, self._sink = line, address, sink
        self.limits: Limits = line.limits
        self.blocked = False  # a deliver waits for room
        self.connected = False
        self.heard: float | None = None  # when the last frame came, by the loop's clock
        self.late = 0  # envelopes that came for a scope that was left, or twice
        self.final: RefusedError | None = None  # why the line is broken, until it is tried again
        self.cause = "it never answered" if address else "it never dialled"
        self._barred: tuple[bytes, float] = b"", 0.0  # the session that is not answered until then
        self._loop = asyncio.get_running_loop()
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        self._free = asyncio.Event()  # no stream is open
        self._free.set()
        self._reader: asyncio.Task[None] | None = None
        self._opened: deque[float] = deque(maxlen=self.limits.streams)
        self._idle = Bucket(self.limits.idle_burst, self.limits.idle_rate, self._loop.time())
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._over = False  # we have left
        self._met = False
        self._patience: asyncio.TimerHandle | None = None
        self._ack: asyncio.TimerHandle | None = None
        self._names = {"party": line.me, "peer": line.peer}  # for the log
        self._wait_for_it()

    # Called by the transport.

    def queue(self, envelope: Envelope) -> None:
        """Send `envelope`."""
        if self.line.left or self.final:
            self.line.out.kept[envelope.job == CONTROL].left += weight(envelope)
            return
        self.line.out.queue(envelope)
        self._wake.set()

    def grant(self) -> None:
        """Tell the peer of more room, if there is enough, after mail was collected or when a role waits."""
        line = self.line
        if line.into.grant(self._sink.waiting()):
            line.ack_due = True
            self._wake.set()

    async def ping(self, patience: float) -> float:
        """Measure one round trip in seconds. Raises LineError if no answer comes in time."""
        if not self.connected:
            raise LineError(f"no connection to {self.line.peer}: {self.cause}")
        number = random.getrandbits(63)
        self._pings[number] = answer = self._loop.create_future()
        start = self._loop.time()
        self.line.ping(number)
        self._wake.set()
        try:
            async with asyncio.timeout(patience):
                await answer
        except TimeoutError:
            raise LineError(f"{self.line.peer} did not answer a ping within {patience:g} s") from None
        finally:
            del self._pings[number]
        return self._loop.time() - start

    def refuse(self, error: RefusedError) -> None:
        """Break the line."""
        if self.final is not None:
            return
        self.final, self.cause = error, str(error)
        if not isinstance(error, ToldError):  # what the peer objects to, it may have put right
            self._barred = self.line.peer_session, self._loop.time() + self.limits.again
        _log.warning("line refused", extra=self._names, exc_info=error)
        kind = LineError if error.status == "FAILED_PRECONDITION" else ProtocolError
        self._sink.failed(self, "refused", kind, str(error))
        self._changed.set()
        if self._reader is not None:
            self._reader.cancel()

    async def leave(self) -> None:
        """Wait until the peer has everything, say Bye, and wait for the stream to end."""
        line = self.line
        while (line.out.pending or self._met) and not (line.left or self.final or line.said_bye):
            self._changed.clear()
            if not line.out.pending:
                line.leaving = True
                self._wake.set()
            await self._changed.wait()
        self._over = True
        await self._free.wait()

    def stop(self) -> None:
        """Stop the link's timers, so that none outlives the transport."""
        for timer in (self._patience, self._ack):
            if timer is not None:
                timer.cancel()

    # Dialling and answering.

    async def dial(self, connect: Callable[[], Dialled]) -> None:
        """Keep a stream open. After a refusal it tries again slowly, since the cause may be mended."""
        pause, said = _SOONEST, ""
        dials, bound = 0, Bucket(self.limits.streams, self.limits.streams / 60.0, self._loop.time())
        while not self._over:
            dials += 1
            before = self.line.into.received, self.line.out.acknowledged
            try:
                dialled = connect()
                async with dialled.channel as channel:
                    await self._dial_once(channel, dialled)
                self.cause = "the stream ended"
            except RefusedError as error:
                self.refuse(error)
            except grpc.aio.AioRpcError as error:
                self.cause, status = cause(error, self.line.peer), error.code().name
                if status in FINAL:
                    self.refuse(ToldError(status, f"{self.line.peer} refuses: {self.cause}"))
            except TimeoutError:
                self.cause = (
                    f"no answer within {self.limits.handshake:g} s (is what listens there a party, and the "
                    "port right?)"
                )
            except ConfigError as error:
                self.cause = str(error)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                # A fault of ours is told, and must not end the dialling.
                self.cause = f"{type(error).__name__}; the reason is in the log"
                if self.cause != said:
                    _log.error("unexpected error", extra=self._names, exc_info=error)
            if self.final is not None:
                await asyncio.sleep(self.limits.again)
                continue
            if self.cause != said:  # once, not at each dial
                said = self.cause
                _log.info("peer not reached", extra=self._names, exc_info=LineError(said))
            # A peer that is there and then cut is dialled at once; one that is not, ever more seldom; and one
            # that cuts again and again as seldom as one that is not.
            now = self.line.into.received, self.line.out.acknowledged
            pause = _SOONEST if before != now else min(2 * pause, _LATEST)
            pause = _LATEST if bound.overflows(dials, self._loop.time()) else pause
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _dial_once(self, channel: grpc.aio.Channel, dialled: Dialled) -> None:
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
                await write(self.line.hello(**dialled.asks))
                raw = await read()
            if raw is not None:
                self._free.clear()
                hello = parse_hello(raw)
                dialled.check(hello)
                self._greet(hello)
                await self._converse(read, write, call.done_writing)
        except RefusedError as error:
            if not isinstance(error, ToldError):
                with suppress(Exception):
                    async with asyncio.timeout(_FAREWELL):
                        await write(refusal(error))
                        await call.done_writing()
                        while await read() is not None:
                            pass
            raise
        finally:
            call.cancel()
            self._free.set()
            self._changed.set()

    async def answer(self, hello: Hello, read: Read, write: Write, shows: dict[str, Any]) -> None:
        """Carry the line over a stream that the peer opened, in place of any earlier one. shows: what our
        Hello adds."""
        now = self._loop.time()
        if self._over:
            raise RefusedError("UNAVAILABLE", f"{self.line.me} is leaving")
        if self.final is not None and hello.session == self._barred[0] and now < self._barred[1]:
            raise RefusedError(self.final.status, str(self.final))
        if len(self._opened) == self._opened.maxlen and now - self._opened[0] < 60.0:
            raise RefusedError(
                "UNAVAILABLE", f"{self.line.peer} opened {len(self._opened)} streams in a minute"
            )
        self._opened.append(now)
        self.line.refuse_replaced(hello)  # before it takes the place of the stream that there is
        while not self._free.is_set():
            if self._reader is not None:
                self._reader.cancel()
            await self._free.wait()
        self._free.clear()
        try:
            self._greet(hello)
            async with asyncio.timeout(self.limits.handshake):
                await write(self.line.hello(**shows))
            await self._converse(read, write, None)
            self.cause = "the stream ended"
        except TimeoutError:
            raise RefusedError("UNAVAILABLE", f"{self.line.peer} does not read") from None
        except RefusedError as error:
            if error.status not in ("ABORTED", "UNAVAILABLE"):
                self.refuse(error)
            raise
        finally:
            self._free.set()
            self._changed.set()

    def _greet(self, hello: Hello) -> None:
        before = self.line.restarts
        self.line.greet(hello)
        self.final = None
        if self.line.restarts != before:
            reason = (
                f"{self.line.peer} came back as another process; what was in flight to and from it is lost"
            )
            self._sink.failed(self, "restarted", LineError, reason)

    # One stream.

    async def _converse(
        self, read: Read, write: Write, done_writing: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Send and receive until the stream ends or either side has said Bye."""
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
                await asyncio.wait({reader}, timeout=_FAREWELL)
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
        line, sink = self.line, self._sink
        while (raw := await read()) is not None:
            envelope = line.take(raw)
            if envelope is not None:
                sink.arrived(self, envelope)
            else:
                self._sign()
            if self._idle.seen != line.idle + self.late:
                self._bound_idle()
            if line.left:
                sink.failed(self, "left", LineError, f"{line.peer} has finished and left")
                return
            if line.prompt:
                self._wake.set()
            elif line.into.owed and self._ack is None:
                self._ack = self._loop.call_later(_ACK_AFTER, self._acknowledge)
            if line.into.starving:  # mail for no open job gives its room back at once
                self.grant()
            self.heard = self._loop.time()

    def _sign(self) -> None:
        """Handle a frame that completes no envelope, perhaps an Ack."""
        line = self.line
        self._changed.set()
        if self.blocked:
            self._sink.freed(self)
        while line.answered:
            answer = self._pings.get(line.answered.popleft())
            if answer is not None and not answer.done():
                answer.set_result(None)
        # An Ack may have brought room, and a ping is owed an answer.
        self._wake.set()

    def _bound_idle(self) -> None:
        """Refuse a peer that keeps us busy with frames that bring nothing."""
        if self._idle.overflows(self.line.idle + self.late, self._loop.time()):
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"{self.line.peer} sends more than {self.limits.idle_rate:g} frames a second that bring "
                "nothing for a job (Acks, Pings, mail about jobs, mail for no open job or scope)",
            )

    def _acknowledge(self) -> None:
        self._ack = None
        self.line.ack_due = True
        self._wake.set()

    async def _write(self, write: Write) -> None:
        line, wake = self.line, self._wake
        while not line.said_bye:
            wake.clear()
            while (raw := line.next_frame()) is not None:
                await write(raw)
            if not line.said_bye:
                await wake.wait()
        self._changed.set()

    # Patience.

    def _found(self) -> None:
        self._met = self.connected = True
        self.heard = self._loop.time()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        _log.info("peer connected", extra=self._names)
        self._sink.recovered(self)
        if self.blocked:
            self._sink.freed(self)  # the peer's Hello acknowledges too

    def _lost(self) -> None:
        self.connected = self.line.ack_due = False
        _log.info("peer lost", extra=self._names)
        if not self.line.left:
            self._wait_for_it()

    def _wait_for_it(self) -> None:
        if self._patience is None:
            self._patience = self._loop.call_later(self.limits.patience, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self.final is not None:
            return  # and why, was said
        where = f"at {self.address}" if self.address else "which dials us"
        reason = f"no connection to {self.line.peer}, {where}, for {self.limits.patience:g} s: {self.cause}"
        self._sink.failed(self, "lost", LineError, reason)


def _is_cancelled() -> bool:
    """Return whether this task itself is cancelled, and not just something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def quietly(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def cause(error: grpc.aio.AioRpcError, peer: str) -> str:
    """Explain gRPC's error, bounded and in one line, with what it means."""
    said = plain(str(error.details() or ""))
    hint = next((hint for sign, hint in _HINTS.items() if sign in said), "")
    return f"{error.code().name}: {said}{f' ({hint.format(peer=peer)})' if hint else ''}"

"""One line to one peer, without I/O: numbers, acknowledgements, replay, and what a peer may not say.

Frames go in (`greet`, `take`) and come out (`hello`, `next_frame`); `parties.proto` describes them. Any
bytes that go in give an envelope, nothing, or a RefusedError. Nothing that a frame announces is allocated
before it is within the limits, and no more than what has come is ever held.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from protocols.errors import ProtocolError
from protocols.wire.parties_pb2 import Ack, Bye, Chunk, Frame, Header, Hello
from protocols.wire.transport import Envelope

VERSION = 1
CHUNK = 1 << 20
LARGEST_FRAME = CHUNK + (64 << 10)
PROMPT = 16 << 20  # bytes: at most so much comes before it is acknowledged
OVERHEAD = 1 << 10  # bytes that a held envelope counts beside its body, so that empty ones are bounded too
_LONGEST = {"job": 128, "scope": 512, "kind": 128}  # bytes


@dataclass(frozen=True)
class Limits:
    """Bounds of one line. Sizes in bytes, times in seconds."""

    envelope: int = 1 << 30  # of one message
    unacknowledged: int = 64 << 20  # kept for a replay; a deliver that would exceed it waits
    uncollected: int = 64 << 20  # beyond it a stream is read only while the role waits for something
    held: int = 2 << 30  # received and not collected, whatever the role does
    scopes: int = 4096  # with uncollected mail
    streams: int = 200  # that a peer may open in a minute
    patience: float = 30.0  # without a connection, until what waits for it fails
    handshake: float = 5.0  # from dialling to the peer's Hello
    keepalive: float = 10.0  # of silence before a ping, and then for its answer


class RefusedError(ProtocolError):
    """What a peer said is refused; `status` is the name of the gRPC status that the stream ends with."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Parcel(NamedTuple):
    envelope: Envelope
    first: int  # chunk numbers
    last: int


@dataclass(slots=True)
class _Partial:
    """An envelope of which some chunks have come."""

    header: Header
    body: BytesIO = field(default_factory=BytesIO)  # grows in place, and gives its bytes without a copy
    got: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Line:
    """Both directions of one pair of parties, over as many streams as it takes.

    `queued` and `released` are written by the role's thread, `freed` and `arrived` by the network's, so that
    their differences need no lock.
    """

    def __init__(self, me: str, peer: str, session: bytes, limits: Limits) -> None:
        self.me, self.peer, self.session, self.limits = me, peer, session, limits
        self.queued = self.freed = 0  # bytes handed over for sending, bytes acknowledged
        self.arrived = self.released = 0  # bytes that came in, bytes collected or dropped
        self.retransmitted = 0  # bytes of bodies that were sent again
        self.ended_session = b""
        self._begin()

    def _begin(self) -> None:
        self.peer_session = b""
        self.received = 0  # the last chunk that came
        self.owed = 0  # bytes that came and are not acknowledged
        self.ack_due = self.leaving = self.said_bye = self.left = False
        self._told = 0  # the last chunk acknowledged to the peer
        self._acknowledged = 0  # the last of ours that the peer has
        self._sent_to = 0  # the last that was ever sent
        self._cursor = 1  # the next to send
        self._numbered = 1  # the next number to give
        self._ready: deque[_Parcel] = deque()
        self._sent: deque[_Parcel] = deque()
        self._partial: _Partial | None = None

    # Sending.

    def queue(self, envelope: Envelope) -> None:
        """Send `envelope` when a stream allows."""
        chunks = max(1, -(-len(envelope.body) // CHUNK))
        self._ready.append(_Parcel(envelope, self._numbered, self._numbered + chunks - 1))
        self._numbered += chunks

    @property
    def pending(self) -> int:
        """Envelopes that the peer has not acknowledged."""
        return len(self._ready) + len(self._sent)

    @property
    def prompt(self) -> bool:
        """Whether so much came that it is to be acknowledged at once."""
        return self.owed >= PROMPT

    def hello(self) -> bytes:
        """The first frame on a stream."""
        said = Hello(
            version=VERSION,
            party=self.me,
            peer=self.peer,
            session=self.session,
            peer_session=self.peer_session,
            received=self.received,
        )
        self._told, self.owed = self.received, 0
        return _bytes(Frame(hello=said))

    def next_frame(self) -> bytes | None:
        """What is to be said now, if anything."""
        if self.prompt or (self.owed and self.ack_due):
            self._told, self.owed, self.ack_due = self.received, 0, False
            return _bytes(Frame(ack=Ack(through=self.received)))
        if self._ready:
            return self._chunk()
        if self.leaving and not self._sent and not self.said_bye:
            self.said_bye = True
            return _bytes(Frame(bye=Bye()))
        return None

    def _chunk(self) -> bytes:
        e, first, last = self._ready[0]
        number = self._cursor
        start = (number - first) * CHUNK
        chunk = Chunk(number=number, data=e.body[start : start + CHUNK], last=number == last)
        if number == first:
            chunk.header.CopyFrom(
                Header(
                    job=e.job,
                    scope=e.scope,
                    sequence=e.sequence,
                    kind=e.kind,
                    depth=e.depth,
                    size=len(e.body),
                )
            )
        if number <= self._sent_to:
            self.retransmitted += len(chunk.data)
        self._sent_to = max(self._sent_to, number)
        self._cursor += 1
        if number == last:
            self._sent.append(self._ready.popleft())
        return _bytes(Frame(chunk=chunk))

    # Receiving.

    def greet(self, raw: bytes) -> None:
        """The peer's Hello on a new stream: what it lacks will be sent again."""
        hello = parse_hello(raw)
        if hello.version != VERSION:
            raise RefusedError(
                "FAILED_PRECONDITION",
                f"{self.peer} speaks version {hello.version} of parties.proto, {self.me} speaks {VERSION}; "
                "use the same release",
            )
        if hello.party != self.peer or hello.peer != self.me:
            raise RefusedError(
                "PERMISSION_DENIED",
                f"expected a Hello from {self.peer} to {self.me}, got one from {_safe(hello.party)} to "
                f"{_safe(hello.peer)}; do both books give the same addresses?",
            )
        self._same_process(hello)
        if not self._acknowledged <= hello.received <= self._sent_to:
            raise _malformed(f"{self.peer} says it has chunk {hello.received}, sent were {self._sent_to}")
        self.peer_session = hello.session
        self._free(hello.received)
        self._ready.extendleft(reversed(self._sent))
        self._sent.clear()
        self._cursor = hello.received + 1
        self.said_bye = self.left = False

    def _same_process(self, hello: Hello) -> None:
        if len(hello.session) != 16:
            raise _malformed(f"{self.peer} gives a session of {len(hello.session)} bytes, expected 16")
        if hello.session == self.ended_session:
            raise RefusedError("ABORTED", f"{self.peer} had said that it would send nothing more")
        if self.peer_session and hello.session != self.peer_session:
            raise RefusedError(
                "FAILED_PRECONDITION",
                f"{self.peer} came back as another process; what was in flight to and from it is lost",
            )
        if hello.peer_session not in (b"", self.session):
            raise RefusedError(
                "FAILED_PRECONDITION",
                f"{self.peer} remembers an earlier process of {self.me}; what was in flight is lost",
            )

    def take(self, raw: bytes) -> Envelope | None:
        """A frame after the Hello. Returns the envelope that it completes, if it completes one."""
        frame = _parse(raw)
        what = frame.WhichOneof("what")
        if what == "chunk":
            return self._take_chunk(frame.chunk)
        if what == "ack":
            through = frame.ack.through
            if not self._acknowledged < through < self._cursor:
                raise _malformed(
                    f"{self.peer} acknowledges chunk {through}, expected {self._acknowledged + 1} to "
                    f"{self._cursor - 1}"
                )
            self._free(through)
        elif what == "bye":
            self._end()
        else:
            raise _malformed(f"{self.peer} sent a {what or 'frame that is none'} in the middle of a stream")
        return None

    def _end(self) -> None:
        if self._partial is not None:
            raise _malformed(f"{self.peer} left in the middle of an envelope")
        ended = self.peer_session
        # Nobody is left to send the rest to.
        self.freed += sum(weight(parcel.envelope) for parcel in (*self._sent, *self._ready))
        self._begin()
        self.left, self.ended_session = True, ended

    def _free(self, through: int) -> None:
        self._acknowledged = through
        while self._sent and self._sent[0].last <= through:
            self.freed += weight(self._sent.popleft().envelope)

    def _take_chunk(self, chunk: Chunk) -> Envelope | None:
        if chunk.number != self.received + 1:
            raise _malformed(f"{self.peer} sent chunk {chunk.number}, expected {self.received + 1}")
        data = chunk.data
        if self._partial is None:
            if not chunk.HasField("header"):
                raise _malformed(f"{self.peer} began an envelope without a header")
            partial = self._open(chunk.header)
        elif chunk.HasField("header"):
            raise _malformed(f"{self.peer} sent a header in the middle of an envelope")
        else:
            partial = self._partial
        expected = min(CHUNK, partial.header.size - partial.got)
        complete = partial.got + expected == partial.header.size
        if len(data) != expected or chunk.last != complete:
            raise _malformed(
                f"{self.peer} sent {len(data)} bytes{', the last,' if chunk.last else ''} where {expected} "
                f"of an envelope of {partial.header.size} were due"
            )
        partial.body.write(data)
        partial.digest.update(data)
        partial.got += expected
        self.received += 1
        # An empty chunk is owed an acknowledgement too.
        self.owed += expected or 1
        self._partial = None if complete else partial
        return self._close(partial) if complete else None

    def _open(self, header: Header) -> _Partial:
        for name, longest in _LONGEST.items():
            value = getattr(header, name)
            if len(value.encode()) > longest or not value.isprintable():
                raise _malformed(f"{self.peer} sent a {name} above {longest} bytes or not printable")
        if header.size > self.limits.envelope:
            raise RefusedError(
                "INVALID_ARGUMENT",
                f"{self.peer} announces {header.size} bytes, {self.me} accepts {self.limits.envelope}",
            )
        held = self.arrived - self.released + header.size + OVERHEAD
        if held > self.limits.held:
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"{self.me} would hold {held} bytes from {self.peer} that its role has not collected, and "
                f"holds at most {self.limits.held}",
            )
        self.arrived += header.size + OVERHEAD
        return _Partial(header)

    def _close(self, partial: _Partial) -> Envelope:
        h = partial.header
        body = partial.body.getvalue()
        return Envelope(
            *(h.job, self.peer, self.me, h.scope, h.sequence, h.kind, h.depth, partial.digest.digest(), body)
        )


def weight(envelope: Envelope) -> int:
    """Bytes that an envelope counts for in the limits."""
    return len(envelope.body) + OVERHEAD


def _bytes(frame: Frame) -> bytes:
    raw: bytes = frame.SerializeToString()
    return raw


def parse_hello(raw: bytes) -> Hello:
    """The Hello in a stream's first frame."""
    frame = _parse(raw)
    if frame.WhichOneof("what") != "hello":
        raise _malformed("a stream must begin with a Hello")
    return frame.hello


def _parse(raw: bytes) -> Frame:
    try:
        frame: Frame = Frame.FromString(raw)
    except DecodeError:
        raise _malformed(f"{len(raw)} bytes are no Frame of parties.proto") from None
    return frame


def _malformed(reason: str) -> RefusedError:
    return RefusedError("INVALID_ARGUMENT", reason)


def _safe(name: str) -> str:
    return ascii(name[:63])

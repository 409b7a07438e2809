"""Frames of `parties.proto` as bytes, the bounds of one line, and the error for what is outside of both.

Any bytes parse to a frame or raise RefusedError; a header parses only if its texts are short and printable.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from protocols.errors import ProtocolError
from protocols.network.parties_pb2 import Frame, Header, Hello, Refusal
from protocols.wire.transport import Envelope

VERSION = 1
CONTROL = ""  # the job whose mail is about jobs: it needs no room, and waits behind no other
CHUNK = 1 << 20
LARGEST_FRAME = CHUNK + (64 << 10)
OVERHEAD = 1 << 10  # bytes that a held envelope counts beside its body, so that empty ones are bounded too
_LONGEST = {"job": 128, "scope": 512, "kind": 128}  # bytes
_ONE_BYTE = [bytes((number,)) for number in range(0x80)]
# What a stream may be refused with, so that it is not tried again at once.
FINAL = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    | {"UNIMPLEMENTED"}
)


@dataclass(frozen=True)
class Limits:
    """Bounds of one line, over all its jobs. Sizes in bytes, times in seconds."""

    envelope: int = 1 << 30  # of one message of a job
    unacknowledged: int = 64 << 20  # kept for a replay; a deliver that would exceed it waits
    uncollected: int = 64 << 20  # beyond it the peer is given room only while a role waits for something
    held: int = 2 << 30  # received and not collected, whatever the roles do
    control: int = 4 << 20  # of job "": unacknowledged, and received and not collected
    scopes: int = 4096  # with uncollected mail
    streams: int = 200  # that a peer may open in a minute
    idle_burst: int = 100_000  # idle frames (Acks, Pings, control, mail that nobody wants) at once,
    idle_rate: float = 1_000.0  # and then in a second
    patience: float = 30.0  # without a connection, until what waits for it fails
    handshake: float = 5.0  # from dialling to the peer's Hello
    keepalive: float = 10.0  # of silence before a ping, and then for its answer
    again: float = 30.0  # after a refusal, until the next dial
    clock: float = 900.0  # that the clocks of two parties may differ by


class Bucket:
    """Bounds what comes by `burst` at once, and then `rate` a second. `seen`: how much has come in all."""

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self.seen = 0
        self._burst, self._rate, self._level, self._at = burst, rate, 0.0, now

    def overflows(self, seen: int, now: float) -> bool:
        """Return whether `seen`, all that came until `now`, is too much. now: seconds, never going back."""
        self._level = max(0.0, self._level - (now - self._at) * self._rate) + seen - self.seen
        self.seen, self._at = seen, now
        return self._level > self._burst


class RefusedError(ProtocolError):
    """What a peer said is refused; `status` is the name of the gRPC status that the stream ends with."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ToldError(RefusedError):
    """The peer said that it refuses what we said."""


def weight(envelope: Envelope) -> int:
    """Return how many bytes an envelope counts for in the limits."""
    return len(envelope.body) + OVERHEAD


def malformed(reason: str) -> RefusedError:
    """Return the error for a frame that no peer that keeps to the contract sends."""
    return RefusedError("INVALID_ARGUMENT", reason)


def as_bytes(frame: Frame) -> bytes:
    """Encode a frame."""
    raw: bytes = frame.SerializeToString()
    return raw


def parse(raw: bytes) -> Frame:
    """Decode the frame in `raw`."""
    try:
        frame: Frame = Frame.FromString(raw)
    except DecodeError:
        raise malformed(f"{len(raw)} bytes are no Frame of parties.proto") from None
    return frame


def parse_hello(raw: bytes) -> Hello:
    """Decode the Hello in a stream's first frame."""
    frame = parse(raw)
    if frame.WhichOneof("what") != "hello":
        raise malformed("a stream must begin with a Hello")
    return frame.hello


def chunk(number: int, envelope: Envelope, start: int, end: int) -> bytes:
    """One piece of an envelope as a frame: what protobuf would write, with one copy, not three."""
    size = len(envelope.body)
    data = envelope.body if end - start == size else memoryview(envelope.body)[start:end]
    head = b"\x08" + varint(number)
    if start == 0:
        said = header(envelope)
        head += b"\x12" + varint(len(said)) + said
    if end > start:
        head += b"\x1a" + varint(end - start)
    tail = b"\x20\x01" if end == size else b""
    return b"".join((b"\x12", varint(len(head) + end - start + len(tail)), head, data, tail))


def header(e: Envelope) -> bytes:
    """An envelope's Header, encoded."""
    said = Header(job=e.job, scope=e.scope, sequence=e.sequence, kind=e.kind, depth=e.depth, size=len(e.body))
    raw: bytes = said.SerializeToString()
    return raw


def varint(number: int) -> bytes:
    """Protobuf's form of a whole number: seven bits a byte, the lowest first."""
    if number < 0x80:
        return _ONE_BYTE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def check(job: str, scope: str, kind: str, peer: str) -> None:
    """Raise RefusedError for texts of a Header that are too long, or hold more than one line."""
    # A character takes at most four bytes: short texts need not be encoded to be measured.
    if len(scope) <= 128 and len(job) <= 32 >= len(kind) and f"{job}{scope}{kind}".isprintable():
        return
    for name, value in (("job", job), ("scope", scope), ("kind", kind)):
        if len(value.encode()) > _LONGEST[name] or not value.isprintable():
            raise malformed(f"{peer} sent a {name} above {_LONGEST[name]} bytes or not printable")


def refusal(error: RefusedError) -> bytes:
    """Return the frame with which a dialler refuses before it ends a stream."""
    return as_bytes(Frame(refusal=Refusal(status=error.status, reason=str(error)[:500])))


def told(said: Refusal, peer: str) -> ToldError:
    """Read the peer's refusal, in bounded and printable words."""
    status = said.status if said.status in FINAL else "FAILED_PRECONDITION"
    return ToldError(status, f"{peer} refuses: {status}: {plain(said.reason)}")


def plain(words: str) -> str:
    """A peer's words, bounded and in one line."""
    return "".join(c if c.isprintable() else " " for c in words[:500]) or "no reason given"


def safe(name: str) -> str:
    """A peer's claim of a name, quoted."""
    return ascii(name[:63])

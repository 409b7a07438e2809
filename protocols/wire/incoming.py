"""What one party takes from another: chunks put together, bounded before memory is allocated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from protocols.wire.frames import CHUNK, CONTROL, OVERHEAD, Limits, RefusedError, check, malformed
from protocols.wire.outgoing import Flow
from protocols.wire.parties_pb2 import Chunk, Header
from protocols.wire.transport import Envelope

PROMPT = 16 << 20  # bytes: at most so much comes before it is acknowledged


@dataclass(slots=True)
class _Partial:
    """An envelope of which some chunks have come."""

    header: Header
    wanted: bool
    body: BytesIO = field(default_factory=BytesIO)  # grows in place, and gives its bytes without a copy
    got: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Incoming:
    """One direction of a line. `uncollected` is what came and no role has taken: mail of jobs, and about
    jobs (`[False]`, `[True]`). wanted: whether a job's mail is kept at all."""

    def __init__(self, me: str, peer: str, limits: Limits, wanted: Callable[[str], bool]) -> None:
        self.me, self.peer, self.limits, self._wanted = me, peer, limits, wanted
        self.uncollected = Flow(), Flow()
        self.idle = 0  # envelopes that bring nothing which a role waits for
        self.discarded = 0  # envelopes for no job that is open here
        self._begin()

    def _begin(self) -> None:
        self.received = 0  # the last chunk that came
        self.owed = 0  # bytes that came and are not acknowledged
        self.partial: _Partial | None = None
        # The peer may begin another envelope while `entered` is below `granted`. What it is told counts from
        # the beginning of the session, which is `base` in the count of `entered`.
        flow = self.uncollected[False]
        self._base = flow.entered
        self._granted = self.marked = flow.left + self.limits.uncollected
        self._told = 0

    def forget(self) -> None:
        """The peer's process is no more."""
        if self.partial is not None and self.partial.wanted:
            self.uncollected[False].entered -= self.partial.header.size + OVERHEAD
        self._begin()

    # Room.

    @property
    def starving(self) -> bool:
        """Whether the peer has used up the room that it was told of."""
        return self.uncollected[False].entered >= self._base + self._told

    @property
    def news(self) -> bool:
        """Whether there is something to acknowledge."""
        return self.owed > 0 or self._granted - self._base > self._told

    def grant(self, waiting: bool) -> bool:
        """Give room for what was collected; and for more while a role is `waiting`, since of two parties,
        or three in a ring, each may wait for the next. Whether the peer should be told at once."""
        flow, window = self.uncollected[False], self.limits.uncollected
        self.marked = flow.left
        top = flow.entered if waiting else flow.left
        self._granted = max(self._granted, top + window)
        gained = self._granted - self._base - self._told
        # Telling every bit of it would cost a frame for each message.
        return gained >= window // 2 or (waiting and gained > 0 and self.starving)

    def tell(self) -> tuple[int, int]:
        """The chunk and the room that are said to the peer now."""
        self.owed = 0
        self._told = max(self._granted - self._base, self._told)
        return self.received, self._told

    # Mail.

    def take(self, chunk: Chunk) -> Envelope | None:
        """One chunk. Returns the envelope that it completes, if it completes one that is wanted."""
        if chunk.number != self.received + 1:
            raise malformed(f"{self.peer} sent chunk {chunk.number}, expected {self.received + 1}")
        partial = self.partial
        if chunk.HasField("header"):
            if partial is not None and chunk.header.job != CONTROL:
                raise malformed(f"{self.peer} sent a header in the middle of an envelope")
            self._check(chunk.header)
            partial = _Partial(chunk.header, self._wanted(chunk.header.job))
        elif partial is None:
            raise malformed(f"{self.peer} began an envelope without a header")
        data, size = chunk.data, partial.header.size
        expected = min(CHUNK, size - partial.got)
        complete = partial.got + expected == size
        if len(data) != expected or chunk.last != complete:
            raise malformed(
                f"{self.peer} sent {len(data)} bytes{', the last,' if chunk.last else ''} where {expected} "
                f"of an envelope of {size} were due"
            )
        self.received += 1
        self.owed += expected or 1  # an empty chunk is owed an acknowledgement too
        if not partial.got:
            self._count(partial)
            if complete:
                return self._close(partial, data, hashlib.sha256(data).digest())
        if partial.wanted:
            partial.body.write(data)
            partial.digest.update(data)
        partial.got += expected
        self.partial = None if complete else partial
        return self._close(partial, partial.body.getvalue(), partial.digest.digest()) if complete else None

    def _check(self, header: Header) -> None:
        """Whether an envelope may begin."""
        check(header, self.peer)
        control = header.job == CONTROL
        most = CHUNK if control else self.limits.envelope
        if header.size > most:
            what = f"{header.size} bytes{' about jobs' if control else ''}"
            raise malformed(f"{self.peer} announces {what}, {self.me} accepts {most}")
        flow = self.uncollected[control]
        if not control and flow.entered >= self._granted:
            raise RefusedError("RESOURCE_EXHAUSTED", f"{self.peer} began an envelope without room for it")
        holds, most = flow.held + header.size + OVERHEAD, self.limits.control if control else self.limits.held
        if holds > most:
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"{self.me} would hold {holds} bytes from {self.peer} that its role has not collected, and "
                f"holds at most {most}{' about jobs' if control else ''}",
            )

    def _count(self, partial: _Partial) -> None:
        """An envelope has begun."""
        control = partial.header.job == CONTROL
        self.idle += control or not partial.wanted
        if partial.wanted:
            self.uncollected[control].entered += partial.header.size + OVERHEAD
        elif not control:
            self._base -= partial.header.size + OVERHEAD

    def _close(self, partial: _Partial, body: bytes, digest: bytes) -> Envelope | None:
        if not partial.wanted:
            self.discarded += 1
            return None
        h = partial.header
        return Envelope(h.job, self.peer, self.me, h.scope, h.sequence, h.kind, h.depth, digest, body)

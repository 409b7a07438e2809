"""Receiving from one peer: chunks are put together, and bounded before memory is allocated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from protocols.network.frames import CHUNK, CONTROL, OVERHEAD, Limits, RefusedError, check, malformed
from protocols.network.outgoing import Flow
from protocols.network.parties_pb2 import Chunk, Header
from protocols.wire.transport import Envelope

PROMPT = 16 << 20  # bytes: at most so much comes before it is acknowledged


@dataclass(slots=True)
class _Partial:
    """An envelope of which only some chunks have arrived."""

    header: Header
    size: int
    wanted: bool
    body: BytesIO = field(default_factory=BytesIO)  # grows in place, and gives its bytes without a copy
    got: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.got += len(data)
        if self.wanted:
            self.body.write(data)
            self.digest.update(data)


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
        """Forget what the peer's process, which is gone, had begun to send."""
        if self.partial is not None and self.partial.wanted:
            self.uncollected[False].entered -= self.partial.size + OVERHEAD
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
        """Give room for what was collected, and more while a role is `waiting`, since parties in a ring may
        each wait for the next. Return whether the peer should be told at once."""
        flow, window = self.uncollected[False], self.limits.uncollected
        self.marked = flow.left
        top = flow.entered if waiting else flow.left
        self._granted = max(self._granted, top + window)
        gained = self._granted - self._base - self._told
        # Telling every bit of it would cost a frame for each message.
        return gained >= window // 2 or (waiting and gained > 0 and self.starving)

    def tell(self) -> tuple[int, int]:
        """Return the last chunk taken and the room, to be told to the peer now."""
        self.owed = 0
        self._told = max(self._granted - self._base, self._told)
        return self.received, self._told

    # Mail.

    def take(self, chunk: Chunk) -> Envelope | None:
        """Take one chunk. Returns the envelope that it completes, if it completes one that is wanted."""
        if chunk.number != self.received + 1:
            raise malformed(f"{self.peer} sent chunk {chunk.number}, expected {self.received + 1}")
        if not chunk.HasField("header"):
            return self._go_on(chunk)
        header, data, last = chunk.header, chunk.data, chunk.last
        job, size = header.job, header.size
        control = job == CONTROL
        if self.partial is not None and not control:
            raise malformed(f"{self.peer} sent a header in the middle of an envelope")
        check(job, header.scope, header.kind, self.peer)
        self._check_room(size, control)
        self._check_piece(data, last, min(CHUNK, size), size <= CHUNK, size)
        self.received += 1
        self.owed += len(data) or 1  # an empty chunk is owed an acknowledgement too
        wanted = self._wanted(job)
        self.idle += control or not wanted
        if wanted:
            self.uncollected[control].entered += size + OVERHEAD
        elif not control:
            self._base -= size + OVERHEAD
        if not last:
            self.partial = _Partial(header, size, wanted)
            self.partial.add(data)
            return None
        if not wanted:
            self.discarded += 1
            return None
        return self._envelope(header, data, hashlib.sha256(data).digest())

    def _go_on(self, chunk: Chunk) -> Envelope | None:
        """Take a chunk that is not the first of its envelope."""
        partial = self.partial
        if partial is None:
            raise malformed(f"{self.peer} began an envelope without a header")
        data, left = chunk.data, partial.size - partial.got
        self._check_piece(data, chunk.last, min(CHUNK, left), left <= CHUNK, partial.size)
        self.received += 1
        self.owed += len(data)
        partial.add(data)
        if not chunk.last:
            return None
        self.partial = None
        if not partial.wanted:
            self.discarded += 1
            return None
        return self._envelope(partial.header, partial.body.getvalue(), partial.digest.digest())

    def _check_piece(self, data: bytes, last: bool, expected: int, complete: bool, size: int) -> None:
        if len(data) != expected or last != complete:
            raise malformed(
                f"{self.peer} sent {len(data)} bytes{', the last,' if last else ''} where {expected} of an "
                f"envelope of {size} were due"
            )

    def _check_room(self, size: int, control: bool) -> None:
        """Refuse an envelope for whose size there is no room."""
        most, about = (CHUNK, " about jobs") if control else (self.limits.envelope, "")
        if size > most:
            raise malformed(f"{self.peer} announces {size} bytes{about}, {self.me} accepts {most}")
        flow = self.uncollected[control]
        if not control and flow.entered >= self._granted:
            raise RefusedError("RESOURCE_EXHAUSTED", f"{self.peer} began an envelope without room for it")
        holds = flow.entered - flow.left + size + OVERHEAD
        most = self.limits.control if control else self.limits.held
        if holds > most:
            raise RefusedError(
                "RESOURCE_EXHAUSTED",
                f"{self.me} would hold {holds} bytes from {self.peer} that its role has not collected, and "
                f"holds at most {most}{about}",
            )

    def _envelope(self, h: Header, body: bytes, digest: bytes) -> Envelope:
        return Envelope(h.job, self.peer, self.me, h.scope, h.sequence, h.kind, h.depth, digest, body)

"""One line to one peer, without I/O: sessions, numbers, acknowledgements, and what a peer may not say.

Frames go in (`greet`, `take`) and come out (`hello`, `next_frame`); `parties.proto` describes them. Any
bytes that go in give an envelope, nothing, or a RefusedError. Nothing that a frame announces is allocated
before it is within the limits, and no more than what has come is ever held.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from protocols.network.frames import VERSION, Limits, RefusedError, as_bytes, malformed, parse, safe, told
from protocols.network.incoming import PROMPT, Incoming
from protocols.network.outgoing import Outgoing
from protocols.network.parties_pb2 import Ack, Bye, Frame, Hello, Ping
from protocols.wire.transport import Envelope

_REMEMBERED = 64  # sessions of a peer that were replaced
_UNSAID = 16  # pings, and answers to them, that are not sent yet; a peer that asks for more gets fewer


class Line:
    """Both directions of one pair of parties, over as many streams as it takes.

    wanted: whether mail of a job is kept. now: seconds since 1970.
    """

    def __init__(
        self,
        me: str,
        peer: str,
        session: bytes,
        limits: Limits,
        wanted: Callable[[str], bool] = lambda job: True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.me, self.peer, self.session, self.limits, self._now = me, peer, session, limits, now
        self.out, self.into = Outgoing(), Incoming(me, peer, limits, wanted)
        self.restarts = 0  # of the peer, without a Bye
        self.answered: deque[int] = deque(maxlen=_UNSAID)  # our pings
        self._signs = 0  # frames without mail
        self._unsaid: deque[bytes] = deque(maxlen=_UNSAID)
        self._gone: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._ended = b""  # the session that said Bye
        self.peer_session = b""
        self.ack_due = self.leaving = self.said_bye = self.left = False

    @property
    def idle(self) -> int:
        """Frames so far that brought nothing which a role waits for."""
        return self._signs + self.into.idle

    # Sending.

    def ping(self, number: int) -> None:
        """Ask for an answer; its number will be in `answered`."""
        self._unsaid.append(as_bytes(Frame(ping=Ping(number=number))))

    def hello(self, **more: Any) -> bytes:
        """The first frame on a stream. more: the Hello's challenge, or its certificates and proof."""
        received, room = self.into.tell()
        said = Hello(
            version=VERSION,
            party=self.me,
            peer=self.peer,
            session=self.session,
            peer_session=self.peer_session,
            received=received,
            room=room,
            clock=int(self._now()),
            **more,
        )
        return as_bytes(Frame(hello=said))

    @property
    def prompt(self) -> bool:
        """Return whether so much came that it should be acknowledged at once."""
        return self.into.owed >= PROMPT

    def next_frame(self) -> bytes | None:
        """Return the next frame to send, if there is one."""
        if self.left:
            return None  # the stream ends; what is said now would be the next session's
        if self._unsaid:
            return self._unsaid.popleft()
        if self.ack_due or self.prompt:
            self.ack_due = False
            if self.into.news:
                through, room = self.into.tell()
                return as_bytes(Frame(ack=Ack(through=through, room=room)))
        raw = self.out.next_chunk()
        if raw is None and self.leaving and not self.out.pending and not self.said_bye:
            self.said_bye = True
            return as_bytes(Frame(bye=Bye()))
        return raw

    # Receiving.

    def greet(self, hello: Hello) -> None:
        """Take the peer's Hello on a new stream. What the peer lacks will be sent again."""
        if hello.version != VERSION:
            raise RefusedError(
                "FAILED_PRECONDITION",
                f"{self.peer} speaks version {hello.version} of parties.proto, {self.me} speaks {VERSION}; "
                "use the same release",
            )
        if hello.party != self.peer or hello.peer != self.me:
            raise RefusedError(
                "PERMISSION_DENIED",
                f"expected a Hello from {self.peer} to {self.me}, got one from {safe(hello.party)} to "
                f"{safe(hello.peer)}; do both books give the same addresses?",
            )
        self._same_time(hello.clock)
        self.refuse_replaced(hello)
        if self.peer_session and hello.session != self.peer_session:
            self.restarts += 1
            self._forget()
            self.ack_due = True  # the room that our own Hello told was another process's
        ours = hello.peer_session == self.session
        self.out.resume(hello.received if ours else 0, self.peer)
        if ours or not hello.peer_session:  # what was told to another process is not for us
            self.out.room = max(self.out.room, hello.room)
        self.peer_session = hello.session
        self._unsaid.clear()
        self.said_bye = self.left = False

    def _same_time(self, clock: int) -> None:
        now = self._now()
        if clock and abs(clock - now) > self.limits.clock:
            raise RefusedError(
                "FAILED_PRECONDITION",
                f"{self.peer}'s clock says {_moment(clock)}, {self.me}'s {_moment(now)}; set the wrong one",
            )

    def refuse_replaced(self, hello: Hello) -> None:
        """Raise RefusedError for a process that another has replaced, or that has left."""
        if len(hello.session) != 16:
            raise malformed(f"{self.peer} gives a session of {len(hello.session)} bytes, expected 16")
        if hello.session == self._ended:
            raise RefusedError("ABORTED", f"{self.peer} had said that it would send nothing more")
        if hello.session in self._gone:
            raise RefusedError(
                "FAILED_PRECONDITION", f"another process of {self.peer} has taken this one's place"
            )

    def _forget(self) -> None:
        """Drop what was in flight to and from a process that is gone."""
        self._gone.append(self.peer_session)
        self.peer_session = b""
        self.out.forget()
        self.into.forget()

    def take(self, raw: bytes) -> Envelope | None:
        """Take a frame after the Hello. Return the envelope that it completes, if that is wanted."""
        frame = parse(raw)
        what = frame.WhichOneof("what")
        if what == "chunk":
            return self.into.take(frame.chunk)
        self._signs += 1
        if what == "ack":
            self.out.acknowledge(frame.ack.through, frame.ack.room, self.peer)
        elif what == "ping":
            if frame.ping.answer:
                self.answered.append(frame.ping.number)
            else:
                self._unsaid.append(as_bytes(Frame(ping=Ping(number=frame.ping.number, answer=True))))
        elif what == "bye":
            self._end()
        elif what == "refusal":
            raise told(frame.refusal, self.peer)
        else:
            raise malformed(f"{self.peer} sent a {what or 'frame that is none'} in the middle of a stream")
        return None

    def _end(self) -> None:
        if self.into.partial is not None:
            raise malformed(f"{self.peer} left in the middle of an envelope")
        self._ended = self.peer_session
        self._forget()  # nobody is left to send the rest to
        self.left, self.ack_due = True, False


def _moment(seconds: float) -> str:
    # A clock may say anything; datetime ends with the year 9999.
    return f"{datetime.fromtimestamp(min(seconds, 1 << 37), UTC):%Y-%m-%d %H:%M} UTC"

"""Sending to one peer: envelopes are cut into chunks, kept for a replay, and sent as the peer gives room."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from protocols.network.frames import CHUNK, CONTROL, OVERHEAD, chunk, malformed, weight
from protocols.wire.transport import Envelope


@dataclass(slots=True)
class Flow:
    """Bytes that went into a store and came out of it. Each is written by one thread only, the role's or
    the network's, so that their difference needs no lock."""

    entered: int = 0
    left: int = 0

    @property
    def held(self) -> int:
        """Bytes that are in it."""
        return self.entered - self.left


class _Piece(NamedTuple):
    envelope: Envelope
    start: int
    end: int

    @property
    def last(self) -> bool:
        """Return whether this chunk ends its envelope."""
        return self.end == len(self.envelope.body)


class Outgoing:
    """One direction of a line. `kept` is what was handed over and is not acknowledged: mail of jobs, and
    about jobs (`[False]`, `[True]`)."""

    def __init__(self) -> None:
        self.kept = Flow(), Flow()
        self.retransmitted = 0  # bytes of bodies that were sent again
        self._begin()

    def _begin(self) -> None:
        self.pending = 0  # envelopes that the peer has not acknowledged
        self.acknowledged = 0  # the last chunk that the peer has
        self.room = 0  # weight that may have been begun when another envelope is begun
        self._begun = 0
        self._log: deque[_Piece] = deque()  # sent and not acknowledged, numbered from the one after it
        self._cursor = 1  # the number of the next to send
        self._urgent: deque[Envelope] = deque()
        self._waiting: deque[Envelope] = deque()
        self._start = 0  # in the body of the first that waits

    def forget(self) -> None:
        """Drop what was meant for the peer's process, which is gone."""
        lost = [piece.envelope for piece in self._log if piece.last]
        for envelope in (*lost, *self._urgent, *self._waiting):
            self._drop(envelope)
        self._begin()

    def queue(self, envelope: Envelope) -> None:
        """Send `envelope` when there is room."""
        (self._urgent if envelope.job == CONTROL else self._waiting).append(envelope)
        self.pending += 1

    @property
    def sent(self) -> int:
        """The last chunk that was ever sent."""
        return self.acknowledged + len(self._log)

    def next_chunk(self) -> bytes | None:
        """Return the frame of the next chunk to send, for the first time or again."""
        index = self._cursor - self.acknowledged - 1
        if index < len(self._log):
            piece = self._log[index]
            self.retransmitted += piece.end - piece.start
        else:
            new = self._new_piece()
            if new is None:
                return None
            self._log.append(piece := new)
        self._cursor += 1
        return chunk(self._cursor - 1, *piece)

    def _new_piece(self) -> _Piece | None:
        if self._urgent:
            envelope = self._urgent.popleft()
            return _Piece(envelope, 0, len(envelope.body))
        if not self._waiting:
            return None
        envelope, start = self._waiting[0], self._start
        size = len(envelope.body)
        if start == 0:
            if self._begun >= self.room:
                return None
            self._begun += size + OVERHEAD
        end = min(start + CHUNK, size)
        if end == size:
            self._waiting.popleft()
        self._start = 0 if end == size else end
        return _Piece(envelope, start, end)

    def free(self, through: int) -> None:
        """Drop the chunks up to this one, which the peer has."""
        while self.acknowledged < through:
            self.acknowledged += 1
            piece = self._log.popleft()
            if piece.last:
                self._drop(piece.envelope)

    def resume(self, received: int, peer: str) -> None:
        """Resume on a new stream after the last chunk that the peer says it has."""
        if not self.acknowledged <= received <= self.sent:
            raise malformed(f"{peer} says it has chunk {received}, sent were {self.sent}")
        self.free(received)
        self._cursor = received + 1

    def acknowledge(self, through: int, room: int, peer: str) -> None:
        """Note what the peer has taken, and how much more may be begun."""
        if (
            not self.acknowledged <= through < self._cursor
            or room < self.room
            or (through, room) == (self.acknowledged, self.room)
        ):
            raise malformed(
                f"{peer} acknowledges chunk {through}, room {room}; expected {self.acknowledged} to "
                f"{self._cursor - 1}, from {self.room} on, and more than before"
            )
        self.room = room
        self.free(through)

    def _drop(self, envelope: Envelope) -> None:
        self.pending -= 1
        self.kept[envelope.job == CONTROL].left += weight(envelope)

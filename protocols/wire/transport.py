"""Transports: how an envelope gets from one party to another. This one stays in the process.

A transport has two verbs, `deliver` and `collect`; `close` frees a scope that its party has left.
`Local` carries encoded bytes, as the network does, under a virtual clock: with a `Network`,
transfers cost simulated seconds; without one they are instant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Protocol

from protocols.errors import ConfigError, StallError, nearest


class Envelope(NamedTuple):
    """One message on its way."""

    job: str
    sender: str
    receiver: str
    scope: str
    sequence: int  # counts from 0 per (sender, receiver, scope)
    kind: str  # as in "horizontal.Update/1"
    depth: int  # length of the longest chain of dependent messages that ends here
    digest: bytes  # SHA-256 of the body
    body: bytes

    def __repr__(self) -> str:
        where = f"{self.sender} -> {self.receiver} in {self.scope!r} #{self.sequence}"
        return f"Envelope({where}, {self.kind}, {len(self.body)} bytes)"


class Transport(Protocol):
    """The way envelopes travel between parties: two verbs, `deliver` and `collect`, and `close`."""

    async def deliver(self, envelope: Envelope) -> None:
        """Hand an envelope over for its receiver."""

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        """The next envelope, in the order sent, from `sender` to `receiver` in `scope`."""

    def close(self, receiver: str, scope: str) -> None:
        """`receiver` has left `scope`: free its mail, discard what comes late."""


@dataclass(frozen=True)
class Network:
    """A simulated network. Uploads of one party share its bandwidth, one after another."""

    latency: float | Mapping[tuple[str, str], float] = 0.0  # seconds one way, or by (sender, receiver)
    bandwidth: float = inf  # bytes per second that each party can send
    speed: float | Mapping[str, float] = 1e10  # FLOP per second, or by party

    def __post_init__(self) -> None:
        latencies = self.latency.values() if isinstance(self.latency, Mapping) else (self.latency,)
        speeds = self.speed.values() if isinstance(self.speed, Mapping) else (self.speed,)
        if not all(0 <= x < inf for x in latencies) or not all(x > 0 for x in (self.bandwidth, *speeds)):
            raise ConfigError(f"{self}: expected latency of at least 0, bandwidth and speed above 0")

    def delay(self, sender: str, receiver: str) -> float:
        """Seconds one way from `sender` to `receiver`."""
        if isinstance(self.latency, float | int):
            return self.latency
        if (sender, receiver) not in self.latency:
            raise ConfigError(f"the network has no latency from {sender} to {receiver}; add that pair")
        return self.latency[sender, receiver]

    def transfer(self, nbytes: int) -> float:
        """Seconds that a party's uplink is busy with `nbytes`."""
        return nbytes / self.bandwidth

    def seconds(self, party: str, flops: float) -> float:
        """Seconds that `party` computes for `flops`."""
        if isinstance(self.speed, float | int):
            return flops / self.speed
        if party not in self.speed:
            raise ConfigError(f"the network has no speed of {party}; add it")
        return flops / self.speed[party]


class _Line:
    """The mail that one receiver holds from one sender in one scope."""

    __slots__ = ("following", "held", "waiters")

    def __init__(self) -> None:
        self.following = 0  # sequence of the one to be taken next
        self.held: dict[int, Envelope] = {}  # by sequence, in whatever order they came
        self.waiters: tuple[asyncio.Future[None], ...] = ()


class Names:
    """A growing set of names in which whole numbers counted up from 0, such as rounds, take no room."""

    __slots__ = ("_counted", "_words")

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._counted = 0  # "0" to "counted - 1" are in

    def add(self, name: str) -> None:
        """Take `name` in."""
        if name == str(self._counted):
            self._counted += 1
            while self._words and str(self._counted) in self._words:
                self._words.remove(str(self._counted))
                self._counted += 1
        elif name not in self:
            self._words.add(name)

    def __contains__(self, name: str) -> bool:
        if name in self._words:
            return True
        return self._counted > 0 and name.isdecimal() and name == str(int(name)) and int(name) < self._counted

    def __len__(self) -> int:
        """Count the entries held: each word is one, and all whole numbers together are one."""
        return len(self._words) + (self._counted > 0)


class Mailbox:
    """One party's mail. Drops duplicates, restores order, discards mail for scopes it has left.

    numbered: without it the order is that of arrival, and a sender may begin to count again.
    """

    def __init__(self, owner: str, numbered: bool = True) -> None:
        self.owner, self._numbered = owner, numbered
        self._lines: dict[str, dict[str, _Line]] = {}  # scope -> sender -> line
        self._closed: dict[str, Names] = {}  # scope -> those directly below it that were left
        self._ended = False

    def put(self, envelope: Envelope) -> bool:
        """Take delivery without blocking. Return whether it was kept: a repeat, or late mail, is not."""
        if self.has_left(envelope.scope):
            return False
        line = self._line(envelope.sender, envelope.scope)
        sequence = envelope.sequence if self._numbered else line.following + len(line.held)
        if sequence < line.following or sequence in line.held:
            return False
        line.held[sequence] = envelope
        if sequence == line.following:
            for waiter in line.waiters:
                if not waiter.done():
                    waiter.set_result(None)
        return True

    def has_left(self, scope: str) -> bool:
        """Return whether the party has left `scope`, so that mail for it is late."""
        return self._ended or (scope not in self._lines and self._is_closed(scope))

    def holds(self, sender: str, scope: str) -> bool:
        """Return whether `take` would return at once."""
        line = self._lines.get(scope, {}).get(sender)
        return line is not None and line.following in line.held

    async def take(self, sender: str, scope: str) -> Envelope:
        """The next envelope from `sender` in `scope`."""
        if self.has_left(scope):
            raise ConfigError(f"scope {scope!r} was left before; each within() needs a new name")
        line = self._line(sender, scope)
        while line.following not in line.held:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            line.waiters += (waiter,)
            try:
                await waiter
            finally:
                line.waiters = tuple(other for other in line.waiters if other is not waiter)
        line.following += 1
        return line.held.pop(line.following - 1)

    def close(self, scope: str) -> list[Envelope]:
        """Free `scope` and all below it. Return the mail that nobody took."""
        below = scope + "/"
        dropped: list[Envelope] = []
        for gone in [s for s in self._lines if s == scope or s.startswith(below)]:
            for line in self._lines.pop(gone).values():
                dropped += line.held.values()
        for gone in [s for s in self._closed if s == scope or s.startswith(below)]:
            del self._closed[gone]
        parent, _, name = scope.rpartition("/")
        self._closed.setdefault(parent, Names()).add(name)
        return dropped

    def clear(self) -> list[Envelope]:
        """Leave all scopes at the end. Return the mail that nobody took."""
        self._ended = True
        lines = [line for senders in self._lines.values() for line in senders.values()]
        self._lines, self._closed = {}, {}
        return [envelope for line in lines for envelope in line.held.values()]

    def waiting(self) -> list[tuple[str, str, str, asyncio.Future[None]]]:
        """(owner, sender, scope, future) of each wait for mail."""
        return [
            (self.owner, sender, scope, waiter)
            for scope, lines in self._lines.items()
            for sender, line in lines.items()
            for waiter in line.waiters
            if not waiter.done()
        ]

    def _line(self, sender: str, scope: str) -> _Line:
        lines = self._lines.get(scope)
        if lines is None:
            lines = self._lines[scope] = {}
        line = lines.get(sender)
        if line is None:
            line = lines[sender] = _Line()
        return line

    def _is_closed(self, scope: str) -> bool:
        while scope:
            above, _, name = scope.rpartition("/")
            if name in self._closed.get(above, ()):
                return True
            scope = above
        return False


class Local:
    """All parties in this process."""

    def __init__(self, parties: Sequence[str], network: Network | None = None) -> None:
        self.network = network
        self._boxes = {name: Mailbox(name) for name in parties}
        self._uplink_free = dict.fromkeys(parties, 0.0)

    async def deliver(self, envelope: Envelope) -> None:
        box = self._boxes.get(envelope.receiver)
        if box is None:
            raise ConfigError(
                f"no party {envelope.receiver!r} to send {envelope.kind} to; parties are "
                f"{', '.join(self._boxes)}{nearest(envelope.receiver, self._boxes)}"
            )
        if self.network is None:
            box.put(envelope)
            return
        loop, sender = asyncio.get_running_loop(), envelope.sender
        sent = max(loop.time(), self._uplink_free[sender]) + self.network.transfer(len(envelope.body))
        self._uplink_free[sender] = sent
        loop.call_at(sent + self.network.delay(sender, envelope.receiver), box.put, envelope)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        if sender not in self._boxes:
            raise ConfigError(
                f"no party {sender!r} to wait for; parties are {', '.join(self._boxes)}"
                f"{nearest(sender, self._boxes)}"
            )
        return await self._boxes[receiver].take(sender, scope)

    def close(self, receiver: str, scope: str) -> None:
        self._boxes[receiver].close(scope)

    def on_stall(self) -> None:
        """Fail every wait when nothing can happen any more, saying who waits for whom, and where."""
        waits = [wait for box in self._boxes.values() for wait in box.waiting()]
        said = "; ".join(f"{owner} waits for {sender} in {scope!r}" for owner, sender, scope, _ in waits[:8])
        more = f"; and {len(waits) - 8} more" if len(waits) > 8 else ""
        for *_, waiter in waits:
            waiter.set_exception(StallError(f"no role can go on: {said}{more}"))

"""A tap: one party's whole view of a run, as an attack by that party would have it.

Takes part: the party that is tapped, and nobody else: it changes nothing, and adds nothing to what that party
receives anyway. The ledger keeps no payload, so this is how a test or an attack reads what came. For
experiments in one process.
"""

from __future__ import annotations

from typing import TypeVar

from protocols.wire.codec import decode
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Transport

M = TypeVar("M", bound=Message)


class Tap:
    """Wraps a transport, by `on`, and keeps each envelope that `party` sent or took.

    sent, received: envelopes with their bodies, in the order in which they left or were taken.
    """

    def __init__(self, party: str) -> None:
        self.party = party
        self.sent: list[Envelope] = []
        self.received: list[Envelope] = []
        self._inner: Transport | None = None

    def on(self, inner: Transport) -> Tap:
        """Put this tap around the transport `inner`, and return it."""
        self._inner = inner
        return self

    def messages(self, kind: type[M], sender: str | None = None) -> list[M]:
        """Return the received messages of a `kind`, decoded, from one party or from all."""
        return [
            decode(kind, e.body, sender=e.sender, scope=e.scope)
            for e in self.received
            if e.kind == kind.kind and sender in (None, e.sender)
        ]

    async def deliver(self, envelope: Envelope) -> None:
        """As the transport within."""
        assert self._inner is not None
        await self._inner.deliver(envelope)
        if envelope.sender == self.party:
            self.sent.append(envelope)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        """As the transport within."""
        assert self._inner is not None
        envelope = await self._inner.collect(receiver, sender, scope)
        if receiver == self.party:
            self.received.append(envelope)
        return envelope

    def close(self, receiver: str, scope: str) -> None:
        """As the transport within."""
        assert self._inner is not None
        self._inner.close(receiver, scope)

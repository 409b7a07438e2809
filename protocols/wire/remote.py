"""A party's end of the network: gRPC, with mutual TLS, between processes that trust nothing in between.

One `Grpc` serves one party. A peer is who its certificate says; what it sends is bounded before memory is
allocated; what is sent is kept until the peer has it, and sent again after a reconnect. `parties.proto` is
the contract, `line.py` one line without I/O, `link.py` the streams that carry it.

The network runs on an event loop and a thread of its own, so that a party deep in training still takes
delivery and acknowledges. Mail waits on the party's own loop, in its mailbox.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self, TypeVar

from protocols.errors import ConfigError, LineError, VflError, nearest
from protocols.wire.endpoint import Server, open_channel
from protocols.wire.line import Limits, Line, RefusedError, weight
from protocols.wire.link import Link, quietly
from protocols.wire.tls import Credentials, check_address, is_loopback, network_name
from protocols.wire.transport import Envelope, Mailbox

T = TypeVar("T")
ABORT = "abort"  # the scope in which a party says that it has failed; waiting there is not waiting for mail


class Grpc:
    """The transport of one party, used as `async with Grpc(...) as transport`.

    book: party name -> address (`host:port`) or None for a party that can only dial; this party's own too.
    Of two with addresses the one whose name sorts first dials. listen: the address to serve on, where it is
    not the one in the book. insecure: no TLS, and no proof of who a peer is; on loopback addresses only.

    Leaving waits until the peers have acknowledged everything, at most `limits.handshake` seconds. Errors:
    ConfigError for what cannot be meant; LineError where a peer is not there, was restarted or has left;
    ProtocolError where it says what it may not.
    """

    def __init__(
        self,
        name: str,
        book: Mapping[str, str | None],
        credentials: Credentials | None = None,
        *,
        listen: str | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.name, self.book = network_name(name), dict(book)
        self.limits = limits or Limits()
        self._credentials = credentials
        self._listen = listen or self.book.get(name)
        self._check(insecure)
        self._mailbox = Mailbox(name)
        self._links: dict[str, Link] = {}
        self._failed: dict[str, tuple[type[VflError], str]] = {}
        self._open: dict[str, Counter[str]] = {peer: Counter() for peer in self.peers}
        self._space: dict[str, list[asyncio.Future[None]]] = {peer: [] for peer in self.peers}
        self._waits = 0
        self._dials: list[asyncio.Task[None]] = []
        self._server = Server(name, credentials, self.limits, self._links) if self._listen else None
        self.address: str | None = None  # served on, once entered

    @property
    def peers(self) -> tuple[str, ...]:
        """All other parties in the book, in its order."""
        return tuple(peer for peer in self.book if peer != self.name)

    @property
    def retransmitted(self) -> dict[str, int]:
        """Bytes of bodies that were sent again after a reconnect, by peer."""
        return {peer: link.line.retransmitted for peer, link in self._links.items()}

    def _check(self, insecure: bool) -> None:
        if self.name not in self.book:
            raise ConfigError(f"{self.name} is not in its own book: {', '.join(self.book) or 'nobody is'}")
        folded: dict[str, str] = {}
        for peer, address in self.book.items():
            # A certificate's names are compared without regard to case by those who dial.
            if folded.setdefault(network_name(peer).casefold(), peer) != peer:
                raise ConfigError(f"{peer} and {folded[peer.casefold()]} differ in case only; rename one")
            if address is not None:
                check_address(address)
        used = [a for a in (*self.book.values(), self._listen) if a is not None]
        if self._listen is not None:
            check_address(self._listen)
        if insecure == (self._credentials is not None):
            raise ConfigError(
                "pass credentials, or insecure=True to do without on this machine, and not both"
            )
        far = [address for address in used if not is_loopback(address)]
        if insecure and far:
            raise ConfigError(f"insecure=True is for loopback addresses only, not {', '.join(far)}")

    def _dialled(self, peer: str) -> bool:
        """Whether we dial `peer`, who otherwise dials us."""
        return self.book[peer] is not None and (self.book[self.name] is None or self.name < peer)

    # The two verbs, and close: on the party's loop.

    async def deliver(self, envelope: Envelope) -> None:
        """Hand `envelope` over; waits while the peer has too much to acknowledge."""
        link, size = self._link(envelope.receiver), weight(envelope)
        if len(envelope.body) > self.limits.envelope:
            raise ConfigError(
                f"{envelope.kind} to {envelope.receiver} is {len(envelope.body)} bytes, above the limit of "
                f"{self.limits.envelope}; send it in parts, or raise Limits.envelope at both ends"
            )
        line = link.line
        while True:
            self._raise_failure(envelope.receiver)
            link.blocked = True  # before looking, so that an acknowledgement from now on wakes us
            kept = line.queued - line.freed
            if not kept or kept + size <= self.limits.unacknowledged:
                break
            await self._wait_for_room(envelope.receiver)
        link.blocked = bool(self._space[envelope.receiver])
        line.queued += size
        self._network.call_soon_threadsafe(link.queue, envelope)

    async def _wait_for_room(self, peer: str) -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._space[peer].append(room)
        self._begin_wait()
        try:
            await room
        finally:
            self._waits -= 1
            self._space[peer].remove(room)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        """The next envelope from `sender` in `scope`."""
        if receiver != self.name:
            raise ConfigError(f"this is {self.name}'s transport, not {receiver}'s")
        link = self._link(sender)
        if self._mailbox.holds(sender, scope):
            envelope = await self._mailbox.take(sender, scope)
        else:
            self._raise_failure(sender)
            counts = scope != ABORT
            if counts:
                self._begin_wait()
            try:
                envelope = await self._mailbox.take(sender, scope)
            finally:
                self._waits -= counts
        self._release(link, envelope)
        return envelope

    def close(self, receiver: str, scope: str) -> None:
        """Free `scope`."""
        for envelope in self._mailbox.close(scope):
            self._release(self._links[envelope.sender], envelope)

    def _link(self, peer: str) -> Link:
        link = self._links.get(peer)
        if link is None:
            if peer in self.peers:
                raise ConfigError(f"neither {self.name} nor {peer} can be dialled: one needs an address")
            raise ConfigError(
                f"{self.name} has no line to {peer!r}; parties in its book are {', '.join(self.peers)}"
                f"{nearest(peer, self.peers)}"
            )
        return link

    def _begin_wait(self) -> None:
        self._waits += 1
        for link in self._links.values():
            if link.paused:
                self._network.call_soon_threadsafe(link.resume)

    def _raise_failure(self, peer: str) -> None:
        failure = self._failed.get(peer)
        if failure is not None:
            raise failure[0](failure[1])

    def _release(self, link: Link, envelope: Envelope) -> None:
        scopes = self._open[envelope.sender]
        scopes[envelope.scope] -= 1
        if not scopes[envelope.scope]:
            del scopes[envelope.scope]
        link.line.released += weight(envelope)
        if link.paused:
            self._network.call_soon_threadsafe(link.resume)

    # What links report, handed over to the party's loop.

    def arrived(self, link: Link, envelope: Envelope) -> None:
        self._tell(self._take_delivery, link, envelope)

    def freed(self, link: Link) -> None:
        self._tell(self._make_room, link.line.peer)

    def failed(self, link: Link, kind: type[VflError], reason: str) -> None:
        self._tell(self._fail, link.line.peer, kind, reason)

    def recovered(self, link: Link) -> None:
        self._tell(self._failed.pop, link.line.peer, None)

    def waiting(self) -> bool:
        return self._waits > 0

    def _tell(self, call: Callable[..., object], *args: Any) -> None:
        if not self._home.is_closed():
            self._home.call_soon_threadsafe(call, *args)

    def _take_delivery(self, link: Link, envelope: Envelope) -> None:
        scopes = self._open[envelope.sender]
        scopes[envelope.scope] += 1
        if not self._mailbox.put(envelope):
            self._release(link, envelope)
        elif len(scopes) > self.limits.scopes:
            reason = f"{envelope.sender} has sent to more than {self.limits.scopes} scopes that are not read"
            self._network.call_soon_threadsafe(link.refuse, RefusedError("RESOURCE_EXHAUSTED", reason))

    def _make_room(self, peer: str) -> None:
        for room in self._space[peer]:
            if not room.done():
                room.set_result(None)

    def _fail(self, peer: str, kind: type[VflError], reason: str) -> None:
        self._failed[peer] = kind, reason
        waits = [future for _, sender, _, future in self._mailbox.waiting() if sender == peer]
        for future in (*waits, *self._space[peer]):
            if not future.done():
                future.set_exception(kind(reason))

    # Life.

    async def __aenter__(self) -> Self:
        self._home, self._network = asyncio.get_running_loop(), _network()
        await self._there(self._start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin_wait()
        unfinished = await self._there(self._stop())
        self._waits -= 1
        if unfinished and error is None:
            raise LineError(f"not acknowledged within {self.limits.handshake:g} s: {', '.join(unfinished)}")

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the network's loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._network))

    async def _start(self) -> None:
        if self._credentials is not None:
            self._credentials.read(self.name)
        session = secrets.token_bytes(16)
        for peer in self.peers:
            if self._dialled(peer) or self._listen is not None:
                address = self.book[peer] if self._dialled(peer) else None
                self._links[peer] = Link(Line(self.name, peer, session, self.limits), address, self)
        if self._server is not None:
            self.address = await self._server.start(str(self._listen))
        for link in self._links.values():
            if link.address is not None:
                channel = partial(open_channel, link, self.name, self._credentials, self.limits)
                self._dials.append(asyncio.create_task(link.dial(channel)))

    async def _stop(self) -> list[str]:
        """Leave every line; what was not acknowledged, in words."""
        leaving = [asyncio.create_task(link.leave()) for link in self._links.values()]
        if leaving:
            await asyncio.wait(leaving, timeout=self.limits.handshake)
        for task in (*leaving, *self._dials):
            await quietly(task)
        if self._server is not None:
            await self._server.stop()
        unfinished: list[str] = []
        for peer, link in self._links.items():
            link.stop()
            if link.line.pending and not link.line.left and link.final is None:
                unfinished.append(f"{link.line.pending} messages to {peer}")
        return unfinished


@lru_cache(maxsize=1)
def _network() -> asyncio.AbstractEventLoop:
    """The network's event loop, on a thread of its own for as long as the process lives: gRPC's Python layer
    delivers its events to one loop well, and to several badly."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vfl-network", daemon=True).start()
    return loop

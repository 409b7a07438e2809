"""A party's end of the network: gRPC, with mutual TLS, between processes that trust nothing in between.

One `Grpc` serves one party, and all its jobs. A peer is who its certificate says; what it sends is bounded
before memory is allocated; what is sent is kept until the peer has it, and sent again after a reconnect.
`parties.proto` is the contract, `line.py` one line without I/O, `link.py` the streams that carry it,
`post.py` one job's mail.

The network runs on an event loop and a thread of its own, so that a party deep in training still takes
delivery and acknowledges. Mail waits on the party's own loop, in its mailbox. A party may also live on the
network's loop (`network_loop`): then nothing is handed over between threads, which takes a third off a round
trip of small messages; but whatever holds up that loop holds up all lines of the process.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from protocols.errors import ConfigError, LineError, VflError, nearest
from protocols.network.endpoint import Server, dial
from protocols.network.frames import CHUNK, CONTROL, Limits, RefusedError, weight
from protocols.network.line import Line
from protocols.network.link import Link, quietly
from protocols.network.post import ABORT as ABORT
from protocols.network.post import OnLate, Post
from protocols.network.proof import read_fingerprints
from protocols.network.tls import Credentials, check_address, is_loopback, network_name
from protocols.wire.transport import Envelope

T = TypeVar("T")
_LONGEST_JOB = 128  # bytes


class Change(NamedTuple):
    """A change in a peer's state: "connected", "lost" (no connection for `limits.patience`), "left",
    "restarted" or "refused"; and why, in words."""

    peer: str
    state: str
    reason: str


class Peer(NamedTuple):
    """The state of a peer."""

    connected: bool
    heard: float | None  # seconds since its last frame; None: never
    cause: str  # why there is no connection, in words; "" if there is one


class Grpc:
    """The transport of one party, used as `async with Grpc(...) as transport`.

    book: party name -> address (`host:port`) or None for a party that can only dial; this party's own too.
    Of two with addresses the one whose name sorts first dials. listen: the address to serve on, where it is
    not the one in the book. insecure: no TLS, and no proof of who a peer is; on loopback addresses only.
    revoked: SHA-256 fingerprints of certificates that are accepted no more. on_change: called on this party's
    loop with each `Change` of a peer.

    It carries one job, whatever that is called, if it is used as a transport itself; or many, each through
    `for_job`, and then mail for a job that is not open here is discarded and counted. healthy: what the
    health service says until we leave; asked on the network's thread. Leaving waits until the peers have
    acknowledged everything, at most `limits.handshake` seconds. Errors: ConfigError for what cannot be meant;
    LineError where a peer is not there, was restarted or has left; ProtocolError where it says what it may
    not.
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
        revoked: Collection[str] = (),
        on_change: Callable[[Change], None] | None = None,
        healthy: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name, self.book = network_name(name), dict(book)
        self.limits = limits or Limits()
        self._healthy, self._leaving = healthy, False
        self.waits = 0  # of roles, for anything
        self._credentials, self._revoked = credentials, read_fingerprints(revoked)
        self._listen = listen or self.book.get(name)
        self._check(insecure)
        self._on_change = on_change
        self._posts: dict[str | None, Post] = {None: Post(self, None)}
        self._links: dict[str, Link] = {}
        self._failed: dict[str, tuple[type[VflError], str, str]] = {}
        self._open: dict[str, dict[tuple[str, str], int]] = {peer: {} for peer in self.peers}
        self._space: dict[str, list[asyncio.Future[None]]] = {peer: [] for peer in self.peers}
        self._meetings: dict[str, list[asyncio.Future[None]]] = {peer: [] for peer in self.peers}
        self._dials: list[asyncio.Task[None]] = []
        self._server: Server | None = None
        self.address: str | None = None  # served on, once entered

    @property
    def peers(self) -> tuple[str, ...]:
        """All other parties in the book, in its order."""
        return tuple(peer for peer in self.book if peer != self.name)

    @property
    def retransmitted(self) -> dict[str, int]:
        """Bytes of bodies that were sent again after a reconnect, by peer."""
        return {peer: link.line.out.retransmitted for peer, link in self._links.items()}

    @property
    def discarded(self) -> dict[str, int]:
        """Envelopes that came for a job or scope that is not open here, or twice, by peer."""
        return {peer: link.line.into.discarded + link.late for peer, link in self._links.items()}

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
        if insecure and self._revoked:
            raise ConfigError("insecure=True shows no certificates, so none can be revoked")

    def _dialled(self, peer: str) -> bool:
        """Return whether we dial `peer`; otherwise it dials us."""
        return self.book[peer] is not None and (self.book[self.name] is None or self.name < peer)

    # Jobs: on the party's loop, like all that follows.

    def for_job(self, job: str, on_late: OnLate | None = None) -> Post:
        """A transport for `job` alone. Open it before any peer may send to it: what comes earlier is lost.
        Once it is called, this Grpc is no transport itself. ConfigError for a job that is open."""
        if job in self._posts:
            raise ConfigError(f"job {job!r} is open already")
        if len(job.encode()) > _LONGEST_JOB or not job.isprintable():
            raise ConfigError(f"{job[:_LONGEST_JOB]!r} cannot name a job: at most 128 bytes, printable")
        if None in self._posts:
            self._posts[None].end()
        post = self._posts[job] = Post(self, job, on_late)
        return post

    def end_job(self, job: str) -> None:
        """End the post of `job`, if it is open."""
        if job in self._posts:
            self._posts[job].end()

    def forget(self, post: Post) -> None:
        """Forget a job. Its post calls this when it ends."""
        self._posts = {job: kept for job, kept in self._posts.items() if kept is not post}

    @property
    def _only(self) -> Post:
        if None not in self._posts:
            raise ConfigError("this Grpc carries several jobs: use what for_job returns as the transport")
        return self._posts[None]

    def deliver(self, envelope: Envelope) -> Coroutine[Any, Any, None]:
        """Hand `envelope` over; waits while the peer has too much to acknowledge."""
        return self._only.deliver(envelope)

    def collect(self, receiver: str, sender: str, scope: str) -> Coroutine[Any, Any, Envelope]:
        """The next envelope from `sender` in `scope`."""
        return self._only.collect(receiver, sender, scope)

    def close(self, receiver: str, scope: str) -> None:
        """Free `scope`."""
        self._only.close(receiver, scope)

    # Peers.

    def connected(self, peer: str) -> bool:
        """Return whether there is a stream to `peer` now."""
        return self.link(peer).connected

    def peer(self, peer: str) -> Peer:
        """Return the state of `peer`."""
        link = self.link(peer)
        heard = None if link.heard is None else time.monotonic() - link.heard
        return Peer(link.connected, heard, "" if link.connected else link.cause)

    async def reachable(self, peer: str, timeout: float) -> bool:
        """Wait up to `timeout` seconds for `peer`, and return whether it is connected."""
        meeting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._meetings[self.link(peer).line.peer].append(meeting)
        try:
            if not self.connected(peer):
                await asyncio.wait({meeting}, timeout=timeout)
            return self.connected(peer)
        finally:
            self._meetings[peer].remove(meeting)

    async def ping(self, peer: str, timeout: float = 5.0) -> float:
        """Measure a round trip to `peer` in seconds. LineError if it is not connected or does not answer."""
        return await self._run(self.link(peer).ping(timeout))

    # For posts.

    async def send(self, post: Post, envelope: Envelope) -> None:
        """Send an envelope for a post, as `Post.deliver` promises."""
        link, size, control = self.link(envelope.receiver), weight(envelope), envelope.job == CONTROL
        most = CHUNK if control else self.limits.envelope
        if len(envelope.body) > most:
            raise ConfigError(
                f"{envelope.kind} to {envelope.receiver} is {len(envelope.body)} bytes, above the limit of "
                f"{most}; send it in parts{'' if control else ', or raise Limits.envelope at both ends'}"
            )
        flow = link.line.out.kept[control]
        bound = self.limits.control if control else self.limits.unacknowledged
        while True:
            post.check(envelope.receiver)
            link.blocked = True  # before looking, so that an acknowledgement from now on wakes us
            kept = flow.held
            if not kept or kept + size <= bound:
                break
            await self._wait_for_room(envelope.receiver, not control)
        link.blocked = bool(self._space[envelope.receiver])
        flow.entered += size
        self._there(link.queue, envelope)

    async def _wait_for_room(self, peer: str, counts: bool) -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._space[peer].append(room)
        if counts:
            self.begin_wait()
        try:
            await room
        finally:
            self.waits -= counts
            self._space[peer].remove(room)

    def link(self, peer: str) -> Link:
        """The link to `peer`; ConfigError if there is none."""
        link = self._links.get(peer)
        if link is None:
            if peer in self.peers:
                raise ConfigError(f"neither {self.name} nor {peer} can be dialled: one needs an address")
            raise ConfigError(
                f"{self.name} has no line to {peer!r}; parties in its book are {', '.join(self.peers)}"
                f"{nearest(peer, self.peers)}"
            )
        return link

    def begin_wait(self) -> None:
        """Note that a role waits, and give room to the peers that may be waiting for it."""
        self.waits += 1
        for link in self._links.values():
            if link.line.into.starving:
                self._there(link.grant)

    def raise_failure(self, peer: str) -> None:
        """Raise the error that says what became of `peer`, if it is gone."""
        failure = self._failed.get(peer)
        if failure is not None:
            raise _failure(*failure, peer)

    def release(self, link: Link, envelope: Envelope) -> None:
        """Note that mail was collected or dropped, which frees room."""
        scopes, scope = self._open[envelope.sender], (envelope.job, envelope.scope)
        if scopes[scope] == 1:
            del scopes[scope]
        else:
            scopes[scope] -= 1
        into, control = link.line.into, envelope.job == CONTROL
        flow = into.uncollected[control]
        flow.left += weight(envelope)
        if not control and flow.left - into.marked >= self.limits.uncollected // 2:
            self._there(link.grant)

    # What links report, handed over to the party's loop.

    def arrived(self, link: Link, envelope: Envelope) -> None:
        self._tell(self._take_delivery, link, envelope)

    def freed(self, link: Link) -> None:
        self._tell(_wake, self._space[link.line.peer])

    def failed(self, link: Link, state: str, kind: type[VflError], reason: str) -> None:
        self._tell(self._fail, link.line.peer, state, kind, reason)

    def recovered(self, link: Link) -> None:
        self._tell(self._recover, link.line.peer)

    def waiting(self) -> bool:
        return self.waits > 0

    def _wanted(self, job: str) -> bool:
        posts = self._posts
        return job in posts or None in posts

    def _tell(self, call: Callable[..., object], *args: Any) -> None:
        if self._home is self._network:
            call(*args)
        elif not self._home.is_closed():
            self._home.call_soon_threadsafe(call, *args)

    def _there(self, call: Callable[..., object], *args: Any) -> None:
        """Schedule a call on the network's loop."""
        if self._home is self._network:
            call(*args)
        else:
            self._network.call_soon_threadsafe(call, *args)

    def _take_delivery(self, link: Link, envelope: Envelope) -> None:
        scopes, scope = self._open[envelope.sender], (envelope.job, envelope.scope)
        scopes[scope] = scopes.get(scope, 0) + 1
        post = self._posts.get(envelope.job) or self._posts.get(None)
        if post is None or not post.mailbox.put(envelope):
            link.late += 1
            if post is not None:
                post.late(envelope)
            self.release(link, envelope)
        elif len(scopes) > self.limits.scopes:
            reason = f"{envelope.sender} has sent to more than {self.limits.scopes} scopes that are not read"
            self._there(link.refuse, RefusedError("RESOURCE_EXHAUSTED", reason))

    def _recover(self, peer: str) -> None:
        self._failed.pop(peer, None)
        _wake(self._meetings[peer])
        self._say(Change(peer, "connected", ""))

    def _fail(self, peer: str, state: str, kind: type[VflError], reason: str) -> None:
        if state != "restarted":  # one that was is there
            self._failed[peer] = kind, state, reason
        for post in self._posts.values():
            # A transport of one job may meet another process of a peer that had left, and go on.
            if state == "restarted" or (state == "left" and post.job is not None):
                post.lose(peer, reason)
        waits = [wait for post in self._posts.values() for wait in post.mailbox.waiting()]
        for future in (*(w for _, sender, _, w in waits if sender == peer), *self._space[peer]):
            if not future.done():
                future.set_exception(_failure(kind, state, reason, peer))
        self._say(Change(peer, state, reason))

    def _say(self, change: Change) -> None:
        if self._on_change is not None:
            self._home.call_soon(self._on_change, change)

    # Life.

    async def __aenter__(self) -> Self:
        self._home, self._network = asyncio.get_running_loop(), network_loop()
        await self._run(self._start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        self.begin_wait()
        unfinished = await self._run(self._stop())
        self.waits -= 1
        if unfinished and error is None:
            raise LineError(f"not acknowledged within {self.limits.handshake:g} s: {', '.join(unfinished)}")

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the network's loop."""
        if self._home is self._network:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._network))

    async def _start(self) -> None:
        credentials, revoked = self._credentials, self._revoked
        if credentials is not None:
            credentials.read(self.name)
        session = secrets.token_bytes(16)
        for peer in self.peers:
            if self._dialled(peer) or self._listen is not None:
                address = self.book[peer] if self._dialled(peer) else None
                self._links[peer] = Link(self._line(peer, session), address, self)
        if self._listen is not None:
            self._server = Server(self.name, credentials, self.limits, self._links, revoked, self._serves)
            self.address = await self._server.start(self._listen)
        for link in self._links.values():
            if link.address is not None:
                connect = partial(dial, link, self.name, credentials, revoked)
                self._dials.append(asyncio.create_task(link.dial(connect)))

    def _serves(self) -> bool:
        return self._healthy() and not self._leaving

    def _line(self, peer: str, session: bytes) -> Line:
        return Line(self.name, peer, session, self.limits, self._wanted)

    async def _stop(self) -> list[str]:
        """Leave every line, and return in words what was not acknowledged."""
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
            pending = link.line.out.pending
            if pending and not link.line.left and link.final is None:
                unfinished.append(f"{pending} messages to {peer}")
        return unfinished


def _failure(kind: type[VflError], state: str, reason: str, peer: str) -> VflError:
    error = kind(reason)
    if state == "lost":  # why may name a path or an address of ours
        error.told = f"no connection to {peer}; the reason is in its own log"
    return error


def _wake(waits: list[asyncio.Future[None]]) -> None:
    for wait in waits:
        if not wait.done():
            wait.set_result(None)


@lru_cache(maxsize=1)
def network_loop() -> asyncio.AbstractEventLoop:
    """The network's event loop, on a thread of its own for as long as the process lives: gRPC's Python layer
    delivers its events to one loop well, and to several badly."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vfl-network", daemon=True).start()
    return loop

"""The door of a party's server: how many may be connected without speaking, and for how long.

Takes part: one party, alone. Whoever can reach its port can open connections, and each costs a descriptor and
some memory before anybody is known by a certificate. gRPC's core bounds their number and the time that a
handshake takes; but when there are too many it refuses the newest, so that whoever keeps them too many keeps
everybody else out, and one that has shown a certificate may stay for as long as it likes. Here, a connection
that carries no stream of a peer is ended after some seconds; and of too many, the oldest of the address that
has most are ended first, so that an honest peer has the time to say who it is.

gRPC has no way to end one connection. But its sockets are this process's own, and to shut one down is to it
as if the other end had hung up. So it is on Linux; elsewhere the core's own bounds are all. See
docs/decisions/019-strangers.md.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from protocols.errors import LineError

if sys.platform != "win32":
    import resource

_log = logging.getLogger("vfl")  # events and fields as `protocols.logs` lists them
_OPEN = Path("/proc/self/fd")  # the descriptors of this process, on Linux
_MOST = 1024  # connections to one server, where there are not more peers
_LIMITS = (1 << 16, 10_240)  # descriptors to ask for: the first that the system grants
_SELDOM, _OFTEN, _SOONEST = 0.25, 0.05, 0.02  # seconds from look to look: few are there, many, a rush
_MAPPED = bytes(10) + b"\xff\xff"  # before an address of IPv4 where a socket takes both
_FAREWELL = 0.5  # seconds for one that was refused to read why
_REMINDED = 60.0  # seconds between two times that the log says the same


class Address(NamedTuple):
    """The address that a connection comes from. host: 4 or 16 bytes."""

    host: bytes
    port: int

    @property
    def origin(self) -> bytes:
        """The addresses that count as one owner's: one IPv4 address, or one /64 range of IPv6."""
        return self.host[:8]


@dataclass(slots=True)
class _Stranger:
    """A connection, which is ended at `until` if no peer's stream is on it then."""

    descriptor: int
    inode: int  # which unlike a descriptor is not another's a moment later, and grows
    address: Address
    until: float
    ended: bool = False


def raise_limit() -> None:
    """Let this process open as many files as it may: each connection is one."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for most in _LIMITS:
            wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
            if soft == resource.RLIM_INFINITY or soft >= wanted:
                return
            with suppress(OSError, ValueError):  # macOS grants fewer than it says
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def room(peers: int) -> int:
    """Return how many connections a server takes. A quarter of the files that this process may open is left
    for the store, the tables and the connections that it dials."""
    most = max(_MOST, 4 * peers)
    if sys.platform == "win32":
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else min(most, soft * 3 // 4)


class Door:
    """The connections to a port of `me`. most: that there can be. patience: seconds that one may stay without
    a stream of a peer. Everything but `knock` runs on the network's event loop."""

    def __init__(self, me: str, most: int, patience: float) -> None:
        self.port = 0
        self._me, self._most, self._patience = me, most, patience
        self._loop = asyncio.get_running_loop()
        self._carrying: Counter[Address] = Counter()
        self._until: dict[Address, float] = {}  # of those whose time has changed since the last look
        self._known: dict[int, _Stranger | None] = {}  # by inode; None for what is no connection to us
        self._knocks, self._knocked = 0, asyncio.Event()
        self._unsaid: Counter[str] = Counter()
        self._said = -_REMINDED

    async def keep(self, port: int) -> None:
        """Watch over `port` until it is cancelled."""
        self.port = port
        while _OPEN.is_dir():
            try:
                pause = _OFTEN if self.look(self._loop.time()) else _SELDOM
            except OSError:  # no descriptor is left to look with; the party's health says so
                pause = _OFTEN
            except Exception as error:  # a fault of ours must not leave the door open
                pause = _SELDOM
                _log.error("unexpected error", extra={"party": self._me}, exc_info=error)
            await asyncio.sleep(_SOONEST)
            self._knocks = 0
            self._knocked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._knocked.wait()

    def knock(self) -> None:
        """Note that somebody has connected. Called on gRPC's threads."""
        self._knocks += 1  # now and then two threads count as one
        if self._knocks > self._most // 8 and not self._knocked.is_set():
            self._loop.call_soon_threadsafe(self._knocked.set)

    @contextmanager
    def carrying(self, peer: str) -> Iterator[None]:
        """Mark the connection that gRPC calls `peer` as carrying a peer's stream while inside."""
        address = parse(peer)
        self._carrying[address] += 1
        try:
            yield
        finally:
            self._carrying[address] -= 1
            if not self._carrying[address]:
                del self._carrying[address]
                self._until[address] = self._loop.time() + self._patience

    def dismiss(self, peer: str) -> None:
        """End a connection that is no peer's, after a short time in which the refusal can reach it."""
        self._until[parse(peer)] = self._loop.time() + _FAREWELL

    def look(self, now: float) -> bool:
        """End connections that stayed too long, and the oldest if there are too many. Return whether to look
        again soon. Raises OSError where no descriptor is left to look with."""
        self._known = self._found(now)
        here = (one for one in self._known.values() if one is not None and not one.ended)
        strangers = [one for one in here if one.address not in self._carrying]
        late = [one for one in strangers if one.until <= now]
        rest = [one for one in strangers if one.until > now]
        most = max(0, self._most - len(self._carrying)) // 2  # as many may come until the next look
        crowd = _crowded(rest)[: max(0, len(rest) - most)]
        for one in (*late, *crowd):
            one.ended = True
            with _while_there(), _held(one.descriptor, one.inode) as found:
                found.shutdown(socket.SHUT_RDWR)
        self._tell(late, "no stream of a peer came in time", now)
        self._tell(crowd, "more than half of the room was taken by connections without a stream", now)
        return len(rest) > most // 2

    def _found(self, now: float) -> dict[int, _Stranger | None]:
        """List this process's sockets, reusing what is known of them from earlier looks."""
        found: dict[int, _Stranger | None] = {}
        for descriptor in map(int, os.listdir(_OPEN)):
            try:
                status = os.fstat(descriptor)
            except OSError:  # it has just been closed
                continue
            if not stat.S_ISSOCK(status.st_mode):
                continue
            inode = status.st_ino
            if inode not in self._known:
                with _while_there():
                    address = _caller(descriptor, inode, self.port)
                    found[inode] = address and _Stranger(descriptor, inode, address, now + self._patience)
            else:
                one = found[inode] = self._known[inode]
                if one is not None:
                    one.descriptor = descriptor
        for one in found.values():
            if one is not None and one.address in self._until:
                one.until = self._until[one.address]
        self._until.clear()
        return found

    def _tell(self, ended: Sequence[_Stranger], why: str, now: float) -> None:
        """Log ended connections: the first at once, later ones as a count since the last line."""
        if ended:
            self._unsaid[why] += len(ended)
        if self._unsaid and now - self._said >= _REMINDED:
            for reason, count in self._unsaid.items():
                extra = {"party": self._me, "connections": count}
                _log.warning("connections ended", extra=extra, exc_info=LineError(reason))
            self._unsaid.clear()
            self._said = now


def parse(peer: str) -> Address:
    """Read the address from gRPC's name of a peer, such as "ipv4:127.0.0.1:4711" or "ipv6:%5B::1%5D:4711"."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return _address(host.strip("[]"), int(port))


def _address(host: str, port: int) -> Address:
    if ":" not in host:
        return Address(socket.inet_pton(socket.AF_INET, host), port)
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return Address(packed.removeprefix(_MAPPED), port)


def _caller(descriptor: int, inode: int, port: int) -> Address | None:
    """Return who has connected to `port` over this socket, or None if nobody has."""
    with _held(descriptor, inode) as found:
        if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port:
            with suppress(OSError):  # it listens
                return _address(*found.getpeername()[:2])
    return None


def _crowded(strangers: Sequence[_Stranger]) -> list[_Stranger]:
    """Order connections by who is ended first: the one with most newer connections from the same origin."""
    newer: Counter[bytes] = Counter()
    ranked: list[tuple[int, _Stranger]] = []
    for one in sorted(strangers, key=lambda one: (one.until, one.inode), reverse=True):
        ranked.append((newer[one.address.origin], one))
        newer[one.address.origin] += 1
    return [one for _, one in sorted(ranked, key=lambda known: known[0], reverse=True)]


@contextmanager
def _held(descriptor: int, inode: int) -> Iterator[socket.socket]:
    """Hold the socket at `descriptor`. Raises OSError if gRPC has reused the descriptor for another file."""
    handle = os.dup(descriptor)
    if os.fstat(handle).st_ino != inode:
        os.close(handle)
        raise OSError(errno.EBADF, "it was closed")
    with socket.socket(fileno=handle) as found:
        yield found


@contextmanager
def _while_there() -> Iterator[None]:
    """Ignore errors of sockets that were closed meanwhile, but raise OSError if no descriptor is left."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise

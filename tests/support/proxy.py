"""A bad network on loopback: a TCP proxy that disturbs connections by a plan, for tests of whole jobs too.

    async with Proxy(shop.address, seeded(7)) as proxy:
        book = {"bank": None, "shop": proxy.address}

`Proxy(target, weather)` forwards each connection to `target`, "host:port". The weather says of each, counted
from 0 in the order in which they come, what its `Fate` is; `seeded(seed)` draws a few bad ones and then none,
so that a run can end. The proxy knows no TLS and no gRPC: what it does is what a network does. With
`in_thread` it runs beside a test without an event loop, or one whose loop is busy.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from tests.support.waiting import HANG

Then = Literal["cut", "reset", "drop", "half-open"]
ALL: tuple[Then, ...] = ("cut", "reset", "drop", "half-open")
_PIECE = 1 << 16


@dataclass(frozen=True)
class Fate:
    """What befalls one connection: nothing, by default.

    delay: seconds, at most, that each piece waits. rate: bytes a second that are read, each way: a slow
    reader. after: so many bytes of both directions, and `then` it is ended in order (cut) or at once (reset),
    loses a piece and goes on (drop: TLS notices), or says nothing more and stays open (half-open).
    """

    delay: float = 0.0
    rate: float | None = None
    after: int | None = None
    then: Then = "cut"


Weather = Callable[[int], Fate]


def fair(_: int) -> Fate:
    """Nothing happens."""
    return Fate()


def first(times: int, fate: Fate) -> Weather:
    """`fate` for the first so many connections."""
    return lambda number: fate if number < times else Fate()


def seeded(seed: int, kinds: tuple[Then, ...] = ALL, times: int = 4, size: float = 3e6) -> Weather:
    """Up to `times` bad connections, each after 100 to `size` bytes; the same for the same seed."""
    plan = random.Random(f"plan {seed}")
    bad, delay = plan.randint(1, times), plan.choice((0.0, 0.0, 0.002, 0.01))

    def weather(number: int) -> Fate:
        rng = random.Random(f"{seed}/{number}")
        if number >= bad:
            return Fate(delay)
        rate = rng.choice((None, None, None, 2_000_000.0))
        return Fate(delay, rate, int(100 * (size / 100) ** rng.random()), rng.choice(kinds))

    return weather


class Proxy:
    """Used as `async with Proxy(target, weather) as proxy`; peers dial `proxy.address`.

    target may be changed, as when a party comes back on another port; `connections` counts them so far.
    """

    def __init__(self, target: str | None, weather: Weather = fair) -> None:
        self.target, self.weather = str(target), weather
        self.connections = 0
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self._open:
            self._cut()
            await asyncio.wait(self._open)
        await asyncio.sleep(0)  # transports close in the next turn

    def cut(self) -> None:
        """End all connections now; from any thread."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for task in self._open:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # a handler is one
        self._open.add(task)
        host, _, port = self.target.rpartition(":")
        ends = [writer]
        connection = _Connection(self.weather(self.connections), self.connections)
        self.connections += 1
        try:
            there_reader, there = await asyncio.open_connection(host, int(port), limit=_PIECE)
            ends.append(there)
            await connection.carry((reader, there), (there_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in ends:
                connection.end(end)
            self._open.discard(task)


class _Connection:
    """One connection, there and back."""

    def __init__(self, fate: Fate, number: int) -> None:
        self._fate, self._rng = fate, random.Random(number)
        self._left = fate.after
        self._over = False  # what was to happen has happened

    async def carry(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Until it ends or is ended."""
        tasks = [asyncio.create_task(self._forward(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._over and self._fate.then == "half-open":
                await asyncio.wait(tasks)  # each end finds out by itself
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fate = self._fate
        while piece := await reader.read(_PIECE if fate.rate is None else 1 << 12):
            if fate.delay:
                await asyncio.sleep(fate.delay * self._rng.random())
            if fate.rate is not None:
                await asyncio.sleep(len(piece) / fate.rate)
            if self._over and fate.then == "half-open":
                continue
            if self._left is not None and not self._over:
                self._left -= len(piece)
                if self._left < 0:
                    self._over = True
                    # In the middle of a piece, and so of a TLS record.
                    writer.write(piece[: self._left])
                    await writer.drain()
                    if fate.then in ("cut", "reset"):
                        return
                    continue
            writer.write(piece)
            await writer.drain()

    def end(self, writer: asyncio.StreamWriter) -> None:
        """Close one end: in order, or at once."""
        if self._over and self._fate.then == "cut":
            writer.close()
            return
        if self._over and self._fate.then == "reset":
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)  # what is not sent is thrown away, and the peer told so
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


@contextmanager
def in_thread(target: str | None, weather: Weather = fair) -> Iterator[Proxy]:
    """A proxy on a thread and an event loop of its own."""
    ready, done = threading.Event(), asyncio.Event()
    proxy = Proxy(target, weather)

    async def serve() -> None:
        async with proxy:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="proxy", daemon=True)
    thread.start()
    try:
        assert ready.wait(HANG)
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(done.set)
        thread.join(HANG)

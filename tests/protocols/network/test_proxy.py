"""The bad network does what its plan says, or the tests through it would show nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.network import bounded
from tests.support.proxy import ALL, Fate, Proxy, Weather, fair, first, in_thread, seeded


@asynccontextmanager
async def echoing(weather: Weather) -> AsyncIterator[tuple[Proxy, list[asyncio.StreamWriter]]]:
    """A proxy before a server that says everything back."""
    ends: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with Proxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", weather) as proxy:
        yield proxy, ends
    server.close()
    while any(not end.transport.is_closing() for end in ends):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)


async def through(proxy: Proxy, said: bytes, wait: float = 0.2) -> tuple[bytes, str]:
    """What came back, and how it ended."""
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    came = b""
    try:
        async with asyncio.timeout(wait):
            while len(came) < len(said):
                piece = await reader.read(1 << 16)
                if not piece:
                    return came, "closed"
                came += piece
        return came, "whole"
    except TimeoutError:
        return came, "silent"
    except ConnectionResetError:
        return came, "reset"
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


SAID = bytes(range(250)) * 4


def test_fair_weather_changes_nothing() -> None:
    async def talk() -> None:
        async with echoing(fair) as (proxy, _):
            for n in range(3):
                assert await through(proxy, SAID) == (SAID, "whole") and proxy.connections == n + 1

    bounded(talk())


@pytest.mark.parametrize(
    ("then", "came", "end"),
    [("cut", 500, "closed"), ("half-open", 500, "silent"), ("drop", 500, "silent"), ("reset", None, "reset")],
)
def test_each_thing_that_may_happen(then: str, came: int | None, end: str) -> None:
    """After 1500 bytes, of which the first 1000 went there: so 500 come back."""

    async def talk() -> None:
        async with echoing(first(1, Fate(after=1500, then=then))) as (proxy, _):  # type: ignore[arg-type]
            found, how = await through(proxy, SAID)
            assert how == end
            # What is on its way when a connection is reset is lost.
            assert SAID.startswith(found) and (came is None or len(found) == came)
            assert await through(proxy, SAID) == (SAID, "whole")

    bounded(talk())


def test_what_is_dropped_is_lost_and_the_rest_goes_on() -> None:
    async def talk() -> None:
        async with echoing(first(1, Fate(after=10, then="drop"))) as (proxy, _):
            host, _, port = proxy.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            for said in (b"0123456789", b"lost", b"kept"):
                writer.write(said)
                await writer.drain()
                await asyncio.sleep(0.05)
            # The first went there and used up the ten bytes; on its way back it was lost.
            assert await reader.read(100) == b"lostkept"
            writer.transport.abort()
            await asyncio.sleep(0)

    bounded(talk())


def test_a_slow_reader_and_a_delay_take_their_time() -> None:
    async def seconds(fate: Fate) -> float:
        async with echoing(lambda _: fate) as (proxy, _):
            start = time.monotonic()
            assert await through(proxy, SAID, 5.0) == (SAID, "whole")
            return time.monotonic() - start

    assert bounded(seconds(Fate(rate=10_000))) >= 0.2  # a thousand bytes, there and back
    assert bounded(seconds(Fate(delay=1.0))) >= 0.05


def test_cutting_by_hand_and_a_target_that_moves() -> None:
    async def talk() -> None:
        async with echoing(fair) as (proxy, _), echoing(fair) as (other, _):
            host, _, port = proxy.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            proxy.cut()
            assert await reader.read(1) == b""
            writer.transport.abort()
            proxy.target = "127.0.0.1:1"
            assert (await through(proxy, SAID))[1] in ("closed", "reset")
            proxy.target = other.target
            assert await through(proxy, SAID) == (SAID, "whole")

    bounded(talk())


def test_a_seed_is_a_plan() -> None:
    plans = [[seeded(seed)(n) for n in range(8)] for seed in range(200)]
    assert plans == [[seeded(seed)(n) for n in range(8)] for seed in range(200)]
    bad = [fate for plan in plans for fate in plan if fate.after is not None]
    assert {fate.then for fate in bad} == set(ALL) and {fate.rate for fate in bad} == {None, 2_000_000.0}
    assert all(100 <= (fate.after or 0) <= 3e6 for fate in bad)
    # Every plan disturbs something, and then lets a run end.
    assert all(plan[0].after is not None and plan[-1].after is None for plan in plans)


def test_a_proxy_in_a_thread_serves_those_without_a_loop() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        in_thread(f"127.0.0.1:{server.getsockname()[1]}") as proxy,
    ):
        host, _, port = proxy.address.rpartition(":")
        with socket.create_connection((host, int(port)), 5.0) as here:
            there, _ = server.accept()
            with there:
                here.sendall(b"there")
                assert there.recv(100) == b"there"
                proxy.cut()
                assert there.recv(100) == b""

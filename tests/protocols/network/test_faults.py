"""A bad network: whatever a proxy does to connections, the result is right, or one error comes in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from protocols.errors import LineError
from protocols.network.frames import CHUNK, Limits
from protocols.network.grpc import Grpc
from tests.support.network import bank_party, bounded, envelope, party, shop_party, tell
from tests.support.proxy import ALL, Fate, Proxy, Then, first, seeded

HASTY = Limits(patience=8.0, handshake=1.0, keepalive=0.3, unacknowledged=2 * CHUNK)


async def echo(bank: Grpc, shop: Grpc, bodies: list[bytes]) -> list[bytes]:
    there, back = await asyncio.gather(tell(bank, shop, bodies), tell(shop, bank, bodies, "back"))
    assert there == back
    return there


@pytest.mark.parametrize("seed", range(10))
def test_a_disturbed_run_gives_the_undisturbed_result(seed: int) -> None:
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice((0, 10, 5_000, 300_000, CHUNK + 1))) for _ in range(12)]
    # Every kind of fault comes first in some plan; a silent line is found out by keep-alive only.
    kinds = (ALL[seed % len(ALL)],)
    weather = seeded(seed, kinds, times=2 if kinds == ("half-open",) else 6)

    async def talk() -> int:
        async with shop_party(HASTY) as shop, Proxy(shop.address, weather) as proxy:
            async with bank_party(proxy.address, HASTY) as bank:
                assert await echo(bank, shop, bodies) == bodies
            return proxy.connections

    assert bounded(talk()) > 1


def test_a_cut_is_repaired_by_sending_again_what_was_not_acknowledged() -> None:
    weather = first(1, Fate(after=5 * CHUNK // 2))
    limits = Limits(unacknowledged=8 * CHUNK, patience=8.0)

    async def talk() -> None:
        async with (
            shop_party(limits) as shop,
            Proxy(shop.address, weather) as proxy,
            bank_party(proxy.address, limits) as bank,
        ):
            bodies = [bytes([i]) * CHUNK for i in range(6)]
            assert await tell(bank, shop, bodies) == bodies
            assert proxy.connections == 2
            assert 0 < bank.retransmitted["shop"] <= 6 * CHUNK
            assert shop.retransmitted == {"bank": 0}

    bounded(talk())


@pytest.mark.parametrize("then", ["cut", "half-open"])
def test_a_line_that_stays_down_is_one_error_at_each_end(then: Then) -> None:
    limits = Limits(patience=1.0, handshake=0.5, keepalive=0.2)

    def weather(number: int) -> Fate:
        return Fate(after=0 if number else 20_000, then=then)

    async def talk() -> None:
        async with (
            shop_party(limits) as shop,
            Proxy(shop.address, weather) as proxy,
            bank_party(proxy.address, limits) as bank,
        ):
            with pytest.raises(LineError, match="no connection to bank, which dials us, for 1 s: "):
                await tell(bank, shop, [bytes(CHUNK)])
            with pytest.raises(LineError, match=r"no connection to shop, at 127\.0\.0\.1:\d+, for 1 s: "):
                await bank.collect("bank", "shop", "talk")

    with pytest.raises(LineError, match="not acknowledged within"):
        bounded(talk())


def test_a_line_that_comes_back_after_an_error_works_again() -> None:
    limits = Limits(patience=0.4, handshake=1.0)

    async def talk() -> None:
        async with shop_party() as placeholder:
            address = placeholder.address
        async with bank_party(address, limits) as bank:
            with pytest.raises(LineError, match="no connection to shop"):
                await bank.collect("bank", "shop", "early")
            async with party("shop", {"bank": None, "shop": address}) as shop:
                # What waits now waits on a line that is known to be there.
                await shop.deliver(envelope("shop", "bank", b"late"))
                await until(lambda: "shop" not in bank._failed)
                assert (await bank.collect("bank", "shop", "talk")).body == b"late"

    bounded(talk())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)

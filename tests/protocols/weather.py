"""Bad networks by a seed: proxies that delay, lose, cut, reset, or pass nothing on any more."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.toml import read_toml
from tests.protocols.wire.network import Proxy

KINDS = ("delay", "slow", "drop", "cut", "reset", "half-open")


@dataclass(frozen=True)
class Plan:
    """What befalls connections: `kinds`, the first `times` of them, after some bytes that `seed` draws."""

    seed: int
    kinds: tuple[str, ...]
    times: int

    @classmethod
    def of(cls, seed: int) -> Plan:
        """The plan of a seed: one or two kinds, each of them in one of six seeds or more."""
        rng = random.Random(seed)
        kinds = {KINDS[seed % len(KINDS)], rng.choice(KINDS)}
        return cls(seed, tuple(sorted(kinds)), rng.choice((1, 2, 4, 8, 1000)))


CALM = Plan(0, (), 0)


class Stormy(Proxy):
    """A proxy whose plan may be changed while it runs."""

    plan = CALM

    def follow(self, plan: Plan) -> None:
        """From here on; connections that there are, are closed."""
        self.plan, self.connections = plan, 0
        self._rng = random.Random(f"{plan.seed} {self.target}")
        self.cut()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]
    ) -> None:
        plan, kinds = self.plan, set(self.plan.kinds)
        if self.connections > plan.times:
            kinds -= {"drop", "cut", "reset", "half-open"}
        after = int(10 ** self._rng.uniform(2.5, 5.5)) if plan.kinds else 0
        try:
            while piece := await reader.read(1024 if "slow" in kinds else 1 << 16):
                after -= len(piece)
                if "slow" in kinds:
                    await asyncio.sleep(0.002)
                if "delay" in kinds:
                    await asyncio.sleep(0.02 * self._rng.random())
                if after < 0 and "half-open" in kinds:
                    continue
                if after < 0 and "drop" in kinds:
                    kinds.remove("drop")
                    continue
                if after < 0 and "reset" in kinds:
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    return
                if after < 0 and "cut" in kinds:
                    return
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


class Proxies:
    """A proxy before each party of a trial that listens, on a loop and a thread of their own."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.proxies = {party: Stormy(address) for party, address in _book(folder).items() if address}
        for proxy in self.proxies.values():
            self._do(proxy.__aenter__())
        self._split(folder)

    def follow(self, plan: Plan) -> None:
        """Change the weather everywhere."""

        async def follow() -> None:
            for proxy in self.proxies.values():
                proxy.follow(plan)

        self._do(follow())

    def close(self) -> None:
        for proxy in self.proxies.values():
            self._do(proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _split(self, folder: Path) -> None:
        """Give each party a book of its own, `<party>-book.toml`: itself as it is, all others by a proxy."""
        whole = (folder / "parties.toml").read_text()
        for me in _book(folder):
            text = whole
            for party, proxy in self.proxies.items():
                if party != me:
                    text = text.replace(f'"{proxy.target}"', f'"{proxy.address}"')
            (folder / f"{me}-book.toml").write_text(text)
            config = folder / f"{me}.toml"
            config.write_text(
                config.read_text().replace('parties = "parties.toml"', f'parties = "{me}-book.toml"')
            )


def _book(folder: Path) -> dict[str, str]:
    book: dict[str, str] = read_toml(folder / "parties.toml")["parties"]
    return book


@contextmanager
def proxied(folder: Path) -> Iterator[Proxies]:
    """The trial in `folder`, with a proxy on each line."""
    proxies = Proxies(folder)
    try:
        yield proxies
    finally:
        proxies.close()

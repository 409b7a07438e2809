"""Bad networks by a seed: a proxy before each party, which delays, loses, cuts, or passes nothing on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocols.settings import read_toml
from tests.support.proxy import Proxy, fair, seeded
from tests.support.waiting import HANG

SIZE = 3e5  # bytes, at most, until something happens to a connection: about what a small job sends


class Proxies:
    """A proxy before each party of a trial that listens, on a loop and a thread of their own."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.proxies = {party: Proxy(address) for party, address in _book(folder).items() if address}
        for proxy in self.proxies.values():
            self._do(proxy.__aenter__())
        self._split(folder)

    def follow(self, seed: int | None) -> None:
        """Change the weather everywhere; None: nothing happens. Connections that there are, are ended."""

        async def follow() -> None:
            for at, proxy in enumerate(self.proxies.values()):
                bad = None if seed is None else seeded(1000 * at + seed, times=8, size=SIZE)
                proxy.weather, proxy.connections = bad or fair, 0
                proxy.cut()

        self._do(follow())

    def close(self) -> None:
        for proxy in self.proxies.values():
            self._do(proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(HANG)

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

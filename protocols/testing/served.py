"""Parties that serve in threads of this process, with files of a trial authority in a folder."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd

from protocols.files import write_whole
from protocols.network.frames import Limits
from protocols.service.agent import serve_party
from protocols.service.config import read_config
from protocols.service.trial import new_trial

HANG = 600.0  # seconds: nothing that is waited for takes so long, however busy the machine, but a hang


def ports(many: int) -> int:
    """Find so many free ports in a row, at most nine, that no other test will use; return the first.

    Each block has ten ports. The last is bound while this process runs, which marks the block as taken.
    """
    for first in range(10_000 + os.getpid() % 2_000 * 10, 32_000, 10):
        with ExitStack() as stack:
            tried = [stack.enter_context(socket.socket()) for _ in range(many + 1)]
            try:
                for place, port in zip(tried, (*range(first, first + many), first + 9), strict=True):
                    place.bind(("127.0.0.1", port))
            except OSError:
                continue
            tried[-1].detach()
            return first
    raise AssertionError("no ten ports in a row are free below 32,000")


def lay_out(folder: Path, tables: Mapping[str, pd.DataFrame | None], policy: str = "") -> Path:
    """Write a trial into `folder`: each party's files, and its table if it has one. Return the book's path.

    policy: what every party's rule says besides, as TOML.
    """
    trial = new_trial(folder, list(tables), host="127.0.0.1", port=ports(len(tables)))
    for party, table in tables.items():
        config = trial.config(party)
        text = config.read_text()
        if table is not None:
            table.to_csv(folder / f"{party}.csv", index=False)
        write_whole(config, (text + policy).encode())
    return folder / "parties.toml"


@contextmanager
def serving(folder: Path, *parties: str, limits: Limits | None = None) -> Iterator[list[Thread]]:
    """Serve these parties in threads of this process."""
    started = [Thread(folder / f"{party}.toml", limits) for party in parties]
    try:
        yield started
    finally:
        for thread in started:
            thread.stop()


class Thread:
    """One party in a thread, on an event loop of its own."""

    def __init__(self, config: Path, limits: Limits | None) -> None:
        self._config, self._limits, self.loop = config, limits, asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(HANG)
        assert self._task is not None, f"{config} is not served"

    def _run(self) -> None:
        async def main() -> None:
            served = serve_party(*read_config(self._config), limits=self._limits)
            self._task = asyncio.create_task(served)
            self._ready.set()
            await asyncio.gather(self._task, return_exceptions=True)

        try:
            self.loop.run_until_complete(main())
        finally:
            self._ready.set()  # also where its files cannot be read
            self.loop.close()

    def stop(self) -> None:
        """Cancel it, and wait for its end."""
        assert self._task is not None
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(HANG)

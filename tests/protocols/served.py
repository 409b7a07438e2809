"""Parties that serve: in threads of this process where a test only talks to them, or as processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from protocols.agent import serve_party
from protocols.config import read_config
from protocols.trial import new_trial
from protocols.wire.frames import Limits

# Ports of its own for each test and process: that a port is taken shows only once it is served.
PORTS = itertools.count(10_000 + os.getpid() % 2_000 * 10, 10)


def lay_out(folder: Path, tables: Mapping[str, pd.DataFrame | None], policy: str = "") -> Path:
    """A trial in `folder`: each party's files, and its table if it has one; the book's path.

    policy: what every party's rule says besides, as TOML.
    """
    trial = new_trial(folder, list(tables), host="127.0.0.1", port=next(PORTS))
    for party, table in tables.items():
        config = trial.config(party)
        text = config.read_text()
        if table is not None:
            table.to_csv(folder / f"{party}.csv", index=False)
        config.write_text(text + policy)
    return folder / "parties.toml"


@contextmanager
def serving(folder: Path, *parties: str, limits: Limits | None = None) -> Iterator[list[Thread]]:
    """These parties serve in threads of this process."""
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
        self._ready.wait(10)
        assert self._task is not None, f"{config} is not served"

    def _run(self) -> None:
        async def main() -> None:
            served = serve_party(*read_config(self._config), limits=self._limits)
            self._task = asyncio.create_task(served)
            self._ready.set()
            await asyncio.gather(self._task, return_exceptions=True)

        self.loop.run_until_complete(main())
        self.loop.close()

    def stop(self) -> None:
        """Cancel it, and wait for its end."""
        assert self._task is not None
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)


class Process:
    """One party as a process of its own."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self.start()

    def start(self) -> None:
        """Start it, again too."""
        command = [sys.executable, "-m", "protocols.cli", "serve", str(self._config)]
        with self._config.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log)

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._process.pid

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """As an operator does; whether it ended in time and with 0."""
        self._process.terminate()
        assert self._process.wait(20) == 0

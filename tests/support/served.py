"""Parties that serve: in threads of this process where a test only talks to them, or as processes."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd

from protocols.cli.main import main
from protocols.network.frames import Limits
from protocols.service.agent import serve_party
from protocols.service.config import read_config
from protocols.service.trial import new_trial
from tests.support.forked import Forked
from tests.support.waiting import HANG


def ports(many: int) -> int:
    """The first of so many ports in a row, at most nine, that nobody listens at and no other test will.

    The last of its ten is bound for as long as this process runs, and says to others that the ten are taken.
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
    """A trial in `folder`: each party's files, and its table if it has one; the book's path.

    policy: what every party's rule says besides, as TOML.
    """
    trial = new_trial(folder, list(tables), host="127.0.0.1", port=ports(len(tables)))
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
        self._ready.wait(HANG)
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
        self._thread.join(HANG)


def serve(config: Path) -> None:
    """`vfl serve`, as what a forked process runs."""
    sys.argv = ["vfl", "serve", str(config)]
    main()


def _serve(config: Path, umask: int, first: Callable[[], object] | None) -> None:
    if umask >= 0:
        os.umask(umask)
    if first is not None:
        first()
    serve(config)


class Process:
    """One party as a process of its own. umask: of its own, if it is not negative. first: what it does before
    all else."""

    def __init__(self, config: Path, *, umask: int = -1, first: Callable[[], object] | None = None) -> None:
        self._config, self._how = config, (umask, first)
        self.start()

    def start(self) -> None:
        """Start it, again too."""
        self._process = Forked(self._config.with_suffix(".log"), _serve, self._config, *self._how)

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._process.pid

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()

    def stop(self) -> None:
        """As an operator does; it must end with 0."""
        self._process.terminate()
        assert self._process.wait() == 0

    def ended(self) -> int:
        """The code that it ends with by itself."""
        return self._process.wait()

    @property
    def said(self) -> str:
        """All that it has logged."""
        return self._config.with_suffix(".log").read_text()

"""Parties that serve: in threads of this process where a test only talks to them, or as processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from protocols.cli.main import main
from protocols.testing.served import Thread, lay_out, ports, serving
from tests.support.forked import Forked

__all__ = ["Process", "Thread", "lay_out", "ports", "serve", "serving"]


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

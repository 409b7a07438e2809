"""Processes for tests that start many: each is forked from one that has imported everything already.

A party's process spends three seconds of a core on importing torch, scikit-learn and the programs, which are
the same in all of them. The one that they are forked from has started no thread, no gRPC and no kernel. A
fork is a process like any other otherwise, in a session of its own and with its own files.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.waiting import HANG

CONTEXT = multiprocessing.get_context("forkserver")
# torch imports _dynamo at the first optimizer.
WARM = ["torch._dynamo", "tests.support.crew", "tests.test_transcripts", "tests.support.mortal"]
CONTEXT.set_forkserver_preload(WARM)


class Forked:
    """A process that runs `target(*args)`; what it writes to its standard output and error goes to `log`."""

    def __init__(self, log: Path, target: Callable[..., object], *args: Any) -> None:
        self._process = CONTEXT.Process(target=_run, args=(log, target, args), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """Ready for `multiprocessing.connection.wait` when the process has ended."""
        return self._process.sentinel

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        self._process.join(HANG)
        code = self._process.exitcode
        assert code is not None, f"process {self.pid} does not end"
        return code

    def terminate(self) -> None:
        """As an operator or a supervisor does."""
        self._process.terminate()

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self.wait()


def _run(log: Path, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    target(*args)

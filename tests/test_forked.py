"""A process that is forked for a test is what one that was started by `vfl serve` would be, and warm."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.support.forked import CONTEXT, WARM, Forked


def tells(line: Connection) -> None:
    """What a test can see only from within."""
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()
    files = {os.fstat(handle).st_ino for handle in (sys.stdout.fileno(), sys.stderr.fileno())}
    line.send((threads, os.getsid(0), files, [name for name in WARM if name not in sys.modules]))
    print("ready", flush=True)
    line.recv()


def ends(code: int) -> None:
    sys.exit(code)


def test_it_begins_alone_in_its_session_and_has_imported_everything(tmp_path: Path) -> None:
    ours, theirs = CONTEXT.Pipe()
    log = tmp_path / "log"
    process = Forked(log, tells, theirs)
    threads, session, files, missing = ours.recv()
    assert threads == 1 and session == process.pid != os.getsid(0)
    assert files == {log.stat().st_ino} and missing == []
    assert process.poll() is None
    process.kill()
    assert process.poll() == -signal.SIGKILL
    assert log.read_text() in ("", "ready\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_its_exit_code_is_its_own(tmp_path: Path) -> None:
    assert Forked(tmp_path / "log", ends, 3).wait() == 3

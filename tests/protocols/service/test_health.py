"""A party says that it serves while it can, and not when its loop, its store or its files say otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from protocols.cli.serve import app
from protocols.service import health
from protocols.service.config import Parties
from protocols.service.health import Health, read_status, too_few_files
from protocols.service.store import Store
from tests.support.network import dialling
from tests.support.networked import POLICY, columns
from tests.support.served import Thread, lay_out, serving


@pytest.fixture
def telco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Thread]]:
    """Its store, and the thread that it serves in."""
    for name, seconds in (("PULSE", 0.1), ("BEAT", 0.02), ("SILENT", 0.5)):
        monkeypatch.setattr(health, name, seconds)
    found = columns()
    lay_out(tmp_path, {"bank": found["bank"], "telco": found["telco"]}, POLICY)
    with serving(tmp_path, "telco") as (thread,):
        yield tmp_path / "telco-store", thread


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def both(store: Path) -> tuple[str, int, str]:
    """What the health service says, and the exit code and words of `vfl status`."""
    parties = Parties.read(store.parent / "parties.toml")
    with dialling(parties.book["telco"], parties.credentials("bank"), "telco") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=20.0, wait_for_ready=True)
    shown = CliRunner().invoke(app, ["status", "--config", str(store.parent / "telco.toml")])
    said = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return str(said), shown.exit_code, shown.output


def test_a_loop_that_is_held_up_is_told_while_it_is(telco: tuple[Path, Thread]) -> None:
    store, thread = telco
    until(lambda: both(store)[:2] == ("SERVING", 0))
    held = threading.Event()
    thread.loop.call_soon_threadsafe(held.wait, 20.0)
    until(lambda: both(store)[:2] == ("NOT_SERVING", 1))
    assert "telco: not serving" in both(store)[2] and "its loop has not turned" in both(store)[2]
    held.set()
    until(lambda: both(store)[:2] == ("SERVING", 0))


def test_a_store_that_cannot_be_written_is_told_while_it_cannot(telco: tuple[Path, Thread]) -> None:
    store, _ = telco
    until(lambda: both(store)[:2] == ("SERVING", 0))
    store.rename(store.with_name("away"))
    store.write_text("")
    until(lambda: both(store)[0] == "NOT_SERVING")
    store.unlink()
    store.with_name("away").rename(store)
    until(lambda: both(store)[:2] == ("SERVING", 0))


def test_too_few_files_are_told(telco: tuple[Path, Thread], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = telco
    until(lambda: both(store)[0] == "SERVING")
    assert not too_few_files()
    with monkeypatch.context() as patched:
        patched.setattr(health, "SPARE", 1 << 40)
        until(lambda: both(store)[:2] == ("NOT_SERVING", 1))
        assert "files are left to be opened" in both(store)[2]
    until(lambda: both(store)[:2] == ("SERVING", 0))


def test_a_thread_that_looks_no_more_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the store is on a disk that hangs."""
    monkeypatch.setattr(health, "SILENT", 0.1)
    monkeypatch.setattr(health, "PULSE", 0.1)
    found = Health(Store(tmp_path))
    hangs = threading.Event()

    def tell() -> dict[str, Any]:
        hangs.wait(20.0)
        return {}

    def why() -> str:
        found.beat()
        return found.why()

    with found.watched(tell):
        until(lambda: why() == "its store does not answer")
        hangs.set()
        until(lambda: not why())


def written(store: Path, **more: Any) -> Store:
    said = {"party": "telco", "version": "1", "seen": "2026-01-01T00:00:00+00:00", "peers": {}, "why": ""}
    (store / "status.json").write_text(json.dumps({**said, **more}))
    return Store(store)


def test_a_process_that_is_gone_one_that_hangs_and_one_that_serves(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    now = datetime.now(UTC).isoformat()
    for more, running, why in (
        ({"pid": gone.pid}, False, ""),
        ({}, False, ""),
        ({"pid": os.getpid()}, True, "written nothing here for"),
        ({"pid": os.getpid(), "seen": now}, True, ""),
        ({"seen": now, "why": "full"}, True, "full"),
    ):
        found = read_status(written(tmp_path, **more))
        assert found["running"] is running and why in found["why"] and bool(why) == bool(found["why"])


# Told to stop.

STOPPED = """
import asyncio, time
from protocols.service import stopping
stopping.FAREWELL = {farewell}
async def work():
    try:
        print("ready", flush=True)
        {work}
    finally:
        print("left", flush=True)
asyncio.run(stopping.until_told(work()))
"""


@pytest.mark.parametrize(
    ("work", "number", "farewell", "ends"),
    [
        ("await asyncio.sleep(60)", signal.SIGTERM, 60.0, (0, "left\n")),
        ("await asyncio.sleep(60)", signal.SIGINT, 60.0, (0, "left\n")),
        ("while True: pass", signal.SIGTERM, 0.2, (1, "")),  # a loop that does not turn
        ("await asyncio.to_thread(time.sleep, 60)", signal.SIGTERM, 0.2, (1, "left\n")),
    ],
)
def test_whoever_is_told_to_stop_stops(
    work: str, number: signal.Signals, farewell: float, ends: tuple[int, str]
) -> None:
    """Also where a thread cannot be given up, or the loop turns no more."""
    code = STOPPED.format(work=work, farewell=farewell)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert (process.returncode, said) == ends

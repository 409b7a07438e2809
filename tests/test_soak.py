"""Thousands of small jobs of each program: no process of a federation grows with them."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from protocols.record.reconcile import verify
from protocols.service.caller import Connected
from tests.support.figures import Figure, left, many, noted
from tests.support.forked import CONTEXT, Forked
from tests.support.mortal import words
from tests.support.networked import ALL, POLICY
from tests.support.served import lay_out, serve
from tests.support.waiting import HANG

FULL = 1000  # runs of a program; most are two jobs, to fit and to predict
RUNS = many(FULL)
STRETCH = max(1, RUNS // 5)  # after the first of them, caches are full
PER_JOB = 4096  # bytes of memory that a job may leave behind: an entry of a history, no model or message
PROC = Path("/proc")


def memory(pid: int) -> int:
    """Resident bytes."""
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(pid: int) -> int:
    """Open file descriptors."""
    return len(list((PROC / str(pid) / "fd").iterdir()))


def runs(folder: Path, method: str, line: Connection) -> None:
    """The caller: as many runs as each word on `line` says."""
    torch.set_num_threads(1)
    case = ALL[method]
    own = case.tables()[case.caller]
    with Connected(folder / "parties.toml", case.caller, own, patience=HANG) as all_:
        for word in words(line):
            for _ in range(int(word)):
                case.play(all_)
            line.send_bytes(b"done")


@pytest.mark.long
@pytest.mark.skipif(not PROC.exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ALL)
def test_thousands_of_jobs_leave_memory_and_files_flat(method: str, tmp_path: Path) -> None:
    about, case = {"test": "soak", "program": method}, ALL[method]
    if not left(**about, runs=RUNS):
        return
    tables = case.tables()
    lay_out(tmp_path, tables, POLICY)
    served = {
        party: Forked(tmp_path / f"{party}.log", serve, tmp_path / f"{party}.toml") for party in case.served
    }
    line, theirs = CONTEXT.Pipe()
    log = tmp_path / f"{case.caller}.log"
    caller = Forked(log, runs, tmp_path, method, theirs)
    theirs.close()
    pids = {case.caller: caller.pid, **{party: process.pid for party, process in served.items()}}
    seen: list[dict[str, Figure]] = []
    try:
        for done in range(STRETCH, RUNS + 1, STRETCH):
            line.send_bytes(str(STRETCH).encode())
            while not line.poll(1.0):
                assert caller.poll() is None, log.read_text()[-3000:]
            assert line.recv_bytes() == b"done"
            seen.append({party: _state(tmp_path, party, pid) for party, pid in pids.items()})
            for party, state in seen[-1].items():
                with noted(**about, party=party, runs=done) as found:
                    found |= {"outcome": "", **state}
        line.close()
        assert caller.wait() == 0, log.read_text()[-3000:]
    finally:
        caller.kill()
        for process in served.values():
            process.terminate()
            assert process.wait() == 0
    first, last = seen[0], seen[-1]
    for party in pids:
        assert last[party]["files"] <= first[party]["files"] + 2, seen
        jobs = last[party]["jobs"] - first[party]["jobs"]
        assert last[party]["bytes"] <= first[party]["bytes"] + PER_JOB * jobs or RUNS < FULL, seen
    ledgers = [tmp_path / f"{party}-store" / "ledger.jsonl" for party in tables]
    for i, a in enumerate(ledgers):
        for b in ledgers[i + 1 :]:
            verdict = verify(a, b)
            assert verdict.agree, verdict.asdict()


def _state(folder: Path, party: str, pid: int) -> Figure:
    """Of a party: jobs that it took part in, and what its process holds."""
    jobs = len(list((folder / f"{party}-store" / "jobs").iterdir()))
    return {"jobs": jobs, "bytes": memory(pid), "files": files(pid)}

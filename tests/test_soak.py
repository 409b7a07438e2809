"""Thousands of small jobs: no process of a federation grows with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocols.connect import Connected
from protocols.wire.reconcile import verify
from tests.protocols.networked import POLICY, columns
from tests.protocols.served import Process, lay_out
from vfl import VerticalNetClassifier

JOBS = 2000
WARM = 400  # jobs until caches are full
PER_JOB = 4096  # bytes of memory that a job may leave behind: an entry of a history, no model or message
PROC = Path("/proc")


def memory(pid: int) -> int:
    """Resident bytes."""
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(pid: int) -> int:
    """Open file descriptors."""
    return len(list((PROC / str(pid) / "fd").iterdir()))


@pytest.mark.long
@pytest.mark.skipif(not PROC.exists(), reason="needs /proc")
def test_two_thousand_jobs_leave_memory_and_files_flat(tmp_path: Path) -> None:
    tables = {party: table for party, table in columns(40).items() if party != "shop"}
    book = lay_out(tmp_path, tables, POLICY)
    telco = Process(tmp_path / "telco.toml")
    pids = {"bank": os.getpid(), "telco": telco.pid}
    seen: dict[int, dict[str, tuple[int, int]]] = {}
    model = VerticalNetClassifier(epochs=1, batch_size=32, random_state=1)
    try:
        with Connected(book, "bank", tables["bank"], patience=60.0) as all_:
            for done in range(0, JOBS + 1, 2):
                model.fit(all_, target="bank.y", id="id")
                model.predict_proba(all_)
                if done % WARM == 0 and done:
                    seen[done] = {party: (memory(pid), files(pid)) for party, pid in pids.items()}
                    print(done, seen[done], flush=True)
    finally:
        telco.stop()
    first, last = seen[WARM], seen[JOBS]
    for party in pids:
        assert last[party][1] <= first[party][1] + 2, seen
        assert last[party][0] <= first[party][0] + PER_JOB * (JOBS - WARM), seen
    verdict = verify(*(tmp_path / f"{party}-store" / "ledger.jsonl" for party in tables))
    assert verdict.agree, verdict.asdict()

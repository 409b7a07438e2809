"""The example over the network runs, with four processes of its own, and leaves none behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from protocols.wire.reconcile import verify
from tests.waiting import HANG

EXAMPLE = Path(__file__).parents[2] / "examples" / "over_the_network.py"


def test_it_trains_both_ways_and_all_ledgers_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert "vertical network: 0.9" in done.stdout and "FedAvg: mean training loss 0." in done.stdout
    for part, parties in (("columns", ("bank", "telco", "shop")), ("rows", ("server", "north", "south"))):
        ledgers = [tmp_path / part / f"{party}-store" / "ledger.jsonl" for party in parties]
        for i, a in enumerate(ledgers):
            assert all(verify(a, b).agree for b in ledgers[i + 1 :])

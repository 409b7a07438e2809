"""The example over the network runs, with four processes of its own, and leaves none behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from protocols.record.reconcile import verify
from tests.support import ROOT
from tests.support.served import ports
from tests.support.waiting import HANG

# At ports of our own: somebody else on this machine may run the example too.
RUN = """
import sys
from examples import over_the_network as example

_, columns, rows, patience, folder = sys.argv
example.PORTS, example.PATIENCE = {"columns": int(columns), "rows": int(rows)}, float(patience)
example.main(folder)
"""


def test_it_trains_both_ways_and_all_ledgers_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, *map(str, (ports(3), ports(3), HANG, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "vertical network: 0.9" in done.stdout and "FedAvg: mean training loss 0." in done.stdout
    for part, parties in (("columns", ("bank", "telco", "shop")), ("rows", ("server", "north", "south"))):
        ledgers = [tmp_path / part / f"{party}-store" / "ledger.jsonl" for party in parties]
        for i, a in enumerate(ledgers):
            assert all(verify(a, b).agree for b in ledgers[i + 1 :])

"""Private set intersection: against compiled peers, of ten million ids, among three parties, and unbalanced.

A peer is timed by `psi_peers.py` in an environment of its own under `.peers`, which `make bench-psi` makes;
one that is not there has no row. Both sides have the same ids, text of 17 characters of which half are
shared, in two processes over loopback, and take turns in going first. They do not do the same work:

    ours: one call of `vfl.align` to a party that serves. In it are the agreement on the job, the server's
        reading of its CSV file, mutual TLS, and ledgers and parts on disk; the caller's table is in memory.
        Both learn their rows, in one order. ECDH has a thread for each core, KKRT one at each party.
    spu's: in it are the reading of a CSV file at each party and the writing of another, in one order; no TLS.
        Both learn. It takes as many threads as it likes.
    OpenMined's: lists in memory, a socket without TLS. One party alone learns, by a filter that errs with
        1e-9 in all; ours err with 2^-40. It takes as many threads as it likes.

Starting a process, imports and connecting are not timed. Our processes are warm: they go on from one call to
the next, kernels are compiled and loaded, and one call is not counted. A peer's are new each time; of KKRT's
and RR22's one run is not counted, of ECDH's, which are slow, all are.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from protocols.hazmat.curve25519 import field_of_this_cpu, prepare
from tests.bench import Ratio, Row, bench, seconds
from tests.bench.bench_jobs import POLICY, connected
from tests.bench.psi_peers import ids
from tests.support import ROOT
from tests.support.served import Process, lay_out
from vfl import align

PEERS = ROOT / ".peers"
KKRT, LARGE, FEW = 1_000_000, 10_000_000, 10_000
# Without AVX512-IFMA a peer takes a quarter of an hour for a million by ECDH; its cost is linear in the ids.
ECDH = 1_000_000 if field_of_this_cpu() == "ifma" else 100_000


def tables(n: int) -> dict[str, pd.DataFrame]:
    return {
        party: pd.DataFrame({"id": ids(n, start), "x": range(n)})
        for party, start in (("bank", 0), ("shop", n // 2))
    }


def peer(name: str, n: int) -> float | None:
    """Its seconds; None if there is no environment for it."""
    python = PEERS / name.split("-")[0] / "bin" / "python"
    if not python.exists():
        print(f"{name} is not in {PEERS.name}: no row", file=sys.stderr)
        return None
    script = str(Path(__file__).with_name("psi_peers.py"))
    done = subprocess.run([python, script, name, str(n)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def against(name: str, n: int, repeats: int, all_: Any, **how: Any) -> tuple[Ratio, str] | None:
    """Our time over a peer's, in turns; and how both did, in seconds."""
    pairs = []
    for turn in range(repeats):
        theirs = peer(name, n) if turn % 2 else None
        ours = seconds(lambda: align(all_, id="id", label_party="bank", **how))
        theirs = theirs or peer(name, n)
        if theirs is None:
            return None
        pairs.append((ours, theirs))
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    ours, theirs = (sorted(times)[len(pairs) // 2] for times in zip(*pairs, strict=True))
    return Ratio(ratios[len(pairs) // 2], ratios[0], ratios[-1]), f"{ours:.1f} s against {theirs:.1f} s"


@bench
def psi_ecdh() -> list[Row]:
    """ECDH on curve25519 against spu's on the same curve and OpenMined's on P-256."""
    prepare()
    rows = []
    with connected("bank", tables(ECDH)) as all_:
        align(all_, id="id", label_party="bank", protocol="ecdh")
        for name, target, hope in (("spu-ecdh", 1.0, 0.6), ("openmined", 1 / 12, 1 / 20)):
            found = against(name, ECDH, 3, all_, protocol="ecdh")
            if found:
                note = f"{ECDH:,} ids each, {found[1]}"
                rows.append(Row(f"ECDH over {name}", found[0], target, hope, note))
    return rows


@bench
def psi_kkrt() -> list[Row]:
    """KKRT against spu's KKRT and its fastest, RR22."""
    prepare()
    rows = []
    with connected("bank", tables(KKRT)) as all_:
        align(all_, id="id", label_party="bank", protocol="kkrt")
        for name, target, hope in (("spu-kkrt", 0.7, None), ("spu-rr22", 1.2, 0.6)):
            peer(name, KKRT)
            found = against(name, KKRT, 5, all_, protocol="kkrt")
            if found:
                note = f"{KKRT:,} ids each, {found[1]}"
                rows.append(Row(f"KKRT over {name}", found[0], target, hope, note))
    return rows


@bench
def psi_three_parties() -> list[Row]:
    """The ring of three against two parties by ECDH, all in this process."""
    n = 300_000
    prepare()
    two = tables(n)
    three = {**two, "club": pd.DataFrame({"id": ids(n, n // 4)})}
    above = seconds(lambda: align(three, id="id", label_party="bank"))
    below = seconds(lambda: align(two, id="id", label_party="bank", protocol="ecdh"))
    note = f"{n:,} ids each, ECDH, one process, once each: {above:.0f} s against {below:.0f} s"
    return [Row("three parties over two", Ratio(*[above / below] * 3), target=5, note=note)]


def parquet(folder: Path, n: int) -> dict[str, Path]:
    """A file of n rows in random order for each of two parties, of which half the ids are shared."""
    rng = np.random.default_rng(0)
    made = {}
    for party, start in (("bank", 0), ("shop", n // 2)):
        numbers = pa.array(rng.permutation(n) + start).cast(pa.string())
        names = pc.binary_join_element_wise("user-", pc.utf8_lpad(numbers, 12, "0"), "")
        made[party] = folder / f"{party}.parquet"
        pq.write_table(pa.table({"id": names, "x": rng.normal(size=n)}), made[party])
    return made


def by_file(n: int) -> tuple[float, float]:
    """Seconds of `vfl psi` with a party that serves, from Parquet to Parquet; the higher peak in GB."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        book = lay_out(folder, {"bank": None, "shop": None}, POLICY)
        files, out = parquet(folder, n), folder / "out.parquet"
        config = folder / "shop.toml"
        config.write_text(config.read_text().replace('"shop.csv"', '"shop.parquet"'))
        served = Process(config)
        words = ["psi", "--book", str(book), "--me", "bank", "--table", str(files["bank"]), "--id", "id"]
        command = [sys.executable, "-m", "protocols.cli.main", *words, "--out", str(out)]
        try:
            began, most = perf_counter(), 0
            caller = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while caller.poll() is None:
                most = max(most, peak(caller.pid), peak(served.pid))
                time.sleep(0.05)
            taken = perf_counter() - began
            assert caller.returncode == 0, "vfl psi failed"
            assert pq.read_metadata(out).num_rows == n - n // 2
        finally:
            served.stop()
    return taken, most * 1024 / 1e9


def peak(pid: int) -> int:
    """The most that a process has had in memory, KiB. (What `wait4` says counts its parent's, too.)"""
    found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0  # a process that has just ended has none


@bench
def psi_large() -> list[Row]:
    """Ten million ids, from files to files, against twice the time of five million; and the memory."""
    prepare()
    (half, _), (whole, peak) = by_file(LARGE // 2), by_file(LARGE)
    ratios = [whole / (2 * half)] * 3
    note = f"{half:.0f} s and {whole:.0f} s, from Parquet to Parquet, once each"
    return [
        Row(f"{LARGE:,} ids over twice the half", Ratio(*ratios), target=1.15, note=note),
        Row(f"{LARGE:,} ids, GB at the peak", Ratio(peak, peak, peak), target=1.2, note="of either party"),
    ]


@bench
def psi_unbalanced() -> list[Row]:
    """A few ids against ten million that were prepared: seconds of a later run, files read and all."""
    prepare()
    few, many = (pd.DataFrame({"id": ids(n, start)}) for n, start in ((FEW, LARGE // 2), (LARGE, 0)))
    both = {"bank": few, "shop": many}
    with TemporaryDirectory() as folder:
        runs = [
            seconds(
                lambda: align(both, id="id", label_party="bank", protocol="unbalanced", cache=folder),
            )
            for _ in range(4)
        ]
    found = Ratio(sorted(runs[1:])[1], min(runs[1:]), max(runs[1:]))
    note = f"{FEW:,} against {LARGE:,}, seconds of a whole call, one process; the first took {runs[0]:.0f} s"
    return [Row("unbalanced, later runs", found, target=5, hope=1, note=note)]

"""Encrypted vertical logistic regression on the table of credit cards, at 2048 bits, on the issue's terms.

A bank has the label and five columns, a telco the other 18. Times are of two processes over loopback with
mutual TLS, the second of an epoch's: what two runs of different length differ by, without keys, alignment and
jobs. "Ratio" is what the row's name says: seconds, a difference of AUC, gigabytes or a number of messages.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from tests.bench import Ratio, Row, bench
from tests.bench.bench_jobs import connected
from tests.vfl.linear.tables import credit
from vfl import VerticalLogisticRegression

BANK = ["LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE"]
TARGET = "label of it"
FIT: dict[str, Any] = {"target": f"bank.{TARGET}", "id": "id"}
ROWS, BATCH, L2 = 30_000, 4096, 1e-3
POLICY = "min_group = 0\n"  # payments are so far apart that few rows hold half of a batch's sum of squares


def whole(times: int = 1) -> pd.DataFrame:
    """The table, so many times over, with ids."""
    table = pd.concat([credit(ROWS)] * times, ignore_index=True)
    return table.assign(id=np.arange(len(table)))


def parties(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each in a row order of its own."""
    telco = table.drop(columns=[*BANK, TARGET])
    both = {"bank": table[["id", *BANK, TARGET]], "telco": telco}
    return {party: part.sample(frac=1, random_state=i) for i, (party, part) in enumerate(both.items())}


def overlapping(table: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """Of which eight tenths of the rows are at both, and a tenth at either alone."""
    order = np.random.default_rng(seed).permutation(len(table))
    tenth = len(table) // 10
    both = parties(table)
    ids = {"bank": table["id"].iloc[order[tenth:]], "telco": table["id"].iloc[order[:-tenth]]}
    return {party: part[part["id"].isin(ids[party])] for party, part in both.items()}


def fit(data: Any, **settings: Any) -> VerticalLogisticRegression:
    how = {"l2": L2, "solver": "sgd", "batch_size": BATCH, **settings}
    return VerticalLogisticRegression(**how).fit(data, **FIT)


def constant(value: float) -> Ratio:
    return Ratio(value, value, value)


def spread(values: list[float]) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values))


@bench
def linear_auc() -> list[Row]:
    """How far the encrypted fit's test AUC is from the pooled one's, on the same rows."""
    table, columns = whole(), [name for name in whole().columns if name not in ("id", TARGET)]
    found: dict[str, list[float]] = {"ours": [], "pooled": [], "bank alone": []}
    for seed in range(3):
        train, test = train_test_split(table, test_size=0.2, random_state=seed, stratify=table[TARGET])
        data = overlapping(train, seed)
        model = fit(data, solver="lbfgs", tol=1e-4)
        chances = model.predict_proba(parties(test))[1]
        truth = test.set_index("id")[TARGET]
        found["ours"].append(float(roc_auc_score(truth[chances.index], chances)))
        rows = train[train["id"].isin(set(data["bank"]["id"]) & set(data["telco"]["id"]))]
        for name, used in (("pooled", columns), ("bank alone", BANK)):
            mean, deviation = rows[used].mean(), rows[used].std(ddof=0)
            best = LogisticRegression(C=1 / (L2 * len(rows)), tol=1e-8, max_iter=5000)
            best.fit((rows[used] - mean) / deviation, rows[TARGET])
            said = best.predict_proba((test[used] - mean) / deviation)[:, 1]
            found[name].append(float(roc_auc_score(test[TARGET], said)))
    apart = [abs(a - b) for a, b in zip(found["ours"], found["pooled"], strict=True)]
    note = "; ".join(f"{name} {statistics.mean(scores):.4f}" for name, scores in found.items())
    return [Row("LR, test AUC from the pooled one's", spread(apart), target=0.003, note=f"3 seeds: {note}")]


def epoch(all_: Any, **settings: Any) -> tuple[float, float]:
    """Seconds of one epoch more, and its bytes."""
    taken, sent = {}, {}
    for epochs in (1, 1, 3):  # the first makes tables and compiles
        began = perf_counter()
        model = fit(all_, max_iter=epochs, **settings)
        taken[epochs] = perf_counter() - began
        sent[epochs] = sum(entry.nbytes for entry in model.ledger_ if entry.scope.startswith("fit"))
    return (taken[3] - taken[1]) / 2, (sent[3] - sent[1]) / 2


@bench
def linear_epoch() -> list[Row]:
    """One epoch between two processes: encrypted, with hidden scores, and plain."""
    rows = []
    with connected("bank", parties(whole()), POLICY) as all_:
        for security, target in (("exact", 6.0), ("hidden", 12.0), ("plain", 0.3)):
            taken, sent = epoch(all_, security=security)
            note = f"{ROWS:,} x 23, batches of {BATCH}, {sent / 1e6:.2f} MB"
            rows.append(Row(f"LR, seconds of an epoch, {security}", constant(taken), target, note=note))
    return rows


@bench
def linear_scaling() -> list[Row]:
    """Ten times the rows: time of an epoch, and the memory of either party."""
    taken: dict[int, float] = {}
    peaks: list[float] = []
    for times in (1, 10):
        with connected("bank", parties(whole(times)), POLICY) as all_:
            taken[times], _ = epoch(all_)
            peaks = peak_of_each()
    note = f"{ROWS:,} to {10 * ROWS:,} rows: {taken[1]:.1f} s and {taken[10]:.1f} s an epoch"
    return [
        Row("LR, time for ten times the rows", constant(taken[10] / taken[1]), target=11, note=note),
        Row("LR, GB at the peak of a party", spread(peaks), target=4, note=f"{10 * ROWS:,} rows"),
    ]


def peak_of_each() -> list[float]:
    """The most that this process and each that it started have had in memory, GB."""
    children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children"))
    statuses = [Path(f"/proc/{pid}/status") for pid in ("self", *children.split())]
    found = [re.search(r"VmHWM:\s*(\d+)", status.read_text()) for status in statuses]
    return [int(size[1]) * 1024 / 1e9 for size in found if size]


@bench
def linear_messages() -> list[Row]:
    """Messages that wait for each other, of two parties."""
    data = parties(whole().iloc[:2000])
    short, long = (
        fit(data, security="plain", max_iter=1, batch_size=size).ledger_.chain_length("fit")
        for size in (2000, 250)
    )
    return [Row("LR, dependent messages a batch", constant((long - short) / 7), target=4, note="two parties")]

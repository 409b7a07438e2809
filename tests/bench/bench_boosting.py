"""Boosted trees with encrypted gradients on the table of credit cards, at 2048 bits.

A bank has the label and five columns, a telco the other 18. Times are of two processes over loopback with
mutual TLS; where a row says "a tree", of the second tree on: what two runs of different length differ by,
without keys, alignment and jobs. "Ratio" is what the row's name says: seconds, a difference of AUC,
gigabytes, a number of messages, or bytes over those of one ciphertext for each bin and statistic.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from xgboost import XGBClassifier

from protocols.hazmat.paillier import Paillier, Plain
from tests.bench import Ratio, Row, bench
from tests.bench.bench_jobs import connected
from tests.support import real
from vfl import VerticalGradientBoostingClassifier

BANK = ["LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE"]
TARGET = "default"
FIT: dict[str, Any] = {"target": f"bank.{TARGET}", "id": "id"}
DEPTH, BINS, TREES = 5, 32, 50
CIPHERTEXT = 512  # bytes


def whole(times: int = 1) -> pd.DataFrame:
    """The table, so many times over, with ids."""
    table = pd.read_csv(real.file(real.CREDIT)).drop(columns="ID")
    table = table.rename(columns={"default.payment.next.month": TARGET})
    table = pd.concat([table] * times, ignore_index=True)
    return table.assign(id=np.arange(len(table)))


def parties(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each in a row order of its own."""
    both = {"bank": table[["id", *BANK, TARGET]], "telco": table.drop(columns=[*BANK, TARGET])}
    return {party: part.sample(frac=1, random_state=i) for i, (party, part) in enumerate(both.items())}


def overlapping(table: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """Of which eight tenths of the rows are at both, and a tenth at either alone."""
    order = np.random.default_rng(seed).permutation(len(table))
    tenth = len(table) // 10
    ids = {"bank": table["id"].iloc[order[tenth:]], "telco": table["id"].iloc[order[:-tenth]]}
    return {party: part[part["id"].isin(ids[party])] for party, part in parties(table).items()}


def model(**settings: Any) -> VerticalGradientBoostingClassifier:
    how = {"max_depth": DEPTH, "max_bins": BINS, "n_estimators": 1, "min_samples_split": 2, **settings}
    return VerticalGradientBoostingClassifier(**how)


def constant(value: float) -> Ratio:
    return Ratio(value, value, value)


def spread(values: list[float]) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values))


@bench
def boosting_auc() -> list[Row]:
    """How far the encrypted fit's test AUC is below XGBoost's and scikit-learn's on the pooled rows."""
    table = whole()
    columns = [name for name in table.columns if name not in ("id", TARGET)]
    found: dict[str, list[float]] = {}
    for seed in range(3):
        train, test = train_test_split(table, test_size=0.2, random_state=seed, stratify=table[TARGET])
        data = overlapping(train, seed)
        ours = model(n_estimators=TREES).fit(data, **FIT)
        chances = ours.predict_proba(parties(test))[1]
        truth = test.set_index("id")[TARGET]
        found.setdefault("ours", []).append(float(roc_auc_score(truth[chances.index], chances)))
        rows = train[train["id"].isin(set(data["bank"]["id"]) & set(data["telco"]["id"]))]
        for name, used in (("pooled", columns), ("the bank alone", BANK)):
            for peer, fitted in peers().items():
                said = fitted.fit(rows[used], rows[TARGET]).predict_proba(test[used])[:, 1]
                found.setdefault(f"{peer} {name}", []).append(float(roc_auc_score(test[TARGET], said)))
    note = "; ".join(f"{name} {statistics.mean(scores):.4f}" for name, scores in found.items())
    return [
        Row(
            f"boosting, test AUC below {name}",
            spread([theirs - ours for theirs, ours in zip(scores, found["ours"], strict=True)]),
            target=0.005,
            note=f"{TREES} trees, 3 seeds: {note}",
        )
        for name, scores in found.items()
        if "pooled" in name
    ]


def peers() -> dict[str, Any]:
    """The same settings elsewhere."""
    return {
        "XGBoost": XGBClassifier(
            n_estimators=TREES, learning_rate=0.1, max_depth=DEPTH, max_bin=BINS, tree_method="hist"
        ),
        "scikit-learn": HistGradientBoostingClassifier(
            max_iter=TREES,
            max_depth=DEPTH,
            max_leaf_nodes=None,
            max_bins=BINS,
            l2_regularization=1.0,
            min_samples_leaf=1,
            early_stopping=False,
        ),
    }


def timed(all_: Any, data: dict[str, Any], trees: int, **settings: Any) -> float:
    """Seconds of one fit, where no sums are of fewer rows than a policy's `min_group` has by default."""
    began = perf_counter()
    model(n_estimators=trees, **{"min_samples_split": 20, **settings}).fit(all_, **data)
    return perf_counter() - began


@bench
def boosting_tree() -> list[Row]:
    """One tree between two processes, encrypted and plain: alone, and with all that comes before it."""
    rows = []
    with connected("bank", parties(whole())) as all_:
        for encryption, target in ((Paillier(), 6.0), (Plain(), 0.6)):
            timed(all_, FIT, 1, encryption=encryption)  # compiles, and makes tables
            one, three = (timed(all_, FIT, trees, encryption=encryption) for trees in (1, 3))
            name = "plain" if encryption.is_plain else "encrypted"
            note = f"30,000 x 23, depth {DEPTH}, {BINS} bins; the whole job of one tree {one:.1f} s"
            rows.append(
                Row(f"boosting, seconds of a tree, {name}", constant((three - one) / 2), target, note=note)
            )
    return rows


@bench
def boosting_breast_cancer() -> list[Row]:
    """Ten encrypted trees of depth 3: the whole job between two processes, alignment and all."""
    table = load_breast_cancer(as_frame=True).frame.assign(id=np.arange(569))
    names = list(table.columns)
    data = {"bank": table[["id", "target", *names[:10]]], "shop": table[["id", *names[10:30]]]}
    with connected("bank", data) as all_:
        how: dict[str, Any] = {"target": "bank.target", "id": "id"}
        timed(all_, how, 1, max_depth=3)
        taken = [timed(all_, how, 10, max_depth=3) for _ in range(3)]
    note = "569 x 30, 10 encrypted trees of depth 3, the whole job"
    return [Row("boosting, seconds on breast cancer", spread(taken), target=5, note=note)]


@bench
def boosting_bytes() -> list[Row]:
    """Bytes of a tree over those of a ciphertext for each gradient and hessian, and for each sum of them."""
    data = parties(whole())
    fitted = model(encryption=Paillier()).fit(data, **FIT)
    sent: dict[str, int] = {}
    for entry in fitted.ledger_:
        if entry.scope.startswith("fit"):
            sent[entry.kind] = sent.get(entry.kind, 0) + entry.nbytes
    forest = fitted.parts_["bank"].learnt.forest
    bins = sum(one.count for one in fitted.parts_["telco"].owned.bins)
    nodes = 2**DEPTH - 1
    histograms = 2 * CIPHERTEXT * bins * nodes
    every = histograms + 2 * CIPHERTEXT * len(data["bank"])
    note = f"{bins} bins at the telco, {len(forest.owner)} nodes; {sum(sent.values()) / 1e6:.2f} MB a tree"
    sums, total = sent["vfl.SealedSums/1"], sum(sent.values())
    return [
        Row("boosting, bytes of histograms", constant(sums / histograms), target=1 / 10, note=note),
        Row("boosting, all bytes of a tree", constant(total / every), target=1 / 2.5, note=note),
    ]


@bench
def boosting_scaling() -> list[Row]:
    """Ten times the rows: time of a job of one tree, and the memory of either party.

    The note has the seconds of a second tree too, part of which was encrypted while the first was grown.
    """
    taken: dict[int, tuple[float, float]] = {}
    peaks: list[float] = []
    for times in (1, 10):
        with connected("bank", parties(whole(times))) as all_:
            timed(all_, FIT, 1)
            one, two = (timed(all_, FIT, trees) for trees in (1, 2))
            taken[times] = one, two - one
            peaks = peak_of_each()
    (few, few_more), (many, many_more) = taken[1], taken[10]
    second = f"a second tree {few_more:.1f} s and {many_more:.1f} s"
    note = f"30,000 to 300,000 rows: {few:.1f} s and {many:.1f} s; {second}"
    return [
        Row("boosting, time for ten times the rows", constant(many / few), target=11, note=note),
        Row("boosting, GB at the peak of a party", spread(peaks), target=4, note="300,000 rows"),
    ]


def peak_of_each() -> list[float]:
    """The most that this process and each that it started have had in memory, GB."""
    children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children"))
    statuses = [Path(f"/proc/{pid}/status") for pid in ("self", *children.split())]
    found = [re.search(r"VmHWM:\s*(\d+)", status.read_text()) for status in statuses]
    return [int(size[1]) * 1024 / 1e9 for size in found if size]


@bench
def boosting_messages() -> list[Row]:
    """Messages of one tree that wait for each other, of two parties."""
    fitted = model(encryption=Plain()).fit(parties(whole().iloc[:5000]), **FIT)
    chain = fitted.ledger_.chain_length("fit/0")
    note = f"depth {DEPTH}, two parties; the target is 3 x depth + 2"
    return [Row("boosting, dependent messages a tree", constant(chain), target=3 * DEPTH + 2, note=note)]

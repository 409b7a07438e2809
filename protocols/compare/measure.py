"""How costs are measured: each role's traffic, compute, parameters and simulated time, as rows of a tidy
table.

No line is involved: everything is read from ledgers and their replays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from protocols.compare.task import Method, Outcome
from protocols.costs import flops
from protocols.wire.ledger import Ledger
from protocols.wire.transport import Network

ROUND_TRIPS = (1, 50, 200)  # milliseconds
BANDWIDTH = 12.5e6  # bytes a second that each role can send: 100 Mbit/s
SPEED = 1e10  # FLOP a second, of every role
CONFIDENCE = 0.95


COLUMNS = ["method", "column", "seed", "measure", "phase", "role", "side", "direction", "kind"]
COLUMNS += ["rtt_ms", "value"]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and how far it may be off: a t-interval, or the range under `quick`."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], quick: bool = False) -> Spread:
        """Of one value a seed. A single value has no spread: its ends are missing (NaN)."""
        seen = [float(v) for v in values]
        mean = sum(seen) / len(seen)
        if len(seen) < 2:
            return cls(mean, math.nan, math.nan)
        if quick:
            return cls(mean, min(seen), max(seen))
        deviation = math.sqrt(sum((v - mean) ** 2 for v in seen) / (len(seen) - 1))
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seen) - 1))
        half = quantile * deviation / math.sqrt(len(seen))
        return cls(mean, mean - half, mean + half)


def network(round_trip: float) -> Network:
    """The simulated network of a round trip in milliseconds."""
    return Network(latency=round_trip / 2000, bandwidth=BANDWIDTH, speed=SPEED)


def measure(method: Method, seed: int, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """The rows of one run; `phase` is train or predict, `side` is client or other."""
    base = {"method": method.name, "column": method.column, "seed": seed}
    for row in _measures(outcome):
        yield {**base, **row}


def _measures(outcome: Outcome) -> Iterator[dict[str, Any]]:
    ledger = outcome.ledger
    in_epochs = ledger.chain_length(outcome.training_scope)
    yield {"measure": "score", "value": outcome.score}
    yield {"measure": "epochs", "value": outcome.epochs}
    yield {"measure": "owners", "value": len(outcome.client_roles)}
    yield {"measure": "chain_per_epoch", "phase": "train", "value": in_epochs / outcome.epochs}
    yield {"measure": "chain_outside_epochs", "phase": "train", "value": ledger.chain_length() - in_epochs}
    fitting = ledger.within(outcome.training_scope)
    yield {"measure": "chain_in_epochs", "phase": "train", "value": in_epochs}
    yield {"measure": "messages_in_epochs", "phase": "train", "value": len(fitting)}
    yield {"measure": "chain", "phase": "predict", "value": outcome.predict_ledger.chain_length()}
    for round_trip in ROUND_TRIPS:
        seconds = ledger.replay(network(round_trip))
        yield {"measure": "time", "phase": "train", "rtt_ms": round_trip, "value": seconds}
    for phase, record in (("train", ledger), ("predict", outcome.predict_ledger)):
        yield from _traffic(phase, record, outcome.client_roles)
        for role, meter in record.compute.items():
            at = {"phase": phase, "role": role, "side": _side(role, outcome.client_roles)}
            yield {"measure": "flops", **at, "value": meter.flops}
            yield {"measure": "seconds", **at, "value": meter.seconds}
            priced = flops(meter.operations)  # a part of `flops`
            yield {"measure": "cryptography", **at, "value": priced}
    for role, held in outcome.parameters.items():
        yield {
            "measure": "parameters",
            "role": role,
            "side": _side(role, outcome.client_roles),
            "value": held,
        }


def _traffic(phase: str, ledger: Ledger, clients: frozenset[str]) -> Iterator[dict[str, Any]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for e in ledger:
        key = direction(e.sender, e.receiver, clients), e.kind
        messages, nbytes = sums.get(key, (0, 0))
        sums[key] = messages + 1, nbytes + e.nbytes
    for (way, kind), (messages, nbytes) in sums.items():
        yield {"measure": "messages", "phase": phase, "direction": way, "kind": kind, "value": messages}
        yield {"measure": "bytes", "phase": phase, "direction": way, "kind": kind, "value": nbytes}


def direction(sender: str, receiver: str, clients: frozenset[str]) -> str:
    """up: from a data owner to a server; down: back; peer: between data owners; servers: between servers."""
    if sender in clients:
        return "peer" if receiver in clients else "up"
    return "down" if receiver in clients else "servers"


def _side(role: str, clients: frozenset[str]) -> str:
    return "client" if role in clients else "other"


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Each score less that of centralised training on the same seed; nothing without a centralised run."""
    scores = frame[frame["measure"] == "score"]
    reference = scores[scores["method"] == "centralised"].set_index("seed")["value"]
    if reference.empty:
        return frame.iloc[:0]
    return scores.assign(measure="difference", value=scores["value"] - scores["seed"].map(reference))

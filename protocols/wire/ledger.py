"""The ledger: what left which party for whom, and what each party computed.

A transport wrapper. It sees every envelope at both ends of its line, chains the payload hashes
of each line, and keeps the order of events at every party, so that the same run's time under
another network can be replayed instead of run again. It keeps no payload.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from protocols.costs import Cost, flops
from protocols.errors import ConfigError
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Network, Transport

COLUMNS = ["job", "scope", "round", "sequence", "sender", "receiver", "kind"]
COLUMNS += ["bytes", "reveals", "depth", "digest", "chain"]


class Entry(NamedTuple):
    """The record of one logical send."""

    job: str
    scope: str
    sequence: int
    sender: str
    receiver: str
    kind: str
    nbytes: int  # of the encoded message
    depth: int
    digest: bytes  # SHA-256 of the encoded message

    @classmethod
    def of(cls, e: Envelope) -> Entry:
        """Return the entry for an envelope."""
        return cls(e.job, e.scope, e.sequence, e.sender, e.receiver, e.kind, len(e.body), e.depth, e.digest)


@dataclass
class Compute:
    """What one party computed: declared FLOPs, measured seconds, named operations."""

    flops: float = 0.0
    seconds: float = 0.0
    calls: int = 0
    unpriced: int = 0  # calls that declared no cost
    operations: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Wraps a transport. `frame()` is the full record, `summary()` the sums people read.

    on_entry: called with each entry as it is recorded, before what it records is sent.
    """

    def __init__(
        self, inner: Transport | None = None, on_entry: Callable[[Entry], None] | None = None
    ) -> None:
        self._inner, self._on_entry = inner, on_entry
        # Plain tuples, as of `Entry`: the garbage collector forgets them, and would look at each Entry again.
        self._rows: list[tuple[Any, ...]] = []
        self.reveals: dict[
            str, str
        ] = {}  # kind -> what a curious receiver learns; "" if it is not known here
        self.compute: dict[str, Compute] = {}
        self._index: dict[tuple[str, str, str, int], int] = {}  # envelopes not yet collected
        # In order: (party, seconds at REFERENCE, None) for compute, (party, 0, ~i) for the sending of
        # entry i, (party, 0, i) for its receipt.
        self._events: list[tuple[str, float, int | None]] = []
        self._one_sided = False  # something was received whose sending is in its sender's ledger

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inner": None, "_on_entry": None}

    async def deliver(self, envelope: Envelope) -> None:
        index = self._record(envelope)
        self._index[envelope.sender, envelope.receiver, envelope.scope, envelope.sequence] = index
        self._events.append((envelope.sender, 0.0, ~index))
        assert self._inner is not None
        await self._inner.deliver(envelope)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        assert self._inner is not None
        envelope = await self._inner.collect(receiver, sender, scope)
        index = self._index.pop((sender, receiver, scope, envelope.sequence), None)
        if index is None:
            # The sender is in another process, with a ledger of its own. Both record the same line.
            index = self._record(envelope)
            self._one_sided = True
        self._events.append((receiver, 0.0, index))
        return envelope

    def close(self, receiver: str, scope: str) -> None:
        assert self._inner is not None
        self._inner.close(receiver, scope)

    def charge(self, party: str, cost: Cost | None, seconds: float) -> float:
        """Record one computation of `party`; returns its FLOPs."""
        meter = self.compute.get(party)
        if meter is None:
            meter = self.compute[party] = Compute()
        meter.calls += 1
        meter.seconds += seconds
        if cost is None:
            meter.unpriced += 1
            return 0.0
        work = flops(cost)
        meter.flops += work
        if not isinstance(cost, float | int):
            for name, count in cost.items():
                meter.operations[name] = meter.operations.get(name, 0) + count
        self._events.append((party, work, None))
        return work

    def _record(self, e: Envelope) -> int:
        if e.kind not in self.reveals:
            known = Message.kinds.get(e.kind)
            self.reveals[e.kind] = known.reveals if known else ""
        row = (e.job, e.scope, e.sequence, e.sender, e.receiver, e.kind, len(e.body), e.depth, e.digest)
        self._rows.append(row)
        if self._on_entry is not None:
            self._on_entry(Entry._make(row))
        return len(self._rows) - 1

    @property
    def entries(self) -> list[Entry]:
        """Every logical send, in the order in which they were recorded."""
        return [Entry._make(row) for row in self._rows]

    def chains(self) -> Iterator[bytes]:
        """Each entry's hash onto the one before it on its line (job, sender, receiver); 32 bytes."""
        # Computed when asked for: on the way of each message it would cost as much as the record itself.
        lines: dict[tuple[str, str, str], bytes] = {}
        for e in self:
            line = (e.job, e.sender, e.receiver)
            said = f"{e.scope}|{e.sequence}|{e.kind}|{e.nbytes}|".encode()
            lines[line] = hashlib.sha256(lines.get(line, b"") + said + e.digest).digest()
            yield lines[line]

    def within(self, scope: str) -> list[Entry]:
        """The entries of `scope` and all below it."""
        return [e for e in self if e.scope == scope or e.scope.startswith(scope + "/")]

    @property
    def nbytes(self) -> int:
        """All bytes sent."""
        return sum(e.nbytes for e in self)

    def chain_length(self, scope: str = "") -> int:
        """Count the messages on the longest chain in which each had to wait for the one before.

        ConfigError for a ledger of one party's lines, which does not show what its peers waited for.
        """
        self._check_whole("a chain")
        below = f"{scope}/"
        inside = [not scope or e.scope == scope or e.scope.startswith(below) for e in self]
        chain: dict[str, int] = defaultdict(int)  # of messages in `scope`, that each party has waited for
        sent: dict[int, int] = {}
        for party, _, index in self._events:
            if index is None:
                continue
            if index < 0:
                sent[~index] = chain[party] + inside[~index]
            else:
                chain[party] = max(chain[party], sent[index])
        return max(sent.values(), default=0)

    def line_digest(self, sender: str, receiver: str, job: str | None = None) -> bytes:
        """Hash over a line's envelopes sorted by scope, then sequence; equal for equal runs. job: this one's
        alone, where the ledger holds several, which may have the same scopes."""
        line = [e for e in self if (e.sender, e.receiver) == (sender, receiver) and job in (None, e.job)]
        total = hashlib.sha256()
        for e in sorted(line, key=lambda e: (e.scope, e.sequence)):
            total.update(f"{e.sequence}|{e.scope}|{e.kind}|".encode() + e.digest)
        return total.digest()

    def frame(self) -> pd.DataFrame:
        """One row per send: job, scope, round, sequence, sender, receiver, kind, bytes, reveals, depth,
        digest and chain (hex). `round` is the first number in the scope, or missing. `chain` hashes an
        entry onto the one before it on its line."""
        rows = [
            (
                *(e.job, e.scope, _round(e.scope), e.sequence, e.sender, e.receiver, e.kind),
                *(e.nbytes, self.reveals[e.kind], e.depth, e.digest.hex(), chain.hex()),
            )
            for e, chain in zip(self, self.chains(), strict=True)
        ]
        return pd.DataFrame(rows, columns=COLUMNS).astype({"round": "Int64"})

    def summary(self, by: Sequence[str] = ("sender", "receiver", "kind")) -> pd.DataFrame:
        """Messages and bytes, summed by any of sender, receiver, kind, scope, round, reveals, and party with
        direction: `by=["party", "direction"]` counts each send at both its ends."""
        return summarise(self.frame(), by)

    def compute_summary(self) -> pd.DataFrame:
        """Per party: FLOPs declared, seconds measured, calls."""
        rows = {p: (c.flops, c.seconds, c.calls) for p, c in self.compute.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["flops", "seconds", "calls"])

    def replay(self, network: Network) -> float:
        """Seconds this run takes under `network`. Equals a run under that network wherever no deadline
        could change its course and no party does two things at once."""
        unpriced = [party for party, meter in self.compute.items() if meter.unpriced]
        if unpriced:
            raise ConfigError(
                f"{', '.join(unpriced)} computed without declaring a cost; pass cost= to compute"
            )
        self._check_whole("a replay")
        now: dict[str, float] = defaultdict(float)
        uplink: dict[str, float] = defaultdict(float)
        arrival: dict[int, float] = {}
        entries = self.entries
        for party, work, index in self._events:
            if index is None:
                now[party] += network.seconds(party, work)
            elif index < 0:
                e = entries[~index]
                uplink[party] = max(now[party], uplink[party]) + network.transfer(e.nbytes)
                arrival[~index] = uplink[party] + network.delay(party, e.receiver)
            else:
                now[party] = max(now[party], arrival.pop(index))
        # Like a run, which ends when its last role does, whatever is still on its way.
        return max(now.values(), default=0.0)

    def _check_whole(self, wanted: str) -> None:
        if self._one_sided:
            raise ConfigError(f"this ledger holds one party's messages; {wanted} needs those of all parties")

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry._make, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Ledger({len(self)} messages, {self.nbytes} bytes, {len(self.compute)} parties)"


def _round(scope: str) -> int | None:
    return next((int(part) for part in scope.split("/") if part.isdecimal()), None)


def summarise(frame: pd.DataFrame, by: Sequence[str] = ("sender", "receiver", "kind")) -> pd.DataFrame:
    """Sum up a record read from disk as `Ledger.summary` does. frame: as from `Ledger.frame`."""
    if {"party", "direction"} & set(by):
        sent = frame.assign(party=frame["sender"], direction="sent")
        frame = pd.concat([sent, frame.assign(party=frame["receiver"], direction="received")])
    unknown = [name for name in by if name not in frame.columns]
    if unknown:
        raise ConfigError(f"cannot sum by {unknown}; columns are {[*frame.columns, 'party', 'direction']}")
    keep = ["reveals"] if "kind" in by and "reveals" not in by else []
    groups = frame.groupby([*by, *keep], sort=True, dropna=False)["bytes"]
    sums = groups.agg(messages="size", bytes="sum").reset_index(level=keep).astype({"bytes": "int64"})
    return sums[["messages", "bytes", *keep]]  # the long texts last, where a narrow screen cuts

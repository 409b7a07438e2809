"""What earlier jobs of one peer used of one table: how a policy counts, and compares, over time.

Takes part: one party, alone; nothing here leaves it, and `protocols.policy.history` keeps it. It holds which
predict jobs began, which ids they predicted, the distinct row sets that models were fitted on, and for each
attempt that compared ids when that was, how many the peer announced and how many of them matched. No id is
kept: each stands as BLAKE2b-128 under a key of the party's store, so what is kept without the key tells
nobody who is in it, and with the key it can only be tested against guesses. Among 2**40 ids two collide with
probability below 2**-48.

Row sets of one table overlap, so ids are kept once, sorted, and a set is one bit for each of them, in memory
too. What there is of one peer and table is thus bounded by the ids of the table and by the number of row sets
that a policy grants (`max_fits`): none is forgotten, which would let a later one differ from it by one row.
Alignments are kept one by one for `KEPT`, and older ones as one sum.

Sources: BLAKE2, RFC 7693.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 16  # bytes of a fingerprint
PRINT = np.dtype((np.void, SIZE))
# One attempt that compared ids: seconds since 1970, what stands for its job, how many ids the peer announced,
# how many of them matched (the most that can have, where this party did not learn it).
ALIGNMENT = np.dtype([("when", "<i8"), ("job", PRINT), ("announced", "<i8"), ("matched", "<i8")])
KEPT = timedelta(days=8)  # for which each alignment is kept by itself
MOST = 4096  # that are
Prints = NDArray[np.void]  # sorted, distinct
Bits = NDArray[np.bool_]
Rows = NDArray[Any]  # of ALIGNMENT


def _none() -> Prints:
    return np.empty(0, PRINT)


@dataclass(frozen=True, eq=False)
class History:
    """What earlier jobs used. A value: what adds to it returns another."""

    key: bytes = field(repr=False)
    jobs: Prints = field(default_factory=_none, repr=False)  # of the predict jobs that began
    ids: Prints = field(default_factory=_none, repr=False)  # (n,), all that any job used
    predicted: Bits = field(default_factory=lambda: np.empty(0, bool), repr=False)  # (n,)
    # (sets, bytes) uint8: of each set, one bit for each of `ids`; no two alike.
    fits: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0), np.uint8), repr=False)
    aligned: Rows = field(default_factory=lambda: np.empty(0, ALIGNMENT), repr=False)  # the oldest first

    @property
    def predictions(self) -> int:
        """Return how many predict jobs began."""
        return len(self.jobs)

    @property
    def distinct(self) -> int:
        """Return how many distinct ids were predicted in all."""
        return int(self.predicted.sum())

    @property
    def found(self) -> int:
        """How many distinct ids the peer has found here, in all, as far as this party was to learn which."""
        return len(self.ids)

    def since(self, when: datetime) -> Rows:
        """Return the alignments at `when` and later. Those summed into one count by their latest time."""
        found: Rows = self.aligned[self.aligned["when"] >= int(when.timestamp())]
        return found

    def of(self, job: str) -> Rows:
        """Return the alignments of one job: one for each attempt that compared ids. An attempt that resumed
        after an alignment has none."""
        found: Rows = self.aligned[self.aligned["job"] == self._print(job)]
        return found

    def with_alignment(self, job: str, announced: int, most: int, when: datetime) -> History:
        """Add an attempt at `job`: the peer announced so many ids, of which at `most` so many match."""
        latest = self.aligned["when"].max(initial=0)  # a clock that is set back makes none older
        row = np.array([(max(latest, int(when.timestamp())), self._print(job), announced, most)], ALIGNMENT)
        return replace(self, aligned=_summed(np.concatenate([self.aligned, row]), when - KEPT))

    def with_matched(self, job: str, matched: int) -> History:
        """Add how many ids matched in the last alignment of `job`; without one, nothing changes."""
        at = np.flatnonzero(self.aligned["job"] == self._print(job))
        if not len(at) or self.aligned["matched"][at[-1]] == matched:
            return self
        aligned = self.aligned.copy()
        aligned["matched"][at[-1]] = matched
        return replace(self, aligned=aligned)

    def with_found(self, rows: Prints) -> History:
        """Add the ids of these rows to those that the peer has found here."""
        return self if np.isin(rows, self.ids).all() else self._grown(rows)[0]

    def _print(self, name: str) -> np.void:
        found: np.void = self.fingerprints([name.encode()])[0]
        return found

    def fingerprints(self, ids: Iterable[bytes]) -> Prints:
        """Return the keyed hashes that stand for these canonical ids: sorted, each once."""
        keyed = hashlib.blake2b(digest_size=SIZE, key=self.key)

        def one(value: bytes) -> bytes:
            state = keyed.copy()  # the key's block is compressed once
            state.update(value)
            return state.digest()

        return np.unique(np.frombuffer(b"".join(map(one, ids)), PRINT))

    def began(self, job: str) -> bool:
        """Return whether `job` is among the predict jobs that began."""
        return bool(np.isin(self.fingerprints([job.encode()]), self.jobs).item())

    def with_prediction(self, job: str) -> History:
        """Add `job` to the predict jobs; the same job twice is one job."""
        return replace(self, jobs=np.union1d(self.jobs, self.fingerprints([job.encode()])))

    def with_predicted(self, rows: Prints) -> History:
        """Add the ids of these rows to those predicted."""
        grown, used = self._grown(rows)
        return (
            self if not (used & ~grown.predicted).any() else replace(grown, predicted=grown.predicted | used)
        )

    def with_fit(self, rows: Prints) -> History:
        """Add this set of rows to those that models were fitted on."""
        grown, used = self._grown(rows)
        if 0 in _differences(grown.fits, used):
            return self
        return replace(grown, fits=np.vstack([grown.fits, np.packbits(used)[None]]))

    def nearest_fit(self, rows: Prints) -> int | None:
        """Count the rows by which this set differs from the most similar earlier one that is not equal to it.

        None where there is no such set. Rows in either and not in both count.
        """
        grown, used = self._grown(rows)
        return min((n for n in _differences(grown.fits, used) if n), default=None)

    def fitted(self, rows: Prints) -> bool:
        """Return whether a model was fitted on exactly this set of rows."""
        grown, used = self._grown(rows)
        return 0 in _differences(grown.fits, used)

    def _grown(self, rows: Prints) -> tuple[History, Bits]:
        """Return this history with room for `rows`, and a mask of which of its ids they are."""
        if np.isin(rows, self.ids).all():
            return self, np.isin(self.ids, rows)
        united = np.union1d(self.ids, rows)
        place = np.searchsorted(united, self.ids)

        def moved(known: Bits) -> Bits:
            there = np.zeros(len(united), bool)
            there[place] = known
            return there

        every = [moved(np.unpackbits(one, count=len(self.ids)).astype(bool)) for one in self.fits]
        fits = np.stack([np.packbits(one) for one in every]) if every else _no_fits(len(united))
        used = np.isin(united, rows)
        return replace(self, ids=united, predicted=moved(self.predicted), fits=fits), used


def _no_fits(ids: int) -> NDArray[np.uint8]:
    return np.empty((0, (ids + 7) // 8), np.uint8)


def _differences(fits: NDArray[np.uint8], used: Bits) -> list[int]:
    """Count by how many rows each of these sets differs from that one."""
    packed = np.packbits(used)
    return [int(np.bitwise_count(one ^ packed).sum()) for one in fits]  # one by one: all may be large


def _summed(aligned: Rows, before: datetime) -> Rows:
    """Sum up the rows older than `before`, or beyond the `MOST` latest, into one row in front."""
    old = max(int((aligned["when"] < int(before.timestamp())).sum()), len(aligned) - MOST)
    if old < 2:
        return aligned
    first = np.zeros(1, ALIGNMENT)
    first["when"] = aligned["when"][:old].max()
    for name in ("announced", "matched"):
        first[name] = aligned[name][:old].sum()
    return np.concatenate([first, aligned[old:]])

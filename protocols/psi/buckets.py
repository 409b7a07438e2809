"""Intersection of two large sets bucket by bucket, each bucket by whatever protocol was chosen.

An id's bucket is a hash of it under the run's key, so that equal ids are in equal buckets, and every bucket
is filled up to one size with random strings, so that its size says nothing. Points and products of one
bucket are in memory at a time; so are its ids, where they came from a disk (`protocols.psi.stored`), and the
buckets are then files beside those. A run that is resumed goes on at the bucket it was in.

Two parties; who learns what, and what is assumed, is the protocol's affair. Buckets add nothing to it for
whoever learns which ids are shared. They are not for learning the size alone: each would show its own.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from protocols.arrays import Array, Arrays
from protocols.data.shelf import Shelf
from protocols.errors import ProtocolError
from protocols.party import Party
from protocols.psi.ecdh import Learns, Met, in_order
from protocols.psi.ids import CanonicalIds, Ids, Rows
from protocols.psi.stored import ID_AND_ROW, Mask, StoredIds, drawer_of

FROM = 1_000_000  # ids at either party, from which on there are buckets
BUCKET = 1 << 18  # ids in one, on average, of the party that has more

Compare = Callable[[Party, str, CanonicalIds, Learns, bytes, int, int], Awaitable[Met]]


async def by_buckets(
    me: Party, peer: str, ids: Ids, learns: Learns, key: bytes, m: int, compare: Compare, resume: bool
) -> Met:
    """`compare` of each bucket, and what they say together; other arguments as `compare` takes them.

    resume: whether this run keeps its state after each bucket as a checkpoint of the job, and goes on from
    there; for jobs that do nothing else. ProtocolError where the peer then has another number of ids.
    """
    n = len(ids)
    count = -(-max(n, m) // BUCKET)
    own, theirs = capacity(n, count), capacity(m, count)
    done, state = me.resumed() if resume else (0, None)
    shared, places = np.zeros(ids.total, np.bool_), _expand(key, "places")
    if state is not None:
        shared, places, before = _kept(state, ids.total)
        if before != m:
            raise ProtocolError(f"{peer} announced {before} ids when this began, now {m}; begin it anew")
    me.progress("buckets", done, count)
    buckets = await me.compute(spread, ids, places, count, done, cost={"id_match": n})
    try:
        for bucket in range(done, count):
            values, rows = await me.compute(buckets.take, bucket, cost=0.0)
            if len(rows) > own:
                raise ProtocolError(f"a bucket of {len(rows)} ids, at most {own} fit; run it again")
            filled = await me.compute(_filled, ids.tag, values, rows, own, cost=0.0)
            async with me.within(f"bucket {bucket}") as at:
                secret = _expand(key, f"bucket {bucket}")
                met = await compare(at, peer, filled, learns, secret, theirs, count)
            if met.rows is not None:
                shared[met.rows] = True
            if resume:
                me.checkpoint(bucket + 1, partial(_state, shared, places, m))
            buckets.drop(bucket)
            me.progress("buckets", bucket + 1, count)
    finally:
        buckets.close()
    if learns == "peer":
        return Met(None, None, kept=resume)
    found = await me.compute(_ordered, ids, shared, cost={"id_match": n})
    return Met(found, len(found), kept=resume)


def askable(me: Party, n: int, resume: bool, m: int) -> int:
    """About how many ids a peer that announces m can ask, where n are here: of places in buckets that are
    still to be compared there are more than ids, and one that cheats fills them with guesses."""
    if max(n, m) < FROM:
        return m
    count = -(-max(n, m) // BUCKET)
    done = me.resumed()[0] if resume else 0
    return max(0, count - done) * capacity(m, count)


def _state(shared: Mask, key: bytes, m: int) -> Arrays:
    # A bit for each row: the state is as small after the last bucket as after the first.
    state: dict[str, Array] = {"rows": np.packbits(shared), "key": np.frombuffer(key, np.uint8)}
    return Arrays({**state, "count": np.array([m], np.int64)})


def _kept(state: Arrays, total: int) -> tuple[Mask, bytes, int]:
    """Which rows are known to be shared, the key of all places, and how many ids the peer had announced."""
    shared = np.unpackbits(state["rows"], count=total).astype(np.bool_)
    return shared, state["key"].tobytes(), int(state["count"][0])


def _ordered(ids: Ids, shared: Mask) -> Rows:
    if isinstance(ids, StoredIds):
        return ids.in_order(shared)
    assert isinstance(ids, CanonicalIds)
    return in_order(ids, np.flatnonzero(shared[ids.rows]))


class Buckets(Protocol):
    """Ids by buckets."""

    def take(self, bucket: int) -> tuple[pa.LargeBinaryArray, Rows]:
        """The ids of a bucket, and their rows."""

    def drop(self, bucket: int) -> None:
        """It is not needed any more."""

    def close(self) -> None:
        """No bucket is needed any more."""


def spread(ids: Ids, key: bytes, count: int, done: int) -> Buckets:
    """All ids by the hash under `key`, but those of the first `done` buckets."""
    if isinstance(ids, StoredIds):
        return OnDisk(ids, key, count, done)
    assert isinstance(ids, CanonicalIds)
    return InMemory(ids, key, count)


class OnDisk:
    """In files beside those of the ids."""

    def __init__(self, ids: StoredIds, key: bytes, count: int, done: int) -> None:
        self._shelf = Shelf(ids.scratch, count, ID_AND_ROW)
        try:
            for values, rows in ids.parts():
                drawers = drawer_of(values, key, count, len(ids))
                left = drawers >= done
                if not left.all():
                    values, rows, drawers = values.filter(pa.array(left)), rows[left], drawers[left]
                self._shelf.put(drawers, [values, pa.array(rows)])
        except BaseException:
            self.close()
            raise

    def take(self, bucket: int) -> tuple[pa.LargeBinaryArray, Rows]:
        values, rows = self._shelf.take(bucket)
        return values, rows.to_numpy()

    def drop(self, bucket: int) -> None:
        self._shelf.drop(bucket)

    def close(self) -> None:
        self._shelf.close()


class InMemory:
    """Of ids that are there already."""

    def __init__(self, ids: CanonicalIds, key: bytes, count: int) -> None:
        self._ids = ids
        buckets = drawer_of(ids.values, key, count, len(ids))
        self._order = np.argsort(buckets.astype(np.min_scalar_type(count)), kind="stable")
        self._ends = np.searchsorted(buckets[self._order], np.arange(-1, count), side="right")

    def take(self, bucket: int) -> tuple[pa.LargeBinaryArray, Rows]:
        chosen = self._order[self._ends[bucket] : self._ends[bucket + 1]]
        return self._ids.values.take(pa.array(chosen)), self._ids.rows[chosen]

    def drop(self, bucket: int) -> None:
        pass

    def close(self) -> None:
        pass


def capacity(n: int, count: int) -> int:
    """Places in each of `count` buckets, so that `n` ids find room in all of them but with probability 2^-40.

    Bernstein's bound on how many of n ids fall into one bucket, and the sum over the buckets."""
    mean, nats = n / count, math.log(2) * 40 + math.log(count)
    return min(n, math.ceil(mean + nats / 3 + math.sqrt((nats / 3) ** 2 + 2 * mean * nats)))


def _filled(tag: str, values: pa.LargeBinaryArray, rows: Rows, places: int) -> CanonicalIds:
    """The ids of a bucket, and random strings up to so many `places`."""
    fill = places - len(values)
    raw = secrets.token_bytes(32 * fill)  # 32 random bytes are anybody's id with probability 2^-256
    offsets = np.arange(0, 32 * fill + 1, 32, dtype=np.int64)
    made_up = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), fill, [None, pa.py_buffer(offsets), pa.py_buffer(raw)]
    )
    every = np.concatenate([rows, np.full(fill, -1, np.int64)])
    return CanonicalIds(tag, pa.concat_arrays([values, made_up]), every, 0)


def _expand(key: bytes, purpose: str) -> bytes:
    return HKDFExpand(SHA256(), 32, f"vfl-toolkit psi {purpose}".encode()).derive(key)

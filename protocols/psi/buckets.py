"""Intersection of two large sets bucket by bucket, each bucket by whatever protocol was chosen.

An id's bucket is a hash of it under the run's key, so that equal ids are in equal buckets, and every bucket
is filled up to one size with random strings, so that its size says nothing. Points and products of one
bucket are in memory at a time, and a run that is resumed goes on at the bucket it was in.

Two parties; who learns what, and what is assumed, is the protocol's affair. Buckets add nothing to it for
whoever learns which ids are shared. They are not for learning the size alone: each would show its own.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from protocols.arrays import Array, Arrays
from protocols.errors import ProtocolError
from protocols.party import Party
from protocols.psi.ecdh import Learns, Met, in_order
from protocols.psi.ids import CanonicalIds, Rows

FROM = 1 << 20  # ids at either party, from which on there are buckets
BUCKET = 1 << 18  # ids in one, on average, of the party that has more
CHUNK = 1 << 16  # ids that are Python objects at a time


Compare = Callable[[Party, str, CanonicalIds, Learns, bytes, int, int], Awaitable[Met]]


async def by_buckets(
    me: Party,
    peer: str,
    ids: CanonicalIds,
    learns: Learns,
    key: bytes,
    m: int,
    compare: Compare,
    resume: bool,
) -> Met:
    """`compare` of each bucket, and what they say together; other arguments as `compare` takes them.

    resume: whether this run keeps its state after each bucket as a checkpoint of the job, and goes on from
    there; for jobs that do nothing else.
    """
    n = len(ids)
    count = -(-max(n, m) // BUCKET)
    own, theirs = capacity(n, count), capacity(m, count)
    done, state = me.resumed() if resume else (0, None)
    found = [np.zeros(0, np.int64)]
    places = _expand(key, "places")
    if state is not None:
        found, places = [state["rows"]], state["key"].tobytes()
    buckets = await me.compute(bucket_of, ids, places, count, cost={"id_match": n})
    order = np.argsort(buckets, kind="stable")
    ends = np.searchsorted(buckets[order], np.arange(count), side="right")
    for bucket in range(done, count):
        chosen = order[ends[bucket - 1] if bucket else 0 : ends[bucket]]
        if len(chosen) > own:
            raise ProtocolError(f"a bucket of {len(chosen)} ids, at most {own} fit; run it again")
        filled = _filled(ids, chosen, own)
        async with me.within(f"bucket {bucket}") as at:
            met = await compare(at, peer, filled, learns, _expand(key, f"bucket {bucket}"), theirs, count)
        if met.rows is not None:
            found.append(met.rows)
        if resume:
            found = [np.concatenate(found)]
            me.checkpoint(bucket + 1, partial(_state, found[0], places))
        me.progress("buckets", bucket + 1, count)
    rows = np.concatenate(found)
    if learns == "peer":
        return Met(None, None)
    return Met(in_order(ids, np.searchsorted(ids.rows, np.sort(rows))), len(rows))


def _state(rows: Rows, key: bytes) -> Arrays:
    state: dict[str, Array] = {"rows": rows, "key": np.frombuffer(key, np.uint8)}
    return Arrays(state)


def capacity(n: int, count: int) -> int:
    """Places in each of `count` buckets, so that `n` ids find room in all of them but with probability 2^-40.

    Bernstein's bound on how many of n ids fall into one bucket, and the sum over the buckets."""
    mean, nats = n / count, math.log(2) * 40 + math.log(count)
    return min(n, math.ceil(mean + nats / 3 + math.sqrt((nats / 3) ** 2 + 2 * mean * nats)))


def bucket_of(ids: CanonicalIds, key: bytes, count: int) -> Rows:
    """The bucket of each id, int64 (n,) below `count`: a hash under `key` of its canonical bytes."""
    keyed = hashlib.blake2b(key=key, digest_size=8, person=b"vfl psi bucket 1")
    digests = bytearray()
    for start in range(0, len(ids), CHUNK):
        for value in ids.values.slice(start, CHUNK).to_pylist():
            hashed = keyed.copy()
            hashed.update(value)
            digests += hashed.digest()
    numbers = np.frombuffer(digests, "<u8")
    return (numbers % np.uint64(count)).astype(np.int64)


def _filled(ids: CanonicalIds, chosen: Rows, places: int) -> CanonicalIds:
    """The chosen ids, and random strings up to so many `places`."""
    fill = places - len(chosen)
    raw = secrets.token_bytes(32 * fill)  # 32 random bytes are anybody's id with probability 2^-256
    offsets = np.arange(0, 32 * fill + 1, 32, dtype=np.int64)
    made_up = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), fill, [None, pa.py_buffer(offsets), pa.py_buffer(raw)]
    )
    values = pa.concat_arrays([ids.values.take(pa.array(chosen)), made_up])
    rows = np.concatenate([ids.rows[chosen], np.full(fill, -1, np.int64)])
    return CanonicalIds(ids.tag, values, rows, 0)


def _expand(key: bytes, purpose: str) -> bytes:
    return HKDFExpand(SHA256(), 32, f"vfl-toolkit psi {purpose}".encode()).derive(key)

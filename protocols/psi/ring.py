"""Intersection of three and more parties' ids by commutative blinding in a ring (multi-party ECDH-PSI).

Takes part: the label party, which compares, and two or more feature parties, in a ring by name. Each set of
points goes from its owner through all others, each of which multiplies it with a secret scalar of its own;
at its end, at the label party, equal ids are equal points whoever owns them.

    a feature party's set:  its owner -> all other feature parties -> label party, kept in its owner's order
    the label party's set:  label party -> all feature parties, each of which shuffles it -> label party

The label party marks the points that are in every set. Each feature party gets the marks of its own set; the
marks of the label party's own go back through the ring, and each feature party undoes its shuffle.

Who learns what: each party learns which of its own ids are at every party, and how many ids each party has
and of what type. Where only the label party is to learn which, the feature parties still learn how many, from
the marks that they pass back. The label party learns besides, for any of the parties, itself included, how
many ids they share, and not which: it cannot link its own set, shuffled by the others, to its ids. So ids
that two parties share and a third lacks stay hidden from every party by itself. A party that sees a set on
its way sees points under secrets that it does not know, and no two sets under the same secrets.

A policy's smallest intersection is asked about the announced counts, as with two parties, and about how many
all share: by the label party before it tells anybody, by a feature party before it passes back what the label
party needs to know which of its ids they are.

Parties that conspire can take their own secrets off the sets that they saw. The label party and a feature
party learn so which of that feature party's ids each of the others has. Of three and more feature parties,
the one before and the one after a third learn which of the former's ids the third has; others may learn how
many ids two that do not conspire share. The label party's ids are not shown so to any number of feature
parties, since what they see of them is under its secret, and of their own sets nothing is.

Assumes what `protocols.psi.ecdh` assumes: semi-honest parties, decisional Diffie-Hellman on curve25519, the
hash as a random oracle, lines that authenticate their ends. Cost for k parties of n ids: k·n multiplications
at each, k^2·n points on the lines. Sources: Meadows 1986; Huberman, Franklin, Hogg 1999; Vaidya and Clifton
2005, "Secure set intersection cardinality with application to association rule mining".
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray
from pydantic import Field

from protocols.arrays import Array
from protocols.errors import ProtocolError
from protocols.party import Party
from protocols.psi.curve import multiply, new_scalar
from protocols.psi.ecdh import (
    MOST_IDS,
    Met,
    agree,
    as_values,
    blind,
    check,
    in_order,
    mark_width,
    ready,
    secret_order,
    unlike,
)
from protocols.psi.ids import CanonicalIds, Rows
from protocols.wire.message import Message, Spec

_NONCE = bytes(12)  # each key wraps one thing only


class RingKey(
    Message, reveals="how many ids each party has; the key of this run's hash, wrapped for the receiver"
):
    counts: Annotated[Array, Spec("int64", ("k",))]  # of the ring's parties, in its order
    wrapped: bytes


class RingPoints(Message, reveals="a party's ids as points under secrets of others, in a secret order"):
    owner: str
    points: Annotated[Array, Spec("uint8", ("n", 32))]


class RingMarks(Message, reveals="the label party's ids as points under all secrets, in a secret order"):
    marks: Annotated[Array, Spec("uint8", ("n", "w"))]


class InAll(Message, reveals="which of the receiver's own ids are at every party"):
    mask: Annotated[Array, Spec("bool", ("n",))]  # of its points, in the order in which it sent them


class Unshuffle(
    Message, reveals="how many ids are at every party; which, in an order secret to the receiver"
):
    mask: Annotated[Array, Spec("bool", ("n",))]


class InAllSize(Message, reveals="how many ids are at every party"):
    count: Annotated[int, Field(ge=0, strict=True)]


async def compare(me: Party, ring: Sequence[str], ids: CanonicalIds, *, rows: bool, tell: bool) -> Met:
    """The label party's role. ring: all feature parties, by name, two or more. rows: whether any party is to
    learn rows, and not the size only. tell: whether the feature parties learn it too."""
    keys, counts = {}, {me.name: len(ids)}
    for peer in ring:
        agreed = await agree(me, peer, ids, "ecdh")
        keys[peer], counts[peer] = agreed.key, agreed.count
    key = secrets.token_bytes(32)
    known = np.array([counts[peer] for peer in ring], np.int64)
    for peer in ring:
        wrapped = ChaCha20Poly1305(keys[peer]).encrypt(_NONCE, key, None)
        await me.send(peer, RingKey(counts=known, wrapped=wrapped))
    await ready(me, max(counts.values()))
    n, scalar = len(ids), new_scalar()
    order, own = await me.compute(blind, key, scalar, ids, cost={"elligator2": n, "x25519": n})
    await me.send(ring[0], RingPoints(owner=me.name, points=own))
    total, done = sum(counts.values()), n
    width = mark_width(total, total)
    marks: dict[str, Array] = {}
    for i, peer in enumerate(ring):
        points = await _take(me, ring[i - 1], peer, counts[peer])
        marks[peer] = (await me.compute(multiply, scalar, points, cost={"x25519": len(points)}))[:, :width]
        done += len(points)
        me.progress("ids blinded for all", done, total)
    back = await me.recv(ring[-1], RingMarks)
    if back.marks.shape != (n, width) or len(np.unique(as_values(back.marks))) != n:
        raise unlike(me, ring[-1], back, f"expected {n} different marks of {width} bytes")
    marks = {me.name: back.marks, **marks}
    masks, sizes = await me.compute(_compare, marks, cost={"id_match": total})
    size = sizes[tuple(marks)]
    if size:  # nobody knows yet which they are; that there is none is told in words of its own
        me.guard.intersection(size)
    if not rows:
        for peer in ring if tell else ():
            await me.send(peer, InAllSize(count=size))
        return Met(None, size, sizes)
    for peer in ring if tell else ():
        await me.send(peer, InAll(mask=masks[peer]))
    await me.send(ring[-1], Unshuffle(mask=masks[me.name]))
    mask = (await _mask(me, ring[0], InAll, n)).mask
    if np.count_nonzero(mask) != size:
        raise ProtocolError(f"{ring[0]} marks {np.count_nonzero(mask)} ids, expected {size}")
    return Met(in_order(ids, order[mask]), size, sizes)


async def pass_on(
    me: Party, label_party: str, ring: Sequence[str], ids: CanonicalIds, *, rows: bool, tell: bool
) -> Met:
    """A feature party's role; the arguments as for `compare`."""
    key, counts = await _start(me, label_party, ring, ids)
    for peer in ring:
        if peer != me.name:
            most = min(len(ids), counts[peer])
            await me.compute(me.guard.announced, peer, counts[peer], most, cost=0.0)
    place, n, scalar = ring.index(me.name), len(ids), new_scalar()
    before, after = ring[place - 1], ring[(place + 1) % len(ring)]
    shuffle: Rows = np.zeros(0, np.int64)
    await ready(me, max(counts.values()))
    order, own = await me.compute(blind, key, scalar, ids, cost={"elligator2": n, "x25519": n})
    await me.send(after, RingPoints(owner=me.name, points=own))
    total, done = sum(counts.values()), n
    for step in range(1, len(ring) + 1):
        if step < len(ring):  # the set of whoever is so many places before us
            owner = ring[place - step]
            points = await _take(me, before, owner, counts[owner])
            products = await me.compute(multiply, scalar, points, cost={"x25519": len(points)})
            await me.send(
                after if step < len(ring) - 1 else label_party, RingPoints(owner=owner, points=products)
            )
            done += len(points)
        if step == place + 1:  # now the label party's set is here
            points = await _take(me, label_party if place == 0 else before, label_party, counts[label_party])
            shuffle = secret_order(len(points))
            products = await me.compute(multiply, scalar, points, cost={"x25519": len(points)})
            products = products[shuffle]
            if after != ring[0]:
                await me.send(after, RingPoints(owner=label_party, points=products))
            else:
                width = mark_width(total, total)
                await me.send(label_party, RingMarks(marks=np.ascontiguousarray(products[:, :width])))
            done += len(points)
        me.progress("ids blinded for all", done, total)
    if not rows:
        size = (await me.recv(label_party, InAllSize)).count if tell else None
        return Met(None, size)
    mask = (await _mask(me, label_party, InAll, n)).mask if tell else None
    back = await _mask(me, label_party if after == ring[0] else after, Unshuffle, counts[label_party])
    if back.mask.any():
        me.guard.intersection(int(np.count_nonzero(back.mask)))  # before the label party can know which
    straight = np.empty_like(back.mask)
    straight[shuffle] = back.mask
    if place == 0:
        await me.send(label_party, InAll(mask=straight))
    else:
        await me.send(before, Unshuffle(mask=straight))
    if mask is None:
        return Met(None, None)
    return Met(in_order(ids, order[mask]), int(np.count_nonzero(mask)))


async def _start(
    me: Party, label_party: str, ring: Sequence[str], ids: CanonicalIds
) -> tuple[bytes, dict[str, int]]:
    """(key of this run's hash, how many ids each party has)."""
    agreed = await agree(me, label_party, ids, "ecdh")
    told = await me.recv(label_party, RingKey)
    counts = told.counts
    if len(counts) != len(ring) or not _sane(counts) or counts[ring.index(me.name)] != len(ids):
        raise unlike(me, label_party, told, f"expected the counts of {len(ring)} parties, ours among them")
    try:
        key = ChaCha20Poly1305(agreed.key).decrypt(_NONCE, told.wrapped, None)
    except InvalidTag:
        raise unlike(me, label_party, told, "its key does not open") from None
    if len(key) != 32:
        raise unlike(me, label_party, told, f"expected a key of 32 bytes, got {len(key)}")
    return key, {label_party: agreed.count, **dict(zip(ring, counts.tolist(), strict=True))}


def _sane(counts: Array) -> bool:
    return bool(((counts >= 0) & (counts <= MOST_IDS)).all())


async def _take(me: Party, sender: str, owner: str, count: int) -> Array:
    """The points of `owner` that `sender` passes on."""
    message = await me.recv(sender, RingPoints)
    if message.owner != owner:
        raise unlike(me, sender, message, f"expected the points of {owner}, got those of another party")
    await check(me, sender, message, message.points, count)
    return message.points


async def _mask(me: Party, sender: str, kind: type[InAll] | type[Unshuffle], n: int) -> InAll | Unshuffle:
    message: InAll | Unshuffle = await me.recv(sender, kind)
    if len(message.mask) != n:
        raise unlike(me, sender, message, f"expected one mark for each of {n} ids, got {len(message.mask)}")
    return message


def _compare(
    marks: Mapping[str, Array],
) -> tuple[dict[str, NDArray[np.bool_]], dict[tuple[str, ...], int]]:
    """(party -> which of its points all have, group of parties -> how many they share)."""
    parties = list(marks)
    values, codes = np.unique(np.concatenate([as_values(m) for m in marks.values()]), return_inverse=True)
    holds = np.zeros((len(parties), len(values)), bool)
    each = np.split(codes, np.cumsum([len(m) for m in marks.values()])[:-1])
    for i, own in enumerate(each):
        holds[i, own] = True
    everywhere = np.logical_and.reduce(holds)
    groups = (group for k in range(2, len(parties) + 1) for group in combinations(range(len(parties)), k))
    sizes = {tuple(parties[i] for i in g): int(holds[list(g)].all(axis=0).sum()) for g in groups}
    return {party: everywhere[own] for party, own in zip(parties, each, strict=True)}, sizes

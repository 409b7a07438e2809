"""Few ids against many, again and again, of which the many are worked on once (ECDH-OPRF PSI).

Two parties: by the announced numbers of ids a small side S and a large side L; of equal numbers S is the
party whose name comes first. H is a hash to curve25519, keyed for an epoch; k is a secret scalar of L's for
the epoch.

    once in an epoch
    L: marks, the first bytes of k·H(y) for all its y, sorted, so that their order says nothing  ->  S
    in each run
    S: r·H(x) for all its x, in secret random order; r is a fresh secret of this run  ->  L
    L: k·(r·H(x)) in the order it got them  ->  S
    S: takes r away; x is shared where the first bytes of k·H(x) are among the marks
    S: the places of these marks  ->  L, where L is to learn too

An epoch is with one peer: its keys are drawn for it, so what two peers hold cannot be compared. Both sides
keep it in their own stores (`protocols.psi.epochs`). A run begins with L's telling the digest of its marks,
and S gets all of them unless it has these. L begins another epoch when its ids are not the same in the same
order, DAYS after the last began, when the peer would have asked about more than MOST ids in all runs of it,
and when anything of it is lost or damaged. Without a store an epoch lasts one run.

Who learns what: S learns which of its ids are shared, and L which of its own if S is to tell it; each learns
the other's number of ids and their type. S cannot test ids against the marks without k, nor L against the
points without r. S learns first, and could keep some places to itself. Beyond what a fresh run shows:

- Runs of an epoch add up: S may ask about other ids in each, MOST in all, and learns of each whether it is
  L's. L sees how many, and not whether they are those of an earlier run.
- S learns from an old epoch that L's ids have not changed, and from a new one that they may have.
- Who steals L's store during an epoch can test guesses against the marks; who steals S's cannot. Neither
  helps with the ids that S asked about.

Assumes semi-honest parties, decisional Diffie-Hellman on curve25519, the hash as a random oracle, and lines
that authenticate their ends. An S that does not follow the protocol can have points of its choice multiplied
by k, a batch a run: chosen each upon the run before, q runs save log2(q)/2 bits of 126 (Brown and Gallant),
so at most 10 for MOST. An L that does not could send marks of guesses and learn from the places which are
S's, as it could by announcing them in another protocol.

Sources: Jarecki and Liu 2010, "Fast secure computation of set intersection" (the function, evaluated
obliviously); Kiss, Liu, Schneider, Asokan, Pinkas 2017, "Private set intersection for unequal set sizes with
mobile applications" (the large set once); Resende and Aranha 2018, "Faster unbalanced private set
intersection"; Brown and Gallant 2004, "The static Diffie-Hellman problem".
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import Field

from protocols.arrays import Array
from protocols.errors import ConfigError, ProtocolError
from protocols.party import Party
from protocols.psi.curve import buffers, encode_points, multiply, new_blinding, new_scalar
from protocols.psi.ecdh import Learns, Met, as_values, blind, check, in_order, mark_width, ready, unlike
from protocols.psi.epochs import Epoch, digest_of, load_marks, save_epoch, save_marks, take_up
from protocols.psi.ids import CanonicalIds, Rows
from protocols.wire.message import Message, Spec

DAYS = 7.0  # that an epoch lasts
MOST = 1 << 20  # ids that a peer may ask about in an epoch, in all its runs; and so of a small side
SLAB = 1 << 18  # ids that are points at a time, and marks in a message (3 MB)
_NONCE = bytes(12)  # each key wraps one thing only


class MarksOffered(
    Message,
    reveals="whether its ids or its key changed since the last run; the key of the hash, wrapped for the "
    "receiver",
):
    digest: Annotated[Array, Spec("uint8", (32,))]  # SHA-256 of the marks
    wrapped: bytes


class PointsAsked(
    Message,
    reveals="its ids as points under a secret of this run, in random order: their number; whether it has "
    "the receiver's marks still",
):
    points: Annotated[Array, Spec("uint8", ("n", 32))]
    held: Annotated[bool, Field(strict=True)]


class IdMarks(Message, reveals="pseudorandom marks of its ids under its own secret, sorted: their number"):
    marks: Annotated[Array, Spec("uint8", ("n", "w"))]


class PointsAnswered(
    Message, reveals="the receiver's own points under both secrets: which of the receiver's ids are shared"
):
    points: Annotated[Array, Spec("uint8", ("n", 32))]


class PlacesFound(Message, reveals="which of the receiver's own ids are shared"):
    places: Annotated[Array, Spec("int64", ("k",))]  # among its marks, ascending


SPOKEN = (MarksOffered, PointsAsked, IdMarks, PointsAnswered, PlacesFound)


async def compare(
    me: Party, peer: str, ids: CanonicalIds, learns: Learns, key: bytes, m: int, store: Path | None = None
) -> Met:
    """As `protocols.psi.ecdh.compare`; store: this party's own folder, in which it keeps an epoch.

    ConfigError where the party with more ids is the only one to learn, where the size alone is to be learnt,
    and for a small side of more than MOST ids; DataError for what the disk refuses.
    """
    n = len(ids)
    small = (n, me.name) < (m, peer)
    if learns == "size" or learns == ("peer" if small else "me"):
        raise ConfigError(
            f'protocol="unbalanced" lets the party with fewer ids learn, alone or with the other: with {n} '
            f"ids at {me.name} and {m} at {peer} let {me.name if small else peer} be the label "
            'party, or use "ecdh"'
        )
    if min(n, m) > MOST:
        raise ConfigError(
            f'protocol="unbalanced" is for at most {MOST} ids at one side, got {n} at {me.name} and {m} at '
            f'{peer}; "auto" fits any number'
        )
    if not min(n, m):
        return Met(None, None) if learns == "peer" else Met(np.zeros(0, np.int64), 0)
    if small:
        return await ask(me, peer, ids, key, m, store, tell=learns == "both")
    return await answer(me, peer, ids, key, m, store, told=learns == "both")


async def answer(
    me: Party, peer: str, ids: CanonicalIds, key: bytes, m: int, store: Path | None, *, told: bool
) -> Met:
    """The large side's role; told: whether it learns too."""
    epoch = await _epoch(me, peer, ids, m, store)
    wrapped = ChaCha20Poly1305(key).encrypt(_NONCE, epoch.salt, None)
    await me.send(peer, MarksOffered(digest=np.frombuffer(epoch.digest, np.uint8), wrapped=wrapped))
    asked = await me.recv(peer, PointsAsked)
    await check(me, peer, asked, asked.points, m)
    for at in range(0, 0 if asked.held else len(ids), SLAB):
        await me.send(peer, IdMarks(marks=epoch.marks[at : at + SLAB]))
        me.progress(f"marks sent to {peer}", min(at + SLAB, len(ids)), len(ids))
    products = await me.compute(multiply, epoch.key, asked.points, cost={"x25519": m})
    await me.send(peer, PointsAnswered(points=products))
    if not told:
        return Met(None, None)
    found = await me.recv(peer, PlacesFound)
    places = found.places
    if len(places) > m or (np.diff(places) < 1).any() or (places < 0).any() or (places >= len(ids)).any():
        raise unlike(me, peer, found, f"expected at most {m} ascending places among {len(ids)} marks")
    return Met(in_order(ids, epoch.owners[places].astype(np.int64)), len(places))


async def ask(
    me: Party, peer: str, ids: CanonicalIds, key: bytes, m: int, store: Path | None, *, tell: bool
) -> Met:
    """The small side's role; tell: whether `peer` learns too."""
    n, shape = len(ids), (m, _width(m))
    offered = await me.recv(peer, MarksOffered)
    try:
        salt = ChaCha20Poly1305(key).decrypt(_NONCE, offered.wrapped, None)
    except InvalidTag:
        raise unlike(me, peer, offered, "its key does not open") from None
    if len(salt) != 32:
        raise unlike(me, peer, offered, f"expected a key of 32 bytes, got {len(salt)}")
    marks = None
    if store is not None:
        marks = await me.compute(load_marks, store, peer, shape, offered.digest.tobytes(), cost=0.0)
    await ready(me, n)
    scalar, back = new_blinding()
    order, points = await me.compute(blind, salt, scalar, ids, cost={"elligator2": n, "x25519": n})
    await me.send(peer, PointsAsked(points=points, held=marks is not None))
    if marks is None:
        marks = await _take(me, peer, offered, shape)
        if store is not None:
            await me.compute(save_marks, store, peer, marks, cost=0.0)
    answered = await me.recv(peer, PointsAnswered)
    await check(me, peer, answered, answered.points, n)
    products = await me.compute(multiply, back, answered.points, cost={"x25519": n})
    mine, places = await me.compute(_found, marks, products[:, : shape[1]], cost={"id_match": n})
    if tell:
        await me.send(peer, PlacesFound(places=np.sort(places)))
    return Met(in_order(ids, order[mine]), len(mine))


def _width(n: int) -> int:
    """Bytes of a mark, so that in a whole epoch none of n ids' marks is another id's but with 2^-40."""
    return mark_width(n, max(n, MOST))


async def _epoch(me: Party, peer: str, ids: CanonicalIds, m: int, store: Path | None) -> Epoch:
    """The epoch of a run in which m ids are asked about: the one that is kept, or another."""
    if store is None:
        return await _begin(me, ids)
    # What is asked about is counted before anything leaves: a run that is killed has counted.
    kept = await me.compute(take_up, store, peer, m, partial(_goes_on, ids=ids, m=m), cost=0.0)
    if kept is not None:
        return kept
    epoch = replace(await _begin(me, ids), asked=m)
    await me.compute(save_epoch, store, peer, epoch, cost=0.0)
    return epoch


def _goes_on(epoch: Epoch, ids: CanonicalIds, m: int) -> bool:
    """Whether the epoch has time and questions left, and is of these ids."""
    age = datetime.now(UTC) - epoch.created
    young = timedelta(0) <= age < timedelta(days=DAYS)
    fits = epoch.marks.shape == (len(ids), _width(len(ids))) and epoch.asked + m <= MOST
    return young and fits and hmac.compare_digest(fingerprint(ids, epoch.key), epoch.ids)


async def _begin(me: Party, ids: CanonicalIds) -> Epoch:
    """A new epoch: the offline phase."""
    n, key, salt = len(ids), new_scalar(), secrets.token_bytes(32)
    await ready(me, n)
    marks = np.empty((n, _width(n)), np.uint8)
    for at in range(0, n, SLAB):
        part = ids.values.slice(at, SLAB)
        work = {"elligator2": len(part), "x25519": len(part)}
        marks[at : at + SLAB] = (await me.compute(_points, salt, key, part, cost=work))[:, : marks.shape[1]]
        me.progress("marks made (once in an epoch)", at + len(part), n)
    order = await me.compute(_sorted, marks, cost={"id_match": n})
    marks = marks[order]
    digest = await me.compute(digest_of, marks, cost=0.0)
    said = await me.compute(fingerprint, ids, key, cost=0.0)
    return Epoch(key, salt, said, marks, order.astype(np.uint32), digest)


def _points(salt: bytes, key: bytes, values: pa.LargeBinaryArray) -> Array:
    return multiply(key, encode_points(salt, values))


def _sorted(marks: Array) -> Rows:
    return np.argsort(as_values(marks))


def fingerprint(ids: CanonicalIds, key: bytes) -> bytes:
    """Which ids these are, and in which order: 32 bytes, of no use to whoever lacks `key`."""
    data, ends = buffers(ids.values)
    said = hmac.new(key, f"{ids.tag} {len(ids)}\n".encode(), "sha256")
    said.update((ends - ends[0]).data)
    said.update(data[ends[0] : ends[-1]].data)
    return said.digest()


async def _take(me: Party, peer: str, offered: MarksOffered, shape: tuple[int, int]) -> Array:
    """All marks of `peer`, which sends them in parts."""
    marks = np.empty(shape, np.uint8)
    for at in range(0, len(marks), SLAB):
        message = await me.recv(peer, IdMarks)
        space = marks[at : at + SLAB]
        if message.marks.shape != space.shape:
            raise unlike(
                me, peer, message, f"expected marks of shape {space.shape}, got {message.marks.shape}"
            )
        space[:] = message.marks
        me.progress(f"marks of {peer} taken", at + len(space), len(marks))
    if await me.compute(digest_of, marks, cost=0.0) != offered.digest.tobytes():
        raise ProtocolError(f"{IdMarks.kind} from {peer} in {me.scope!r}: not the marks that were offered")
    if not await me.compute(_ascends, marks, cost={"id_match": len(marks)}):
        raise ProtocolError(f"{IdMarks.kind} from {peer} in {me.scope!r}: expected sorted marks")
    return marks


def _ascends(marks: Array) -> bool:
    """Whether the first 8 bytes of the marks do; more of them are equal with a probability of 2^-19."""
    heads = np.ascontiguousarray(marks[:, :8]).view(">u8").reshape(-1)
    return bool((heads[1:] >= heads[:-1]).all())


def _found(marks: Array, mine: Array) -> tuple[Rows, Rows]:
    """Which of `mine` are among `marks`, and where there."""
    table, wanted = as_values(marks), as_values(mine)
    places = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    at = np.flatnonzero(table[places] == wanted)
    return at, places[at]

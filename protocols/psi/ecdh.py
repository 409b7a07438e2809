"""Private set intersection of two parties' ids by commutative blinding (ECDH-PSI).

Two parties, both sides the same. Each learns which of its own ids the other has too, the other's number of
ids and whether they are integers or text; nothing of the ids that are not shared. Someone who sees the
messages without taking part learns the numbers and the type. Where only one is to learn, it does not answer:
the other learns the number and the type. Where only the size is, answers come in another secret order.

    A: a·H(x) for all its x, in secret random order  ->  B
    B: b·(a·H(x)) in the order it got them, cut short  ->  A        and the same from B to A
    A: x is shared where b·(a·H(x)) is among the a·(b·H(y)), since blinding commutes

H is a hash to curve25519 keyed for this run by an ephemeral exchange, and a, b are fresh secrets of this run,
so points of two runs cannot be compared.

Both learn the matches at the same time, so a policy's smallest intersection cannot stop that once the points
are out. A party's guard is therefore asked before its own leave, about the number of ids that were announced.
That stops a peer that brings a few ids to look them up, unless it adds made-up ones.

Assumes semi-honest parties, decisional Diffie-Hellman on curve25519, the hash as a random oracle, and a line
that authenticates its ends (mutual TLS), since the ephemeral keys are not signed. A malicious party could put
ids into its set that it does not hold, which shows it whether they are shared: where ids can be listed (phone
numbers, short counters) that is a membership test of as many of them as it announces, since as many points
are answered and no more. Its points could be sums: then it learns of two or three ids together whether all
are shared, and nothing if one is not. It is one yes or no for a point in any case. It could hide ids of
its own, or play our blinded ids back to make all of ours look shared. Where only the size is to be learnt, it
could blind each of its ids under another secret and so learn which are shared: the other order hides that
only while one secret serves all. It cannot learn our scalar, nor an id that it does not guess.

Sources: Meadows 1986, "A more efficient cryptographic matchmaking protocol"; Huberman, Franklin, Hogg 1999,
"Enhancing privacy and trust in electronic communities"; RFC 7748, RFC 9380, RFC 5869 (the run's key).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field

from protocols.arrays import Array
from protocols.errors import AlignmentError, ProtocolError
from protocols.hazmat import switch
from protocols.party import Party
from protocols.psi.curve import Points, check_points, encode_points, multiply, new_scalar, prepare
from protocols.psi.ids import CanonicalIds, Ids, Rows
from protocols.psi.order import by_bytes
from protocols.settings import MOST_COLUMNS
from protocols.wire.message import Message, Spec

MOST_IDS = 2**32  # that a peer may announce: what serves so many is made ready before any of them is seen


class IdKind(
    Message,
    reveals="how many ids it has, whether they are integers or text, and whether it lets KKRT be taken",
):
    tag: Annotated[str, Field(pattern=rf"^(int|str)(\+(int|str)){{0,{MOST_COLUMNS - 1}}}$")]  # of each column
    count: Annotated[int, Field(ge=0, le=MOST_IDS, strict=True)]
    public_key: Annotated[Array, Spec("uint8", (32,))]  # X25519, of this run only
    kkrt: Annotated[bool, Field(strict=True)] = False  # whether "auto" may stand for KKRT


class BlindedIds(Message, reveals="its ids as points under its own secret, in random order: their number"):
    points: Annotated[Array, Spec("uint8", ("n", 32))]


class TwiceBlinded(
    Message, reveals="the receiver's own points under both secrets: which of the receiver's ids are shared"
):
    marks: Annotated[Array, Spec("uint8", ("n", "w"))]  # the first w bytes of each product


Learns = Literal["both", "me", "peer", "size"]


@dataclass(frozen=True)
class Agreed:
    """What two parties know of each other before their ids meet."""

    key: bytes = field(repr=False)  # of this run's hash: both derive it, nobody else can
    count: int  # the peer's ids
    kkrt: bool  # whether both let "auto" stand for KKRT


@dataclass(frozen=True)
class Met:
    """What one party has learnt. rows: of its table, with ids that the others have; None if it was not to
    learn them. size: how many ids are shared; None if it was not to learn it. sizes: at the label party of
    three or more, for each group of parties, how many ids they share."""

    rows: Rows | None = field(repr=False)
    size: int | None
    sizes: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    kept: bool = False  # whether checkpoints of the comparison itself hold it


async def intersect(me: Party, peer: str, ids: CanonicalIds) -> Rows:
    """Rows of this party's table whose ids `peer` has too; `peer` learns the same of its own.

    Both parties call it at the same time, each with its own ids. Returns int64 (k,), positions in the column
    that `canonical` was given, ordered by the ids' canonical bytes: row i here and row i there have one id.
    The order is that of bytes, so "10" comes before "9". Every run takes three messages each way.

    Raises AlignmentError if one side has integers and the other text, ProtocolError for what an honest peer
    would not send; this party's guard a PolicyError, where too few can match. None shows an id.
    """
    met = await meet(me, peer, ids, "both")
    assert met.rows is not None
    return met.rows


async def meet(me: Party, peer: str, ids: CanonicalIds, learns: Learns) -> Met:
    """As `intersect`, where `learns` says who learns: both the rows, one of them, or both only the size.

    `peer` calls it with the counterpart, "peer" for "me".
    """
    agreed = await agree(me, peer, ids, "ecdh")
    return await compare(me, peer, ids, learns, agreed.key, agreed.count)


async def compare(
    me: Party, peer: str, ids: CanonicalIds, learns: Learns, key: bytes, m: int, runs: int = 1
) -> Met:
    """`meet`, after `agree`: key of this run's hash, m ids at the peer; one of `runs` of this size."""
    n = len(ids)
    await ready(me, max(n, m))
    width, scalar = mark_width(n, m, runs), new_scalar()
    order, blinded = await me.compute(blind, key, scalar, ids, cost={"elligator2": n, "x25519": n})
    await me.send(peer, BlindedIds(points=blinded))
    me.progress(f"ids blinded for {peer}", n, n + m)
    theirs = await me.recv(peer, BlindedIds)
    await check(me, peer, theirs, theirs.points, m)
    products = await me.compute(multiply, scalar, theirs.points, cost={"x25519": m})
    marks = products[:, :width]
    if learns != "me":
        shuffled = marks[secret_order(m)] if learns == "size" else marks
        await me.send(peer, TwiceBlinded(marks=shuffled))
    me.progress(f"ids blinded for {peer}", n + m, n + m)
    if learns == "peer":
        return Met(None, None)
    answer = await me.recv(peer, TwiceBlinded)
    if answer.marks.shape != (n, width):
        raise unlike(me, peer, answer, f"expected marks of shape {(n, width)}, got {answer.marks.shape}")
    found = (ids, order, answer.marks, marks, learns != "size")
    return await me.compute(_found, *found, cost={"id_match": n + m})


async def ready(me: Party, count: int) -> None:
    """Have what serves sets of `count` ids ready; where that takes long, whoever watches is told."""
    if count >= switch.LARGE:
        me.progress(switch.STEP, 0, 1)
        await me.compute(prepare, count, cost=0.0)
        me.progress(switch.STEP, 1, 1)


async def agree(me: Party, peer: str, ids: Ids, protocol: str, asks: Callable[[int], int] = int) -> Agreed:
    """Exchange types, counts and ephemeral keys, before ids are compared by `protocol`.

    asks: about how many ids a peer can ask that announces so many. PolicyError, before anything leaves, where
    the guard does not let the protocol, and before any id does, where it is about the number.
    """
    me.guard.protocol(protocol)
    kkrt = protocol == "auto" and me.guard.lets("kkrt")
    mine = X25519PrivateKey.generate()
    public_key = np.frombuffer(mine.public_key().public_bytes_raw(), np.uint8)
    await me.send(peer, IdKind(tag=ids.tag, count=len(ids), public_key=public_key, kkrt=kkrt))
    other = await me.recv(peer, IdKind)
    if other.tag != ids.tag and len(ids) and other.count:  # no ids are of no type
        fix = 'cast one side, or let both be normalised (normalise="strip")'
        if ids.tag.count("+") != other.tag.count("+"):
            fix = "give as many id columns at one as at the other"
        raise AlignmentError(
            f"the ids of {me.name} are {_said(ids.tag)}, those of {peer} are {_said(other.tag)}; {fix}"
        )
    # No more can match than the smaller side brings; it is still time not to show which do.
    me.guard.intersection(min(len(ids), other.count))
    asked = asks(other.count)
    await me.compute(me.guard.announced, peer, asked, min(len(ids), asked), cost=0.0)
    try:
        key = await me.compute(_run_key, mine, other.public_key.tobytes(), cost={"x25519": 2})
    except ValueError as error:
        raise unlike(me, peer, other, str(error)) from None
    return Agreed(key, other.count, kkrt and other.kkrt)


def _said(tag: str) -> str:
    said = {"int": "integers", "str": "text"}
    return " and ".join(said[kind] for kind in tag.split("+"))


def mark_width(n: int, m: int, runs: int = 1) -> int:
    """Bytes of a product that are compared: any two of n·m products, in any of so many `runs`, agree by
    chance with at most 2^-40."""
    bits = 40 + max(n * m * runs - 1, 0).bit_length()
    return min(32, -(-bits // 8))


def _run_key(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    """The key of this run's hash: both sides derive it, nobody else can. ValueError for a bad public key."""
    try:
        secret = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise ValueError("the public key is a point of small order") from None
    both = sorted([mine.public_key().public_bytes_raw(), theirs])
    return HKDF(SHA256(), 32, salt=b"".join(both), info=b"vfl-toolkit psi ecdh 1").derive(secret)


def blind(key: bytes, scalar: bytes, ids: CanonicalIds) -> tuple[Rows, Points]:
    """The blinded ids in a secret order: (order, points), where points[i] belongs to ids.values[order[i]]."""
    points = multiply(scalar, encode_points(key, ids.values))
    order = secret_order(len(ids))
    return order, points[order]


def secret_order(n: int) -> Rows:
    """A random permutation from the operating system's generator: the table's order must not leave."""
    # Two equal keys among a million have probability 3e-8, and would show the order of those two rows only.
    keys = np.frombuffer(secrets.token_bytes(8 * n), np.uint64)
    return np.argsort(keys).astype(np.int64)


async def check(me: Party, peer: str, message: Message, points: Points, count: int) -> None:
    """ProtocolError unless these are `count` distinct points that an honest peer could send."""
    if len(points) != count:
        raise unlike(me, peer, message, f"expected the {count} points announced, got {len(points)}")
    try:
        await me.compute(_check, points, cost={"point_check": count})
    except ValueError as error:
        raise unlike(me, peer, message, str(error)) from None


def _check(points: Points) -> None:
    check_points(points)
    distinct = len(np.unique(as_values(points)))
    if distinct != len(points):
        raise ValueError(f"{len(points) - distinct} of {len(points)} points come twice; ids are distinct")


def _found(ids: CanonicalIds, order: Rows, mine: Array, theirs: Array, rows: bool) -> Met:
    """What the marks say. mine: uint8 (n, w), of our ids in `order`; theirs: (m, w); rows: whether which."""
    at = np.intersect1d(as_values(mine), as_values(theirs), return_indices=True)[1]
    return Met(in_order(ids, order[at]) if rows else None, len(at))


def in_order(ids: CanonicalIds, shared: Rows) -> Rows:
    """The rows of these ids (positions in `ids.values`), by the ids' bytes."""
    rows: Rows = ids.rows[shared[by_bytes(ids.values.take(shared))]]
    return rows


def as_values(table: Array) -> Array:
    """Each row of a uint8 (n, w) array as one value that can be compared: void (n,)."""
    return np.ascontiguousarray(table).view(f"V{table.shape[1]}").reshape(-1)


def unlike(me: Party, peer: str, message: Message, reason: str) -> ProtocolError:
    """What is wrong with a message of the peer's."""
    return ProtocolError(f"{message.kind} from {peer} in {me.scope!r}: {reason}")

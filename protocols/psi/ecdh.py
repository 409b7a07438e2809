"""Private set intersection of two parties' ids by commutative blinding (ECDH-PSI).

Two parties, both sides the same. Each learns which of its own ids the other has too, the other's number of
ids and whether they are integers or text; nothing of the ids that are not shared. Someone who sees the
messages without taking part learns the numbers and the type.

    A: a·H(x) for all its x, in secret random order  ->  B
    B: b·(a·H(x)) in the order it got them, cut short  ->  A        and the same from B to A
    A: x is shared where b·(a·H(x)) is among the a·(b·H(y)), since blinding commutes

H is a hash to curve25519 keyed for this run by an ephemeral exchange, and a, b are fresh secrets of this run,
so points of two runs cannot be compared.

Assumes semi-honest parties, decisional Diffie-Hellman on curve25519, the hash as a random oracle, and a line
that authenticates its ends (mutual TLS), since the ephemeral keys are not signed. A malicious party could put
ids into its set that it does not hold, which shows it whether they are shared: where ids can be listed (phone
numbers, short counters) that is a membership test of as many of them as it announces. It could hide ids of
its own, or play our blinded ids back to make all of ours look shared. It cannot learn our scalar, nor an id
that it does not guess.

Sources: Meadows 1986, "A more efficient cryptographic matchmaking protocol"; Huberman, Franklin, Hogg 1999,
"Enhancing privacy and trust in electronic communities"; RFC 7748, RFC 9380, RFC 5869 (the run's key).
"""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

import numpy as np
import pyarrow.compute as pc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from pydantic import Field

from protocols.arrays import Array
from protocols.errors import AlignmentError, ProtocolError
from protocols.party import Party
from protocols.psi.curve import Points, check_points, encode_points, multiply, new_scalar
from protocols.psi.ids import CanonicalIds
from protocols.wire.message import Message, Spec


class IdKind(Message, reveals="how many ids it has, and whether they are integers or text"):
    tag: Literal["int", "str"]
    count: Annotated[int, Field(ge=0, strict=True)]
    public_key: Annotated[Array, Spec("uint8", (32,))]  # X25519, of this run only


class BlindedIds(Message, reveals="its ids as points under its own secret, in random order: their number"):
    points: Annotated[Array, Spec("uint8", ("n", 32))]


class TwiceBlinded(
    Message, reveals="the receiver's own points under both secrets: which of the receiver's ids are shared"
):
    marks: Annotated[Array, Spec("uint8", ("n", "w"))]  # the first w bytes of each product


async def intersect(me: Party, peer: str, ids: CanonicalIds) -> NDArray[np.int64]:
    """Rows of this party's table whose ids `peer` has too.

    Both parties call it at the same time, each with its own ids. Returns int64 (k,), positions in the column
    that `canonical` was given, ordered by the ids' canonical bytes: row i here and row i there have one id.
    The order is that of bytes, so "10" comes before "9". Every run takes three messages each way.

    Raises AlignmentError if one side has integers and the other text, ProtocolError for what an honest peer
    would not send. Neither shows an id.
    """
    key, m = await _agree(me, peer, ids)
    n = len(ids)
    width, scalar = _width(n, m), new_scalar()
    cost = {"elligator2": n, "x25519": n}
    order, blinded = await me.compute(_blind, key, scalar, ids, cost=cost)
    await me.send(peer, BlindedIds(points=blinded))
    me.progress(f"ids blinded for {peer}", n, n + m)

    theirs = await me.recv(peer, BlindedIds)
    if len(theirs.points) != m:
        raise _unlike(me, peer, theirs, f"expected the {m} points announced, got {len(theirs.points)}")
    try:
        await me.compute(_check, theirs.points, cost={"point_check": m})
    except ValueError as error:
        raise _unlike(me, peer, theirs, str(error)) from None
    marks = (await me.compute(multiply, scalar, theirs.points, cost={"x25519": m}))[:, :width]
    await me.send(peer, TwiceBlinded(marks=marks))
    me.progress(f"ids blinded for {peer}", n + m, n + m)

    answer = await me.recv(peer, TwiceBlinded)
    if answer.marks.shape != (n, width):
        raise _unlike(me, peer, answer, f"expected marks of shape {(n, width)}, got {answer.marks.shape}")
    return await me.compute(_shared_rows, ids, order, answer.marks, marks, cost={"id_match": n + m})


async def _agree(me: Party, peer: str, ids: CanonicalIds) -> tuple[bytes, int]:
    """Exchange types, counts and ephemeral keys: (key of this run's hash, number of the peer's ids)."""
    mine = X25519PrivateKey.generate()
    public_key = np.frombuffer(mine.public_key().public_bytes_raw(), np.uint8)
    await me.send(peer, IdKind(tag=ids.tag, count=len(ids), public_key=public_key))
    other = await me.recv(peer, IdKind)
    if other.tag != ids.tag:
        said = {"int": "integers", "str": "text"}
        raise AlignmentError(
            f"the ids of {me.name} are {said[ids.tag]}, those of {peer} are {said[other.tag]}; cast one side"
        )
    try:
        key = await me.compute(_run_key, mine, other.public_key.tobytes(), cost={"x25519": 2})
    except ValueError as error:
        raise _unlike(me, peer, other, str(error)) from None
    return key, other.count


def _width(n: int, m: int) -> int:
    """Bytes of a product that are compared: any two of n·m products agree by chance with at most 2^-40."""
    bits = 40 + max(n * m - 1, 0).bit_length()
    return min(32, -(-bits // 8))


def _run_key(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    """The key of this run's hash: both sides derive it, nobody else can. ValueError for a bad public key."""
    try:
        secret = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise ValueError("the public key is a point of small order") from None
    both = sorted([mine.public_key().public_bytes_raw(), theirs])
    return HKDF(SHA256(), 32, salt=b"".join(both), info=b"vfl-toolkit psi ecdh 1").derive(secret)


def _blind(key: bytes, scalar: bytes, ids: CanonicalIds) -> tuple[NDArray[np.int64], Points]:
    """The blinded ids in a secret order: (order, points), where points[i] belongs to ids.values[order[i]]."""
    points = multiply(scalar, encode_points(key, ids.values))
    order = _secret_order(len(ids))
    return order, points[order]


def _secret_order(n: int) -> NDArray[np.int64]:
    """A random permutation from the operating system's generator: the table's order must not leave."""
    # Two equal keys among a million have probability 3e-8, and would show the order of those two rows only.
    keys = np.frombuffer(secrets.token_bytes(8 * n), np.uint64)
    return np.argsort(keys).astype(np.int64)


def _check(points: Points) -> None:
    check_points(points)
    distinct = len(np.unique(_rows(points)))
    if distinct != len(points):
        raise ValueError(f"{len(points) - distinct} of {len(points)} points come twice; ids are distinct")


def _shared_rows(
    ids: CanonicalIds, order: NDArray[np.int64], mine: Array, theirs: Array
) -> NDArray[np.int64]:
    """Rows of the shared ids by id bytes. mine: (n, w) marks in `order`, theirs: (m, w) in any order."""
    _, at, _ = np.intersect1d(_rows(mine), _rows(theirs), return_indices=True)
    shared = order[at]
    by_bytes = pc.array_sort_indices(ids.values.take(shared)).to_numpy()
    rows: NDArray[np.int64] = ids.rows[shared[by_bytes]]
    return rows


def _rows(table: Array) -> Array:
    """Each row of a uint8 (n, w) array as one value that can be compared: void (n,)."""
    return np.ascontiguousarray(table).view(f"V{table.shape[1]}").reshape(-1)


def _unlike(me: Party, peer: str, message: Message, reason: str) -> ProtocolError:
    return ProtocolError(f"{message.kind} from {peer} in {me.scope!r}: {reason}")

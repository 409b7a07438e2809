"""Private set intersection of two parties' ids by oblivious evaluation of a pseudorandom function (KKRT).

Two parties. The receiver learns which of its ids the sender has too, and, if it is to, tells the sender,
which then learns the same of its own. Both learn the other's number of ids and whether they are integers or
text; nothing of the ids that are not shared. Where both are to learn, the party with fewer ids receives,
which costs less, and of equals the first by name. Who only sends learns nothing of which ids are shared.

    both:      types, counts and ephemeral keys, as `protocols.psi.ecdh.agree`, which also asks the guard
    receiver:  puts its ids into a cuckoo table: bin j holds one id x_j, or a dummy of random bits
    both:      448 seeds by oblivious transfer; the receiver, who is its giver, has both of each pair,
               the sender one of each, by its secret bits s
    receiver:  columns T and T' from its seeds, and C a code of 448 pseudorandom bits of an id:
               T_j + T'_j + C(x_j) for each bin j                                             ->  sender
    sender:    Q_j, from its seeds and these; it is T_j + (C(x_j) & s)
               F_j(y) = H(j, Q_j + (C(y) & s)) for each of its y, in each of the three bins j
               that y could be in, its y in secret random order                               ->  receiver
    receiver:  x_j is shared where F_j(x_j) = H(j, T_j) is among what came for its third of the table
    receiver:  if the sender is to learn: which places of that order match                    ->  sender

C is keyed for this run, and all else is fresh, so values of two runs cannot be compared. The receiver knows
one value of each function F_j, that of its own id there: the code of another id differs from x_j's in 128
places or more, so F_j of it depends on 128 bits of s or more. That the three values of one y come side by
side shows only which belong together: that is known of a shared y and means nothing of others.

The receiver learns first, and a peer that stops there keeps the other from learning. A policy's smallest
intersection cannot stop it either, which is why the guard is asked about the announced counts, before our ids
are touched. A table that cannot be filled (see `protocols.hazmat.cuckoo`) is filled by other hashes; that the
first did not serve is then said, and says next to nothing about the ids.

Parameters. Computational security 128 bits: seeds for AES-128, a group of 2^252, 128 places of a code. Codes
of 448 bits differ in less than 128 places with probability 2^-66.5 a pair, so in any of the 3·m pairs that
are compared with probability below 2^-40 up to the 2^24 ids a side that are let in. Values are cut so that
any two of all agree by chance with at most 2^-40 (`protocols.psi.ecdh.mark_width`).

Assumes semi-honest parties, computational Diffie-Hellman in the group of edwards25519, AES as a pseudorandom
permutation, BLAKE2 as a random oracle, and lines that authenticate their ends. A malicious party can put ids
into its set that it does not hold, as in any such protocol.

**A malicious receiver is not held to the number of ids that it announced**, as it is by ECDH. It can alter
codes so that the value of an id which the sender has shows some of the bits s. A few dozen such ids show all
of s, and with s it computes every F_j at every y: it can then try any number of guesses, afterwards and by
itself, and where ids can be listed find out all that the sender has. Nothing here checks the codes: they are
pseudorandom and have no structure to check. Against a peer that might do so, use ECDH; a party that serves
runs this protocol only where its policy names it. (Tests carry the attack out.)

A malicious sender that is told the matches could leave out an id's value for one third of the table and learn
whether the receiver has it there, which depends a little on the receiver's other ids. One that is not told
could say one value twice and learn, from whether the run ends with an error, if that id is shared.

Sources: Kolesnikov, Kumaresan, Rosulek, Trieu 2016, "Efficient batched oblivious PRF with applications to
private set intersection"; Chou and Orlandi 2015 (the seeds); Pinkas, Schneider, Zohner 2018 (the table).
"""

from __future__ import annotations

import secrets
from types import ModuleType
from typing import Annotated

import numpy as np
from pydantic import Field

from protocols.arrays import Array
from protocols.errors import ConfigError, ProtocolError
from protocols.hazmat.cuckoo import third_of
from protocols.hazmat.oblivious import Columns, both_seeds, choose, offer
from protocols.hazmat.oprf_switch import LARGE, STEP, kernels
from protocols.party import Party
from protocols.psi.ecdh import Learns, Met, agree, in_order, mark_width, secret_order, unlike
from protocols.psi.ids import CanonicalIds
from protocols.psi.oprf import CODE, TRIES, WORDS, Own, fill_table, masked, match, unmask, values_of
from protocols.wire.message import Message, Spec

MOST = 2**24  # ids of a side, for which CODE suffices
SLAB = 64_000  # bins a message: 64 times what is no power of two, or columns would compete for cache lines


class SeedOffer(Message, reveals="nothing of its ids: a point of this run, from which seeds are made"):
    point: Annotated[Array, Spec("uint8", (32,))]


class SeedChoices(Message, reveals="nothing of its ids: points that hide which seed of each pair it takes"):
    points: Annotated[Array, Spec("uint8", (CODE, 32))]


class TableHash(Message, reveals="by which hash its ids found place in a table: the first, almost always"):
    tried: Annotated[int, Field(ge=0, lt=TRIES, strict=True)]  # hashes before it


class MaskedCodes(
    Message, reveals="codes of its ids and of dummies, masked by bits unknown to the receiver: their number"
):
    rows: Annotated[Array, Spec("uint64", ("n", WORDS))]


class FunctionValues(
    Message,
    reveals="pseudorandom values of its ids, in random order: their number, and which of the receiver's ids "
    "are shared",
):
    values: Annotated[Array, Spec("uint8", (3, "n", "w"))]  # of an id in each third of the table


class ValuesFound(Message, reveals="which of the receiver's own ids are shared"):
    mask: Annotated[Array, Spec("bool", ("n",))]  # of its values, in the order in which it sent them


SPOKEN = (SeedOffer, SeedChoices, TableHash, MaskedCodes, FunctionValues, ValuesFound)


async def meet(me: Party, peer: str, ids: CanonicalIds, learns: Learns) -> Met:
    """Find out which ids are shared; `learns` says who learns: "both", "me" or "peer".

    `peer` calls it at the same time with the counterpart, "peer" for "me". Raises ConfigError for "size" and
    for more than `MOST` ids, AlignmentError if one side has integers and the other text, ProtocolError for
    what an honest peer would not send; this party's guard a PolicyError. None shows an id.
    """
    agreed = await agree(me, peer, ids, "kkrt")
    check_counts(peer, len(ids), agreed.count)
    return await compare(me, peer, ids, learns, agreed.key, agreed.count)


def check_counts(peer: str, n: int, m: int) -> None:
    """ConfigError for more ids, in all, than the code suffices for: n here, m at the peer."""
    if max(n, m) > MOST:
        raise ConfigError(f'{n} ids here and {m} at {peer}; KKRT takes {MOST} at most, use protocol="ecdh"')


async def compare(
    me: Party, peer: str, ids: CanonicalIds, learns: Learns, key: bytes, m: int, runs: int = 1
) -> Met:
    """`meet`, after `agree` and `check_counts`: key of this run's hash, m ids at the peer; one of so many
    `runs` of this size."""
    if learns == "size":
        raise ConfigError('KKRT cannot show the size alone; use protocol="ecdh"')
    fast = await _ready(me, max(len(ids), m))
    ours = Own.of(ids, key, mark_width(len(ids), m, runs))
    if learns == "me" or (learns == "both" and (len(ids), me.name) < (m, peer)):
        return await _receive(me, peer, ours, m, fast, tell=learns == "both")
    return await _send(me, peer, ours, m, fast, told=learns == "both")


async def _ready(me: Party, count: int) -> ModuleType | None:
    """Have what serves sets of `count` ids ready; where that takes long, whoever watches is told."""
    if count < LARGE:
        return await me.compute(kernels, count, cost=0.0)
    me.progress(STEP, 0, 1)
    fast = await me.compute(kernels, count, cost=0.0)
    me.progress(STEP, 1, 1)
    return fast


async def _receive(me: Party, peer: str, own: Own, m: int, fast: ModuleType | None, *, tell: bool) -> Met:
    n, step = len(own.ids), f"ids compared with {peer}"
    offered = await me.compute(offer, cost={"base_ot": 1})
    await me.send(peer, SeedOffer(point=np.frombuffer(offered[1], np.uint8)))
    digests, table, tried = await me.compute(fill_table, own, fast, cost={"id_hash": n, "cuckoo_insert": n})
    chosen = await me.recv(peer, SeedChoices)
    try:
        seeds = await me.compute(both_seeds, offered, chosen.points, cost={"base_ot": CODE})
    except ValueError as error:
        raise unlike(me, peer, chosen, str(error)) from None
    await me.send(peer, TableHash(tried=tried))
    columns = Columns(seeds[0]), Columns(seeds[1])
    mine = np.empty((n, own.width), np.uint8)
    for at in range(0, len(table), SLAB):
        part = table[at : at + SLAB]
        arguments = (own, digests, part, at, columns, mine, fast)
        rows = await me.compute(masked, *arguments, cost={"oprf_row": 2 * len(part), "oprf_value": len(part)})
        await me.send(peer, MaskedCodes(rows=rows))
        me.progress(step, at + len(part), len(table) + m)
    theirs = np.empty((3, m, own.width), np.uint8)
    for at in range(0, m, SLAB):
        here = min(SLAB, m - at)
        message = await me.recv(peer, FunctionValues)
        _expect(me, peer, message, message.values, (3, here, own.width))
        theirs[:, at : at + here] = message.values
        me.progress(step, len(table) + at + here, len(table) + m)
    try:
        found = (own, table, mine, theirs, fast)
        met, places = await me.compute(match, *found, cost={"id_match": n + 3 * m})
    except ValueError as error:
        raise ProtocolError(f"{FunctionValues.kind} from {peer} in {me.scope!r}: {error}") from None
    if tell:
        mask = np.zeros(m, np.bool_)
        mask[places] = True
        await me.send(peer, ValuesFound(mask=mask))
    return met


async def _send(me: Party, peer: str, own: Own, m: int, fast: ModuleType | None, *, told: bool) -> Met:
    n, step, third = len(own.ids), f"ids compared with {peer}", third_of(m)
    offered = await me.recv(peer, SeedOffer)
    secret = np.frombuffer(secrets.token_bytes(CODE // 8), np.uint8)
    bits = np.unpackbits(secret, bitorder="little").astype(np.bool_)
    try:
        points, seeds = await me.compute(choose, offered.point.tobytes(), bits, cost={"base_ot": CODE})
    except ValueError as error:
        raise unlike(me, peer, offered, str(error)) from None
    await me.send(peer, SeedChoices(points=points))
    digests = await me.compute(own.digests, fast, cost={"id_hash": n})
    tried = (await me.recv(peer, TableHash)).tried
    columns, s = Columns(seeds), secret.view(np.uint64)
    q = np.empty((3 * third, WORDS), np.uint64)
    for at in range(0, len(q), SLAB):
        part = q[at : at + SLAB]
        message = await me.recv(peer, MaskedCodes)
        _expect(me, peer, message, message.rows, part.shape)
        await me.compute(unmask, columns, message.rows, s, part, fast, cost={"oprf_row": len(part)})
        me.progress(step, at + len(part), len(q) + n)
    order = secret_order(n)
    bins = own.bins(digests, third, tried)
    for at in range(0, n, SLAB):
        part_of = order[at : at + SLAB]
        arguments = (own, digests[part_of], bins[part_of], q, s, fast)
        values = await me.compute(values_of, *arguments, cost={"oprf_value": 3 * len(part_of)})
        await me.send(peer, FunctionValues(values=values))
        me.progress(step, len(q) + at + len(part_of), len(q) + n)
    if not told:
        return Met(None, None)
    answer = await me.recv(peer, ValuesFound)
    _expect(me, peer, answer, answer.mask, (n,))
    shared = order[answer.mask]
    if len(shared) > m:
        raise unlike(me, peer, answer, f"expected at most {m} ids to be shared, got {len(shared)}")
    rows = await me.compute(in_order, own.ids, shared, cost={"id_match": n})
    return Met(rows, len(rows))


def _expect(me: Party, peer: str, message: Message, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise unlike(me, peer, message, f"expected an array of shape {shape}, got {array.shape}")

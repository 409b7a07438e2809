"""Which protocol two parties compare their ids by.

Two parties. Both decide by what both know, the announced numbers of ids and whether both let KKRT be taken,
and so decide alike. KKRT takes a third of the time of ECDH, or less, where both sets are large; it moves more
bytes, in proportion to the larger set, and costs a fixed quarter of a second. Who learns what is the same
among parties that follow it, but of KKRT one learns before the other, and one that does not follow it is
held to no number of ids: so a party with a policy lets it be taken only where that names it. The unbalanced
protocol keeps a key for longer than a run, and so is taken by name only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from protocols.errors import ConfigError, ProtocolError, nearest
from protocols.party import Party
from protocols.policy.rules import compared
from protocols.psi import buckets, ecdh, kkrt, unbalanced
from protocols.psi.ecdh import Learns, Met, agree
from protocols.psi.ids import CanonicalIds, Ids
from protocols.psi.stored import StoredIds
from protocols.psi.way import others
from protocols.wire.message import Message


def names(once: bool = False) -> tuple[str, ...]:
    """All protocols, with "auto"; `once`: those that keep nothing from one run to the next."""
    return ("auto", *(name for name in compared() if not once or name != "unbalanced"))


def _of_any_run(name: str) -> str:
    return _one_of(names(), name)


def _of_one_run(name: str) -> str:
    return _one_of(names(once=True), name)


def _one_of(known: tuple[str, ...], name: str) -> str:
    if name not in known:
        raise ConfigError(f"protocol={name!r} should be one of {', '.join(known)}{nearest(name, known)}")
    return name


Protocol = Annotated[str, AfterValidator(_of_any_run)]
Once = Annotated[str, AfterValidator(_of_one_run)]

LARGE = 300_000  # ids at the smaller side
RATIO = 4  # of the larger side to the smaller, at most

# All that is sent by "auto", and by other packages' ways.
SPOKEN: tuple[type[Message], ...] = (
    *(ecdh.IdKind, ecdh.BlindedIds, ecdh.TwiceBlinded, *kkrt.SPOKEN),
    *(kind for way in others().values() for kind in way.speaks),
)


async def meet(
    me: Party,
    peer: str,
    ids: Ids,
    learns: Learns,
    protocol: Protocol = "auto",
    *,
    resume: bool = False,
    store: Path | None = None,
) -> Met:
    """As `protocols.psi.ecdh.meet`, by `protocol`, which `peer` must be given too. From a million ids on it
    goes bucket by bucket, unless the size alone is to be learnt; `resume` is for `protocols.psi.buckets`.
    `store`, this party's own folder, is for `protocols.psi.unbalanced`, which has no buckets.
    """
    # Sizes of buckets would say more than the one size that is to be learnt.
    bucketed = learns != "size" and protocol in ("auto", "ecdh", "kkrt")
    asks = partial(buckets.askable, me, len(ids), resume) if bucketed else int
    agreed = await agree(me, peer, ids, protocol, asks)
    key, m = agreed.key, agreed.count
    if protocol == "unbalanced":
        return await unbalanced.compare(me, peer, await held(me, ids), learns, key, m, store)
    if protocol in others():
        return await others()[protocol].compare(me, peer, await held(me, ids), learns, key, m)
    compare = ecdh.compare
    by = chosen(protocol, len(ids), m, learns, agreed.kkrt)
    me.guard.protocol(by)  # what "auto" stands for may not be let
    if by == "kkrt":
        kkrt.check_counts(peer, len(ids), m)
        compare = kkrt.compare
    if bucketed and max(len(ids), m) >= buckets.FROM:
        return await buckets.by_buckets(me, peer, ids, learns, key, m, compare, resume)
    if bucketed and resume and me.resumed()[0]:  # all would be compared once more, and with other ids
        raise ProtocolError(
            f"{peer} announced {m} ids, too few for the buckets that this began with; begin it anew"
        )
    return await compare(me, peer, await held(me, ids), learns, key, m)


async def held(me: Party, ids: Ids) -> CanonicalIds:
    """The ids in memory."""
    if isinstance(ids, StoredIds):
        return await me.compute(ids.loaded, cost=0.0)
    assert isinstance(ids, CanonicalIds)
    return ids


def chosen(protocol: Protocol, n: int, m: int, learns: Learns, let: bool) -> str:
    """What "auto" stands for with n and m ids, and KKRT `let` or not; else `protocol`."""
    if protocol != "auto":
        return protocol
    small, large = sorted((n, m))
    fits = let and learns != "size" and small >= LARGE and large <= min(RATIO * small, kkrt.MOST)
    return "kkrt" if fits else "ecdh"


def check_protocol(protocol: str, size_only: bool, parties: int) -> None:
    """ConfigError where `protocol` is none, or none for so many parties or for the size alone."""
    _one_of(names(), protocol)
    if protocol in ("auto", "ecdh"):
        return
    if parties != 2:
        raise ConfigError(f'protocol="{protocol}" is for two parties, got {parties}; "auto" fits any number')
    if size_only and not (protocol in others() and others()[protocol].size):
        raise ConfigError(f'protocol="{protocol}" cannot show the size alone; use "ecdh" or "auto"')

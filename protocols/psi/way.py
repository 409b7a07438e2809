"""A way to compare two parties' ids that has a name: what another package registers under `vfl.psi`.

Two parties; who learns what, and under which assumptions, is for the module that defines a way to say. Both
have it installed, and a party with a policy lets it be taken only where its rule's `protocols` names it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from protocols.logs import log
from protocols.party import Party
from protocols.policy.rules import COMPARED, PSI
from protocols.psi.ecdh import Learns, Met
from protocols.psi.ids import CanonicalIds
from protocols.wire.message import Message

Compare = Callable[[Party, str, CanonicalIds, Learns, bytes, int], Awaitable[Met]]


@dataclass(frozen=True)
class Way:
    """One way to compare two parties' ids.

    compare: as `protocols.psi.ecdh.compare`, after types, counts and ephemeral keys were told, with the key
        of this run's hash and the peer's number of ids.
    speaks: all kinds of messages that it sends. size: whether it can show the size alone.
    """

    compare: Compare
    speaks: tuple[type[Message], ...]
    size: bool = False


@cache
def others() -> Mapping[str, Way]:
    """The ways of other packages, by name. One that cannot be imported is in the way of no other."""
    found = {}
    for entry in entry_points(group=PSI):
        if entry.name in COMPARED:
            continue
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # whatever its package raises
            log.warning("request failed", extra={"method": entry.name}, exc_info=error)
    return found

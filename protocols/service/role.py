"""One role of a run whose other roles are in other processes.

Who takes part and who learns what is the role's affair; the same role runs here as in one process. When a
role fails, its party tells its peers so that all of them stop, each with that party's error. What crosses
then is the failing party's name, where it was, and the kind of its error. The reason in words crosses only
for errors whose words are made of counts, types and messages' names, or that have words for others besides
(`VflError.told`); those about tables and settings may name columns, and stay with their owner.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Annotated, Any

from pydantic import Field

from protocols import errors
from protocols.errors import (
    AlignmentError,
    CancelledJobError,
    LineError,
    PartyError,
    PolicyError,
    ProtocolError,
    StallError,
    VflError,
)
from protocols.network.grpc import ABORT
from protocols.party import Checkpoints, Coordinator, Desk, Guard, Role, Run, forget, mark
from protocols.progress import Report
from protocols.wire.ledger import Entry, Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Transport

_TOLD: tuple[type[VflError], ...] = (
    *(AlignmentError, ProtocolError, PolicyError),
    *(LineError, StallError, CancelledJobError),
)
_KINDS: dict[str, type[VflError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, VflError)
}

_CLAUSE = re.compile(r"([a-z_]{1,32}): ")  # what the words of a PolicyError begin with


class Abort(Message, reveals="that its role failed, where, and the kind of error, with counts and types"):
    party: Annotated[str, Field(max_length=63)]
    scope: Annotated[str, Field(max_length=512)]
    error: Annotated[str, Field(max_length=63)]
    reason: Annotated[str, Field(max_length=1000)]


async def serve_role(
    transport: Transport,
    role: Role,
    *,
    name: str,
    parties: Sequence[str],
    seed: int | None = None,
    job: str = "local",
    on_progress: Report | None = None,
    checkpoints: Checkpoints | None = None,
    guard: Guard | None = None,
    speaks: Iterable[type[Message]] | None = None,
    on_entry: Callable[[Entry], None] | None = None,
) -> Run:
    """Run `role` of party `name` over `transport`, which is entered already, to its end.

    parties: all that take part, in roster order. speaks: the messages that it may send; all if not given.
    seed: this party's own, for a run that goes on from an earlier one; by default a new one.
    `Run.results` holds its result, its ledger both ends of its own lines, its seconds are those of the clock.
    An error of any party is raised here, marked with that party and scope.
    """
    ledger = Ledger(transport, on_entry)
    desk = Desk(name, ledger, job=job, parties=tuple(parties), threaded=True, on_progress=on_progress)
    desk.seed = desk.seed if seed is None else seed
    desk.checkpoints, desk.guard = checkpoints, guard or desk.guard
    if speaks is not None:
        kinds: tuple[type[Message], ...] = (*speaks, Abort)
        desk.speaks = frozenset(kind.kind for kind in kinds)
    me = Coordinator(desk)
    aborts = me.within(ABORT)
    start = perf_counter()
    work = asyncio.create_task(_marked(me, role))
    watchers = {asyncio.create_task(_watch(aborts, peer)) for peer in me.roster}
    waiting = {work, *watchers}
    try:
        while not work.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # A peer's own words come before our loss of it.
            for watcher in done & watchers:
                watcher.result()
        if work.cancelled():
            raise PartyError("CancelledError: the role cancelled itself").at(name, "")
        result = work.result()
    except VflError as error:
        await _tell(aborts, error, me.roster)
        raise
    finally:
        for task in (work, *watchers):
            task.cancel()
        await asyncio.gather(work, *watchers, return_exceptions=True)
        forget()
    return Run({me.name: result}, ledger, perf_counter() - start)


async def _marked(me: Coordinator, role: Role) -> Any:
    try:
        return await role(me)
    except Exception as error:
        mark(error, me.name, "")
        raise


async def _watch(aborts: Coordinator, peer: str) -> None:
    """Raise what `peer` says that it, or a party that it heard of, failed with."""
    try:
        said = await aborts.recv(peer, Abort)
    except LineError:
        return  # whether that matters is for the role, which may have nothing to do with this peer
    raise error_of(said.party, said.scope, said.error, said.reason)


async def _tell(aborts: Coordinator, error: VflError, peers: Iterable[str]) -> None:
    """Tell the peers, as far as they can be reached at once."""
    party, scope, kind, reason = said_of(error)
    abort = Abort(party=party, scope=scope, error=kind, reason=reason)
    for peer in peers:
        with suppress(VflError, TimeoutError):
            async with asyncio.timeout(1.0):
                await aborts.send(peer, abort)


def said_of(error: VflError) -> tuple[str, str, str, str]:
    """Return what may cross of an error: party, scope, kind, and a reason without cells or column names."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
    told = error.told or (str(error.args[0]) if isinstance(error, _TOLD) and error.args else "")
    reason = told[:1000] or f"{kind}; the reason is in its own log"
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.errno and not told:
        reason = f"{kind}: {os.strerror(cause.errno)}; more is in its own log"  # and no path
    return error.party[:63], error.scope[:512], kind, reason


def error_of(party: str, scope: str, kind: str, reason: str) -> VflError:
    """Rebuild the error that a peer told of."""
    error = _KINDS.get(kind, PartyError)(reason)
    error.told = reason  # whoever hears of it from us hears the same
    if isinstance(error, PolicyError) and (found := _CLAUSE.match(reason)):
        error.clause = found[1]
    return error.at(party, scope)

"""Processes that each play one party of a run over mTLS, for the tests of what must be the same there.

A crew is started once. Its processes import everything once, and then play one scenario after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pandas as pd
import torch

from protocols.errors import VflError
from protocols.federation import Federation
from protocols.network.frames import Limits
from protocols.network.grpc import Grpc
from protocols.network.tls import Credentials
from protocols.party import Role, Run
from protocols.service.role import serve_role
from protocols.testing.results import fingerprint
from protocols.wire.ledger import Ledger
from tests.support.forked import CONTEXT
from tests.support.seeds import seed_for
from tests.support.waiting import HANG

HERE = "127.0.0.1:0"
LIMITS = Limits(patience=HANG, handshake=5.0)


class CapturedError(Exception):
    """The roles that an estimator would have run."""

    def __init__(self, roles: Mapping[str, Role], seed: int) -> None:
        super().__init__("captured")
        self.roles, self.seed = roles, seed


class Capture(Federation):
    """A federation that runs nothing, and shows what it was to run."""

    def run(self, roles: Mapping[str, Role], *, seed: int = 0, on_progress: Any = None) -> Run:
        raise CapturedError(roles, seed)


def captured(
    fit: Callable[[Capture], object], tables: Mapping[str, pd.DataFrame]
) -> tuple[Mapping[str, Role], int]:
    """The roles and the seed with which `fit` would run over `tables`."""
    try:
        fit(Capture(tables))
    except CapturedError as found:
        return found.roles, found.seed
    raise AssertionError("nothing was run")


Scenario = Callable[[], tuple[Mapping[str, Role], int]]


@dataclass(frozen=True)
class Played:
    """What is left of one party's part: a hash of its result, and its ends of its lines."""

    result: str
    digests: dict[tuple[str, str], str]
    shapes: dict[tuple[str, str], list[tuple[str, int, str]]]
    error: str = ""
    kind: str = ""


def played(result: object, ledger: Ledger, party: str) -> Played:
    pairs = {(e.sender, e.receiver) for e in ledger if party in (e.sender, e.receiver)}
    shapes = {
        pair: sorted(
            (e.scope, e.sequence, e.kind, e.nbytes) for e in ledger if (e.sender, e.receiver) == pair
        )
        for pair in pairs
    }
    digests = {pair: ledger.line_digest(*pair).hex() for pair in pairs}
    said = {pair: [(kind, size, scope) for scope, _, kind, size in line] for pair, line in shapes.items()}
    return Played(fingerprint(result), digests, said)


def _work(line: Connection) -> None:
    """A process of the crew: (scenario, party, book, credentials) in, an address and a Played out."""
    torch.set_num_threads(1)
    while (order := line.recv()) is not None:
        line.send(asyncio.run(_play(line, *order)))


async def _play(
    line: Connection, scenario: Scenario, party: str, book: dict[str, str | None], files: Credentials
) -> Played:
    roles, _ = scenario()
    try:
        async with Grpc(party, book, files, limits=LIMITS) as transport:
            line.send(transport.address)
            own = seed_for(party)
            run = await serve_role(transport, roles[party], name=party, parties=tuple(book), seed=own)
    except VflError as error:
        return Played("", {}, {}, str(error), type(error).__name__)
    return played(run.results[party], run.ledger, party)


class Crew:
    """So many processes, used as a context."""

    def __init__(self, size: int) -> None:
        self._lines: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)

    def play(
        self, scenario: Scenario, parties: Sequence[str], certified: Callable[[str], Credentials]
    ) -> dict[str, Played]:
        """`scenario` over the network, each party in a process of its own, in the order of `parties`."""
        lines = dict(zip(parties, self._lines, strict=False))
        addresses: dict[str, str | None] = {}
        # Of two, the one whose name sorts first dials: it is told the other's address.
        for party in sorted(parties, reverse=True):
            book = {peer: addresses.get(peer) for peer in parties} | {party: HERE}
            lines[party].send((scenario, party, book, certified(party)))
            addresses[party] = self._hear(lines[party])
        return {party: self._hear(lines[party]) for party in parties}

    def _hear(self, line: Connection) -> Any:
        if not line.poll(HANG):
            raise TimeoutError("a process of the crew does not answer")
        return line.recv()

    def stop(self) -> None:
        for line in self._lines:
            line.send(None)
        for process in self._processes:
            process.join(HANG)
            process.close()

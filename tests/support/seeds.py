"""Parties' own seeds as a test sets or sees them. Outside of tests nobody can do either."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from protocols.federation import Federation, simulate
from protocols.party import Coordinator, Role, Run
from protocols.progress import Report
from protocols.service import store


@contextmanager
def known_seeds(seed: int = 1) -> Iterator[None]:
    """All parties of this process have `seed`, as in a run in one process with random_state=`seed`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "new_seed", lambda: seed)
        yield


def seed_for(party: str) -> int:
    """A seed as long as real ones, another for each party."""
    return int.from_bytes(hashlib.sha256(party.encode()).digest())


def with_seed(role: Role, seed: int) -> Role:
    """`role`, of a party that has this seed."""

    async def seeded(me: Coordinator) -> Any:
        me.desk.seed = seed
        return await role(me)

    return seeded


class Seeded(Federation):
    """Parties in this process, each with a seed of its own."""

    seeds: Callable[[str], int] | Mapping[str, int] = staticmethod(seed_for)

    def run(self, roles: Mapping[str, Role], *, seed: int = 0, on_progress: Report | None = None) -> Run:
        find = self.seeds if callable(self.seeds) else self.seeds.__getitem__
        return simulate({party: with_seed(role, find(party)) for party, role in roles.items()})

"""Whose turn it is at a party that runs one job at a time.

Takes part: one party, with the callers of its jobs. A turn goes to the caller whose last one is the longest
ago, so that of the jobs of one caller, however many wait, only one comes between two of another's. A turn
that is kept for a caller which has not started passes on to another one that waits. A caller learns from its
own wait that others have jobs here, and not who.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """All jobs that wait for a turn at one party, and the one that has it."""

    def __init__(self) -> None:
        self._waiting: list[Place] = []
        self._now: Place | None = None
        self._given: dict[str, int] = {}  # caller -> the number of its last turn
        self._count = 0

    @contextmanager
    def place(self, caller: str) -> Iterator[Place]:
        """Hold a place for one job of `caller`. Leaving the context gives up the place, queued or in turn."""
        place = Place(self, caller)
        try:
            yield place
        finally:
            self.leave(place)

    def join(self, place: Place) -> None:
        """Put `place` at the end of its caller's queue."""
        self._waiting.append(place)
        self._look()

    def leave(self, place: Place) -> None:
        """Take `place` out, wherever it is."""
        if place in self._waiting:
            self._waiting.remove(place)
        if place is self._now:
            self._now = None
            place.come.clear()
        self._look()

    def _look(self) -> None:
        if self._now is None and self._waiting:
            self._now = min(self._waiting, key=lambda place: self._given.get(place.caller, 0))
            self._waiting.remove(self._now)
            self._count += 1
            self._given[self._now.caller] = self._count
            self._now.come.set()
        if self._now is not None:
            others = any(place.caller != self._now.caller for place in self._waiting)
            (self._now.wanted.set if others else self._now.wanted.clear)()


class Place:
    """One job's place. `come`: its turn has come. `wanted`: another caller waits for it."""

    def __init__(self, turns: Turns, caller: str) -> None:
        self.caller, self._turns = caller, turns
        self.come, self.wanted = asyncio.Event(), asyncio.Event()

    def join(self) -> bool:
        """Queue for a turn behind all other jobs of this caller. Return whether it has come at once."""
        self._turns.leave(self)
        self._turns.join(self)
        return self.come.is_set()

    async def keep(self, work: Coroutine[Any, Any, T], seconds: float) -> T | None:
        """Await `work`, but return None if it takes longer than `seconds` while another caller waits; the
        turn must then be left."""
        task, wanted = asyncio.create_task(work), asyncio.create_task(self.wanted.wait())
        try:
            await asyncio.wait({task}, timeout=seconds)
            await asyncio.wait({task, wanted}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            task.cancel()
            wanted.cancel()
            await asyncio.gather(task, wanted, return_exceptions=True)

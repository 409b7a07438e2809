"""How much of a party's event loop one peer may take, so that others come to run beside it.

Takes part: one party, alone. What a peer says is worth some work here, and it can say it without end. So the
seconds that its words hold the loop are counted, and it is listened to less often once they are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from time import monotonic, perf_counter
from typing import Any, TypeVar

T = TypeVar("T")
SHARE = 0.2  # of the time
ENOUGH = 0.5  # seconds that were taken at once, from which on no new work is taken up
TOO_MUCH = 1.0  # seconds, from which on there is a pause
MOST = 3.0  # seconds that are counted: a disk may have hung, and a pause must not outlast a lease


class Budget:
    """The loop time that one peer uses. `taken`: seconds that it has had beyond its share."""

    def __init__(self) -> None:
        self._taken, self._at = 0.0, monotonic()

    @property
    def taken(self) -> float:
        """The seconds that the peer has had beyond its share, as of now."""
        return max(0.0, self._taken - SHARE * (monotonic() - self._at))

    def take(self, seconds: float) -> None:
        """Count so many seconds during which the peer held the loop."""
        self._taken, self._at = min(MOST, self.taken + seconds), monotonic()


class _Steps:
    def __init__(self, work: Coroutine[Any, Any, Any], take: Callable[[float], None]) -> None:
        self._work, self._take = work, take

    def __await__(self) -> Generator[Any, Any, Any]:
        go: Callable[[Any], Any] = self._work.send
        given: Any = None
        while True:
            start = perf_counter()
            try:
                waits_for = go(given)
            except StopIteration as end:
                return end.value
            finally:
                self._take(perf_counter() - start)
            try:
                given = yield waits_for
                go = self._work.send
            except BaseException as error:  # it is cancelled
                go, given = self._work.throw, error


async def metered(work: Coroutine[Any, Any, T], take: Callable[[float], None]) -> T:
    """Await `work`. take: is told how long each of its steps held the loop, without the waits."""
    result: T = await _Steps(work, take)
    return result

"""What the caller of one attempt at a job says to a party that takes part, and whether it is still there.

Takes part: one party, alone; `protocols.service.jobs` says what is said. An attempt is given up when its
caller says so, falls silent for longer than its lease, or is another process by now, and when a person here
says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from protocols.errors import CancelledJobError, PartyError, ProtocolError, VflError
from protocols.service.jobs import LEASE, Cancel, Claim, Over, Prepare, Renew, Sealed, Start, Word

T = TypeVar("T")
W = TypeVar("W", Claim, Prepare, Start, Sealed)
POLL = 0.3  # seconds between two looks for what a person said
GIVEN_UP = "cancelled by a person at this party"
MOST = 1000  # words that wait here; an honest caller says one every few seconds


class Inbox:
    """The words of `caller` about one attempt. Whatever it says renews its lease.

    given_up: whether a person has said so, asked every `POLL` seconds.
    """

    def __init__(self, caller: str, given_up: Callable[[], bool]) -> None:
        self.over = False  # the caller will not come back to the job
        self._caller, self._given_up = caller, given_up
        self._words: deque[Word] = deque()
        loop = asyncio.get_running_loop()
        self._came: asyncio.Future[None] = loop.create_future()  # a word, for whoever waits for it
        self._lost: asyncio.Future[VflError] = loop.create_future()

    def put(self, word: Word) -> None:
        """The caller has said this."""
        if isinstance(word, Over):
            self.over = True
        elif isinstance(word, Cancel):
            why = f": {word.why}" if word.why else ""
            self.lose(CancelledJobError(f"cancelled by {self._caller}{why}"))
        elif len(self._words) < MOST:
            self._words.append(word)
            if not self._came.done():
                self._came.set_result(None)

    def lose(self, error: VflError) -> None:
        """The attempt is given up: what waits here raises `error`."""
        if not self._lost.done():
            self._lost.set_result(error)

    async def next(self, kind: type[W], within: float | None = None) -> W:
        """The next word, which must be a `kind`, or Renew. CancelledJobError where it does not come."""
        try:
            async with asyncio.timeout(within):
                while True:
                    word = await self._word()
                    if isinstance(word, kind):
                        return word
                    if not isinstance(word, Renew):
                        raise ProtocolError(f"expected {kind.kind} from {self._caller}, got {word.kind}")
        except TimeoutError:
            raise CancelledJobError(f"{self._caller} did not say {kind.kind} within {within:g} s") from None

    async def meanwhile(self, work: Awaitable[T], heard: Callable[[Word], None] = lambda word: None) -> T:
        """What `work` gives. If the attempt is given up before, `work` is cancelled and the reason raised.

        heard: is given each word that comes meanwhile; what it raises ends the wait too.
        """
        task, watch = asyncio.ensure_future(work), asyncio.create_task(self._watch(heard))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            failed = task.done() and (task.cancelled() or task.exception() is not None)
            if watch.done() and not failed:
                watch.result()
            if task.cancelled():
                raise PartyError("CancelledError: the role cancelled itself")
            return await task
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _watch(self, heard: Callable[[Word], None]) -> None:
        while True:
            heard(await self._word())

    async def _word(self) -> Word:
        """The next one. It is taken without a pause after, so that a wait which is given up loses none."""
        loop, silent = asyncio.get_running_loop(), 0.0
        await asyncio.sleep(0)  # others come to run between two words, however many there are
        while True:
            if self._given_up():
                raise CancelledJobError(GIVEN_UP)
            if self._lost.done():
                raise self._lost.result()
            if self._words:
                return self._words.popleft()
            if silent > LEASE:
                raise CancelledJobError(f"{self._caller} has not been heard for {LEASE:g} s")
            before, self._came = loop.time(), loop.create_future()
            either: set[asyncio.Future[Any]] = {self._came, self._lost}
            await asyncio.wait(either, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
            # Where it was longer, this process did not run, and could hear nobody.
            silent += min(loop.time() - before, 2 * POLL)

"""The caller's side of the conversation about one attempt at a job; `protocols.jobs` says what is said.

Takes part: the caller, with all other parties of the job at once. What one of them fails with is raised by
whatever waits here, for whichever party it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from protocols.errors import ProtocolError, VflError
from protocols.jobs import Answer, Control, Ended, Renew, Word, renewing
from protocols.progress import Report
from protocols.serving import error_of

T = TypeVar("T")
W = TypeVar("W", Answer, Ended)
GRACE = 2.0  # seconds for our role to fail by itself, once another party said that it did
ANSWER = 60.0  # seconds for a party's first answer, be it that a person has to approve
FAREWELL = 2.0  # seconds to tell all that it is over


class Talk:
    """With `others`, about {"job": ..., "attempt": ...}; each is heard by a task of its own."""

    def __init__(self, control: Control, about: dict[str, Any], others: Sequence[str]) -> None:
        self.about, self.others = about, tuple(others)
        self.agreed: dict[str, Answer] = {}  # by party
        self._control = control
        self._inboxes: dict[str, asyncio.Queue[Word]] = {party: asyncio.Queue() for party in others}
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[VflError] = asyncio.get_running_loop().create_future()

    def listen(self) -> None:
        """From here on the others are heard, and know that we are here."""
        self._tasks = [asyncio.create_task(self._hear(party)) for party in self.others]
        self._tasks.append(renewing(self._control, self.others, Renew(**self.about)))

    async def stop(self) -> None:
        """Hear no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail(self, error: VflError) -> None:
        """What waits here raises `error`."""
        if not self._failed.done():
            self._failed.set_result(error)

    async def say(self, word: Word) -> None:
        """The same to all."""
        for party in self.others:
            await self._control.say(party, word)

    async def tell(self, *words: Word) -> None:
        """The same to all that can be told at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                for party in self.others:
                    with suppress(VflError):
                        for word in words:
                            await self._control.say(party, word)

    async def answers(self, state: str, on_progress: Report | None = None) -> None:
        """Until all have answered `state`; whoever refuses first is raised."""
        for party in self.others:
            await self.answer(party, state, ANSWER, on_progress)

    async def answer(
        self, party: str, state: str, within: float | None = None, on_progress: Report | None = None
    ) -> None:
        """Until `party` has answered `state`. within: seconds for the first that it says. on_progress: hears
        that a person there has to approve."""
        step = f"waiting until a person at {party} approves"
        asked = False
        while True:
            try:
                async with asyncio.timeout(within):
                    word = await self._next(party, Answer)
            except TimeoutError:  # what it cannot read, it cannot answer
                raise ProtocolError(
                    f"{party} has said nothing to the proposal within {within:g} s; do both run the same "
                    "release of vfl-toolkit? Its log says more"
                ) from None
            within = None
            if on_progress is not None and (asked or word.state == "waiting"):
                asked = True
                on_progress(step, int(word.state != "waiting"), 1)
            if word.state == state:
                self.agreed[party] = word
                return

    async def ends(self) -> dict[str, str]:
        """Until each role has ended; the digests of their parts. Raises what one failed with."""
        words = {party: await self._next(party, Ended) for party in self.others}
        return {party: word.digest for party, word in words.items() if word.digest}

    async def unless_failed(self, work: Coroutine[Any, Any, T], grace: float = GRACE) -> T:
        """`work`'s result, or what one of the others failed with; `work` has `grace` seconds to fail too."""
        task = asyncio.ensure_future(work)
        both: set[asyncio.Future[Any]] = {task, self._failed}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():  # a role has most likely heard it too, and in more words
                await asyncio.wait({task}, timeout=grace)
            if not task.done():
                raise self._failed.result()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _next(self, party: str, kind: type[W]) -> W:
        word = await self.unless_failed(self._inboxes[party].get(), grace=0.0)
        if not isinstance(word, kind):
            raise ProtocolError(f"expected {kind.kind} from {party} in 'jobs', got {word.kind}")
        return word

    async def _hear(self, party: str) -> None:
        """Until `party` fails."""
        while not self._failed.done():
            try:
                word = await self._control.hear(party)
            except VflError as error:
                return self.fail(error.at(party, "jobs"))
            if (word.job, word.attempt) != (self.about["job"], self.about["attempt"]):
                continue
            if isinstance(word, Answer) and word.state == "refused":
                return self.fail(error_of(party, word.scope, word.error, word.reason))
            if isinstance(word, Ended) and word.error:
                return self.fail(error_of(word.party or party, word.scope, word.error, word.reason))
            self._inboxes[party].put_nowait(word)

"""Both ends of the conversation about one attempt at a job: `Inbox` where it is served, `Talk` at the caller.

Takes part: the caller and each party that serves; `protocols.service.jobs` says what is said. An attempt is
given up when its caller says so, falls silent for longer than its lease, or is another process by now, and
when a person here says so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from protocols.errors import CancelledJobError, PartyError, ProtocolError, VflError
from protocols.progress import Report
from protocols.service.jobs import (
    LEASE,
    Answer,
    Cancel,
    Claim,
    Control,
    Ended,
    Over,
    Prepare,
    Renew,
    Sealed,
    Standing,
    Start,
    Word,
    renewing,
)
from protocols.service.role import error_of

GRACE = 2.0  # seconds for our role to fail by itself, once another party said that it did
ANSWER = 60.0  # seconds for a party's first answer, be it that a person has to approve
FAREWELL = 2.0  # seconds to tell all that it is over
_ENDS = 2  # times that a party says Ended: that its role has, and that its part is kept
_WILLING: tuple[Standing, ...] = ("ready", "queued", "claimed", "agreed")
_STEPS = {
    "waiting": "waiting until a person at {} approves",
    "queued": "waiting until {} has done other jobs",
}

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
        """Put in a word that the caller has said."""
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
        """Give the attempt up: every pending wait raises `error`."""
        if not self._lost.done():
            self._lost.set_result(error)

    async def next(self, kind: type[W], within: float | None = None) -> W:
        """Wait for the next word, a `kind` or Renew. Raises CancelledJobError if none comes."""
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
        """Await `work`. If the attempt is given up first, `work` is cancelled and the reason raised.

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
        """Wait for the next word. Nothing is awaited after it, so a wait that is given up loses no word."""
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


class Talk:
    """With `others`, about {"job": ..., "attempt": ...}; each is heard by a task of its own."""

    def __init__(self, control: Control, about: dict[str, Any], others: Sequence[str]) -> None:
        self.about, self.others = about, tuple(others)
        self.agreed: dict[str, Answer] = {}  # what each party answered last
        self._control = control
        self._standing: dict[str, Standing] = {}  # what each party answered last
        self._news = asyncio.Event()
        self._ends: dict[str, asyncio.Queue[Ended]] = {party: asyncio.Queue(_ENDS) for party in others}
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[VflError] = asyncio.get_running_loop().create_future()

    def listen(self) -> None:
        """Begin to listen to the others, and let them know that we are here."""
        self._tasks = [asyncio.create_task(self._hear(party)) for party in self.others]
        self._tasks.append(renewing(self._control, self.others, Renew(**self.about)))

    async def stop(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail(self, error: VflError) -> None:
        """Make every pending wait raise `error`."""
        if not self._failed.done():
            self._failed.set_result(error)

    async def say(self, word: Word) -> None:
        """Say the same word to all."""
        for party in self.others:
            await self._control.say(party, word)

    async def tell(self, *words: Word) -> None:
        """Say the same words to all that can be told at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                for party in self.others:
                    with suppress(VflError):
                        for word in words:
                            await self._control.say(party, word)

    async def agree(self, on_progress: Report | None = None) -> None:
        """Wait, after the proposals, until all have agreed. Raises the error of the first party that refuses.

        on_progress: hears for whom it waits: a person who has to approve, or a party that is at work.
        """
        shown = _Shown(on_progress)
        for party in self.others:
            try:
                async with asyncio.timeout(ANSWER):
                    await self._until([party], "waiting", *_WILLING, shown=shown)
            except TimeoutError:  # what it cannot read, it cannot answer
                raise ProtocolError(
                    f"{party} has said nothing to the proposal within {ANSWER:g} s; do both run the same "
                    "release of vfl-toolkit? Its log says more"
                ) from None
        await self._until(self.others, *_WILLING, shown=shown)
        for party in sorted(self.others):  # in one order for all callers, so that no two wait for each other
            await self._control.say(party, Claim(**self.about))
            await self._until([party], "claimed", "agreed", shown=shown)
        await self._until(self.others, "claimed", "agreed", shown=shown)
        await self.say(Prepare(**self.about))
        await self._until(self.others, "agreed", shown=shown)

    async def _until(self, parties: Sequence[str], *standing: Standing, shown: _Shown) -> None:
        """Wait until the last answer of each of `parties` is one of `standing`."""
        while True:
            shown.show(self._standing)
            if all(self._standing.get(party) in standing for party in parties):
                return
            self._news.clear()
            await self.unless_failed(self._news.wait(), grace=0.0)

    async def ends(self) -> dict[str, str]:
        """Wait until each role has ended; return the digests of their parts, or raise a role's error."""
        words = {party: await self.unless_failed(self._ends[party].get(), grace=0.0) for party in self.others}
        return {party: word.digest for party, word in words.items() if word.digest}

    async def unless_failed(self, work: Coroutine[Any, Any, T], grace: float = GRACE) -> T:
        """Await `work`, or raise another party's error; `work` has `grace` seconds to fail too."""
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

    async def _hear(self, party: str) -> None:
        """Listen to `party` until it fails."""
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
            if isinstance(word, Answer):
                self._standing[party], self.agreed[party] = word.state, word
                self._news.set()
            elif isinstance(word, Ended) and not self._ends[party].full():
                self._ends[party].put_nowait(word)
            elif isinstance(word, Ended) and not word.digest:
                continue  # it has kept its part, and says so again each time that we renew our lease
            else:
                return self.fail(ProtocolError(f"{word.kind} from {party} in 'jobs' was not due"))


class _Shown:
    """What whoever watches has been shown of those that are waited for."""

    def __init__(self, on_progress: Report | None) -> None:
        self._report, self._open = on_progress, dict[str, str]()

    def show(self, standing: Mapping[str, Standing]) -> None:
        """Report what is waited for now, and what no longer is."""
        now = {party: _STEPS[said].format(party) for party, said in standing.items() if said in _STEPS}
        for party, step in self._open.items():
            if self._report is not None and now.get(party) != step:
                self._report(step, 1, 1)
        for party, step in now.items():
            if self._report is not None and self._open.get(party) != step:
                self._report(step, 0, 1)
        self._open = now

"""A table that takes long to read: who gave up the attempt it was read for is not kept waiting for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.data import sources
from protocols.service import attempt
from protocols.service.jobs import Cancel, Claim, Ended, Prepare, Word
from protocols.wire.codec import encode
from tests.protocols.service.test_agent import ran as ran
from tests.protocols.service.test_agent import trial as trial
from tests.protocols.service.test_bypass import JOB, Caller, Trial, is_answer, play
from tests.support.granted import rule
from tests.support.waiting import HANG


class Slow:
    """A table whose reading does not end before it is let. at_once: the most readings at one time."""

    def __init__(self, read: Callable[..., Any]) -> None:
        self._read, self._end, self._lock = read, threading.Event(), threading.Lock()
        self.now = self.at_once = 0

    def read(self, *of: Any, **more: Any) -> Any:
        with self._lock:
            self.now += 1
            self.at_once = max(self.now, self.at_once)
        assert self._end.wait(HANG)
        with self._lock:
            self.now -= 1
        return self._read(*of, **more)

    def end(self) -> None:
        self._end.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(sources.read_table)
    monkeypatch.setattr(attempt, "read_table", slow.read)
    yield slow
    slow.end()


def test_the_next_attempt_is_answered_while_the_table_of_the_one_before_is_read(
    trial: Trial, tmp_path: Path, ran: list[str], slow: Slow
) -> None:
    """Its caller takes a party that says nothing for a minute for one of another release."""

    async def talk(caller: Caller) -> None:
        for number in (1, 2, 3):
            of: dict[str, Any] = {"job": JOB, "attempt": number}
            assert is_answer(await caller.propose(attempt=number), "ready")
            words: list[Word] = [Claim(**of), Prepare(**of)]
            for word in words:
                caller.say((word.kind, encode(word)))
            assert is_answer(await caller.hear(), "claimed")
            if number == 1:
                while not slow.now:
                    await asyncio.sleep(0.01)
            if number < 3:
                cancel = Cancel(**of)
                caller.say((cancel.kind, encode(cancel)))
                assert isinstance(await caller.hear(), Ended)
        slow.end()
        assert is_answer(await caller.hear(), "agreed")

    play(trial, tmp_path, talk, rule())
    assert slow.at_once == 1

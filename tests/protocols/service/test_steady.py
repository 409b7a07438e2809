"""What lasts goes on whatever it meets, says so once, and takes no more of the loop than its share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from protocols.service import budget, steady
from protocols.service.budget import Budget, metered
from protocols.service.steady import steadily


class Panic(BaseException):
    """No Exception."""


class Steps:
    """Raises one thing after another, None being none; then nothing, until it is cancelled."""

    def __init__(self, *faults: BaseException | None) -> None:
        self._faults = list(faults)
        self.told: list[str] = []
        self.waited: list[float] = []
        self.done = asyncio.Event()

    async def step(self) -> None:
        if not self._faults:
            self.done.set()
            await asyncio.Event().wait()
        fault = self._faults.pop(0)
        if fault is not None:
            raise fault

    async def wait(self, seconds: float) -> None:
        self.waited.append(seconds)

    async def go(self) -> None:
        task = asyncio.create_task(
            steadily(self.step, wait=self.wait, tell=lambda error: self.told.append(str(error)))
        )
        await self.done.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "SOONEST", 0.001)


def run(*faults: BaseException | None) -> Steps:
    async def go() -> Steps:
        steps = Steps(*faults)
        async with asyncio.timeout(20.0):
            await steps.go()
        return steps

    return asyncio.run(go())


@pytest.mark.parametrize("kind", [ValueError, OSError, Panic, asyncio.CancelledError, TimeoutError])
def test_a_step_that_fails_is_tried_again(kind: type[BaseException]) -> None:
    """Also where what it waited for was cancelled; its own cancellation ends it."""
    assert run(kind("a"), None, kind("b"), kind("b")).told == ["a", "b"]


def test_a_fault_is_told_when_it_begins_and_when_it_changes() -> None:
    a, b = KeyError("a"), KeyError("b")
    assert run(a, a, a, b, b, a, None, a, a).told == ["'a'", "'b'", "'a'", "'a'"]


def test_the_wait_grows_to_a_bound_and_begins_anew_after_a_step_that_went_well() -> None:
    waited = run(*[KeyError()] * 14, None, KeyError()).waited
    assert waited == sorted(waited[:-1]) + waited[-1:] and waited[-1] == waited[0] == 0.0
    assert waited[-2] == waited[-3] == steady.LATEST - steady.SOONEST


def test_between_any_two_steps_others_come_to_run() -> None:
    async def go(step: Callable[[], Coroutine[Any, Any, None]]) -> int:
        turns = 0
        task = asyncio.create_task(
            steadily(step, wait=lambda seconds: asyncio.sleep(0), tell=lambda error: None)
        )
        for turns in range(100):  # noqa: B007
            await asyncio.sleep(0)
        task.cancel()
        return turns

    async def nothing() -> None: ...

    async def fails() -> None:
        raise KeyError

    async def both() -> None:
        async with asyncio.timeout(20.0):
            assert await go(nothing) == await go(fails) == 99

    asyncio.run(both())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_whoever_ends_the_process_ends_it(kind: type[BaseException]) -> None:
    async def go() -> None:
        async def step() -> None:
            raise kind

        await steadily(step)

    with pytest.raises(kind):
        asyncio.run(go())


# Shares.


def test_what_holds_the_loop_is_counted_and_what_it_waits_for_is_not() -> None:
    async def work() -> str:
        begin = time.perf_counter()
        while time.perf_counter() < begin + 0.02:
            pass
        await asyncio.sleep(0.2)
        return "done"

    async def go() -> list[float]:
        taken: list[float] = []
        assert await metered(work(), taken.append) == "done"
        return taken

    assert 0.02 <= sum(asyncio.run(go())) < 0.2


def test_what_is_metered_fails_and_is_cancelled_as_ever() -> None:
    taken: list[float] = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("why")

    async def stays() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            taken.append(-1.0)

    async def go() -> None:
        with pytest.raises(KeyError, match="why"):
            await metered(fails(), taken.append)
        task = asyncio.create_task(metered(stays(), taken.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert -1.0 in taken and len(taken) == 6


def test_a_share_comes_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(budget, "monotonic", lambda: now)
    found = Budget()
    found.take(1.0)
    assert found.taken == 1.0
    now += 2.0
    assert found.taken == pytest.approx(1.0 - 2.0 * budget.SHARE)
    found.take(0.1)
    assert found.taken == pytest.approx(1.1 - 2.0 * budget.SHARE)
    now += 100.0
    assert found.taken == 0.0

"""Turns go round the callers, and one that is kept for nothing passes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from protocols.service.turns import Place, Turns

LONG = 60.0  # seconds; nothing here waits for it


@contextmanager
def queue(*callers: str) -> Iterator[list[Place]]:
    """All that wait in this order, once somebody has the turn."""
    turns = Turns()
    with ExitStack() as stack:
        places = [stack.enter_context(turns.place(caller)) for caller in callers]
        for place in places:
            place.join()
        yield places


def order(places: list[Place]) -> list[int]:
    """In which they come, if each is left as soon as it has come."""
    found = []
    while waiting := [at for at, place in enumerate(places) if place.come.is_set()]:
        (now,) = waiting
        found.append(now)
        places[now]._turns.leave(places[now])
    return found


async def said(word: str, when: asyncio.Event | None = None) -> str:
    if when is not None:
        await when.wait()
    return word


@pytest.mark.parametrize(
    ("callers", "expected"),
    [
        ("aaa", [0, 1, 2]),
        ("aaaab", [0, 4, 1, 2, 3]),
        ("aaabbb", [0, 3, 1, 4, 2, 5]),
        ("aabcbc", [0, 2, 3, 1, 4, 5]),
        ("abcabc", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_turns_go_round_the_callers_and_each_ones_jobs_stay_in_order(
    callers: str, expected: list[int]
) -> None:
    async def go() -> None:
        with queue(*callers) as places:
            assert order(places) == expected

    asyncio.run(go())


def test_of_a_hundred_jobs_of_another_only_one_comes_before_mine() -> None:
    async def go() -> None:
        with queue(*["ill"] * 100, "fine") as places:
            assert order(places)[:3] == [0, 100, 1]

    asyncio.run(go())


def test_a_turn_is_kept_while_no_other_caller_waits() -> None:
    async def go() -> None:
        with queue("ill", "ill", "ill") as places:
            done = asyncio.Event()
            kept = asyncio.create_task(places[0].keep(said("word", done), 0.0))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not kept.done()
            done.set()
            assert await kept == "word"

    asyncio.run(go())


def test_a_turn_passes_on_when_another_caller_comes_and_returns_after_it() -> None:
    async def go() -> None:
        with queue("ill", "ill", "fine") as (first, second, fine):
            assert await first.keep(said("never", asyncio.Event()), 0.0) is None
            assert not first.join() and fine.come.is_set()
            assert order([first, second, fine]) == [2, 1, 0]

    asyncio.run(go())


def test_what_is_said_in_time_is_heard_though_another_waits() -> None:
    async def go() -> None:
        with queue("slow", "fine") as (slow, _):
            assert await slow.keep(said("word"), LONG) == "word"
            with pytest.raises(KeyError):
                await slow.keep(fails(), LONG)

    async def fails() -> None:
        raise KeyError

    asyncio.run(go())


def test_a_place_that_is_left_in_the_queue_or_in_the_turn_holds_up_nobody() -> None:
    async def go() -> None:
        turns = Turns()
        with turns.place("a") as first, turns.place("c") as last:
            with turns.place("b") as gone:
                assert first.join() and not gone.join() and not last.join()
            assert first.wanted.is_set()
            turns.leave(last)
            assert not first.wanted.is_set()
            last.join()
            with suppress(ZeroDivisionError), turns.place("d") as failing:
                failing.join()
                raise ZeroDivisionError
            assert order([first, last]) == [0, 1]

    asyncio.run(go())

"""Speed as ratios, each measured within one run: `python -m tests.bench [name ...]`.

A file `bench_<topic>.py` here holds functions marked `@bench`. Each takes nothing and returns `Row`s. A name
on the command line is a function's or a file's topic. Ratios, not seconds, because machines differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Ratio:
    """Median, lowest and highest of paired ratios."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, and the ratio that it should not exceed.

    target: the promise. hope: what would be better still. note: sizes, and what A and B are.
    """

    name: str
    ratio: Ratio
    target: float
    hope: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.hope is not None and self.ratio.median <= self.hope:
            return "met, and the hope"
        return "met" if self.ratio.median <= self.target else "not met"


Bench = Callable[[], list[Row]]
registered: dict[str, Bench] = {}


def bench(function: Bench) -> Bench:
    """Register a function that measures something and returns its rows."""
    if function.__name__ in registered:
        raise ValueError(f"two benches are named {function.__name__!r}")
    registered[function.__name__] = function
    return function


def ratio(a: Callable[[], object], b: Callable[[], object], repeats: int) -> Ratio:
    """Time of `a` over time of `b`, `repeats` times, after one unmeasured call of each.

    The two run back to back and take turns in going first, so that a machine that warms up or is
    shared slows both alike.
    """
    a(), b()
    ratios = []
    for turn in range(repeats):
        if turn % 2:
            below = seconds(b)
            above = seconds(a)
        else:
            above = seconds(a)
            below = seconds(b)
        ratios.append(above / below)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = perf_counter()
    call()
    return perf_counter() - start

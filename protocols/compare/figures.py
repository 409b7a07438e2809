"""What one method cost, as spreads over the seeds, read back from the comparison's tidy frame.

No line is involved. Also how such numbers are written for people.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from protocols.compare.measure import Spread
from protocols.compare.task import Method
from protocols.wire.message import message_class

DIRECTIONS = ("up", "down", "peer", "servers")
NONE = Spread(0.0, 0.0, 0.0)
UNVARIED = 0.01  # of its mean: a cost that varies less either way is written without a spread


@dataclass(frozen=True)
class Traffic:
    """All messages of one kind in one direction, of one method and phase."""

    phase: str
    direction: str
    kind: str
    messages: Spread
    nbytes: Spread

    @property
    def reveals(self) -> str:
        """What a curious receiver learns."""
        return message_class(self.kind).reveals

    @property
    def carries(self) -> frozenset[str] | None:
        """Of rows and labels, what is in it in the clear; None where its class does not say."""
        return message_class(self.kind).carries


@dataclass(frozen=True)
class Figures:
    """One method's numbers. Absent rows count as 0: a method that sends nothing has no bytes."""

    method: Method
    frame: pd.DataFrame  # of this method
    seeds: tuple[int, ...]
    quick: bool

    def get(self, measure: str, **where: str | int) -> Spread:
        """The sum of a measure's rows on each seed, over seeds. `where`: phase, side, direction, role, ..."""
        sums: dict[int, float] = {}
        for row in self._records.get(measure, ()):
            if all(row[name] == value for name, value in where.items()):
                sums[row["seed"]] = sums.get(row["seed"], 0.0) + row["value"]
        return Spread.of([sums.get(seed, 0.0) for seed in self.seeds], self.quick) if sums else NONE

    @cached_property
    def _records(self) -> dict[str, list[dict[Hashable, Any]]]:
        # Plain rows: a report asks hundreds of times, and pandas takes a millisecond to answer.
        records: dict[str, list[dict[Hashable, Any]]] = {}
        for row in self.frame.to_dict("records"):
            records.setdefault(row["measure"], []).append(row)
        return records

    @property
    def name(self) -> str:
        """The method's name in the table."""
        return self.method.name

    @cached_property
    def score(self) -> Spread:
        """The method's score on the test rows."""
        return self.get("score")

    @cached_property
    def difference(self) -> Spread | None:
        """Score less the centralised one, paired by seed; None where that was not run."""
        return self.get("difference") if (self.frame["measure"] == "difference").any() else None

    @cached_property
    def traffic(self) -> list[Traffic]:
        """By phase, direction and kind."""
        sent = self.frame[self.frame["measure"] == "bytes"]
        keys = sent[["phase", "direction", "kind"]].drop_duplicates()
        return [
            Traffic(
                phase,
                way,
                kind,
                self.get("messages", phase=phase, direction=way, kind=kind),
                self.get("bytes", phase=phase, direction=way, kind=kind),
            )
            for phase, way, kind in keys.itertuples(index=False)
        ]

    @cached_property
    def roles(self) -> list[str]:
        """Every role that computed or holds parameters; owners of data first."""
        rows = self.frame.dropna(subset=["role"]).sort_values("side", kind="stable")
        return list(dict.fromkeys(rows["role"]))

    def share(self, side: str, phase: str = "train") -> float:
        """The part of all FLOPs of a phase that `side` (client or other) did, 0 to 1."""
        total = self.get("flops", phase=phase).mean
        return self.get("flops", phase=phase, side=side).mean / total if total else 0.0


def grouped(roles: Iterable[str]) -> dict[str, list[str]]:
    """Numbered roles under one heading: client0 .. client4 -> "5 x client"."""
    groups: dict[str, list[str]] = {}
    for role in roles:
        groups.setdefault(re.sub(r"\d+$", "", role), []).append(role)
    return {f"{len(g)} × {stem}" if len(g) > 1 else g[0]: g for stem, g in groups.items()}


def amount(value: float, unit: str = "") -> str:
    """1234567 -> "1.23 M"; two or three digits that count."""
    size = abs(value)
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{_digits(value / factor)} {prefix}{unit}"
    return f"{_digits(value)} {unit}".strip()


def nbytes(value: float) -> str:
    """Bytes in powers of ten."""
    return amount(value, "B")


def percent(share: float) -> str:
    """0.318 -> "31.8%"; what is neither nothing nor everything never reads as if it were."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if share < 0.001 or share > 0.999:
        return "less than 0.1%" if share < 0.5 else "more than 99.9%"
    return f"{share:.1%}"


def seconds(value: float) -> str:
    """4500 -> "1 h 15 min"; 0.012 -> "12 ms"."""
    if value >= 5400:
        hours, rest = divmod(round(value / 60), 60)
        return f"{hours} h {rest} min"
    if value >= 100:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    return f"{_digits(value)} s" if value >= 1 else f"{_digits(value * 1000)} ms"


def spread(s: Spread, places: int = 3, sign: bool = False) -> str:
    """ ".981 ± .004", or the range "(.97 to .99)" where the ends are not symmetric."""
    at_zero = abs(round(s.mean, places)) == 0  # and so neither above nor below it
    mean = (
        f"{s.mean:+.{places}f}"
        if sign and not at_zero
        else f"{abs(s.mean) if at_zero else s.mean:.{places}f}"
    )
    mean = mean.replace("-", "−")
    if math.isnan(s.low):
        return mean
    if abs((s.high - s.mean) - (s.mean - s.low)) < 1e-12:
        return f"{mean} ± {s.high - s.mean:.{places}f}"
    return f"{mean} ({s.low:.{places}f} to {s.high:.{places}f})".replace("-", "−")


def varied(s: Spread, write: Callable[[float], str] = amount) -> str:
    """A cost, with half its spread where that is above UNVARIED of the mean; a dash for none."""
    text = write(s.mean) if s.mean else "–"
    half = (s.high - s.low) / 2
    if math.isnan(half) or half <= UNVARIED * abs(s.mean):
        return text
    return f"{text} ± {100 * half / abs(s.mean):.0f} %"


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 or value == int(value) else f"{value:.3g}"

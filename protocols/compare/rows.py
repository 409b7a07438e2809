"""The table of the comparison: what is claimed about each way to learn, beside what was measured.

No line is involved. A row is one `Topic`: `protocols.compare.topics` holds ours. Verdicts are decided from
numbers, for every run anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from protocols.compare.claims import NO_CLAIM, WAYS
from protocols.compare.figures import Figures

Status = Literal["stated", "measured", "not yet measured", "not run"]
Ruling = Literal["agrees", "disagrees", "leaves out", "not known"]
STATUSES = get_args(Status)
Rulings = list[tuple[Ruling, str]]


@dataclass(frozen=True)
class Line:
    """One sentence of a cell, and whether it was measured on this run."""

    status: Status
    text: str


@dataclass(frozen=True)
class Topic:
    """What one row of the comparison is about, as one value.

    title: as in the table. claims: what the documents say about a way to learn; a way that is absent has no
    claim. measure: what the numbers of one method say, or its author states. judge: whether those numbers
    bear the claim out, each ruling with its reason.
    """

    title: str
    claims: Mapping[str, str]
    measure: Callable[[Figures], list[Line]]
    judge: Callable[[Figures], Rulings] = lambda figures: []


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers of one method bear the claim out."""

    method: str
    ruling: Ruling
    text: str


@dataclass(frozen=True)
class Cell:
    """One way to learn, in one row of the comparison."""

    way: str
    claim: str
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Row:
    """One row of the comparison."""

    title: str
    cells: tuple[Cell, ...]


def rows(figures: Sequence[Figures], topics: Sequence[Topic]) -> list[Row]:
    """A row for each topic, with a cell for every way to learn."""
    methods = {way: [f for f in figures if f.method.column == way] for way in WAYS}
    return [Row(topic.title, tuple(_cell(topic, way, methods[way]) for way in WAYS)) for topic in topics]


def _cell(topic: Topic, way: str, figures: Sequence[Figures]) -> Cell:
    claim = topic.claims.get(way, NO_CLAIM)
    if not figures:
        return Cell(way, claim, (Line("not run", "No method of this kind was run."),), ())
    lines: dict[Line, list[str]] = {}
    verdicts: dict[tuple[Ruling, str], list[str]] = {}
    for f in figures:
        for line in topic.measure(f):
            lines.setdefault(line, []).append(f.name)
        for ruling in topic.judge(f):
            verdicts.setdefault(ruling, []).append(f.name)
    return Cell(
        way,
        claim,
        # What holds for all methods of a cell needs no names.
        tuple(
            Line(line.status, line.text if len(who) == len(figures) else f"{', '.join(who)}: {line.text}")
            for line, who in sorted(lines.items(), key=lambda item: STATUSES.index(item[0].status))
        ),
        tuple(Verdict(", ".join(who), *ruling) for ruling, who in verdicts.items()),
    )

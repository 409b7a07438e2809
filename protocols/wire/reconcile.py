"""Holding the ledgers of two parties against each other: did both record the same messages?

Nobody takes part: two files are read, by whoever has both. Each end of a line recorded what it sent or took,
so a party that rewrote or cut its file is contradicted by the other's. Two that rewrite alike are not found.

What was on its way when a job failed, was cancelled, or was interrupted and taken up again, may be missing at
one end. That is told apart, as *in flight*: only if the job ended so at one of the two, and only at the end
of a line, in the order in which the end that has it recorded it. What is said about jobs, which is of job "",
has no end, and a restart of either party may lose any of it; there all that is missing counts as in flight.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from protocols.errors import DataError
from protocols.wire.audit import Audit, Fault, owner
from protocols.wire.record_rows import JobRow, MessageRow

ABORT = "abort"  # in this scope a party says that it has failed, which overtakes what it sent before
ABOUT_JOBS = ""  # the job of what parties say about jobs
INTERRUPTED = "interrupted"  # a later attempt followed
_ENDS = ("refused", "done", "failed", "cancelled")
_BROKEN = ("refused", "failed", "cancelled", INTERRUPTED)


class _Line(NamedTuple):
    """One direction between the two parties, in one attempt at one job."""

    job: str
    attempt: int
    sender: str
    receiver: str


class _Said(NamedTuple):
    """A message as one file has it."""

    scope: str
    sequence: int
    kind: str
    nbytes: int
    digest: str
    number: int  # line in the file
    taken: bool

    @property
    def content(self) -> tuple[str, int, str]:
        return self.kind, self.nbytes, self.digest


_Pair = tuple[_Said | None, _Said | None]  # one message, by file A and by file B


@dataclass(frozen=True)
class Difference:
    """A message that the two files do not both have alike. missing_at: the party whose file lacks it, or "".
    lines: where it is in each file, counted from 1; None where it is missing."""

    job: str
    attempt: int
    sender: str
    receiver: str
    scope: str
    sequence: int
    kind: str
    missing_at: str
    reason: str
    lines: tuple[int | None, int | None]

    def __str__(self) -> str:
        return (
            f"{_name(self.job, self.attempt)}: {self.sender} -> {self.receiver} in {self.scope!r} "
            f"#{self.sequence} ({self.kind}): {self.reason}"
        )


@dataclass(frozen=True)
class Unended:
    """A job that is done by one file, while `party`'s does not say how it ended."""

    job: str
    attempt: int
    party: str

    def __str__(self) -> str:
        return (
            f"{_name(self.job, self.attempt)}: done, but the file of {self.party} does not say how it ended; "
            "was it cut, or copied before?"
        )


@dataclass(frozen=True)
class LineVerdict:
    """What was found of one line. ends: how the attempt ended, by each file, "" if it did not. digests: over
    all its entries, as `Ledger.line_digest` in hexadecimal, by each file."""

    job: str
    attempt: int
    sender: str
    receiver: str
    ends: tuple[str, str]
    agree: int
    in_flight: int
    differ: int
    digests: tuple[str, str]


@dataclass(frozen=True)
class Verdict:
    """What holding file A against file B gave; pairs are in that order."""

    parties: tuple[str, str]  # whose they are; "" where the first row does not say, and nothing is compared
    faults: tuple[Fault | None, Fault | None]  # of each file's own chain
    torn: tuple[int, int]  # bytes of a last row that was not written to its end
    lines: tuple[LineVerdict, ...] = ()
    differences: tuple[Difference, ...] = ()  # by job, attempt, direction, scope, sequence
    in_flight: tuple[Difference, ...] = ()
    unended: tuple[Unended, ...] = ()

    @property
    def agree(self) -> bool:
        """Whether both chains are whole and nothing differs; what was in flight may be missing."""
        return self.faults == (None, None) and not self.differences and not self.unended

    def asdict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"agree": self.agree, **asdict(self)}


@dataclass
class _Book:
    """What one file says of its owner's lines with one peer."""

    party: str
    lines: dict[_Line, list[_Said]] = field(default_factory=lambda: defaultdict(list))
    states: dict[tuple[str, int], str] = field(default_factory=dict)  # the latest of each attempt
    attempts: dict[str, int] = field(default_factory=dict)  # the latest of each job

    def end(self, job: str, attempt: int) -> str:
        """How this attempt ended; "" if it did not."""
        state = self.states.get((job, attempt), "")
        if state in _ENDS:
            return state
        return INTERRUPTED if attempt < self.attempts.get(job, 0) else ""


def verify(a: str | Path, b: str | Path) -> Verdict:
    """Check the chain of each file, then hold all messages between their owners against each other.

    DataError if a file cannot be read or is no ledger, or both are of one party.
    """
    audits, parties = (Audit(a), Audit(b)), (owner(a), owner(b))
    if parties[0] == parties[1] != "":
        raise DataError(f"{a} and {b} are both of {parties[0]}; expected the ledgers of two parties")
    books = _read(audits[0], parties[0], parties[1]), _read(audits[1], parties[1], parties[0])
    faults, torn = (audits[0].fault, audits[1].fault), (audits[0].torn, audits[1].torn)
    if "" in parties:
        return Verdict(parties, faults, torn)
    lines: list[LineVerdict] = []
    differences: list[Difference] = []
    in_flight: list[Difference] = []
    for line in sorted({*books[0].lines, *books[1].lines}):
        verdict, differing, flying = _hold(line, *books)
        lines.append(verdict)
        differences += differing
        in_flight += flying
    unended = tuple(_unended(lines, parties))
    return Verdict(parties, faults, torn, tuple(lines), tuple(differences), tuple(in_flight), unended)


def _read(audit: Audit, party: str, peer: str) -> _Book:
    book = _Book(party)
    pair = {party, peer}
    for number, row in audit:
        if isinstance(row, JobRow):
            book.states[row.job, row.attempt] = row.state
            book.attempts[row.job] = row.attempt
        elif isinstance(row, MessageRow) and {row.sender, row.receiver} == pair:
            line = _Line(intern(row.job), book.attempts.get(row.job, 0), row.sender, row.receiver)
            said = _Said(
                intern(row.scope), row.sequence, intern(row.kind), row.nbytes, row.digest, number, row.taken
            )
            book.lines[line].append(said)
    return book


def _hold(line: _Line, a: _Book, b: _Book) -> tuple[LineVerdict, list[Difference], list[Difference]]:
    """One line by both files: its verdict, what differs, and what was in flight."""
    by_a, by_b = _once(a.lines.get(line, [])), _once(b.lines.get(line, []))
    pairs = list(_pairs(by_a, by_b))
    ends = a.end(line.job, line.attempt), b.end(line.job, line.attempt)
    broken = any(end in _BROKEN for end in ends)
    shared = [(x.number, y.number) for x, y in pairs if x and y and x.scope != ABORT]
    last = [max(numbers, default=0) for numbers in ((x for x, _ in shared), (y for _, y in shared))]
    differing: list[Difference] = []
    flying: list[Difference] = []
    for x, y in pairs:
        if x and y and x.content == y.content:
            continue
        at_end = (x is None or x.number > last[0]) and (y is None or y.number > last[1])
        lost = x is None or y is None
        if lost and (line.job == ABOUT_JOBS or (broken and at_end)):
            flying.append(_difference(line, x, y, a.party, b.party, ends))
        else:
            differing.append(_difference(line, x, y, a.party, b.party, ends))
    agree = len(pairs) - len(differing) - len(flying)
    digests = _digest(by_a), _digest(by_b)
    return LineVerdict(*line, ends, agree, len(flying), len(differing), digests), differing, flying


def _once(entries: list[_Said]) -> list[_Said]:
    """Without those that came late for the second time: a network may repeat what was taken, or was late."""
    if all(e.taken for e in entries):
        return entries
    kept, seen = [], set[tuple[str, int, tuple[str, int, str]]]()
    for e in entries:
        message = e.scope, e.sequence, e.content
        if e.taken or message not in seen:
            kept.append(e)
        seen.add(message)
    return kept


def _pairs(by_a: list[_Said], by_b: list[_Said]) -> Iterator[_Pair]:
    """Each message with what the other file says in its place, by scope, then sequence."""
    groups: dict[tuple[str, int], tuple[list[_Said], list[_Said]]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((by_a, by_b)):
        for said in entries:
            groups[said.scope, said.sequence][side].append(said)
    for _, (ours, theirs) in sorted(groups.items()):
        # Several in one place are rare: a row that was written twice. Those that agree belong together.
        for x in list(ours):
            y = next((y for y in theirs if y.content == x.content), None)
            if y is not None:
                yield x, y
                ours.remove(x)
                theirs.remove(y)
        for i in range(max(len(ours), len(theirs))):
            yield (ours[i] if i < len(ours) else None), (theirs[i] if i < len(theirs) else None)


def _difference(
    line: _Line, x: _Said | None, y: _Said | None, a: str, b: str, ends: tuple[str, str]
) -> Difference:
    lines = (x.number if x else None), (y.number if y else None)
    said = x or y
    assert said is not None
    missing_at = a if x is None else b if y is None else ""
    if x is None or y is None:
        reason = f"missing in the file of {missing_at}"
        if ends == ("", ""):
            reason += "; by both the job has not ended, so look again when it has"
    else:
        names = ("kind", "size", "digest")
        shown = [(n, str(v)[:20], str(w)[:20]) for n, v, w in zip(names, x.content, y.content, strict=True)]
        reason = ", ".join(f"{n} {v} at {a}, {w} at {b}" for n, v, w in shown if v != w)
    return Difference(*line, said.scope, said.sequence, said.kind, missing_at, reason, lines)


def _digest(entries: list[_Said]) -> str:
    """As `Ledger.line_digest`."""
    total = hashlib.sha256()
    for e in sorted(entries, key=lambda e: (e.scope, e.sequence)):
        total.update(f"{e.sequence}|{e.scope}|{e.kind}|".encode() + bytes.fromhex(e.digest))
    return total.hexdigest()


def _unended(lines: list[LineVerdict], parties: tuple[str, str]) -> Iterator[Unended]:
    """The tail of a file can be cut so that only a job's end is missing."""
    for job, attempt, ends in sorted({(v.job, v.attempt, v.ends) for v in lines}):
        if set(ends) == {"", "done"}:
            yield Unended(job, attempt, parties[ends.index("")])


def _name(job: str, attempt: int) -> str:
    return f"job {job}, attempt {attempt}" if attempt else f"job {job}"

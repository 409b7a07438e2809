"""Holding the ledgers of two parties against each other: did both record the same messages?

Nobody takes part: two files are read, by whoever has both. Each end of a line recorded what it sent or took,
so a party that rewrote or cut its file is contradicted by the other's. Two that rewrite alike are not found.

What was on its way when a job failed, was cancelled, or was interrupted and taken up again, may be missing at
its receiver. That is told apart, as *in flight*, where both files can be honest:

- at the end of a line only, in the order in which its sender recorded it;
- never at the sender, who records a message before it sends it;
- only where the receiver's file shows that it took part in that attempt;
- not where the job is done by either file. A party writes that once its caller has told it that all roles had
  ended (`protocols.service.jobs`: Sealed), and the caller once all have kept their parts: by then all is
  taken. One that has its predictions may be done though a line was cut since; its file says so
  (`record_rows.CUT`).

So a file from which a job was erased, or its end, and which says that the job failed, or was refused, or does
not know of it, contradicts one by which the job is done, and one that took a message in it. How jobs ended is
held against each other too. What is said about jobs, which is of job "", has no end, and a restart of either
party may lose any of it; there all that is missing counts as in flight.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocols.errors import DataError
from protocols.record.audit import Audit, Fault, owner
from protocols.record.books import ALONE, INTERRUPTED, Book, Line, Said, read

ABORT = "abort"  # in this scope a party says that it has failed, which overtakes what it sent before
ABOUT_JOBS = ""  # the job of what parties say about jobs
_BROKEN = ("failed", "cancelled", INTERRUPTED, ALONE)


_Pair = tuple[Said | None, Said | None]  # one message, by file A and by file B


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
class Clash:
    """A contradiction about how an attempt went, which two honest parties' files cannot hold. party: whose
    file says, or leaves out, what contradicts the other's."""

    job: str
    attempt: int
    party: str
    reason: str

    def __str__(self) -> str:
        return f"{_name(self.job, self.attempt)}: {self.reason}"


@dataclass(frozen=True)
class LineVerdict:
    """The result for one line. ends: how the attempt ended, by each file, "" if it did not. digests: over
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
    """The result of comparing file A with file B; pairs are in that order."""

    parties: tuple[str, str]  # whose they are; "" where the first row does not say, and nothing is compared
    faults: tuple[Fault | None, Fault | None]  # of each file's own chain
    torn: tuple[int, int]  # bytes of a last row that was not written to its end
    lines: tuple[LineVerdict, ...] = ()
    differences: tuple[Difference, ...] = ()  # by job, attempt, direction, scope, sequence
    in_flight: tuple[Difference, ...] = ()
    clashes: tuple[Clash, ...] = ()  # by job, attempt

    @property
    def agree(self) -> bool:
        """Return whether both chains are whole and nothing differs; what was in flight may be missing."""
        return self.faults == (None, None) and not self.differences and not self.clashes

    def asdict(self) -> dict[str, Any]:
        """Return the whole verdict as JSON values."""
        return {"agree": self.agree, **asdict(self)}


def verify(a: str | Path, b: str | Path) -> Verdict:
    """Check the chain of each file, then hold all messages between their owners against each other.

    DataError if a file cannot be read or is no ledger, or both are of one party.
    """
    audits, parties = (Audit(a), Audit(b)), (owner(a), owner(b))
    if parties[0] == parties[1] != "":
        raise DataError(f"{a} and {b} are both of {parties[0]}; expected the ledgers of two parties")
    books = read(audits[0], parties[0], parties[1]), read(audits[1], parties[1], parties[0])
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
    clashes = [*_clashes(*books), *_clashes(*books[::-1])]
    clashes.sort(key=lambda clash: (clash.job, clash.attempt, clash.party))
    return Verdict(parties, faults, torn, tuple(lines), tuple(differences), tuple(in_flight), tuple(clashes))


def _hold(line: Line, a: Book, b: Book) -> tuple[LineVerdict, list[Difference], list[Difference]]:
    """Compare one line in both files; return its verdict, what differs, and what was in flight."""
    by_a, by_b = _once(a.lines.get(line, [])), _once(b.lines.get(line, []))
    pairs = list(_pairs(by_a, by_b))
    shared = [(x.number, y.number) for x, y in pairs if x and y and x.scope != ABORT]
    last = [max(numbers, default=0) for numbers in ((x for x, _ in shared), (y for _, y in shared))]
    differing: list[Difference] = []
    flying: list[Difference] = []
    for x, y in pairs:
        if x and y and x.content == y.content:
            continue
        reason = _unlike(x, y, a.party, b.party)
        if x is None or y is None:
            lacking, other = (a, b) if x is None else (b, a)
            at_end = (x is None or x.number > last[0]) and (y is None or y.number > last[1])
            reason = _lost(line, lacking, other, at_end)
        found = _difference(line, x, y, a.party, b.party, reason or "on its way")
        (differing if reason else flying).append(found)
    agree = len(pairs) - len(differing) - len(flying)
    digests = _digest(by_a), _digest(by_b)
    ends = a.end(line[:2]), b.end(line[:2])
    return LineVerdict(*line, ends, agree, len(flying), len(differing), digests), differing, flying


def _lost(line: Line, lacking: Book, other: Book, at_end: bool) -> str:
    """Say why a message that is missing in `lacking`'s file should be there; "" if it was in flight."""
    attempt = line[:2]
    ends = {book.party: book.end(attempt) for book in (lacking, other)}
    done = [party for party, end in ends.items() if end == "done"]
    said = f"missing in the file of {lacking.party}"
    if line.job == ABOUT_JOBS:
        return ""
    if done:
        return f"{said}, though the job is done by that of {' and '.join(done)}"
    if other.took_part(attempt, lacking) and not lacking.took_part(attempt, other):
        return f"{said}, which does not say that {lacking.party} took part in it"
    if not any(end in _BROKEN for end in ends.values()):
        return f"{said}; by both the job has not ended, so look again when it has"
    if lacking.party == line.sender:
        return f"{said}, who sent it: {other.party} took it, and what is sent is recorded before"
    return "" if at_end else f"{said}, which has a later one of this line"


def _once(entries: list[Said]) -> list[Said]:
    """Leave out late repeats, since a network may repeat a message that was taken or came late."""
    if all(e.taken for e in entries):
        return entries
    kept, seen = [], set[tuple[str, int, tuple[str, int, str]]]()
    for e in entries:
        message = e.scope, e.sequence, e.content
        if e.taken or message not in seen:
            kept.append(e)
        seen.add(message)
    return kept


def _pairs(by_a: list[Said], by_b: list[Said]) -> Iterator[_Pair]:
    """Pair each message with the other file's message in its place, by scope, then sequence."""
    groups: dict[tuple[str, int], tuple[list[Said], list[Said]]] = defaultdict(lambda: ([], []))
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


def _difference(line: Line, x: Said | None, y: Said | None, a: str, b: str, reason: str) -> Difference:
    lines = (x.number if x else None), (y.number if y else None)
    said = x or y
    assert said is not None
    missing_at = a if x is None else b if y is None else ""
    return Difference(*line, said.scope, said.sequence, said.kind, missing_at, reason, lines)


def _unlike(x: Said | None, y: Said | None, a: str, b: str) -> str:
    """Say in what two messages differ, if both are there."""
    if x is None or y is None:
        return ""
    names = ("kind", "size", "digest")
    shown = [(n, str(v)[:20], str(w)[:20]) for n, v, w in zip(names, x.content, y.content, strict=True)]
    return ", ".join(f"{n} {v} at {a}, {w} at {b}" for n, v, w in shown if v != w)


def _digest(entries: list[Said]) -> str:
    """Digest a line as `Ledger.line_digest` does."""
    total = hashlib.sha256()
    for e in sorted(entries, key=lambda e: (e.scope, e.sequence)):
        total.update(f"{e.sequence}|{e.scope}|{e.kind}|".encode() + bytes.fromhex(e.digest))
    return total.hexdigest()


def _clashes(one: Book, other: Book) -> Iterator[Clash]:
    """Find what the file of `one` says, or leaves out, about attempts that the other's file contradicts."""
    spoke = {line[:2] for line in (*one.lines, *other.lines)}
    for attempt in sorted(spoke | (one.states.keys() & other.states.keys())):
        if attempt not in one.states and attempt not in other.states:
            continue  # messages of no job, as of a run without one
        own, end, said = one.end(attempt), other.end(attempt), ""
        ran = other.states.get(attempt, {}).keys() & {"running", "done"}  # which takes that all agreed
        if (ran or attempt in spoke) and not one.took_part(attempt, other):
            last = next(reversed(one.states.get(attempt, {})), "")
            what = f"says {last!r}, and not that {one.party} took part" if last else "does not know of it"
            by = f"by the file of {other.party}"
            told = f"done {by}" if end == "done" else f"begun {by}" if ran else "messages of it are there"
            said = f"{told}, but that of {one.party} {what}"
        elif (own, end) == ("", "done"):
            said = (
                f"done, but the file of {one.party} does not say how it ended; was it cut, or copied before?"
            )
        elif end == "done" and own in _BROKEN and attempt[0] in one.granted - other.granted:
            called = f"done by the file of {other.party}, which called, and is done once all are"
            said = f"{called}; that of {one.party} says {own!r}"
        if said:
            yield Clash(*attempt, one.party, said)


def _name(job: str, attempt: int) -> str:
    return f"job {job}, attempt {attempt}" if attempt else f"job {job}"

"""What one party's ledger says of its lines with another, and of how the attempts at each job went.

Nobody takes part: a file is read, by whoever holds it against another (`protocols.record.reconcile`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from sys import intern
from typing import NamedTuple

from protocols.record.audit import Audit
from protocols.record.rows import CUT, GrantRow, JobRow, MessageRow

INTERRUPTED = "interrupted"  # a later attempt followed
ALONE = "done, but for the others"  # by a caller whose line was cut before all had said that they ended
_ENDS = ("refused", "failed", "cancelled")
Attempt = tuple[str, int]  # a job, and the number of an attempt at it


class Line(NamedTuple):
    """One direction between the two parties, in one attempt at one job."""

    job: str
    attempt: int
    sender: str
    receiver: str


class Said(NamedTuple):
    """A message as one file records it."""

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


@dataclass
class Book:
    """What one file says of its owner's lines with one peer, and of jobs."""

    party: str
    lines: dict[Line, list[Said]] = field(default_factory=lambda: defaultdict(list))
    states: dict[Attempt, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))  # -> reason
    attempts: dict[str, int] = field(default_factory=dict)  # the latest of each job
    granted: set[str] = field(default_factory=set)  # jobs that this party was asked to take part in

    def end(self, attempt: Attempt) -> str:
        """Return how the attempt ended; "" if it did not."""
        states = self.states.get(attempt, {})
        if "done" in states:  # whatever failed after that
            return ALONE if states["done"] == CUT else "done"
        last = next(reversed(states), "")
        return last if last in _ENDS else INTERRUPTED if attempt[1] < self.attempts.get(attempt[0], 0) else ""

    def took_part(self, attempt: Attempt, other: Book) -> bool:
        """Return whether messages can have left this party, or reached it. A caller may be killed after the
        others have begun and before it has written that it has begun itself."""
        states = self.states.get(attempt, {})
        called = attempt[0] in other.granted - self.granted
        return bool(states.keys() & {"agreed", "running", "done"}) or (called and "proposed" in states)


def read(audit: Audit, party: str, peer: str) -> Book:
    """Read the file of `party`, as far as it is about `peer`, or about jobs."""
    book = Book(party)
    pair = {party, peer}
    for number, row in audit:
        if isinstance(row, JobRow):
            states = book.states[row.job, row.attempt]
            states.pop(row.state, "")  # the latest comes last
            states[row.state] = row.reason
            book.attempts[row.job] = row.attempt
        elif isinstance(row, GrantRow):
            book.granted.add(row.job)
        elif isinstance(row, MessageRow) and {row.sender, row.receiver} == pair:
            line = Line(intern(row.job), book.attempts.get(row.job, 0), row.sender, row.receiver)
            said = Said(
                intern(row.scope), row.sequence, intern(row.kind), row.nbytes, row.digest, number, row.taken
            )
            book.lines[line].append(said)
    return book

"""Where a party writes down how its jobs stand: a record of each in its store, and rows of its ledger.

Takes part: one party, alone. If a job fails because the disk refuses to write, its failure cannot be recorded
then either; it is recorded before the next job begins.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from protocols.errors import VflError
from protocols.logs import log
from protocols.network.post import OnLate
from protocols.record.file import Record as Ledger
from protocols.service.jobs import OPEN, State
from protocols.service.store import Record, Store
from protocols.wire.ledger import Entry
from protocols.wire.transport import Envelope

KEPT = timedelta(days=7)  # that a caller has, after a job was cut off, to come back and go on with it
PROPOSALS = 20  # of one caller that ended before they ran, of which the records are kept


class Notes:
    """The store and the ledger of `party`, open until `close`. Raises as `Store.secure`, `Record.open`.

    What a peer proposes is in the ledger from the moment when this party agrees to begin, and before that in
    the store alone, which keeps little of what never ran: a peer may propose as much as it likes.
    """

    def __init__(self, store: Store, party: str) -> None:
        self.store, self._party = store, party
        store.secure()
        self.ledger = Ledger.open(store.ledger, party)
        self._unsaid: list[tuple[Record, State, str]] = []
        self._idle: defaultdict[str, deque[str]] = defaultdict(deque)  # jobs of a caller that never ran

    def begin(self) -> None:
        """Prepare for a job: record what could not be recorded before. DataError if it still cannot be."""
        if self.ledger.closed:  # the disk had failed it
            self.ledger = Ledger.open(self.store.ledger, self._party)
        while self._unsaid:
            self._put(*self._unsaid[0])
            del self._unsaid[0]

    def tidy(self) -> None:
        """Delete the checkpoints that nobody will go on after. It reads much, and any thread may call."""
        self.store.drop_checkpoints(datetime.now(UTC) - KEPT)

    def state(self, record: Record, state: State, reason: str = "") -> Record:
        """Record the new state of a job, and return its record."""
        log.info(f"job {state}", extra={"job": record.job, "peer": record.caller})
        return self._put(record, state, reason)

    def end(self, record: Record, state: State, reason: str) -> None:
        """Record that an attempt did not end well, now or as soon as the disk allows it."""
        try:
            known = self.store.find(record.job)
            if known is not None and known.attempt == record.attempt:
                record = known
            self.state(record, state, reason)
        except VflError as error:
            log.error("unexpected error", extra={"job": record.job}, exc_info=error)
            self._unsaid.append((record, state, reason))

    def restarted(self) -> None:
        """Record as failed every job that an earlier process of this party left open."""
        self.store.clear_scratch()
        self.tidy()
        for record in self.store.all():
            if record.state in OPEN:
                self.end(record, "failed", "this party was restarted meanwhile; its caller can go on with it")
            elif not record.ran:
                self._forget_others(record)

    def entered(self, record: Record) -> Callable[[Entry], None]:
        """Returns what records each message of an attempt in the ledger."""
        # The wire names the attempt with the job; the ledger has a row for the beginning of each attempt.
        return lambda entry: self.ledger.append(entry._replace(job=record.job))

    def late(self, record: Record, lose: Callable[[VflError], None]) -> OnLate:
        """Return what records messages that came too late; if it cannot, `lose` hears of the error."""

        def take_down(envelope: Envelope) -> None:
            try:
                self.ledger.append(Entry.of(envelope)._replace(job=record.job), taken=False)
            except VflError as error:  # nobody waits for this who could be told
                lose(error)

        return take_down

    def close(self) -> None:
        """Let others open the ledger."""
        self.ledger.close()

    def _put(self, record: Record, state: State, reason: str) -> Record:
        ours = record.caller == self._party
        # On the disk before the caller hears it: who then sends us something can say that we took part.
        agreed = "agreed" in (state, record.state)
        if ours or agreed or record.ran == record.attempt:
            self.ledger.job(record.job, state, attempt=record.attempt, reason=reason)
        known = self.store.find(record.job)
        new = record.model_copy(update={"state": state, "reason": reason})
        # What is made up for may be of an attempt that was followed by another.
        if known is not None and known.attempt > new.attempt:
            return new
        saved = self.store.save(new)
        if not (ours or new.ran or state in OPEN):
            self._forget_others(saved)
        return saved

    def _forget_others(self, record: Record) -> None:
        """Keep the record of a job that never ran, and forget the oldest such of its caller."""
        jobs = self._idle[record.caller]
        if record.job in jobs:  # it was proposed again
            jobs.remove(record.job)
        jobs.append(record.job)
        if len(jobs) > PROPOSALS:
            old = self.store.find(jobs.popleft())
            if old is not None and not old.ran and old.state not in OPEN:
                self.store.forget(old.job)

"""Where a party writes down how its jobs stand: a record of each in its store, and rows of its ledger.

Takes part: one party, alone. The disk may be what a job fails of, and then cannot take down that it failed
either: that is made up for when the next job begins.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from protocols.errors import VflError
from protocols.jobs import OPEN, Record, State, Store
from protocols.logs import log
from protocols.wire.ledger import Entry
from protocols.wire.post import OnLate
from protocols.wire.record import Record as Ledger
from protocols.wire.transport import Envelope

KEPT = timedelta(days=7)  # that a caller has, after a job was cut off, to come back and go on with it


class Notes:
    """The store and the ledger of `party`, open until `close`. Errors of `Store.secure` and `Ledger.open`."""

    def __init__(self, store: Store, party: str) -> None:
        self.store, self._party = store, party
        store.secure()
        self.ledger = Ledger.open(store.ledger, party)
        self._unsaid: list[tuple[Record, State, str]] = []

    def begin(self) -> None:
        """Before a job: whether all can be written down, and what could not be before. DataError if not."""
        self.store.drop_checkpoints(datetime.now(UTC) - KEPT)
        if self.ledger.closed:  # the disk had failed it
            self.ledger = Ledger.open(self.store.ledger, self._party)
        while self._unsaid:
            self._put(*self._unsaid[0])
            del self._unsaid[0]

    def state(self, record: Record, state: State, reason: str = "") -> Record:
        """`record` in a new state."""
        log.info(f"job {state}", extra={"job": record.job, "peer": record.caller})
        return self._put(record, state, reason)

    def end(self, record: Record, state: State, reason: str) -> None:
        """The same for an attempt that did not end well: now, or when it can be."""
        try:
            known = self.store.find(record.job)
            if known is not None and known.attempt == record.attempt:
                record = known
            self.state(record, state, reason)
        except VflError as error:
            log.error("unexpected error", extra={"job": record.job}, exc_info=error)
            self._unsaid.append((record, state, reason))

    def restarted(self) -> None:
        """What an earlier process of this party had not ended, has ended with it."""
        self.store.clear_scratch()
        self.store.drop_checkpoints(datetime.now(UTC) - KEPT)
        for record in self.store.all():
            if record.state in OPEN:
                self.end(record, "failed", "this party was restarted meanwhile; its caller can go on with it")

    def entered(self, record: Record) -> Callable[[Entry], None]:
        """Takes down the messages of an attempt."""
        # The wire names the attempt with the job; the ledger has a row for the beginning of each attempt.
        return lambda entry: self.ledger.append(entry._replace(job=record.job))

    def late(self, record: Record, lose: Callable[[VflError], None]) -> OnLate:
        """Takes down what came too late for the role of an attempt, which is lost where that cannot be."""

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
        self.ledger.job(record.job, state, attempt=record.attempt, reason=reason)
        known = self.store.find(record.job)
        new = record.model_copy(update={"state": state, "reason": reason})
        # What is made up for may be of an attempt that was followed by another.
        return new if known is not None and known.attempt > new.attempt else self.store.save(new)

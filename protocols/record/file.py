"""The ledger of one party on disk: a file that grows by one row for each message, consent and state of a job.

Takes part: one party, alone. The file stays with its owner; it holds sizes, kinds, digests and who spoke
with whom, and never a payload. It may be shown to an auditor, who holds it against another's (`reconcile`).

Each row is chained to the one before (`record_rows`), so what was changed, dropped, inserted or moved later
is found and named (`audit`). The chain has no key: an owner who rewrites the whole file is found only
through the files of the others, who recorded the other ends of the same lines.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from protocols.errors import ConfigError, DataError, VflError
from protocols.files import flush_folder, make_folder, release
from protocols.record.rows import (
    BEGINNING,
    START,
    By,
    GrantRow,
    HeaderRow,
    JobRow,
    MendedRow,
    MessageRow,
    Row,
    State,
    follow,
    parse,
    seal,
    unseal,
)
from protocols.wire.message import Message

if sys.platform != "win32":
    import fcntl


class Sent(Protocol):
    """The fields of a ledger's entry that `Record.append` reads."""

    @property
    def job(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def sender(self) -> str: ...
    @property
    def receiver(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def digest(self) -> bytes: ...


class Record:
    """A party's ledger file, open to be continued. One process at a time holds it.

    Each row is handed to the operating system at once, so it survives the death of this process. It is
    flushed to the disk with the next state of a job, the next grant, and on closing: a loss of power can cost
    the messages since. What the disk refuses is a DataError, and the file is as it was before that row; a
    flush that fails closes the file, as what the disk then holds is not known. Any thread may call.
    """

    def __init__(self, path: Path, party: str, handle: int) -> None:
        self.path, self.party = path, party
        self._handle: int | None = handle
        self._end = 0  # bytes
        self._index = 0  # of the next row
        self._chain = START
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, party: str) -> Record:
        """Begin `path`, or continue it. A torn last row, left by a crash, is cut off, and a row says so.

        ConfigError if the file is another party's, or another process holds it; DataError if it is no ledger,
        its last row does not follow from the one before, or the disk refuses.
        """
        place = Path(path)
        try:
            make_folder(place.parent)
            handle = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise _refused(place, party, error) from error
        record = cls(place, party, handle)
        try:
            record._hold()
            record._continue()
        except BaseException:
            os.close(handle)
            raise
        return record

    @property
    def closed(self) -> bool:
        """Whether the file was closed, by its owner or because the disk failed."""
        return self._handle is None

    @property
    def head(self) -> str:
        """The chain of the last row, in hexadecimal. Who notes it can tell later that nothing up to it was
        rewritten."""
        return self._chain.hex()

    def append(self, entry: Sent, *, at: datetime | None = None, taken: bool = True) -> None:
        """Record a message that this party sent, or received; `taken=False`: discarded, as it came too late.

        ConfigError for a message between others.
        """
        e = entry
        if self.party not in (e.sender, e.receiver):
            raise ConfigError(
                f"a message from {e.sender} to {e.receiver} is not this party's; each party records its own"
            ).at(self.party, "ledger")
        known = Message.kinds.get(e.kind)
        self._add(
            lambda i, now: MessageRow(
                index=i,
                at=at or now,
                job=e.job,
                scope=e.scope,
                sequence=e.sequence,
                sender=e.sender,
                receiver=e.receiver,
                kind=e.kind,
                bytes=e.nbytes,
                digest=e.digest.hex(),
                reveals=known.reveals if known else "",
                taken=taken,
            ),
            flush=False,
        )

    def grant(
        self,
        job: str,
        method: str,
        by: By,
        reveals: Iterable[str],
        *,
        under: str = "",
        at: datetime | None = None,
    ) -> None:
        """Record a consent, and flush: it is on the disk before anything leaves because of it."""
        said = tuple(reveals)
        self._add(
            lambda i, now: GrantRow(
                index=i, at=at or now, job=job, method=method, by=by, under=under, reveals=said
            ),
            flush=True,
        )

    def job(
        self, job: str, state: State, *, attempt: int = 0, reason: str = "", at: datetime | None = None
    ) -> None:
        """Record a job's new state, and flush this row and all before it."""
        self._add(
            lambda i, now: JobRow(
                index=i, at=at or now, job=job, state=state, attempt=attempt, reason=reason
            ),
            flush=True,
        )

    def flush(self) -> None:
        """Wait until all rows are on the disk."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Flush, and let others open the file. Closing twice does nothing."""
        with self._lock:
            if self._handle is not None:
                self._flush()
                os.close(self._handle)
                self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, make: Callable[[int, datetime], Row], *, flush: bool) -> None:
        with self._lock:
            handle = self._open()
            raw, chain = seal(self._chain, make(self._index, datetime.now(UTC)))
            done = 0
            try:
                while done < len(raw):
                    done += os.write(handle, raw[done:])
            except OSError as error:
                with suppress(OSError):  # if even that is refused, the next opening finds the row torn
                    os.ftruncate(handle, self._end)
                raise _refused(self.path, self.party, error) from error
            self._end += len(raw)
            self._index, self._chain = self._index + 1, chain
            if flush:
                self._flush()

    def _flush(self) -> None:
        handle = self._open()
        try:
            os.fsync(handle)
        except OSError as error:
            self._handle = None
            os.close(handle)
            raise _refused(self.path, self.party, error) from error

    def _open(self) -> int:
        if self._handle is None:
            raise ConfigError(f"{self.path} is closed").at(self.party, "ledger")
        return self._handle

    def _hold(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._open(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path} is held by another process; does {self.party} run twice on one store? A party "
                "that calls does not serve at the same time: stop its `vfl serve` first"
            ).at(self.party, "ledger") from None

    def _continue(self) -> None:
        """Take up the chain where the file ends; begin it if there is nothing yet."""
        try:
            first, last, self._end, size = _ends(self.path)
            if last:
                self._check_owner(first)
                self._index, self._chain = self._following(last)
            torn = size - self._end
            if torn:
                self._check_torn(self._end)
                os.ftruncate(self._open(), self._end)
            flush_folder(self.path.parent)  # whoever began the file may not have come so far
        except OSError as error:
            raise _refused(self.path, self.party, error) from error
        if not last:
            self._add(
                lambda i, now: HeaderRow(index=i, at=now, party=self.party, version=release()), flush=True
            )
        if torn:
            self._add(lambda i, now: MendedRow(index=i, at=now, cut=torn), flush=True)

    def _check_owner(self, first: bytes) -> None:
        try:
            header: Row | None = parse(unseal(first)[0])
        except ValueError:
            header = None
        if not isinstance(header, HeaderRow):
            raise self._foreign()
        if header.party != self.party:
            raise ConfigError(f"{self.path} is the ledger of {header.party}; give each party its own").at(
                self.party, "ledger"
            )

    def _check_torn(self, start: int) -> None:
        """Check that a torn end is the beginning of a row, since nothing else may be cut off."""
        with self.path.open("rb") as file:
            file.seek(start)
            found = file.read(len(BEGINNING)).rstrip(b"\0")  # a loss of power can leave zeros
        if not BEGINNING.startswith(found):
            raise self._foreign()

    def _foreign(self) -> VflError:
        return DataError(
            f"{self.path} is no ledger, or its first row was changed. Move it away to begin a new one"
        ).at(self.party, "ledger")

    def _following(self, last: list[bytes]) -> tuple[int, bytes]:
        """Return the index and chain for the next row, from the last two."""
        try:
            before = unseal(last[0])[1] if len(last) == 2 else START
            content, chain = unseal(last[-1])
            if follow(before, content) == chain:
                return parse(content).index + 1, chain
        except ValueError:
            pass
        raise DataError(
            f"the last row of {self.path} does not follow from the one before; `vfl ledger verify` names the "
            "first that is wrong. Move the file away to begin a new one"
        ).at(self.party, "ledger")


def _ends(path: Path) -> tuple[bytes, list[bytes], int, int]:
    """Return the first row, the last two whole rows, and the bytes up to the last newline and in all."""
    with path.open("rb") as file:
        size, block = file.seek(0, os.SEEK_END), 1 << 12
        while True:
            start = max(0, size - block)
            file.seek(start)
            found = file.read(size - start)
            # Newlines before, between and after two whole rows are three, unless the file begins there.
            if start == 0 or found.count(b"\n") >= 3:
                break
            block *= 2
        length = found.rfind(b"\n") + 1
        last = found[:length].split(b"\n")[:-1][-2:]
        file.seek(0)
        first = file.readline().rstrip(b"\n") if last else b""
    return first, last, start + length, size


def _refused(path: Path, party: str, error: OSError) -> VflError:
    return DataError(
        f"the ledger {path} cannot be written: {error.strerror or error}. What it held is intact; is there "
        "space, and may this user write there?"
    ).at(party, "ledger")

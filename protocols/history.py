"""What earlier jobs of one peer used of one table: how a policy counts, and compares, over time.

Takes part: one party, alone; nothing here leaves it. Kept in its store, as `_history/<peer>.<table>.npz`:
which predict jobs began, which ids they predicted, the distinct row sets that models were fitted on, and for
each attempt that compared ids when that was, how many the peer announced and how many of them matched. No id
is kept: each stands as BLAKE2b-128 under a key of this store (`_history/key`), so the file without the key
tells nobody who is in it, and with the key it can only be tested against guesses. Among 2**40 ids two collide
with probability below 2**-48.

Row sets of one table overlap, so ids are kept once, sorted, and a set is one bit for each of them, in memory
too. What there is of one peer and table is thus bounded by the ids of the table and by the number of row sets
that a policy grants (`max_fits`): none is forgotten, which would let a later one differ from it by one row.
Alignments are kept one by one for `KEPT`, and older ones as one sum.

Sources: BLAKE2, RFC 7693.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError, DataError

SIZE = 16  # bytes of a fingerprint
KEY = 32  # bytes of the key
FORMAT = 2
PRINT = np.dtype((np.void, SIZE))
# One attempt that compared ids: seconds since 1970, what stands for its job, how many ids the peer announced,
# how many of them matched (the most that can have, where this party did not learn it).
ALIGNMENT = np.dtype([("when", "<i8"), ("job", PRINT), ("announced", "<i8"), ("matched", "<i8")])
KEPT = timedelta(days=8)  # for which each alignment is kept by itself
MOST = 4096  # that are
_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[A-Za-z0-9][A-Za-z0-9_-]*")
Prints = NDArray[np.void]  # sorted, distinct
Bits = NDArray[np.bool_]
Rows = NDArray[Any]  # of ALIGNMENT


def _none() -> Prints:
    return np.empty(0, PRINT)


@dataclass(frozen=True, eq=False)
class History:
    """What earlier jobs used. A value: what adds to it returns another."""

    key: bytes = field(repr=False)
    jobs: Prints = field(default_factory=_none, repr=False)  # of the predict jobs that began
    ids: Prints = field(default_factory=_none, repr=False)  # (n,), all that any job used
    predicted: Bits = field(default_factory=lambda: np.empty(0, bool), repr=False)  # (n,)
    # (sets, bytes) uint8: of each set, one bit for each of `ids`; no two alike.
    fits: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0), np.uint8), repr=False)
    aligned: Rows = field(default_factory=lambda: np.empty(0, ALIGNMENT), repr=False)  # the oldest first

    @property
    def predictions(self) -> int:
        """How many predict jobs began."""
        return len(self.jobs)

    @property
    def distinct(self) -> int:
        """How many distinct ids were predicted, in all."""
        return int(self.predicted.sum())

    @property
    def found(self) -> int:
        """How many distinct ids the peer has found here, in all, as far as this party was to learn which."""
        return len(self.ids)

    def since(self, when: datetime) -> Rows:
        """The alignments at `when` and later; those that are one sum count from the last of them."""
        found: Rows = self.aligned[self.aligned["when"] >= int(when.timestamp())]
        return found

    def of(self, job: str) -> Rows:
        """The alignments of one job: one for each attempt that compared ids, not for one that went on after
        it."""
        found: Rows = self.aligned[self.aligned["job"] == self._print(job)]
        return found

    def with_alignment(self, job: str, announced: int, most: int, when: datetime) -> History:
        """With an attempt at `job` for which the peer announced so many ids; at `most` so many match."""
        latest = self.aligned["when"].max(initial=0)  # a clock that is set back makes none older
        row = np.array([(max(latest, int(when.timestamp())), self._print(job), announced, most)], ALIGNMENT)
        return replace(self, aligned=_summed(np.concatenate([self.aligned, row]), when - KEPT))

    def with_matched(self, job: str, matched: int) -> History:
        """With how many ids matched in the last alignment of `job`; the same history where there is none."""
        at = np.flatnonzero(self.aligned["job"] == self._print(job))
        if not len(at) or self.aligned["matched"][at[-1]] == matched:
            return self
        aligned = self.aligned.copy()
        aligned["matched"][at[-1]] = matched
        return replace(self, aligned=aligned)

    def with_found(self, rows: Prints) -> History:
        """With the ids of these rows among those that the peer has found here."""
        return self if np.isin(rows, self.ids).all() else self._grown(rows)[0]

    def _print(self, name: str) -> np.void:
        found: np.void = self.fingerprints([name.encode()])[0]
        return found

    def fingerprints(self, ids: Iterable[bytes]) -> Prints:
        """What stands for these canonical ids here: sorted, each once."""
        keyed = hashlib.blake2b(digest_size=SIZE, key=self.key)

        def one(value: bytes) -> bytes:
            state = keyed.copy()  # the key's block is compressed once
            state.update(value)
            return state.digest()

        return np.unique(np.frombuffer(b"".join(map(one, ids)), PRINT))

    def began(self, job: str) -> bool:
        """Whether `job` is among the predict jobs that began."""
        return bool(np.isin(self.fingerprints([job.encode()]), self.jobs).item())

    def with_prediction(self, job: str) -> History:
        """With `job` among the predict jobs; the same job twice is one job."""
        return replace(self, jobs=np.union1d(self.jobs, self.fingerprints([job.encode()])))

    def with_predicted(self, rows: Prints) -> History:
        """With the ids of these rows among those predicted."""
        grown, used = self._grown(rows)
        return (
            self if not (used & ~grown.predicted).any() else replace(grown, predicted=grown.predicted | used)
        )

    def with_fit(self, rows: Prints) -> History:
        """With this set of rows among those that models were fitted on."""
        grown, used = self._grown(rows)
        if 0 in _differences(grown.fits, used):
            return self
        return replace(grown, fits=np.vstack([grown.fits, np.packbits(used)[None]]))

    def nearest_fit(self, rows: Prints) -> int | None:
        """By how many rows this set differs from the most similar earlier one that is not equal to it.

        None where there is no such set. Rows in either and not in both count.
        """
        grown, used = self._grown(rows)
        return min((n for n in _differences(grown.fits, used) if n), default=None)

    def fitted(self, rows: Prints) -> bool:
        """Whether a model was fitted on exactly this set of rows."""
        grown, used = self._grown(rows)
        return 0 in _differences(grown.fits, used)

    def _grown(self, rows: Prints) -> tuple[History, Bits]:
        """This history with room for `rows`, and which of its ids they are."""
        if np.isin(rows, self.ids).all():
            return self, np.isin(self.ids, rows)
        united = np.union1d(self.ids, rows)
        place = np.searchsorted(united, self.ids)

        def moved(known: Bits) -> Bits:
            there = np.zeros(len(united), bool)
            there[place] = known
            return there

        every = [moved(np.unpackbits(one, count=len(self.ids)).astype(bool)) for one in self.fits]
        fits = np.stack([np.packbits(one) for one in every]) if every else _no_fits(len(united))
        used = np.isin(united, rows)
        return replace(self, ids=united, predicted=moved(self.predicted), fits=fits), used


def _no_fits(ids: int) -> NDArray[np.uint8]:
    return np.empty((0, (ids + 7) // 8), np.uint8)


def _differences(fits: NDArray[np.uint8], used: Bits) -> list[int]:
    """By how many rows each of these sets differs from that one."""
    packed = np.packbits(used)
    return [int(np.bitwise_count(one ^ packed).sum()) for one in fits]  # one by one: all may be large


def _summed(aligned: Rows, before: datetime) -> Rows:
    """The same with all that is older than `before`, or more than the `MOST` latest, as one row in front."""
    old = max(int((aligned["when"] < int(before.timestamp())).sum()), len(aligned) - MOST)
    if old < 2:
        return aligned
    first = np.zeros(1, ALIGNMENT)
    first["when"] = aligned["when"][:old].max()
    for name in ("announced", "matched"):
        first[name] = aligned[name][:old].sum()
    return np.concatenate([first, aligned[old:]])


class Histories:
    """All of one store, each of which is read from the disk once, and again where its file has changed.

    Any thread may call; who saves holds the store, and runs one job at a time.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: dict[Path, tuple[Any, History]] = {}

    def load(self, peer: str, table: str) -> History:
        """As `load_history`."""
        place, key = _place(self._store, peer, table), _key(self._store)
        stamp, known = _stamp(place), self._known.get(place)
        if known is not None and known[0] == stamp and known[1].key == key:
            return known[1]
        history = load_history(self._store, peer, table)
        self._known[place] = stamp, history  # if it was written meanwhile, it is read again
        return history

    def save(self, peer: str, table: str, history: History) -> None:
        """As `save_history`."""
        save_history(self._store, peer, table, history)
        place = _place(self._store, peer, table)
        self._known[place] = _stamp(place), history


def _stamp(place: Path) -> tuple[int, int, int] | None:
    """Tells one state of a file from another; None where there is none."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def load_history(store: Path, peer: str, table: str) -> History:
    """The history of `peer` and `table` in a store; an empty one where no job was.

    The store's key is made if there is none. DataError, and no job, where the key or the file is damaged or
    they do not belong together: a history that cannot be read must not count as empty.
    """
    key = _key(store)
    place = _place(store, peer, table)
    if not place.exists():
        return History(key)
    try:
        with place.open("rb") as content, np.load(content, allow_pickle=False) as file:
            return _checked(key, dict(file))
    except OSError as error:
        raise _unread(place, error.strerror or "it cannot be read") from None
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError):
        raise _unread(place, "it is damaged or of another store's key") from None


def save_history(store: Path, peer: str, table: str, history: History) -> None:
    """Write it whole or not at all, and durably. DataError for what the disk refuses."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **_arrays(history))
    place = _place(store, peer, table)
    try:
        _write(place, content.getvalue())
    except OSError as error:
        raise DataError(
            f"{place}: was not saved: {error.strerror or error}; no job goes on without its history. "
            "Is the store writable and is there space?"
        ) from None


def _arrays(history: History) -> dict[str, NDArray[Any]]:
    return {
        "format": np.array(FORMAT),
        "check": np.frombuffer(_check(history.key), np.uint8),
        "jobs": history.jobs,
        "ids": history.ids,
        "predicted": np.packbits(history.predicted),
        "fits": history.fits,
        "aligned": history.aligned,
    }


def _checked(key: bytes, arrays: dict[str, NDArray[Any]]) -> History:
    """ValueError or KeyError for arrays that no `save_history` with this key wrote."""
    jobs, ids = arrays["jobs"], arrays["ids"]
    width = (len(ids) + 7) // 8
    fits, predicted, aligned = arrays["fits"], arrays["predicted"], arrays["aligned"]
    whole = (
        int(arrays["format"]) == FORMAT
        and arrays["check"].tobytes() == _check(key)
        and all(a.dtype == PRINT and a.ndim == 1 and np.array_equal(np.unique(a), a) for a in (jobs, ids))
        and all(a.dtype == np.uint8 for a in (fits, predicted))
        and predicted.shape == (width,)
        and fits.ndim == 2
        and fits.shape[1] == width
        and aligned.dtype == ALIGNMENT
        and aligned.ndim == 1
    )
    if not whole:
        raise ValueError("not a history of this store")
    bits = np.unpackbits(predicted, count=len(ids)).astype(bool)
    return History(key, jobs, ids, bits, fits, aligned)


def _check(key: bytes) -> bytes:
    """Tells the key from others without showing it."""
    return hashlib.blake2b(b"a history of vfl serve", digest_size=SIZE, key=key, person=b"check").digest()


def _place(store: Path, peer: str, table: str) -> Path:
    if not _NAMES.fullmatch(f"{peer}.{table}"):
        raise ConfigError(f"no history of {peer!r} and {table!r}: they are no names of a party and a table")
    return store / "_history" / f"{peer}.{table}.npz"  # no run id begins with an underscore


def _key(store: Path) -> bytes:
    place = store / "_history" / "key"
    try:
        if place.exists():
            key = place.read_bytes()
            if len(key) != KEY:
                raise _unread(place, f"it has {len(key)} bytes, expected {KEY}")
            return key
        if any(place.parent.glob("*.npz")):
            # A new key would match no earlier id, and so reset every budget without a word.
            raise _unread(place, "it is missing beside the histories that it belongs to")
        key = secrets.token_bytes(KEY)
        _write(place, key)
        return key
    except OSError as error:
        raise _unread(place, error.strerror or "the disk refused") from None


def _write(place: Path, content: bytes) -> None:
    """Write beside `place`, flush, rename, and make the name durable (Windows does that by itself)."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name != "nt":
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unread(place: Path, why: str) -> DataError:
    return DataError(
        f"{place}: {why}; restore it from a backup, or remove the whole folder to forget all earlier jobs"
    )

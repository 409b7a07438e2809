"""What earlier jobs of one peer used of one table: how a policy counts, and compares, over time.

Takes part: one party, alone; nothing here leaves it. Kept in its store, as `_history/<peer>.<table>.npz`:
which predict jobs began, which ids they predicted, and the distinct row sets that models were fitted on. No
id is kept: each stands as BLAKE2b-128 under a key of this store (`_history/key`), so the file without the key
tells nobody who is in it, and with the key it can only be tested against guesses. Among 2**40 ids two collide
with probability below 2**-48.

Row sets of one table overlap, so ids are kept once, sorted, and a set is one bit for each of them.

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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols import private
from protocols.errors import ConfigError, DataError

SIZE = 16  # bytes of a fingerprint
KEY = 32  # bytes of the key
FORMAT = 1
PRINT = np.dtype((np.void, SIZE))
_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[A-Za-z0-9][A-Za-z0-9_-]*")
Prints = NDArray[np.void]  # sorted, distinct
Bits = NDArray[np.bool_]


def _none() -> Prints:
    return np.empty(0, PRINT)


@dataclass(frozen=True, eq=False)
class History:
    """What earlier jobs used. A value: what adds to it returns another."""

    key: bytes = field(repr=False)
    jobs: Prints = field(default_factory=_none, repr=False)  # of the predict jobs that began
    ids: Prints = field(default_factory=_none, repr=False)  # (n,), all that any job used
    predicted: Bits = field(default_factory=lambda: np.empty(0, bool), repr=False)  # (n,)
    fits: Bits = field(default_factory=lambda: np.empty((0, 0), bool), repr=False)  # (sets, n), no two alike

    @property
    def predictions(self) -> int:
        """How many predict jobs began."""
        return len(self.jobs)

    @property
    def distinct(self) -> int:
        """How many distinct ids were predicted, in all."""
        return int(self.predicted.sum())

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
        return replace(grown, predicted=grown.predicted | used)

    def with_fit(self, rows: Prints) -> History:
        """With this set of rows among those that models were fitted on."""
        grown, used = self._grown(rows)
        if (grown.fits == used).all(axis=1).any():
            return self
        return replace(grown, fits=np.vstack([grown.fits, used]))

    def nearest_fit(self, rows: Prints) -> int | None:
        """By how many rows this set differs from the most similar earlier one that is not equal to it.

        None where there is no such set. Rows in either and not in both count.
        """
        grown, used = self._grown(rows)
        differing = (grown.fits ^ used).sum(axis=1)
        differing = differing[differing > 0]
        return int(differing.min()) if len(differing) else None

    def _grown(self, rows: Prints) -> tuple[History, Bits]:
        """This history with room for `rows`, and which of its ids they are."""
        united = np.union1d(self.ids, rows)
        place = np.searchsorted(united, self.ids)
        predicted = np.zeros(len(united), bool)
        predicted[place] = self.predicted
        fits = np.zeros((len(self.fits), len(united)), bool)
        fits[:, place] = self.fits
        used = np.zeros(len(united), bool)
        used[np.searchsorted(united, rows)] = True
        return replace(self, ids=united, predicted=predicted, fits=fits), used


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
        "fits": np.packbits(history.fits, axis=1),
    }


def _checked(key: bytes, arrays: dict[str, NDArray[Any]]) -> History:
    """ValueError or KeyError for arrays that no `save_history` with this key wrote."""
    jobs, ids = arrays["jobs"], arrays["ids"]
    width = (len(ids) + 7) // 8
    fits, predicted = arrays["fits"], arrays["predicted"]
    whole = (
        int(arrays["format"]) == FORMAT
        and arrays["check"].tobytes() == _check(key)
        and all(a.dtype == PRINT and a.ndim == 1 and np.array_equal(np.unique(a), a) for a in (jobs, ids))
        and all(a.dtype == np.uint8 for a in (fits, predicted))
        and predicted.shape == (width,)
        and fits.ndim == 2
        and fits.shape[1] == width
    )
    if not whole:
        raise ValueError("not a history of this store")
    bits = np.unpackbits(predicted, count=len(ids)).astype(bool)
    rows = np.unpackbits(fits, axis=1, count=len(ids)).astype(bool)
    return History(key, jobs, ids, bits, rows)


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
    private.make(place.parent)
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

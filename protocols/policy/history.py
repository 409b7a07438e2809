"""Where a party keeps what earlier jobs used: `_history/<peer>.<table>.npz` in its store, and one key.

Takes part: one party, alone; nothing here leaves it. `protocols.policy.past` says what is kept and what the
key is for. A history that cannot be read does not count as empty: it stops further jobs.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError, DataError
from protocols.files import write_whole
from protocols.policy.past import ALIGNMENT, PRINT, SIZE
from protocols.policy.past import History as History

KEY = 32  # bytes of the key
FORMAT = 2
_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[A-Za-z0-9][A-Za-z0-9_-]*")


class Histories:
    """All histories of one store. Each is read from the disk once, and again when its file has changed.

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
    """Return a stamp that tells one state of a file from another; None where there is no file."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def load_history(store: Path, peer: str, table: str) -> History:
    """Load the history of `peer` and `table` from a store; an empty one if there was no job yet.

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
    """Write a history durably, whole or not at all. Raises DataError if the disk refuses."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {**_arrays(history)}
    np.savez(content, **arrays)  # no objects among them, so nothing is pickled
    place = _place(store, peer, table)
    try:
        write_whole(place, content.getvalue())
    except DataError as error:
        raise DataError(f"{error}; no job goes on without its history") from error.__context__


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
    """Check arrays: ValueError or KeyError for those that no `save_history` with this key wrote."""
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
    """Return a check value that tells the key from others without showing it."""
    return hashlib.blake2b(b"a history of vfl serve", digest_size=SIZE, key=key, person=b"check").digest()


def _place(store: Path, peer: str, table: str) -> Path:
    if not _NAMES.fullmatch(f"{peer}.{table}"):
        raise ConfigError(f"no history of {peer!r} and {table!r}: they are no names of a party and a table")
    return store / "_history" / f"{peer}.{table}.npz"  # no run id begins with an underscore


def secret_of(store: Path, job: str) -> str:
    """Return a secret for `job` that only this store's party can know, the same each time: 32 hex digits.

    DataError as for a history.
    """
    keyed = hashlib.blake2b(job.encode(), digest_size=SIZE, key=_key(store), person=b"secret of a job")
    return keyed.hexdigest()


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
        write_whole(place, key)
        return key
    except OSError as error:
        raise _unread(place, error.strerror or "the disk refused") from None


def _unread(place: Path, why: str) -> DataError:
    return DataError(
        f"{place}: {why}; restore it from a backup, or remove the whole folder to forget all earlier jobs"
    )

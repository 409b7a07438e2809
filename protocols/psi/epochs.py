"""What is kept between two unbalanced comparisons: at the large side an epoch, at the small side its marks.

One party, about its own store; nothing leaves it here. `protocols.psi.unbalanced` says what an epoch is.

    <store>/unbalanced/for-PEER.epoch    the epoch: its secret key, and digests of the two files beside it
                       for-PEER.marks    its marks, sorted
                       for-PEER.owners   whose each mark is
                       from-PEER.marks   the marks that PEER sent, where PEER is the large side

The folder and the files are for their owner only: whoever reads an epoch can test guesses against its marks.
Each file is written whole (`protocols.files`), and the epoch's own last. So what a crash leaves, or whatever
else damages a file, does not fit its digest and is read as nothing at all. There is one
epoch with each peer: another table's begins where this one's ends. Processes that share a store take turns
(not on Windows), so that none counts what another has counted over, or brings back what was deleted.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from protocols.arrays import Array
from protocols.errors import DataError
from protocols.files import leftovers, make_folder, remove, sealed, unsealed, write_whole

if sys.platform != "win32":
    import fcntl

FOLDER = "unbalanced"


@dataclass(frozen=True, eq=False)
class Epoch:
    """One key of the large side's, and what was made with it. The arrays may be mapped from disk."""

    key: bytes = field(repr=False)  # the scalar
    salt: bytes = field(repr=False)  # the key of the hash
    ids: bytes = field(repr=False)  # which ids it was made of, in which order: their digest under `key`
    marks: Array = field(repr=False)  # uint8 (n, w), ascending
    owners: NDArray[np.uint32] = field(repr=False)  # (n,): of each mark, its id's place among the ids
    digest: bytes = field(repr=False)  # SHA-256 of the marks
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    asked: int = 0  # ids that the peer asked about so far


def _from_hex(value: object) -> object:
    return bytes.fromhex(value) if isinstance(value, str) else value


Secret = Annotated[  # 32 bytes, in hex on disk
    bytes,
    Field(min_length=32, max_length=32, repr=False),
    BeforeValidator(_from_hex),
    PlainSerializer(bytes.hex, return_type=str, when_used="json"),
]


class _Kept(BaseModel):
    """An epoch without its arrays."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1
    key: Secret
    salt: Secret
    ids: Secret
    shape: tuple[int, int]
    digest: Secret
    owners: Secret  # their SHA-256
    created: AwareDatetime
    asked: int


def save_epoch(store: Path, peer: str, epoch: Epoch) -> None:
    """Keep `epoch` in place of any other for `peer`. DataError for what the disk refuses."""
    place = _places(store, peer)
    with _turn(store):
        _delete([place["epoch"]])  # so that no key stands beside marks of another, even for a moment
        write_whole(place["marks"], _bytes(epoch.marks))
        write_whole(place["owners"], _bytes(epoch.owners))
        _keep(store, peer, epoch)


def take_up(store: Path, peer: str, m: int, goes_on: Callable[[Epoch], bool]) -> Epoch | None:
    """The epoch that is kept for `peer`, where it `goes_on`, with m more ids asked about, which is on disk
    then; None for another or none. DataError for what the disk refuses.
    """
    with _turn(store):
        kept = load_epoch(store, peer)
        if kept is None or not goes_on(kept):
            return None
        epoch = replace(kept, asked=kept.asked + m)
        _keep(store, peer, epoch)
        return epoch


def _keep(store: Path, peer: str, epoch: Epoch) -> None:
    """All but the arrays, durably."""
    kept = _Kept(
        key=epoch.key,
        salt=epoch.salt,
        ids=epoch.ids,
        shape=epoch.marks.shape,
        digest=epoch.digest,
        owners=digest_of(epoch.owners),
        created=epoch.created,
        asked=epoch.asked,
    )
    content = kept.model_dump_json().encode()
    write_whole(_places(store, peer)["epoch"], sealed(content))


def load_epoch(store: Path, peer: str) -> Epoch | None:
    """The epoch that is kept for `peer`; None if there is none, or it is not whole."""
    place = _places(store, peer)
    try:
        content = unsealed(place["epoch"].read_bytes())
        if content is None:
            return None
        kept = _Kept.model_validate_json(content)
    except (OSError, ValidationError):
        return None
    marks = _map(place["marks"], np.dtype(np.uint8), kept.shape, kept.digest)
    owners = _map(place["owners"], np.dtype(np.uint32), kept.shape[:1], kept.owners)
    if marks is None or owners is None:
        return None
    return Epoch(kept.key, kept.salt, kept.ids, marks, owners, kept.digest, kept.created, kept.asked)


def save_marks(store: Path, peer: str, marks: Array) -> None:
    """Keep what `peer` sent, in place of what it sent before. DataError for what the disk refuses."""
    with _turn(store):
        write_whole(_places(store, peer)["received"], _bytes(marks))


def load_marks(store: Path, peer: str, shape: tuple[int, int], digest: bytes) -> Array | None:
    """What `peer` sent, mapped from disk; None unless it is kept and has this shape and SHA-256."""
    return _map(_places(store, peer)["received"], np.dtype(np.uint8), shape, digest)


def forget(store: Path, peer: str) -> bool:
    """Delete all that is kept of comparisons with `peer`, and what a killed process left of it; whether there
    was anything. DataError for what the disk refuses.
    """
    if not (store / FOLDER).exists():
        return False
    places = _places(store, peer).values()
    with _turn(store):
        return _delete([*places, *(file for path in places for file in leftovers(path.parent, path.name))])


def digest_of(array: Array) -> bytes:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(_bytes(array)).digest()


def _places(store: Path, peer: str) -> dict[str, Path]:
    folder, name = store / FOLDER, quote(peer, safe="")
    own = {kind: folder / f"for-{name}.{kind}" for kind in ("epoch", "marks", "owners")}
    return {**own, "received": folder / f"from-{name}.marks"}


@contextmanager
def _turn(store: Path) -> Iterator[None]:
    """While it lasts, no other process writes here. Of what it makes, only the lock is beside the folder."""
    try:
        make_folder(store / FOLDER)
        handle = os.open(store / f"{FOLDER}-lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"{store / FOLDER} cannot be written: {error.strerror or error}") from None
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which gives the lock back


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _map(path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...], digest: bytes) -> Array | None:
    try:
        if path.stat().st_size != dtype.itemsize * int(np.prod(shape)):
            return None
        mapped = np.memmap(path, dtype, "r", shape=shape)
    except (OSError, ValueError):
        return None
    return np.asarray(mapped) if digest_of(mapped) == digest else None


def _delete(paths: Iterable[Path]) -> bool:
    try:
        return remove(paths)
    except OSError as error:
        raise DataError(f"what is kept was not deleted: {error.strerror or error}") from None

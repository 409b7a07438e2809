"""Every file and folder that this package writes whole: a reader finds all of it or what was there before.

Takes part: one process, alone. The new file is written under a hidden name beside its place, flushed to the
disk, and renamed; then the folder is flushed, since until then only the running system knows the new name. So
a kill and a loss of power leave the old file or the new one, and once the call has returned, the new one. A
process that is killed while it writes leaves the hidden file: nothing reads it, and `leftovers` finds it.

Source: Pillai et al., "All file systems are not created equal", OSDI 2014, section 2: a rename alone orders
nothing, and the name of a new file is no more durable than its folder.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

from protocols.errors import ConfigError, DataError

OWNER_ONLY, AS_USUAL = 0o600, 0o666  # modes of new files; what the user's umask forbids is taken off
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that flush files only
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_SEAL = 2 * hashlib.sha256().digest_size + 1  # hexadecimal and a newline


@cache
def release() -> str:
    """The version of vfl-toolkit that runs here."""
    try:
        return version("vfl-toolkit")
    except PackageNotFoundError:
        return "not installed"


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, for its owner only; the names last through a loss of power.

    A folder that is there stays as it is.
    """
    if folder.exists():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk. Windows neither needs nor allows it.

    Raises OSError if the disk refuses, but not if the file system has no such flush.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = OWNER_ONLY, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a new file that replaces `path` when the block ends; if the block fails, `path` stays as it was.

    durable: whether the file is flushed. If not, a loss of power can leave anything in it, so this suits only
    a file that its reader can check and do without. OSError for what the disk refuses.
    """
    new = _unfinished(path)
    try:
        with _new_file(new, mode, durable) as file:
            yield file
        os.replace(new, path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    if durable:
        flush_folder(path.parent)


@contextlib.contextmanager
def _new_file(path: Path, mode: int, durable: bool) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode), "wb") as file:
        yield file
        if durable:
            file.flush()
            os.fsync(file.fileno())


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write what a party keeps for itself, and the folders above it, all readable by the owner only.

    durable: as for `whole_file`. DataError for what the disk refuses.
    """
    try:
        make_folder(path.parent)
        with whole_file(path, durable=durable) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; is there space, and may we write there?"
        ) from None


def write_out(path: str | Path, content: str | bytes) -> Path:
    """Write what a person asked for, where they asked for it, with their usual permissions; returns the path.

    ConfigError for a folder that is not there, and for what the disk refuses.
    """
    place = Path(path)
    try:
        with whole_file(place, mode=AS_USUAL) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(f"cannot write {place}: {error.strerror or error}") from None
    return place


def write_folder(place: Path, content: Mapping[str, bytes]) -> None:
    """Write a folder of files, by name, which appears at `place` with all of them or not at all.

    The folder and its files are readable by the owner only. OSError for what the disk refuses, and where
    `place` is there already and not empty.
    """
    make_folder(place.parent)
    new = _unfinished(place)
    try:
        new.mkdir(mode=0o700)
        for name, written in content.items():
            with _new_file(new / name, OWNER_ONLY, durable=True) as file:
                file.write(written)
        flush_folder(new)
        os.replace(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    flush_folder(place.parent)


def remove(paths: Iterable[Path], *, durable: bool = True) -> bool:
    """Delete those of these files that exist, and return whether any did.

    durable: whether the deletion is flushed; if not, a loss of power can bring the files back. Raises OSError
    if the disk refuses.
    """
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        path.unlink(missing_ok=True)
    if durable:
        for folder in {path.parent for path in there}:
            flush_folder(folder)
    return bool(there)


def remove_folder(place: Path) -> None:
    """Delete a folder and all in it durably. Even after a crash halfway, no part of it is left at `place`.

    OSError for what the disk refuses; what was not deleted is hidden beside `place`.
    """
    doomed = _unfinished(place)
    os.replace(place, doomed)
    flush_folder(place.parent)  # or a loss of power could bring the name back, and not all of the content
    shutil.rmtree(doomed)


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Find hidden files in `folder` that killed processes left while writing `name`, or any file."""
    return [*folder.glob(f".{name if name == '*' else glob.escape(name)}.{'?' * 16}.new")]


def sealed(content: bytes) -> bytes:
    """Put the SHA-256 of `content` before it, so that `unsealed` can tell a whole file from a torn one."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unsealed(written: bytes) -> bytes | None:
    """Return the content that `sealed` wrapped, or None for anything else, such as a torn file."""
    content = written[_SEAL:]
    return content if written == sealed(content) else None


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")

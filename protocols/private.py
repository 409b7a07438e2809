"""Files that only their owner may read: stores and keys.

Takes part: one party, alone. Whoever else has an account on its machine should see nothing of what it keeps.
A folder that `protocols.files` makes is its owner's from the start; a store that others could look into is
closed when it is opened; and a key that others could read is refused, as ssh refuses it. What belongs to
somebody else may be open to its group, which in a container is how a service is given its files. Windows has
no such modes: there, nothing is checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from protocols.errors import ConfigError

_OTHERS, _ALL_OTHERS = 0o007, 0o077


def opener(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=opener)`; a file that it creates is readable by its owner only."""
    return os.open(path, flags, 0o600)


def secure(folder: Path, holds: Iterable[str]) -> None:
    """Deny everybody but the owner access to `folder` and to everything in it that `holds` names.

    Raises ConfigError if access cannot be restricted.
    """
    if os.name != "posix":
        return
    for path in (folder, *chain.from_iterable(_below(folder / name) for name in holds)):
        try:
            known = path.stat()
        except FileNotFoundError:
            continue
        if not _open_to(known):
            continue
        try:
            path.chmod(stat.S_IMODE(known.st_mode) & 0o700)
            closed = not _open_to(path.stat())
        except OSError:
            closed = False
        if not closed:
            raise ConfigError(
                f"{path} can be read by others (mode {stat.S_IMODE(known.st_mode):04o}) and we may not close "
                f"it: `chmod -R go-rwx {folder}` as its owner, or let the store be a new folder, such as one "
                "below this. A file system without such modes cannot hold a store"
            )


def read_key(path: Path) -> bytes:
    """Read a private key's file. Raises OSError as `open` does, ConfigError if others could read it too."""
    with path.open("rb") as file:
        known = os.fstat(file.fileno())
        bits = _open_to(known) if os.name == "posix" else 0
        if bits:
            raise ConfigError(
                f"{path} can be read by others (mode {stat.S_IMODE(known.st_mode):04o}), so it is not used: "
                f"`chmod {'go' if bits == _ALL_OTHERS else 'o'}-rwx {path}`, and renew the key if anybody "
                "else has an account there"
            )
        return file.read()


def _open_to(known: os.stat_result) -> int:
    """Return all the mode bits that are forbidden if any of them is set, else 0."""
    forbidden = _ALL_OTHERS if known.st_uid == os.geteuid() else _OTHERS
    return forbidden if known.st_mode & forbidden else 0


def _below(path: Path) -> Iterator[Path]:
    """Yield `path` and all below it, without links to elsewhere."""
    if not path.is_symlink():
        yield path
        for above, folders, files in os.walk(path):
            found = (Path(above, name) for name in (*folders, *files))
            yield from (path for path in found if not path.is_symlink())

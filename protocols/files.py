"""Files written whole or not at all, for their owner only; and which release of this package runs.

No line is involved.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from protocols import private
from protocols.errors import DataError


@cache
def release() -> str:
    """The version of vfl-toolkit that runs here."""
    try:
        return version("vfl-toolkit")
    except PackageNotFoundError:
        return "not installed"


def unfinished(path: Path) -> Path:
    """Where `write_whole` writes what becomes `path`; a process that was killed leaves it there."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Whole or not at all, readable by the owner only."""
    try:
        private.make(path.parent)
        new = unfinished(path)
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; is there space, and may we write there?"
        ) from None

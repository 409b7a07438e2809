"""What is said to `vfl psi` on the command line, checked before any work is done.

All here raise ConfigError for what cannot be meant, naming the option.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from protocols.errors import ConfigError, nearest
from protocols.settings import MOST_COLUMNS


def id_columns(given: Sequence[str], parties: Sequence[str]) -> dict[str, list[str]]:
    """Each party's id columns, from COLUMN for all of them or PARTY=COLUMN for each."""
    common = [one for one in given if "=" not in one]
    own = pairs([one for one in given if "=" in one], "--id", "PARTY=COLUMN")
    alien = [f"there is no party {name!r}{nearest(name, parties)}" for name in own if name not in parties]
    absent = [f"{name} has none" for name in parties if not common and name not in own]
    if len(common) > 1 or alien or absent:
        said = "; ".join(alien or absent) if given else ""
        raise ConfigError("give --id COLUMN, or --id PARTY=COLUMN for every party" + (said and f": {said}"))
    return {party: columns(own.get(party, *common)) for party in parties}


def columns(said: str) -> list[str]:
    """The columns that make an id together."""
    names = said.split(",")
    if not all(names) or len(set(names)) < len(names) or len(names) > MOST_COLUMNS:
        raise ConfigError(f"--id {said}: expected 1 to {MOST_COLUMNS} columns by comma, none of them twice")
    return names


def pairs(given: Sequence[str], option: str, form: str) -> dict[str, str]:
    """What each party is given by an option of the form PARTY=..., in the order given."""
    found: dict[str, str] = {}
    for said in given:
        name, equals, value = said.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {said}: expected {form}")
        if name in found:
            raise ConfigError(f"{option} is given twice for {name}")
        found[name] = value
    return found


def check_out(out: Path) -> None:
    """Whether a table can be written to this file."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out}: expected a file that ends in .csv or .parquet")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no directory {out.absolute().parent}")
    check_folder(out, out.absolute().parent)


def check_folder(out: Path, folder: Path) -> None:
    """Whether this user may write in `folder`, or make it."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not os.path.isdir(there):
        raise ConfigError(f"--out {out}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: this user may not write in {there}")

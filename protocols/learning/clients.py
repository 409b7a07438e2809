"""Row-clients and their tables, before the first word: who they are, which columns they learn from.

K clients, each with rows of the same columns, and a server without data. No client knows another's column
names, so each takes its own in sorted order, and tells the server how many there are and a digest of their
names. The server learns whether all clients' columns are the same. It learns no name that it cannot guess,
but the digest confirms a guess of all names. It takes in the job, so that it does not show by itself whether
the names are those of an earlier one. Clients learn nothing. Semi-honest: a client could tell the digest of
columns that it does not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from protocols.arrays import Array
from protocols.data.tables import Kind, column, features, labels, numbers
from protocols.errors import ConfigError, DataError, marked
from protocols.party import Coordinator, Party
from protocols.psi.ids import canonical
from protocols.wire.message import Message, Spec

SERVER = "server"  # the party without data


class Columns(
    Message,
    reveals="how many feature columns one client has, and a digest of their names, by which whoever "
    "guesses all of them can confirm the guess",
):
    """A client's first word in training."""

    count: Annotated[int, Field(ge=1)]
    digest: Annotated[Array, Spec("uint8", (32,))]  # SHA-256 of the job and the names, in order


@dataclass(frozen=True)
class Rows:
    """One client's training rows, checked."""

    columns: tuple[Any, ...]  # d names, sorted
    x: Array = field(repr=False)  # (n, d) float64
    y: pd.Series = field(repr=False)  # (n,)
    id: pd.Series | None = field(default=None, repr=False)  # (n,), where the table has an id column


def row_clients(parties: Sequence[str]) -> tuple[str, ...]:
    """All of `parties` but the server, in order. ConfigError without a server, or without a client."""
    clients = tuple(party for party in parties if party != SERVER)
    if not clients or len(clients) == len(parties):
        raise ConfigError(
            f"expected a party {SERVER!r} and one client or more, got {', '.join(parties) or 'nobody'}"
        )
    return clients


def check_clients(names: Iterable[str]) -> None:
    """ConfigError if one whose table is here has the name of the party without data."""
    if SERVER in names:
        raise ConfigError(f"no client can be named {SERVER!r}: that is the party without data; rename it")


def feature_names(table: pd.DataFrame, target: str, id: str | None) -> list[Any]:
    """The columns that a client learns from: all but target and id, whole numbers by size, then text.

    ConfigError for one column as both, DataError for a table without the target or id column, or without any
    other.
    """
    if target == id:
        raise ConfigError(f"column {target!r} is both id and target; choose another id column")
    column(table, target, "target")
    if id is not None:
        column(table, id, "id")
    names = [name for name in table.columns if name not in (target, id)]
    if not names:
        raise DataError("there is no feature column beside the target")
    return in_order(names)


def in_order(names: Iterable[Any]) -> list[Any]:
    """Column names in the order that every client takes them: whole numbers by size, then text."""
    return sorted(names, key=_place)


def read_client(table: pd.DataFrame | None, target: str, id: str | None, kind: Kind) -> Rows:
    """A client's rows, from its own table. ConfigError for none, DataError for one that cannot be used."""
    if table is None:
        raise ConfigError("has no table; every client brings rows")
    names = feature_names(table, target, id)
    y = table[target]
    rows = Rows(tuple(names), features(table, names), y, None if id is None else table[id])
    _ = labels(y) if kind == "classification" else numbers(y)
    return rows


def check_columns(tables: Mapping[str, pd.DataFrame], target: str, id: str | None) -> None:
    """What `same_columns` would find, before any line opens, among the tables that are in one process.

    Columns are compared by counts: a name would tell one client about another's table. DataError, marked
    with the client.
    """
    first: set[tuple[str, str]] = set()
    for client, table in tables.items():
        with marked(client, "fit"):
            own = {_said(name) for name in feature_names(table, target, id)}
            first = first or own
            if own != first:
                raise DataError(
                    f"the table has {len(own)} feature columns: {len(first - own)} of the first client's are "
                    f"missing, {len(own - first)} are not among them; every client needs the same ones"
                )


async def tell_columns(at: Party, server: str, rows: Rows) -> None:
    """A client's half, and its first message: before it, its policy is asked about the rows."""
    if rows.id is not None:
        await at.compute(at.guard.rows, canonical_ids(rows.id), cost=0.0)
    at.guard.group(len(rows.x))
    said = json.dumps([at.desk.job, [_said(name) for name in rows.columns]])
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
    await at.send(server, Columns(count=len(rows.columns), digest=digest))


async def same_columns(at: Coordinator, clients: Sequence[str]) -> int:
    """The server's half: how many feature columns all `clients` have. DataError unless they are the same."""
    told = await at.gather(Columns, of=clients)
    first, *others = told
    for client in others:
        if told[client] != told[first]:
            error = DataError(
                f"{client} has {told[client].count} feature columns and {first} {told[first].count}, and not "
                "the same ones; every client needs columns of the same names and no others"
            )
            error.told = str(error)  # counts, and no name of a column
            raise error
    return told[first].count


def canonical_ids(ids: pd.Series) -> Iterator[bytes]:
    """The distinct ids as a policy counts them, made only if it does: not every id column can be aligned."""
    found = canonical(ids, duplicates="first")
    yield from found.at(found.rows)


def _said(name: object) -> tuple[str, str]:
    """A name and its type: a column 1 is not a column "1"."""
    plain = name.item() if isinstance(name, np.generic) else name
    return str(plain), type(plain).__name__


def _place(name: object) -> tuple[bool, int, tuple[str, str]]:
    """What names are sorted by: the same at all clients that have the same names."""
    number = int(name) if isinstance(name, int | np.integer) else None
    return number is None, number or 0, _said(name)

"""Entity alignment of tables: `align` brings the parties' tables into one common row order, by PSI.

Takes part: the label party and every other party, each with an id column. Who learns what:
`vfl.alignment.roles`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

import pandas as pd

from protocols.errors import ConfigError, marked
from protocols.federation import Federation
from protocols.party import Party, Role
from protocols.progress import bar
from protocols.psi.choose import Protocol, check_protocol
from protocols.psi.id_columns import InTable
from protocols.psi.ids import Duplicates, Normalise, check_rules
from protocols.psi.risk import guessable
from protocols.wire.ledger import Ledger
from vfl.alignment.program import align_ids
from vfl.alignment.roles import (
    Aligned,
    AlignmentReport,
    Id,
    Reveal,
    align_feature,
    align_label,
    feature_parties,
    id_columns,
    learns_rows,
    read_ids,
    report,
)

if TYPE_CHECKING:
    from protocols.service.caller import Connected


@dataclass(frozen=True, eq=False)
class Alignment:
    """The parties' tables with the common rows only, in one order; of the parties that learnt which."""

    tables: dict[str, pd.DataFrame] = field(repr=False)  # row i is of the same id at every party
    report: AlignmentReport
    ledger: Ledger
    run: str = ""  # over a network: which one it was; each party keeps its own rows under this name


def align(
    data: Mapping[str, pd.DataFrame] | Federation,
    *,
    id: Id | Mapping[str, Id],
    label_party: str,
    duplicates: Duplicates = "error",
    normalise: Normalise = (),
    reveal: Reveal = "all",
    protocol: Protocol = "auto",
    cache: str | Path | None = None,
    parties: Sequence[str] | None = None,
) -> Alignment:
    """Bring the parties' tables into one common row order, by private set intersection.

    id: the id column, or a list of columns that make an id together; or {party: its id column or columns}.
    duplicates: whether a repeated id is an error, its first row stands for it, or ("many") all its rows stay
    and the row that another party has of that id is repeated beside them, as `pandas.merge` does. normalise:
    what is done to all ids before they are compared, any of "strip", "casefold" and "digits" (see
    `protocols.psi.ids.canonical`). reveal: who learns which ids are common, "all", "label-party" alone, or
    nobody ("size": everybody learns how many). protocol: of two parties, "ecdh", "kkrt", or "auto", which
    takes the second where both have several hundred thousand ids and let it be taken; or "unbalanced", for
    few ids again and again against many, of which the work is done once; three and more have one of their
    own. A party that serves takes part in all but "ecdh" only where its policy names them: docs/guides/psi.md
    says what each costs against a peer that cheats. cache: for "unbalanced", a folder in which each party
    keeps what it needs again, in a store of its own; without it nothing is kept.
    parties: who takes part, by default all. Columns and index labels stay as they are. Estimators align by
    themselves.

    Over a network (`Federation.connect`) this party's table alone comes back; `id` is this party's column or
    columns, the others name theirs in their configuration, and each writes its rows with `vfl psi export`.

    Raises ConfigError for names that fit no party, DataError for an id column that is missing or cannot be
    used, AlignmentError for ids of different types and where no id is at every party.
    """
    if reveal not in get_args(Reveal):
        raise ConfigError(f"reveal={reveal!r} should be one of {', '.join(get_args(Reveal))}")
    federation = Federation.of(data)
    taking = tuple(parties) if parties is not None else federation.parties
    features = feature_parties(taking, label_party)
    check_protocol(protocol, reveal == "size", len(taking))
    if cache is not None and protocol != "unbalanced":
        raise ConfigError(f'cache is for protocol="unbalanced", got protocol={protocol!r}; leave it out')
    if not isinstance(federation, Federation):
        if cache is not None:
            raise ConfigError("over a network each party keeps its cache in its own store; leave cache out")
        rules = check_rules(normalise)
        how = {"duplicates": duplicates, "normalise": rules, "reveal": reveal, "protocol": protocol}
        return _align_connected(federation, taking, id, label_party, how)
    names = id_columns(id, taking)
    ids = {p: read_ids(federation, p, names[p], duplicates, normalise, "align") for p in taking}

    def role(party: str) -> Role:
        own, store = ids[party], None if cache is None else Path(cache) / f"{quote(party, safe='')}-store"

        async def aligning(me: Party) -> Aligned:
            async with me.within("align") as at:
                if party == label_party:
                    return await align_label(at, features, own, reveal=reveal, protocol=protocol, store=store)
                return await align_feature(
                    at, label_party, features, own, reveal=reveal, protocol=protocol, store=store
                )

        return aligning

    with bar("align") as on_progress:
        run = federation.run({party: role(party) for party in taking}, on_progress=on_progress)
    risks = {party: guessable(found) for party, found in ids.items()}
    told = report(label_party, run.results, taking, reveal, risks)
    know = [party for party in taking if learns_rows(party, label_party, reveal)]
    tables = {party: federation[party].iloc[run.results[party].rows] for party in know}
    return Alignment(tables, told, run.ledger)


def _align_connected(
    federation: Connected, parties: Sequence[str], id: object, label_party: str, how: Mapping[str, Any]
) -> Alignment:
    if not isinstance(id, str | list | tuple):
        raise ConfigError(
            "over a network id names this party's own column, or columns; the others name theirs"
        )
    me, names = federation.me, [id] if isinstance(id, str) else id
    if federation.data is None:
        raise ConfigError(f"{me} has no table; every party of an alignment brings ids")
    with marked(me, "align"):
        column = InTable(federation.data, names)
    told, own, run = align_ids(federation, parties, column, label_party, how)
    known = learns_rows(me, label_party, how["reveal"])
    return Alignment({me: federation.data.iloc[own.rows]} if known else {}, told, run.ledger, run.job)
